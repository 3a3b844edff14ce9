// The molecule in 3D: choose a model, play or pause, move through its frames. Everything it needs is in the page.
(function () {
  "use strict";
  const stage = document.getElementById("stage");
  if (!stage) return;
  const section = document.getElementById("molecule-body");
  const notice = document.getElementById("molecule-notice");

  // 3Dmol.js throws and logs where WebGL is off, so it is not started at all without it.
  const probe = document.createElement("canvas");
  const webgl = probe.getContext("webgl2") || probe.getContext("webgl");
  if (!webgl || !window.$3Dmol) return;
  const release = webgl.getExtension("WEBGL_lose_context");
  if (release) release.loseContext();
  notice.hidden = true;
  section.hidden = false;

  const models = JSON.parse(document.getElementById("trajectories").textContent);
  const slider = document.getElementById("frame");
  const play = document.getElementById("play");
  const label = document.getElementById("frame-label");
  const viewer = window.$3Dmol.createViewer(stage, { backgroundAlpha: 0 });
  let frames = 1;
  let comments = [];
  let timer = null;

  function parse(text) {
    const lines = text.split("\n");
    const found = [];
    for (let at = 0; at < lines.length; ) {
      const atoms = parseInt(lines[at], 10);
      if (!(atoms > 0)) break;
      found.push((lines[at + 1] || "").trim());
      at += atoms + 2;
    }
    return found;
  }

  function show(index) {
    viewer.setFrame(index).then(function () { viewer.render(); });
    const comment = comments[index] ? " · " + comments[index].slice(0, 60) : "";
    label.textContent = "frame " + (index + 1) + " of " + frames + comment;
    slider.value = index;
  }

  function pause() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  }

  function start() {
    play.textContent = "Pause";
    timer = setInterval(function () { show((Number(slider.value) + 1) % frames); }, 50);
  }

  function choose(name) {
    pause();
    viewer.clear();
    viewer.addModelsAsFrames(models[name], "xyz");
    viewer.setStyle({}, { stick: { radius: 0.12 }, sphere: { scale: 0.26 } });
    comments = parse(models[name]);
    frames = Math.max(comments.length, 1);
    slider.max = frames - 1;
    play.disabled = frames < 2;
    viewer.zoomTo();
    viewer.zoom(1.5);
    show(0);
  }

  play.addEventListener("click", function () { if (timer === null) start(); else pause(); });
  slider.addEventListener("input", function () { pause(); show(Number(slider.value)); });
  document.querySelectorAll("input[name=model]").forEach(function (radio) {
    radio.addEventListener("change", function () { choose(radio.value); });
    if (radio.checked) choose(radio.value);
  });
  window.addEventListener("resize", function () { viewer.resize(); });
})();
