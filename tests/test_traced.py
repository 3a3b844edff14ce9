"""Compiled training steps: padding that changes nothing, the same numbers as the ordinary way, and a choice that is made once.

Traced graphs are run as they are here, or by PyTorch's operations after its compiler has differentiated them ("aot_eager"): all but the
code generator, with which a single small model takes minutes. What that makes is compared with the ordinary way in every run that uses it.
"""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import ethanol, killed_at, log, settings, succeed, weights, write_yaml

from forcewell import step_path, traced
from forcewell.batch import Batch
from forcewell.graph import neighbours, places_of
from forcewell.potential import Potential
from forcewell.step_path import Gain, StepPath
from forcewell.testing import batch_of, small_potential
from forcewell.traced import CompiledStep, Shape, lists_of, padded

OTHERS = ("schnet", "egnn", "se3-transformer", "gemnet-t")


def molecules(dtype: torch.dtype = torch.float64) -> Batch:
    return batch_of("water", "methanol", "water").to(dtype=dtype)


def room(batch: Batch, cutoff: float) -> Shape:
    return lists_of(batch, cutoff).shape.with_room()


def gradients(potential: Potential, outputs: list[torch.Tensor]) -> torch.Tensor:
    loss = torch.stack([(part**2).sum() for part in outputs]).sum()
    found = torch.autograd.grad(loss, list(potential.parameters()), allow_unused=True)
    return torch.cat([part.reshape(-1) for part in found if part is not None])


def relative(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).detach().abs().max() / right.detach().abs().max())


@pytest.mark.parametrize("name", OTHERS)
def test_padding_changes_nothing(name: str) -> None:
    """Energies, forces and the gradient of a loss on both, of batches padded by different amounts, without any tracing."""
    potential = small_potential(name, layers=1, electronic=True, levels=2).double()
    batch = molecules()
    batch.charge = torch.arange(len(batch)) - 1
    right = potential(batch, create_graph=True)
    expected = gradients(potential, [right.energy, right.forces])
    lists = lists_of(batch, potential.cutoff)
    for more in (Shape(1, 1, 0, 0), Shape(9, 3, 4, 26)):
        shape = Shape(*(a + b for a, b in zip(lists.shape, more, strict=True)))
        assert shape.holds(lists.shape)
        found = potential(padded(batch, lists, shape), create_graph=True)
        energy, forces = found.energy[: len(batch)], found.forces[: len(batch.numbers)]
        errors = [relative(energy, right.energy), relative(forces, right.forces)]
        errors.append(relative(gradients(potential, [energy, forces]), expected))
        print(f"{name}, {tuple(more)} more: energy, forces, gradients {errors}")
        assert max(errors) < 1e-12
        # What was added feels no force.
        assert float(found.forces[len(batch.numbers) :].detach().abs().max()) == 0.0


def test_padding_keeps_given_forces() -> None:
    """DeNS' input in static shapes: given for some atoms, and for none."""
    potential = small_potential("equivariant-transformer", layers=1, given_forces=True).double()
    batch, found = molecules(), []
    for given in (torch.randn(batch.positions.shape, generator=torch.Generator().manual_seed(0)).double(), batch.given_forces):
        batch.given_forces = given
        right = potential(batch, create_graph=True)
        lists = lists_of(batch, potential.cutoff)
        forces = potential(padded(batch, lists, room(batch, potential.cutoff)), create_graph=True).forces[: len(batch.numbers)]
        found.append(right.forces)
        assert relative(forces, right.forces) < 1e-12
    assert relative(*found) > 0.01  # the control: they do something


@pytest.mark.parametrize(
    ("name", "noise", "backend"), [*((name, False, None) for name in OTHERS[1:]), ("egnn", True, None), ("schnet", False, "aot_eager")]
)
def test_traced_steps_give_the_same_numbers(name: str, noise: bool, backend: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """In float32, for two batches of different sizes with one trace; forces, and the gradient of a noise head instead."""
    monkeypatch.setattr(traced, "BACKEND", backend)
    torch.manual_seed(1)
    potential = small_potential(name, layers=1, head={"noise": "gradient"} if noise else None)
    asked = {"forces": not noise, "noise": noise, "properties": False}
    first, second = molecules(torch.float32), batch_of("methanol").to(dtype=torch.float32)
    step = CompiledStep(potential, room(first, potential.cutoff), asked)
    worst = 0.0
    for batch in (first, second):
        right = potential(batch, create_graph=True, **asked)
        found = step(batch, lists_of(batch, potential.cutoff))
        pairs = [(value, getattr(right, part)) for part, value in found.items()]
        errors = [relative(*pair) for pair in pairs]
        errors.append(relative(gradients(potential, [a for a, _ in pairs]), gradients(potential, [b for _, b in pairs])))
        worst = max(worst, *errors)
    print(f"{name}, noise {noise}: {worst:.1e}")
    assert worst < 1e-5


@pytest.mark.parametrize("cutoff", [1.2, 5.0])
def test_both_directions_of_a_pair_follow_each_other(cutoff: float) -> None:
    near = neighbours(batch := molecules(), cutoff)
    places = places_of(near)
    vectors = near.vectors.flatten(0, 1)[places.place]
    sender = near.sender.reshape(-1)[places.place]
    receiver = places.place // near.mask.shape[1]
    assert len(places.place) == int(near.mask.sum()) > 4 and len(batch.numbers) == len(near.mask)
    assert torch.equal(vectors[::2], -vectors[1::2]) and torch.equal(sender[places.reverse], receiver)
    assert torch.equal(places.row[places.place], torch.arange(len(sender)))
    assert int((places.row == len(sender)).sum()) == near.mask.numel() - len(sender)


def test_a_choice_needs_a_long_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(step_path.GAINS, "schnet", Gain(2.0, 60.0, 30.0))
    monkeypatch.setattr(step_path, "has_compiler", lambda: True)
    potential = small_potential("schnet", layers=2)
    asked = {"forces": True, "noise": False, "properties": False}
    # 0.1 s for a step: 240 s are won back by 4,800 steps twice as fast.
    for steps, pays in ((2_000, False), (2_400, False), (20_000, True)):
        path = StepPath(potential, asked, steps)
        path.times = [(0.2, 0.1)] * 20
        path.largest = Shape(40, 4, 8, 100)
        found, _, words = path.plan(20)
        print(words)
        assert found is pays
    monkeypatch.setattr(step_path, "has_compiler", lambda: False)
    assert path.plan(20)[0] is False and "no C++ compiler" in path.plan(20)[2]
    # Those never ask: the Equivariant Transformer, short runs, another dtype, an encoder without a gain.
    never = [StepPath(small_potential("equivariant-transformer"), asked, 10**6), StepPath(potential, asked, 20)]
    never += [StepPath(small_potential("schnet").double(), asked, 10**6), StepPath(potential, asked, 10**6, "never")]
    monkeypatch.delitem(step_path.GAINS, "schnet")
    never.append(StepPath(potential, asked, 10**6))
    assert all(path.decided and path.shape is None for path in never)


def test_what_differs_is_not_used(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A compiler that fails, and one that gives wrong numbers: the ordinary way, said in one line."""
    batch = molecules(torch.float32)
    asked = {"forces": True, "noise": False, "properties": False}
    call = CompiledStep.__call__
    monkeypatch.setattr(traced, "BACKEND", None)

    def wrong(self: CompiledStep, *words: Any) -> dict[str, torch.Tensor]:
        return {name: value * 1.01 for name, value in call(self, *words).items()}

    def failing(self: CompiledStep, *words: Any) -> Any:
        raise RuntimeError("no such instruction\nand more")

    for replaced, said in ((wrong, "differ by"), (failing, "compiling failed (no such instruction)"), (call, "compiled in")):
        monkeypatch.setattr(CompiledStep, "__call__", replaced)
        potential = small_potential("schnet", layers=1)
        right = potential(batch, create_graph=True).forces
        path = potential.step_path = StepPath(potential, asked, 100, "always")
        path.decide(True, room(batch, potential.cutoff))
        assert relative(potential(batch, create_graph=True).forces, right) < 1e-5
        assert said in capsys.readouterr().out
        assert (path.shape is not None) == (replaced is call)


ALL = ("equivariant-transformer", *OTHERS)


def on_meta(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().to("meta").requires_grad_(tensor.requires_grad)


@pytest.mark.parametrize("name", ALL)
def test_a_training_step_never_waits_for_a_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a GPU captures, forward and backward, on PyTorch's meta device: there no value can be read and no shape can depend on one."""
    shapes: list[torch.Size] = []

    def played(function: Any, inputs: tuple[torch.Tensor, ...], allow_unused_input: bool) -> Any:
        assert allow_unused_input
        weights = list(potential.parameters())
        for ours, theirs in zip(inputs[-len(weights) :], weights, strict=True):  # the same memory, and leaves of its own
            assert ours.data_ptr() == theirs.data_ptr() and ours.is_leaf and ours is not theirs
        given = [on_meta(tensor) for tensor in inputs]
        step.potential = copy.deepcopy(potential).to("meta")  # its constants are no inputs
        outputs = function(*given)
        step.potential = potential
        variables = [tensor for tensor in given if tensor.requires_grad]
        assert len(variables) == len(weights)
        seeds = [torch.empty_like(part) for part in outputs]
        found = torch.autograd.grad(outputs, variables, seeds, allow_unused=True)
        shapes.extend(part.shape for part in found if part is not None)
        return function

    monkeypatch.setattr(traced, "has_graphs", lambda device: True)
    monkeypatch.setattr(traced, "capturing", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", played)
    potential = small_potential(name, layers=1, electronic=True, levels=2).double()
    batch = molecules()
    batch.charge = torch.arange(len(batch)) - 1
    step = CompiledStep(potential, room(batch, potential.cutoff), {"forces": True, "noise": False, "properties": False})
    right, found = potential(batch, create_graph=True), step(batch, lists_of(batch, potential.cutoff))
    error = relative(found["forces"], right.forces)
    print(f"{name}: {len(shapes)} gradients, forces {error:.1e}")
    assert error < 1e-12 and len(shapes) > 5


def test_each_shape_is_captured_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The branch for a GPU, its graphs played by functions: larger batches get shapes of their own, until there are enough."""
    made: list[int] = []

    def played(function: Any, inputs: tuple[torch.Tensor, ...], allow_unused_input: bool) -> Any:
        made.append(len(inputs[0]))
        return function

    for module in (traced, step_path):
        monkeypatch.setattr(module, "has_graphs", lambda device: True)
    monkeypatch.setattr(traced, "capturing", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "make_graphed_callables", played)
    monkeypatch.setattr(step_path, "BUCKETS", 2)
    potential = small_potential("equivariant-transformer", layers=1).double()
    path = StepPath(potential, {"forces": True, "noise": False, "properties": False}, 100)
    potential.step_path = path
    batches = [batch_of(*names) for names in (("water",), ("methanol", "water"), ("methanol",) * 4, ("methanol",) * 9)]
    assert not path.decided and potential(batches[0], create_graph=True).forces is not None
    path.times = [(0.1, 0.1)] * 20
    compiled, shape, words = path.plan(20)
    path.decide(compiled, shape)
    assert compiled and words == "training steps will be CUDA graphs"
    for batch, captured in zip([*batches, *batches], [1, 2, 2, 2, 2, 2, 2, 2], strict=True):
        found = potential(batch, create_graph=True).forces
        with monkeypatch.context() as patch:
            patch.setattr(potential, "step_path", None)
            error = relative(found, potential(batch, create_graph=True).forces)
        assert len(made) == captured and error < 1e-12
    print(made, capsys.readouterr().out)
    assert made[0] < made[1]


TRAINING = {"steps": 12, "batch_size": 4, "validate_every": 6, "log_every": 2, "save_every": 3}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Choices after six steps, graphs as traced; counts the steps that went through one."""
    calls: list[int] = []
    call = CompiledStep.__call__

    def counted(self: CompiledStep, *words: Any) -> dict[str, torch.Tensor]:
        calls.append(1)
        return call(self, *words)

    for module, name, value in ((traced, "BACKEND", None), (step_path, "LOOK", 6), (traced, "ROOM", 1.5)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(CompiledStep, "__call__", counted)
    return calls


def test_a_resumed_run_takes_the_same_path(tmp_path: Path, quick: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, stopped before and after the choice; what a run that never compiles ends with differs in rounding only."""
    encoder = {"name": "schnet", "channels": 16, "layers": 1, "filters": 16, "radial": 8, "cutoff": 4.0}
    tree = settings(str(ethanol(tmp_path / "ethanol.npz")), objectives="et-ore", training=TRAINING, model={"encoder": encoder})
    for name in ("always", "never"):
        hardware = {"accelerator": "cpu", "compile": name}
        config = write_yaml(tmp_path / f"{name}.yaml", {**tree, "hardware": hardware, "exclude": "none"})
        out = succeed("pretrain", config, "--out", tmp_path / name)
        assert ("training steps will be compiled" in out) == (name == "always")
        assert len(quick) == 7  # six steps after the choice, and one to compare
    ours, plain = (weights(tmp_path / name / "model.safetensors") for name in ("always", "never"))
    off = max(float((ours[name].double() - plain[name].double()).abs().max()) for name in ours)
    print(f"compiled and plain: weights within {off:.1e}")
    assert off < 1e-4
    for stop in (4, 9):
        run = tmp_path / f"stopped-{stop}"
        with killed_at(stop):
            succeed("pretrain", tmp_path / "always.yaml", "--out", run)
        succeed("pretrain", tmp_path / "always.yaml", "--out", run, "--resume")
        again = weights(run / "model.safetensors")
        assert all(torch.equal(ours[name], again[name]) for name in ours) and log(run) == log(tmp_path / "always")
