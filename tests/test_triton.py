"""The Triton kernels against the PyTorch modules, on the CPU through Triton's interpreter.

The interpreter takes about 0.1 s for each atom, head, layer and kernel, hence small systems; a program's shape depends on
channels per head and radial functions alone, and those have the sizes of real models.
"""

import copy
import importlib
import json
import sys
from pathlib import Path
from typing import Any

import ase
import ase.build
import pytest
import torch

from forcewell.batch import Batch
from forcewell.graph import neighbours
from forcewell.nn import equivariant_transformer, fused_messages
from forcewell.nn.equivariant_transformer import AttentionLayer
from forcewell.nn.fused_messages import FusedMessages
from forcewell.potential import Potential
from forcewell.static_batch import StaticBatch
from forcewell.system import System
from forcewell.testing import batch_of, small_potential

triton = pytest.importorskip("triton")


@pytest.fixture(autouse=True, scope="module")
def interpreter() -> Any:
    """Kernels run as NumPy programs. Helpers are not prepared anew at each of some thousand calls, which takes 8 ms."""
    from triton.runtime import interpreter

    prepared: set[str] = set()

    def call(self: Any, *arguments: Any, **keywords: Any) -> Any:
        name = self.fn.__module__
        if name.startswith("triton.") and name not in prepared:
            interpreter._patch_lang(self.fn)
            prepared.add(name)
        return self.rewrite()(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "__call__", call)
        yield


def crystal() -> Batch:
    """Two atoms with more neighbours than a program takes at once, images of themselves among them."""
    box = ase.Atoms("CO", cell=[[3.1, 0, 0], [0.6, 3.4, 0], [-0.5, 0.7, 6.1]], scaled_positions=[[0, 0, 0], [0.4, 0.3, 0.3]], pbc=True)
    return Batch.from_systems([System.from_atoms(box)])


@pytest.mark.parametrize(("channels", "heads", "radial", "carried"), [(64, 2, 64, True), (16, 1, 32, False)])
def test_messages_and_all_derivatives(channels: int, heads: int, radial: int, carried: bool) -> None:
    """Values, gradients by every input, and gradients of random sums of these, in float64 by PyTorch and float32 by kernels."""
    batch = crystal()
    generator = torch.Generator().manual_seed(4)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    model = small_potential("equivariant-transformer", channels=channels, heads=heads, radial=radial).encoder
    N = len(batch.numbers)
    node, vectors, shifts = draw(N, 5 * channels), draw(N, 3, channels), draw(3)
    towards = [draw(N, channels), draw(N, 3, channels), draw(N, 5 * channels), draw(N, 3, channels), draw(N, 3)]

    def results(fused: bool, dtype: torch.dtype) -> list[torch.Tensor]:
        encoder: Any = copy.deepcopy(model).to(dtype)
        layer: AttentionLayer = encoder.layers[1]
        positions = batch.positions.to(dtype) + shifts.to(dtype)
        inputs = [part.to(dtype).requires_grad_(True) for part in (node, vectors, positions)]
        moved = batch.to(dtype=dtype)
        moved.positions = inputs[2]
        geometry = encoder._geometry(moved)
        v = inputs[1] if carried else None
        if fused:
            near = neighbours(moved, encoder.cutoff)
            kernels = FusedMessages.of(near, encoder.basis, heads)
            sums = kernels(inputs[0], v, layer.filters.weight, layer.filters.bias)
        else:
            sums = layer._messages(*inputs[0].split([channels, 4 * channels], dim=1), v, geometry)
        total = sum((part * weight.to(dtype)).sum() for part, weight in zip(sums, towards, strict=False))
        used = inputs if carried else [inputs[0], inputs[2]]
        parameters = [layer.filters.weight, layer.filters.bias]
        first = torch.autograd.grad(total, [*used, *parameters], retain_graph=True)
        again = torch.autograd.grad(total, used, create_graph=True)
        chosen = towards[2:] if carried else [towards[2], towards[4]]
        second = sum((part * weight.to(dtype)).sum() for part, weight in zip(again, chosen, strict=True))
        return [*sums, *first, *torch.autograd.grad(second, [*used, *parameters])]

    right, found, usual = results(False, torch.float64), results(True, torch.float32), results(False, torch.float32)
    assert len(right) == (12 if carried else 10)

    def worst(values: list[torch.Tensor]) -> list[float]:
        return [float((a.detach().double() - b).abs().max() / b.detach().abs().max()) for a, b in zip(values, right, strict=True)]

    print("kernels", *(f"{error:.0e}" for error in worst(found)), "PyTorch", *(f"{error:.0e}" for error in worst(usual)))
    assert all(error < max(2e-6, 5 * plain) for error, plain in zip(worst(found), worst(usual), strict=True))


def in_float64(potential: Potential) -> Potential:
    exact = Potential(potential.config).double()
    exact.load_state_dict({name: value.double() for name, value in potential.state_dict().items()})
    return exact


def test_forces_and_training_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = crystal()
    potential = small_potential("equivariant-transformer", channels=48, heads=3)
    exact = in_float64(potential)
    towards = torch.randn(len(batch.numbers), 3, generator=torch.Generator().manual_seed(2))

    def learn(model: Potential, given: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        out = model(given, create_graph=True)
        (((out.forces - towards.to(out.forces)) ** 2).sum() + out.energy.sum()).backward()
        return out.forces.detach().double(), {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None}

    right, right_gradients = learn(exact, batch.to(dtype=torch.float64))
    monkeypatch.setattr(Potential, "kernels", lambda *_: None)
    monkeypatch.setattr(equivariant_transformer, "supported", lambda *_: True)
    forces, gradients = learn(potential, batch)
    error = float((forces - right).abs().max() / right.abs().max())
    off = {n: float((gradients[n] - g).abs().max() / g.abs().max()) for n, g in right_gradients.items() if float(g.abs().max()) > 0}
    name = max(off, key=lambda n: off[n])
    print(f"forces {error:.1e}, gradient {off[name]:.1e} ({name})")
    assert error < 1e-5 and off[name] < 5e-5
    assert set(gradients) == set(right_gradients)


def test_forces_in_static_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in molecular dynamics: lists with room to spare, and frozen weights, whose gradients are not written pair by pair."""
    asked: list[bool] = []
    reverse = FusedMessages.reverse
    monkeypatch.setattr(FusedMessages, "reverse", lambda self, *given: asked.append(given[-1]) or reverse(self, *given))
    monkeypatch.setattr(Potential, "kernels", lambda *_: None)
    potential = small_potential("equivariant-transformer", channels=16, heads=1, layers=2)
    batch = batch_of("water", "methanol").to(dtype=torch.float32)
    right = in_float64(potential)(batch.to(dtype=torch.float64)).forces
    monkeypatch.setattr(equivariant_transformer, "supported", lambda *_: True)
    static = StaticBatch.of(batch, potential.cutoff)
    assert static is not None and static.capacity > int(batch.counts.max()) - 1
    for frozen in (False, True):
        forces = potential.requires_grad_(not frozen)(static).forces
        error = float((forces - right).abs().max() / right.abs().max())
        print(f"forces {error:.1e}")
        assert error < 1e-5 and asked == [not frozen] * 2
        asked.clear()


def test_precision_of_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 changes forces a little and energies less; TF32 is a matter of the GPU alone, and is set back."""
    batch = Batch.from_systems([System.from_atoms(ase.build.molecule("CH3CH2OH"))])
    potential = small_potential("equivariant-transformer")
    monkeypatch.setattr(Potential, "kernels", lambda *_: None)
    found: dict[str, Any] = {}
    seen: list[tuple[str, str]] = []
    original = type(potential.encoder)._geometry

    def spy(self: Any, given: Batch) -> Any:
        geometry = original(self, given)
        seen.append((torch.backends.cuda.matmul.fp32_precision, FusedMessages.of(neighbours(given, 5.0), self.basis, 4).products))
        return geometry

    monkeypatch.setattr(type(potential.encoder), "_geometry", spy)
    before = torch.backends.cuda.matmul.fp32_precision
    for precision in ("float32", "tf32", "bfloat16"):
        potential.precision = precision
        found[precision] = potential(batch)
        assert torch.backends.cuda.matmul.fp32_precision == before
        assert found[precision].energy.dtype == found[precision].forces.dtype == torch.float32
    assert seen == [(before, "tf32x3"), ("tf32", "tf32"), (before, "tf32")]
    right = found["float32"].forces
    assert torch.equal(found["tf32"].forces, right)
    error = float((found["bfloat16"].forces - right).abs().max() / right.abs().max())
    print(f"bfloat16: forces {error:.1e}")
    assert 1e-4 < error < 0.1


def test_benchmark_of_the_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """benchmarks/gpu.py on the CPU: the whole script, with the kernels in the interpreter."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    script: Any = importlib.import_module("gpu")
    if not torch.cuda.is_available():
        monkeypatch.setattr(sys, "argv", ["gpu.py"])
        with pytest.raises(SystemExit, match="no NVIDIA GPU here"):
            script.main()
    launches = []
    run = FusedMessages.forward
    monkeypatch.setattr(FusedMessages, "forward", lambda self, *given: launches.append(1) or run(self, *given))
    monkeypatch.setattr(equivariant_transformer, "supported", lambda channels, heads, basis, device: basis.means.dtype == torch.float32)
    # Timing repeats calls of ten steps six times, and a step takes a second in the interpreter; one shows that the call works.
    monkeypatch.setattr(script, "CALL", 1)
    monkeypatch.setattr(script, "seconds", lambda function, device, calls: function() or 1.0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--tiny", "--precision", "bfloat16", "--json", str(tmp_path / "rows.json")])
    script.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert len(launches) > 8 and rows["force error, float32"] < 1e-5 < 1e-4 < rows["force error, bfloat16"] < 0.1
    assert rows["training with forces, batch 1, molecules/s"] == 1.0
    printed = capsys.readouterr().out
    assert all(name in printed for name in rows)
    monkeypatch.setattr(script, "errors", lambda *_: (1e-7, 1e-6))
    monkeypatch.setattr(script, "md_step", lambda *_: [][0])  # one failure takes no other row along
    script.main()
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert rows["evaluations/s, batch of 1"] == "failed: IndexError: list index out of range"
    assert rows["training with forces, batch 1, molecules/s"] == 1.0
    monkeypatch.setattr(script, "errors", lambda *_: (2e-5, 1e-6))
    with pytest.raises(SystemExit, match="not right, so nothing is measured"):
        script.main()


def test_where_kernels_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused_messages, "_triton_runs", lambda: True)
    gpu, cpu = torch.device("cuda"), torch.device("cpu")

    def used(device: torch.device = gpu, dtype: torch.dtype = torch.float32, **settings: Any) -> bool:
        encoder: Any = small_potential("equivariant-transformer", **settings).encoder
        return encoder.to(dtype).fused(device)

    assert used(heads=2) and used(channels=256, heads=8, radial=64) and not used(channels=256, heads=4, radial=64)
    assert not used(cpu, heads=2) and not used(dtype=torch.float64, heads=2)
    assert not used(channels=24, heads=2) and not used(heads=2, radial=20)
    assert not used(heads=2, smooth_cutoff=False) and not used(heads=2, lower_cutoff=0.5) and not used(heads=2, trainable_radial=True)
    monkeypatch.setattr(Potential, "device", gpu)
    potential = small_potential("equivariant-transformer", heads=2)
    assert potential.path == "Triton kernels on cuda, float32"
    potential.precision = "tf32"
    assert potential.path == "Triton kernels on cuda, float32 (matrix products in tf32)"
    assert small_potential("schnet").path == "PyTorch on cuda, float32"
    monkeypatch.setattr(fused_messages, "_triton_runs", lambda: False)
    assert not used(heads=2)


def test_what_triton_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Itself, a C compiler and Python's headers."""
    runs = fused_messages._triton_runs.__wrapped__
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(Path, "is_file", lambda self: self.name == "Python.h")
    monkeypatch.setattr(fused_messages.shutil, "which", lambda name: name if name == "clang" else None)
    assert runs()
    for module, name in ((fused_messages.importlib.util, "find_spec"), (fused_messages.shutil, "which"), (Path, "is_file")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, lambda _: None)
            assert not runs()
