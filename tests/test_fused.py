"""The compiled kernels against the PyTorch modules in float64, for every instruction set that this machine has."""

import copy
import platform
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import ase.build
import numpy as np
import pytest
import torch

from forcewell import fused
from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.potential import Potential
from forcewell.store import open_data
from forcewell.system import System

SIZES = [
    {"channels": 64, "layers": 3, "heads": 4, "radial": 32},
    {"channels": 32, "layers": 1, "heads": 2, "radial": 48},
    {"channels": 256, "layers": 2, "heads": 8, "radial": 64, "conditions": 1},
    {"channels": 48, "layers": 2, "heads": 3, "radial": 16, "electronic": True, "levels": 2, "classes": "wang"},
]


def random_potential(head: dict[str, Any] | None = None, **sizes: Any) -> Potential:
    torch.manual_seed(1)
    potential = Potential({"encoder": {"name": "equivariant-transformer", **sizes}, "head": head or {}})
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.dim() == 1 or not parameter.any():  # biases, tokens and norms that do nothing would hide mistakes
                parameter += 0.2 * torch.randn_like(parameter)
    return potential


def in_float64(potential: Potential) -> Potential:
    exact = Potential(potential.config).double()
    exact.load_state_dict({name: value.double() for name, value in potential.state_dict().items()})
    return exact


@pytest.fixture
def molecules() -> Batch:
    """Real molecules of 5 to 20 atoms, one atom alone, two out of reach of each other, and a linear one."""
    with resources.as_file(resources.files("forcewell.bundled") / "qm7x_hand.npz") as path:
        data = open_data(path)
        systems = [data[row] for row in (3, 501, 777, 1203, 1999)]
    odd = [ase.Atoms("O"), ase.Atoms("HN", [[0, 0, 0], [0, 0, 9]]), ase.build.molecule("HCN")]
    return Batch.from_systems([*systems, *map(System.from_atoms, odd)])


def cells() -> list[System]:
    """Small triclinic cells in which atoms meet several images of each other and of themselves, and a molecule."""
    fractions = [[0, 0, 0], [0.4, 0.1, 0.2], [0.2, 0.6, 0.7], [0.7, 0.5, 0.3]]
    atoms = ase.Atoms("CNOH", cell=[[3.9, 0, 0], [0.6, 3.4, 0], [-0.5, 0.7, 4.1]], scaled_positions=fractions, pbc=True)
    slab = atoms.copy()
    slab.pbc = [True, False, True]
    return [System.from_atoms(a) for a in (atoms, slab, ase.build.molecule("H2O"))]


@pytest.fixture
def crystals() -> Batch:
    return Batch.from_systems(cells())


def with_inputs(batch: Batch, sizes: dict[str, Any]) -> Batch:
    """Conditions, charges and levels of theory that differ between its conformations."""
    batch.condition = torch.arange(len(batch)) % 2 if sizes.get("conditions") else torch.zeros_like(batch.condition)
    batch.charge, batch.level = torch.arange(len(batch)) % 3 - 1, torch.arange(len(batch)) % 2  # read by those that have them
    return batch


def use(potential: Potential, lanes: int, half: bool = False) -> bool:
    """Makes the potential use vectors of at most so many floats; False where there are no such kernels here."""
    found = fused.instructions(potential.encoder, potential.head, lanes, forces=False)
    if found == lanes:
        potential._fused = fused.Fused(potential.encoder, potential.head, lanes, half)  # type: ignore[arg-type]
        potential.precision = "bfloat16" if half else "float32"
    return found == lanes


def learned(potential: Potential, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Energies, forces, and all gradients of a loss on forces in a row."""
    potential.zero_grad()
    out = potential(batch, create_graph=True)
    (out.forces.square().sum() + out.energy.sum()).backward()
    gradients = [parameter.grad.flatten() for parameter in potential.parameters() if parameter.grad is not None]
    return out.energy.detach(), out.forces.detach(), torch.cat(gradients)


def apart(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found - right).abs().max() / right.abs().max())


def liquid(atoms: int) -> System:
    """Water-like, as dense as a liquid, in no cell."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)[:atoms]
    return System.from_atoms(ase.Atoms(np.resize([6, 1, 1], atoms), 1.7 * grid + rng.normal(0, 0.2, grid.shape)))


def test_kernels_are_built() -> None:
    assert fused.functions() is not None, "the package was installed without its kernels; a C++ compiler is needed for these tests"
    assert use(random_potential(**SIZES[0]), 4)
    print(random_potential(**SIZES[0]).path)


@pytest.mark.parametrize("lanes", sorted(fused.INSTRUCTIONS))
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: str(sizes["channels"]))
@pytest.mark.parametrize("kind", ["molecules", "crystals"])
def test_equal_to_pytorch(
    kind: str, sizes: dict[str, Any], lanes: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = with_inputs(request.getfixturevalue(kind), sizes)
    potential = random_potential(**sizes)
    exact = in_float64(potential)
    if not use(potential, lanes):
        assert lanes > 4
        pytest.skip(f"instructions {lanes} are not of this processor, or not for these sizes")
    generator = torch.Generator().manual_seed(2)
    towards, weights = torch.randn(len(batch.numbers), 3, generator=generator), torch.randn(len(batch), generator=generator)

    def learn(model: Potential, given: Batch) -> tuple[torch.Tensor, torch.Tensor, dict[str, torch.Tensor]]:
        out = model(given, create_graph=True)
        loss = ((out.forces - towards.to(out.forces)) ** 2).sum() + (weights.to(out.energy) * out.energy).sum()
        loss.backward()
        return (
            out.energy.detach().double(),
            out.forces.detach().double(),
            {n: p.grad.double() for n, p in model.named_parameters() if p.grad is not None},
        )

    energy, forces, gradients = learn(potential, batch)
    right_energy, right_forces, right_gradients = learn(exact, batch.to(dtype=torch.float64))
    monkeypatch.setattr("forcewell.potential.instructions", lambda *_, **__: 0)
    _, plain_forces, plain = learn(random_potential(**sizes), batch)  # PyTorch in float32
    plain_error = float((plain_forces - right_forces).abs().max() / right_forces.abs().max())
    error = float((forces - right_forces).abs().max() / right_forces.abs().max())

    def off(gradients: dict[str, torch.Tensor]) -> tuple[float, str]:
        return max((float((gradients[n] - g).abs().max() / g.abs().max()), n) for n, g in right_gradients.items() if g.abs().max() > 0)

    (worst, name), (usual, _) = off(gradients), off(plain)
    print(f"{lanes} floats: forces {error:.1e} (PyTorch {plain_error:.1e}), gradient {worst:.1e} ({name}; PyTorch {usual:.1e})")
    assert float((energy - right_energy).abs().max() / right_energy.abs().max()) < 1e-5
    assert error < max(1e-5, 5 * plain_error)
    assert worst < 20 * usual + 1e-5  # softened lengths near zero amplify rounding, in any order of the sums


@pytest.mark.parametrize("lanes", sorted(fused.INSTRUCTIONS))
@pytest.mark.parametrize(("radial", "cutoff"), [(16, 5.0), (32, 5.0), (48, 5.0), (64, 5.0), (64, 2.0)])  # at 2 Å pairs may have none
def test_pairs_at_every_distance(radial: int, cutoff: float, lanes: int) -> None:
    """Radial functions that are next to nothing at a pair's distance are left out: forces and gradients do not show it."""
    methane = ase.build.molecule("CH4")
    methane.rattle(0.2, seed=0)  # and five elements: what is linear or planar amplifies rounding
    scales = np.linspace(0.2, 0.9 * cutoff, 60)
    batch = Batch.from_systems([System.from_atoms(ase.Atoms("CHNOF", scale * methane.positions)) for scale in scales])
    potential = random_potential(channels=64, layers=2, heads=4, radial=radial, cutoff=cutoff)
    exact = in_float64(potential)
    if not use(potential, lanes):
        pytest.skip(f"no vectors of {lanes} floats on this processor")
    found = []
    for model, given in ((potential, batch), (exact, batch.to(dtype=torch.float64))):
        out = model(given, create_graph=True)
        out.forces.square().sum().backward()
        found.append((out.forces.detach().double(), model.encoder.layers[0].filters.weight.grad.double()))
    off = [apart(one, two) for one, two in zip(*found, strict=True)]
    print(f"{radial} functions, {cutoff} Å, {lanes} floats: forces {off[0]:.1e}, gradient {off[1]:.1e}")
    assert max(off) < 2e-5  # 3.3e-6 at most


def test_large_molecules_use_cells() -> None:
    potential = random_potential(**SIZES[1])
    batch = Batch.from_systems([liquid(600)])
    right = in_float64(potential)(batch.to(dtype=torch.float64)).forces
    error = float((potential(batch).forces - right).abs().max() / right.abs().max())
    print(f"600 atoms: forces {error:.1e}")
    assert error < 1e-5


@pytest.mark.parametrize("lanes", sorted(fused.INSTRUCTIONS))
def test_crystals_alone_have_the_same_bits_as_in_a_batch(lanes: int) -> None:
    """Pairs are sorted by distance, of each conformation by itself."""
    potential = random_potential(**SIZES[0])
    if not use(potential, lanes):
        pytest.skip(f"no vectors of {lanes} floats on this processor")
    alone = [potential(Batch.from_systems([system])).forces for system in cells()]
    assert torch.equal(potential(Batch.from_systems(cells())).forces, torch.cat(alone))


def test_same_bits_on_any_number_of_threads(molecules: Batch) -> None:
    molecules.condition = torch.zeros_like(molecules.condition)
    potential = random_potential(**SIZES[0])
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 1, 2):
            torch.set_num_threads(count)
            potential.zero_grad()
            out = potential(molecules, create_graph=True)
            (out.forces**2).sum().backward()
            results.append((out.forces.detach(), potential.encoder.layers[1].filters.weight.grad.clone()))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][0], results[2][0])
    assert torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][1], results[2][1], rtol=1e-4, atol=1e-4)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize(("sizes", "atoms"), [(SIZES[0], 64), (SIZES[2], 16)], ids=["64", "256"])
@pytest.mark.parametrize("kind", ["one system", "a large system and small ones", "crystal"])
def test_one_system_on_several_threads(kind: str, sizes: dict[str, Any], atoms: int, threads: Callable[[int], None]) -> None:
    """Every number of threads gives the same to rounding, and the same bits each time."""
    few = [ase.build.molecule(name) for name in ("H2O", "HCN")]
    for molecule in few:  # a plane's or a line's softened lengths of zero amplify rounding: gradients 2e-4 from float64's
        molecule.rattle(0.1, seed=0)
    small = [System.from_atoms(molecule) for molecule in few]
    crystal = ase.build.bulk("NaCl", "rocksalt", a=5.6, cubic=True).repeat((2, atoms // 32 or 1, atoms // 32 or 1))
    crystal.rattle(0.1, seed=0)
    systems = {"one system": [liquid(atoms)], "crystal": [System.from_atoms(crystal)]}.get(kind, [liquid(atoms), *small])
    batch, potential = Batch.from_systems(systems), random_potential(**sizes)
    assert potential.kernels(batch) is not None
    threads(1)
    right = learned(potential, batch)
    for count in (2, 3):
        threads(count)
        found, again = learned(potential, batch), learned(potential, batch)
        assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
        off = [apart(a, b) for a, b in zip(found, right, strict=True)]
        print(f"{count} threads: energies {off[0]:.1e}, forces {off[1]:.1e}, gradients {off[2]:.1e}")
        assert off[0] < 5e-5 and max(off[1:]) < 1e-5  # the energy of a random model nearly cancels
        # The control: these were several threads indeed, for sums of more parts differ in the last bits.
        assert not torch.equal(found[1], right[1])


@pytest.mark.parametrize("lanes", sorted(fused.INSTRUCTIONS))
@pytest.mark.parametrize("sizes", SIZES[:2], ids=lambda sizes: str(sizes["channels"]))
def test_bfloat16_is_float32_with_rounded_weights(sizes: dict[str, Any], lanes: int, molecules: Batch) -> None:
    """To the last bit, gradients included: nothing but the weights of the encoder's linear maps is rounded."""
    molecules.condition = torch.zeros_like(molecules.condition)
    rough, rounded = random_potential(**sizes), random_potential(**sizes)
    with torch.no_grad():
        for name, parameter in rounded.encoder.named_parameters():
            if parameter.dim() == 2 and "embedding" not in name:
                parameter.copy_(parameter.bfloat16().float())
    if not use(rough, lanes, half=True) or not use(rounded, lanes):
        pytest.skip(f"no vectors of {lanes} floats on this processor")
    for found, right in zip(learned(rough, molecules), learned(rounded, molecules), strict=True):
        assert torch.equal(found, right)


@pytest.mark.parametrize(("name", "most"), [("forcewell-small", 0.015), ("full size, random", 0.1)])
def test_forces_in_bfloat16(name: str, most: float) -> None:
    """The errors of docs/speed.md, by the attribute alone, and float32 again afterwards."""
    potential = load(name) if name == "forcewell-small" else random_potential()
    data = open_data(Path(__file__).parent / "data" / "spice_170.npz")
    known = set(potential.elements) or set(range(119))
    systems = [data[row] for row in range(0, len(data), 20)]
    batch = Batch.from_systems([system for system in systems if set(system.numbers.tolist()) <= known])
    right = potential(batch).forces
    potential.precision = "bfloat16"
    found, path = potential(batch).forces, potential.path
    error = float((found - right).square().mean().sqrt() / right.square().mean().sqrt())
    print(f"{name}, {len(batch)} molecules, {path}: forces off by {error:.1e} of their RMS, {apart(found, right):.1e} of the largest")
    assert 1e-4 < error < most and path.endswith("bfloat16")
    potential.precision = "float32"
    assert torch.equal(potential(batch).forces, right) and "bfloat16" not in potential.path


def test_weights_may_change_between_calls_but_not_within_one(molecules: Batch) -> None:
    molecules.condition = torch.zeros_like(molecules.condition)
    potential = random_potential(**SIZES[0])
    before = potential(molecules, create_graph=True)
    with torch.no_grad():
        potential.encoder.layers[0].filters.weight *= 1.1
    after = potential(molecules)
    right = in_float64(potential)(molecules.to(dtype=torch.float64)).forces
    assert float((after.forces - right).abs().max() / right.abs().max()) < 1e-5
    assert not torch.allclose(before.forces, after.forces, rtol=1e-4)
    with pytest.raises(RuntimeError, match="changed between"):
        (before.forces**2).sum().backward()
    other = copy.deepcopy(potential)
    assert torch.equal(other(molecules).forces, after.forces)


def test_pytorch_where_there_are_no_kernels(molecules: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    molecules.condition = torch.zeros_like(molecules.condition)
    odd = random_potential(channels=36, layers=1, heads=2, radial=10)
    assert odd.path.startswith("PyTorch") and odd.kernels(molecules) is None
    assert random_potential(channels=64, layers=1, heads=4, radial=32).double().path == "PyTorch on cpu, float64"
    potential = random_potential(**SIZES[0])
    forces = potential(molecules).forces
    monkeypatch.setattr(fused, "functions", lambda: None)
    monkeypatch.setattr("forcewell.potential.functions", lambda: None)
    plain = random_potential(**SIZES[0])
    assert "without a C++ compiler" in plain.path and plain.kernels(molecules) is None
    torch.testing.assert_close(plain(molecules).forces, forces, rtol=1e-4, atol=1e-5)


def test_forces_of_a_scaled_level_carry_no_graph_unless_asked(molecules: Batch) -> None:
    molecules.condition = torch.zeros_like(molecules.condition)
    config = {"encoder": {"name": "equivariant-transformer", **SIZES[0]}, "head": {"level_scale": True}}
    potential = Potential(config, levels=("one",))
    assert potential.kernels(molecules) is not None
    plain, graph = potential(molecules), potential(molecules, create_graph=True)
    assert not plain.forces.requires_grad and not plain.energy.requires_grad and graph.forces.requires_grad
    graph.forces.square().sum().backward()
    assert float(potential.level_scale.grad.abs()) > 0


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="set where such numbers are slow")
def test_tiny_numbers_are_zero_in_the_kernels_alone(molecules: Batch) -> None:
    potential = random_potential(**SIZES[0])
    with torch.no_grad():
        for parameter in potential.head.blocks[-1].gate.parameters():  # type: ignore[union-attr, index]
            parameter *= 1e-40
    right = in_float64(potential)(molecules.to(dtype=torch.float64)).forces.abs()
    found = potential(molecules).forces
    below = int(((right > 0) & (right < 1e-38)).sum())
    print(f"{below} of {right.numel()} components below 1e-38 eV/Å; the kernels' largest {found.max():.0e}")
    assert float(right[right > 0].max()) < 1e-38 and not found.any()
    tiny = torch.tensor([1e-39])
    assert (tiny * 1.0 == tiny).all() and (tiny * 1.0 > 0).all()  # the caller's own arithmetic is as it was


def test_kernels_of_other_sources_are_not_called(monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that an earlier installation left beside newer sources would read its arguments wrongly."""
    if fused.functions() is None:
        pytest.skip("installed without a C++ compiler")
    said: list[str] = []
    monkeypatch.setattr(fused, "say", said.append)
    monkeypatch.setattr(fused, "INTERFACE", fused.INTERFACE + 1)
    assert fused.functions.__wrapped__() is None and len(said) == 1 and "built from other sources" in said[0]


def test_a_model_too_large_for_memory_is_refused() -> None:
    if fused.functions() is None:
        pytest.skip("installed without a C++ compiler")
    sizes = (fused._LONG * 4)(2**24, 1, 8, 32)  # a matrix of 5 PB
    table = torch.zeros(2**24)
    given = (fused.ctypes.c_double(5.0), fused.ctypes.c_double(0.0), *[fused._address(table)] * 3, fused._LONG(0))
    assert not fused.functions().forcewell_create(fused._LONG(4), sizes, *given)
