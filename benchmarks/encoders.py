"""Steps of encoders without kernels of their own: PyTorch beside the compiled step, in turns in one process.

Usage: .venv/bin/python benchmarks/encoders.py ENCODER [--size small|full] [--layers 1] [--threads 1] [--rounds 5] [--plain] [--forces 1]
Sizes: small is that of the recipes for two cores (wang-...-small, gao-forcefield-small), full the published one. A training step on
forces of 16 QM7-X molecules; with --forces N, energies and forces of N aspirins, as in molecular dynamics, neighbours included.
CPU milliseconds, the least of the rounds. Compiling takes minutes, and PyTorch keeps what it compiled: set TORCHINDUCTOR_CACHE_DIR to an
empty folder to have it measured. --plain: PyTorch alone. The Equivariant Transformer is measured as where its kernels are not built.
"""

import argparse
import resource
import time
from collections.abc import Callable
from importlib import resources

import numpy as np
import torch
from step import aspirin, least
from torch.autograd.graph import saved_tensors_hooks

import forcewell.potential as potential_module
from forcewell.batch import Batch
from forcewell.potential import Potential
from forcewell.process import keep_memory
from forcewell.store import open_data
from forcewell.traced import CompiledStep, complete, lists_of

SMALL = {
    "equivariant-transformer": {"channels": 64, "layers": 3, "heads": 4, "radial": 32},
    "schnet": {"channels": 64, "layers": 3},
    "egnn": {"channels": 64, "layers": 3},
    "se3-transformer": {"channels": 32, "layers": 2, "degrees": 2},
    "gemnet-t": {"channels": 32, "layers": 2},
}


def cpu_seconds() -> float:
    """Of this process and its children that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def megabytes_kept(function: Callable[[], object]) -> float:
    """Memory of the tensors that a training step keeps for its backward pass, each storage once."""
    seen: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        function()
    return sum(seen.values()) / 1e6


def batch_for(given: argparse.Namespace) -> Batch:
    """Molecules of the training step, or aspirins."""
    if given.forces:
        return Batch.from_systems([aspirin()] * given.forces)
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        mixed = open_data(folder / "qm7x_hand.npz")
    return Batch.from_block(mixed.block(np.random.default_rng(0).permutation(len(mixed))[:16]))


def paths(potential: Potential, compiled: CompiledStep, batch: Batch, training: bool) -> tuple[Callable[[], list], Callable[[], list]]:
    """The step by PyTorch and the compiled one; each gives forces and, when training, gradients."""
    parameters = list(potential.parameters())

    def backward(forces: torch.Tensor | None) -> list[torch.Tensor]:
        assert forces is not None
        if not training:
            return [forces]
        found = torch.autograd.grad(((forces - batch.targets.forces) ** 2).mean(), parameters, materialize_grads=True)
        return [forces, torch.cat([part.reshape(-1) for part in found])]

    def plain() -> list[torch.Tensor]:
        return backward(potential(batch, create_graph=training).forces)

    def fast() -> list[torch.Tensor]:
        return backward(compiled(batch, lists_of(batch, potential.cutoff))["forces"])

    return plain, fast


def main() -> None:
    """Prints one line for each path."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("encoder", choices=SMALL)
    parser.add_argument("--size", choices=("small", "full"), default="small")
    parser.add_argument("--layers", type=int, help="other than the size's: what does compiling cost for each?")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--plain", action="store_true")
    parser.add_argument("--forces", type=int, default=0, metavar="N")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    keep_memory()
    torch.manual_seed(0)
    potential_module.instructions = lambda *_, **__: 0
    settings = SMALL[given.encoder] if given.size == "small" else {}
    potential = Potential({"encoder": {"name": given.encoder, **settings, **({"layers": given.layers} if given.layers else {})}})
    potential.requires_grad_(not given.forces)
    batch, what = batch_for(given), "energy + forces" if given.forces else "training step"
    if given.encoder == "gemnet-t":
        potential.encoder.fit_scales(batch)  # type: ignore[operator]
    lists = lists_of(batch, potential.cutoff)
    shape = lists.shape.for_replicas(complete(batch)) if given.forces else lists.shape.with_room()
    compiled = CompiledStep(potential, shape, {"forces": True}, training=not given.forces)
    plain, fast = paths(potential, compiled, batch, not given.forces)

    size = f"{given.encoder}, {given.size}: {sum(p.numel() for p in potential.parameters()):,} parameters, {given.threads} thread(s)"
    print(f"{size}; {tuple(lists.shape)} atoms, molecules, neighbours, edges, padded to {tuple(shape)}", flush=True)
    if given.plain:
        (slow,) = least([plain], given.rounds)
        print(f"{what} {slow:.1f} ms", flush=True)
        return
    began, used = time.monotonic(), cpu_seconds()
    found = fast()
    print(f"compiled in {time.monotonic() - began:.0f} s, {cpu_seconds() - used:.0f} s of CPU time", flush=True)
    errors = [float((a - b).detach().abs().max() / b.detach().abs().max()) for a, b in zip(found, plain(), strict=True)]
    print("differences: " + ", ".join(f"{name} {error:.1e}" for name, error in zip(("forces", "gradients"), errors, strict=False)))
    kept = [megabytes_kept(function) for function in (plain, fast)]
    slow, quick = least([plain, fast], given.rounds)
    print(f"{what}: PyTorch {slow:.1f} ms, compiled {quick:.1f} ms, {slow / quick:.2f} times as fast")
    if not given.forces:
        print(f"kept for backward: PyTorch {kept[0]:.0f} MB, compiled {kept[1]:.0f} MB")


if __name__ == "__main__":
    main()
