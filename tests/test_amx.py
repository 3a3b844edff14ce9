"""Matrix products by AMX tiles: float32 in three bfloat16 parts, against AVX-512 and the PyTorch modules in float64."""

from collections.abc import Iterator
from typing import Any

import ase.build
import pytest
import torch
from test_fused import SIZES, apart, in_float64, learned, liquid, random_potential, use

from forcewell import fused
from forcewell.batch import Batch
from forcewell.system import System

# Products of 16 and 48 columns and of 16 and 80 summed numbers: no multiples of a block's 32.
ODD = [{"channels": 32, "layers": 2, "heads": 2, "radial": 16}, {"channels": 96, "layers": 2, "heads": 3, "radial": 80}]


@pytest.fixture(autouse=True)
def needs_tiles() -> Iterator[None]:
    potential = random_potential(**SIZES[0])
    if fused.instructions(potential.encoder, potential.head, fused.AMX) != fused.AMX:
        pytest.skip("no AMX tiles of bfloat16 here: the processor, the system or the compiler that built the package lacks them")
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def on(instructions: int, **sizes: Any) -> Any:
    potential = random_potential(**sizes)
    assert use(potential, instructions)
    return potential


def everything(potential: Any, batch: Batch) -> dict[str, torch.Tensor]:
    """Energies, forces, and each gradient of a loss on both."""
    out = potential(batch, create_graph=True)
    (out.forces.square().sum() + out.energy.sum()).backward()
    gradients = {name: parameter.grad for name, parameter in potential.named_parameters() if parameter.grad is not None}
    return {name: value.detach().double() for name, value in ({"energy": out.energy, "forces": out.forces} | gradients).items()}


@pytest.mark.parametrize("sizes", [*SIZES[:1], *SIZES[2:3], *ODD], ids=lambda sizes: str(sizes["channels"]))
@pytest.mark.parametrize("atoms", [1, 17, 22, 70])
def test_as_accurate_as_vectors(atoms: int, sizes: dict[str, Any]) -> None:
    """Energies, forces and training gradients; numbers of rows that fill tiles, and that do not."""
    batch = Batch.from_systems([liquid(atoms)])
    right = everything(in_float64(random_potential(**sizes)), batch.to(dtype=torch.float64))
    right = {name: value for name, value in right.items() if value.abs().max() > 0}
    vectors, tiles = (everything(on(instructions, **sizes), batch) for instructions in (16, fused.AMX))
    off = {name: (apart(vectors[name], value), apart(tiles[name], value)) for name, value in right.items()}
    worst = max(off, key=lambda name: off[name][1])
    shown = [f"{name} {off[name][0]:.1e} {off[name][1]:.1e}" for name in ("energy", "forces", worst) if name in off]
    print(f"{atoms} atoms, AVX-512 and AMX: {', '.join(shown)}")
    # The energy of a random model nearly cancels, and softened lengths near zero amplify rounding in gradients, in any order of sums.
    assert off.get("forces", (0, 0))[1] < 1e-5
    assert all(found < 1e-5 + 10 * usual for usual, found in off.values())


def test_a_molecule_alone_has_the_same_bits_as_in_a_batch() -> None:
    """How many rows a product has changes none of them, or a molecule's forces would depend on its neighbours in the batch."""
    systems = [System.from_atoms(ase.build.molecule(name)) for name in ("H2O", "CH3CH2OH", "C6H6", "NH3", "isobutane")] + [liquid(40)]
    potential = on(fused.AMX, **SIZES[0])
    together = potential(Batch.from_systems(systems))
    forces = torch.cat([potential(Batch.from_systems([system])).forces for system in systems])
    assert torch.equal(together.forces, forces)


def test_two_threads() -> None:
    batch, potential = Batch.from_systems([liquid(40)]), on(fused.AMX, **SIZES[2])
    found = []
    for count in (1, 2, 2):
        torch.set_num_threads(count)
        found.append(learned(potential, batch))
    assert all(torch.equal(a, b) for a, b in zip(found[1], found[2], strict=True))
    off = [apart(a, b) for a, b in zip(found[1], found[0], strict=True)]
    print(f"2 threads: energies {off[0]:.1e}, forces {off[1]:.1e}, gradients {off[2]:.1e}")
    assert off[0] < 5e-5 and max(off[1:]) < 1e-5


def test_numbers_of_every_size() -> None:
    """The parts of a float32 number add up to it whatever its exponent: forces scale with the read-out's weights over 60 decades."""
    batch = Batch.from_systems([liquid(20)])
    for scale in (1e-20, 1e20):
        potential, plain = on(fused.AMX, **SIZES[0]), on(16, **SIZES[0])
        for one in (potential, plain):
            with torch.no_grad():
                one.head.blocks[1].gate.weight *= scale
        off = apart(potential(batch).forces, plain(batch).forces)
        print(f"weights times {scale}: {off:.1e}")
        assert off < 1e-5


def test_chosen_for_large_models() -> None:
    assert random_potential(**SIZES[2]).path == "compiled kernels, AMX"
    assert random_potential(**SIZES[0]).path == "compiled kernels, AVX-512"
