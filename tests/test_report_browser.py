"""The report's page in a real browser: opened from disk, wide and narrow, with and without WebGL.

Chromium is driven over its own DevTools pipe (file descriptors 3 and 4, JSON messages ended by a zero byte): no driver,
no port, no further package.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from report_samples import sample_results

from forcewell.report import write_report

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)
FLAGS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--mute-audio", "--remote-debugging-pipe"),
]
WEBGL = {True: ["--use-angle=swiftshader", "--enable-unsafe-swiftshader"], False: ["--disable-3d-apis"]}
PATIENCE = 60.0  # seconds for any one answer: a loaded two-core machine starts Chromium in a few

if CHROMIUM is None and os.environ.get("FORCEWELL_REQUIRE_BROWSER") != "1":
    pytest.skip(f"no browser: none of {', '.join(NAMES)} is on PATH", allow_module_level=True)


class Browser:
    """One page of one headless Chromium; collects what the page logs and what it asks the network for."""

    def __init__(self, profile: Path, *, webgl: bool) -> None:
        assert CHROMIUM is not None, f"FORCEWELL_REQUIRE_BROWSER is set, but none of {', '.join(NAMES)} is on PATH"
        commands, self.write = os.pipe()
        self.read, answers = os.pipe()
        # The shell puts the two pipes where Chromium looks for them, descriptors 3 and 4.
        line = ["bash", "-c", f'exec "$@" 3<&{commands} 4>&{answers}', "bash", CHROMIUM, *FLAGS, *WEBGL[webgl]]
        line += [f"--user-data-dir={profile}", "about:blank"]
        self.log = (profile.parent / f"{profile.name}.log").open("wb")
        self.process = subprocess.Popen(line, pass_fds=(commands, answers), stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log)
        os.close(commands)
        os.close(answers)
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send one command and wait for its answer."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]
            self.events.append(answer)

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + PATIENCE
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.read], [], [], max(0.0, until - time.monotonic()))
            assert ready, f"Chromium said nothing for {PATIENCE:.0f} s"
            received = os.read(self.read, 1 << 16)
            assert received, f"Chromium ended; its log is {self.log.name}"
            self.buffer += received
        message, self.buffer = self.buffer.split(b"\0", 1)
        return json.loads(message)

    def open(self, page: Path, width: int, *, dark: bool = False) -> None:
        """Load a page from disk at a width in pixels and wait until it has settled."""
        self.events.clear()
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600)
        self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}])
        self.call("Page.navigate", url=page.resolve().as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, f"{script}: {answer['exceptionDetails']}"
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for a JavaScript condition to hold."""
        stop = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < stop, f"never true: {condition}"
            time.sleep(0.05)

    def problems(self) -> list[str]:
        """Errors that the page logged, exceptions it did not catch, and addresses it asked for beyond its own file."""
        self.run("new Promise(done => setTimeout(done, 100))")
        found = []
        for event in self.events:
            method, parameters = event.get("method"), event.get("params", {})
            if method == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                found.append(details.get("exception", {}).get("description", details["text"]))
            elif method == "Runtime.consoleAPICalled" and parameters["type"] in ("error", "assert"):
                found.append(json.dumps(parameters["args"])[:500])
            elif method == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(parameters["entry"]["text"])
            elif method == "Network.requestWillBeSent" and not parameters["request"]["url"].startswith(("file:", "data:", "blob:")):
                found.append(f"asked the network for {parameters['request']['url']}")
        return found

    def screenshot(self, path: Path, *, whole: bool = True) -> None:
        """The page as a PNG."""
        picture = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def close(self) -> None:
        os.close(self.write)  # Chromium ends when its pipe does
        try:
            self.process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.read)
        self.log.close()


@pytest.fixture(scope="module", params=[True, False], ids=["webgl", "no-webgl"])
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Browser, bool]]:
    opened = Browser(tmp_path_factory.mktemp("browser") / "profile", webgl=request.param)
    yield opened, request.param
    opened.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("report")
    write_report(sample_results(), directory)
    return directory / "report.html"


@pytest.mark.parametrize("width", [1280, 360])
def test_page_opens_from_disk_without_errors_or_overflow(browser: tuple[Browser, bool], report: Path, width: int) -> None:
    page, webgl = browser
    page.open(report, width)
    assert page.run("document.querySelector('.verdict').textContent") == "Pre-training helped"
    if webgl:
        page.until("document.getElementById('frame-label').textContent.startsWith('frame 1 of 40')")
    widest = page.run("document.documentElement.scrollWidth")
    print(f"{width} px wide, WebGL {webgl}: content {widest} px")
    assert widest <= width
    # Every card stays inside the window, too: overflow hidden by the browser is still overflow.
    assert page.run("Math.max(...[...document.querySelectorAll('.card, .scroll, pre')].map(e => e.getBoundingClientRect().right))") <= width
    assert page.run("[...document.querySelectorAll('svg.plot')].every(e => e.getBoundingClientRect().width > 200)")
    assert page.problems() == []


def test_molecule_plays_where_there_is_webgl_and_a_notice_stands_in_elsewhere(browser: tuple[Browser, bool], report: Path) -> None:
    page, webgl = browser
    page.open(report, 400)
    assert page.run("!document.getElementById('molecule-notice').hidden") is not webgl
    assert page.run("!document.getElementById('molecule-body').hidden") is webgl
    if not webgl:
        return
    page.run("document.getElementById('play').click()")
    page.until("Number(document.getElementById('frame').value) >= 3")
    page.run("document.getElementById('play').click()")
    stopped = page.run("document.getElementById('frame').value")
    page.run("new Promise(done => setTimeout(done, 300))")
    assert page.run("document.getElementById('frame').value") == stopped
    page.run("document.querySelector('input[value=\"et-oreo\"]').click()")
    page.until("document.getElementById('frame-label').textContent.startsWith('frame 1 of 40')")
    # The picture of the molecule itself changes when the slider moves: the frames are really drawn.
    corner = page.run("(r => ({x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height}))(stage.getBoundingClientRect())")
    drawn = []
    for frame in (0, 20):
        page.run(f"(e => {{ e.value = {frame}; e.dispatchEvent(new Event('input')); }})(document.getElementById('frame'))")
        page.run("new Promise(done => setTimeout(done, 200))")
        drawn.append(page.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=corner | {"scale": 1})["data"])
    assert drawn[0] != drawn[1]
    assert page.problems() == []


def test_hostile_names_stay_text(browser: tuple[Browser, bool], tmp_path: Path) -> None:
    page, _ = browser
    evil = '</script><script>window.broken = 1</script><img src="x" onerror="window.broken = 2">&lt; $x$'
    results = sample_results()
    results["title"] = results["summary"][0] = results["settings"]["encoder"] = results["data"][0]["name"] = evil
    model = results["models"].pop("et-oreo")
    frames = model["trajectory"].split("\n")
    frames[1] = evil
    results["models"][evil] = model | {"label": evil, "trajectory": "\n".join(frames)}
    write_report(results, tmp_path)
    page.open(tmp_path / "report.html", 360)
    assert page.run("window.broken === undefined")
    assert page.run("document.querySelector('h1').textContent") == evil
    assert page.run("document.documentElement.scrollWidth") <= 360
    assert page.problems() == []


def test_the_check_sees_errors_and_overflow(browser: tuple[Browser, bool], tmp_path: Path) -> None:
    """The control: a page with each fault is caught, so a clean result above means something."""
    page, _ = browser
    faulty = tmp_path / "faulty.html"
    faulty.write_text("<div style='width:900px'>x</div><script src='http://127.0.0.1:9/x.js'></script><script>nothing.here()</script>")
    page.open(faulty, 360)
    found = page.problems()
    assert any("nothing is not defined" in line for line in found), found
    assert any("asked the network" in line for line in found), found
    assert page.run("document.documentElement.scrollWidth") > 360
