"""One model of one package, timed on demand: ``peers.py`` starts this file in the package's own environment.

    python peer_models.py MODEL STRUCTURES.npz [WEIGHTS.npz]

Answers each line of its standard input with one line of JSON: ``info``; ``save FILE`` (weights, as published); ``forces CASE
FILE``; ``time CASE SECONDS`` (CPU milliseconds per call, repeated for so long). Cases: names in STRUCTURES for energy and
forces, ``train:NAME`` for a step of AdamW on random energies and forces. One thread, float32. Peers get their graph ready
made (TorchMD-Net searches neighbours itself); Forcewell's time includes its own search.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))  # environments of the peers hold no Forcewell
from forcewell.peers import ET, MODELS, Structure, training_step


def forcewell(weights: str | None, small: bool) -> tuple[torch.nn.Module, float, Callable]:
    """Forcewell's Equivariant Transformer: TorchMD-Net's weights, or the packaged small model."""
    from forcewell.batch import Batch
    from forcewell.checkpoint import load
    from forcewell.fused import Fused
    from forcewell.nn import equivariant_transformer, heads
    from forcewell.potential import Potential
    from forcewell.process import keep_memory
    from forcewell.system import Block

    keep_memory()  # as every Forcewell command does
    if small:
        model = load("forcewell-small")
    else:
        model = Potential({"encoder": {"name": "equivariant-transformer"}})
        tensors = {name: torch.from_numpy(value) for name, value in np.load(weights or "").items()}
        for prefix, module, read in (
            ("representation_model.", model.encoder, lambda part: equivariant_transformer.from_torchmd(part, ET["num_heads"])),
            ("output_model.output_network.", model.head, heads.from_torchmd),
        ):
            part = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
            module.load_state_dict(read(part))
        for block in model.head.blocks:  # lengths of vectors as sharp as TorchMD-Net's: random weights make them tiny
            block.softening = heads.SHARP
    if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2":  # as PyTorch's own kernels then (peers.py --avx2)
        model._fused = Fused(model.encoder, model.head, 8)

    def call(s: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        batch = Batch.from_block(Block(s.counts.numpy(), {"numbers": s.numbers.numpy(), "positions": s.positions.numpy()}))
        found = model(batch, create_graph=model.training)
        return found.energy, found.forces

    return model, model.cutoff, call


def build(name: str, weights: str | None) -> tuple[torch.nn.Module, float, Callable]:
    """Model, cutoff in Å and its energies and forces of a Structure."""
    if name in MODELS:
        return MODELS[name][1]()
    return forcewell(weights, small=name == "forcewell-small")


def main() -> None:
    """Builds the model and answers until the input ends."""
    out, sys.stdout = os.fdopen(os.dup(1), "w"), sys.stderr  # packages print what they like; the answers have their own way out
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, cutoff, call = build(sys.argv[1], sys.argv[3] if len(sys.argv) > 3 else None)
    arrays = np.load(sys.argv[2])
    structures: dict[str, Structure] = {}
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-6)

    def structure(name: str) -> Structure:
        if name not in structures:
            structures[name] = Structure(*(arrays[f"{name}/{part}"] for part in ("numbers", "positions", "counts")), cutoff)
        return structures[name]

    def evaluate(case: str) -> None:
        if case.startswith("train:"):
            training_step(call, structure(case.removeprefix("train:")), optimiser)
        else:
            call(structure(case))

    for line in sys.stdin:
        verb, *words = line.split()
        answer: dict[str, Any] = {}
        if verb == "info":
            answer = {"parameters": sum(p.numel() for p in model.parameters()), "cutoff": cutoff, "torch": torch.__version__}
            answer["path"] = str(getattr(model, "path", "PyTorch, eager"))
            if os.environ.get("ATEN_CPU_CAPABILITY") == "avx2" and getattr(model, "_fused", None) is not None:
                answer["path"] = "compiled kernels, AVX2"
        elif verb == "save":
            np.savez(words[0], **{name: value.numpy() for name, value in model.state_dict().items()})
        elif verb == "forces":
            np.save(words[1], call(structure(words[0]))[1].detach().numpy())
        elif verb == "time":
            model.train(words[0].startswith("train:"))
            began, calls = time.process_time(), 0
            while calls == 0 or time.process_time() - began < float(words[1]):
                evaluate(words[0])
                calls += 1
            answer = {"ms": (time.process_time() - began) / calls * 1e3, "calls": calls}
        print(json.dumps(answer), file=out, flush=True)


if __name__ == "__main__":
    main()
