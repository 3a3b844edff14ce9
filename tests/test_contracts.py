"""Contracts that everything stands on: units, the table of fields, System and Block, and the Batch."""

from __future__ import annotations

import dataclasses
import doctest
import importlib
import math
import warnings
from typing import Any

import ase
import ase.units
import numpy as np
import pytest
import torch
from ase.build import molecule

from forcewell import units
from forcewell.batch import Batch, Targets, concatenate
from forcewell.errors import InputError, nearest
from forcewell.fields import ATOM_FIELDS, FIELDS, INPUT_FIELDS, MOLECULE_FIELDS, TARGET_FIELDS
from forcewell.system import Block, System, block_of


@pytest.mark.parametrize("name", ["system", "batch", "nn"])
def test_documented_examples(name: str) -> None:
    module = importlib.import_module(f"forcewell.{name}")
    found = doctest.testmod(module)
    print(f"forcewell.{name}: {found.attempted} examples, {found.failed} wrong")
    assert found.attempted > 0 and found.failed == 0


def test_constants_are_codata_2018() -> None:
    """ASE computes them from the same set of fundamental constants."""
    theirs = ase.units.create_units("2018")
    pairs = {
        "Hartree": (units.HARTREE, theirs["Hartree"]),
        "bohr": (units.BOHR, theirs["Bohr"]),
        "kcal/mol": (units.KCAL_PER_MOL, theirs["kcal"] / theirs["mol"]),
        "kJ/mol": (units.KJ_PER_MOL, theirs["kJ"] / theirs["mol"]),
        "Boltzmann": (units.BOLTZMANN, theirs["kB"]),
        # ASE's unit of time is the one in which amu Å²/t² is an eV.
        "acceleration": (units.ACCELERATION, theirs["fs"] ** 2),
        "nm": (units.LENGTH["nm"], theirs["nm"]),
    }
    for name, (ours, expected) in pairs.items():
        print(f"{name}: {ours!r}, relative difference {ours / expected - 1:.1e}")
        assert ours == pytest.approx(expected, rel=2e-9), name


def test_numbers_that_everyone_knows() -> None:
    assert 1 / units.ENERGY["kcal/mol"] == pytest.approx(23.0605, abs=1e-4)
    assert 1 / units.ENERGY["kJ/mol"] == pytest.approx(96.485, abs=1e-3)
    assert units.ENERGY["Hartree"] / units.ENERGY["kcal/mol"] == pytest.approx(627.5095, abs=1e-4)
    assert units.force_factor("Hartree/bohr") == pytest.approx(51.42207, abs=1e-5)
    assert units.force_factor("kcal/mol/Å") == units.KCAL_PER_MOL
    assert units.force_factor("kJ/mol/nm") == units.KJ_PER_MOL / 10
    assert units.force_factor("eV/Å") == units.force_factor("eV/angstrom") == 1.0
    assert units.thermal_energy(300) == pytest.approx(0.025852, abs=1e-6)
    # A proton at 1 eV moves at 0.1384 Å/fs; sqrt(3 kT / m) of a hydrogen atom at 300 K is 2,730 m/s.
    assert math.sqrt(2 * 1.0 / 1.00728 * units.ACCELERATION) == pytest.approx(0.1384, abs=1e-4)
    assert math.sqrt(3 * units.thermal_energy(300) / 1.00794 * units.ACCELERATION) == pytest.approx(2725e-5, rel=2e-3)
    assert units.ns_per_day(100, 0.5) == pytest.approx(4.32)


@pytest.mark.parametrize(
    ("function", "unit", "message"),
    [
        (units.energy_factor, "kcal", r"unknown energy unit 'kcal'; did you mean 'kcal/mol'\? \(known: eV, meV, Hartree"),
        (units.length_factor, "Angstrom", r"unknown length unit 'Angstrom'; did you mean 'angstrom'"),
        (units.force_factor, "eV/parsec", "unknown length unit 'parsec'"),
        (units.force_factor, "eV", "unknown energy unit ''"),
    ],
)
def test_unknown_units(function: Any, unit: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        function(unit)
    print(caught.value)
    assert nearest("quux", ["alpha", "beta"]) == ""


def filled(counts: list[int], seed: int = 0) -> Block:
    """A Block that carries every field of the table, with values that its dtype must keep."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, Any] = {}
    for name, field in FIELDS.items():
        shape = (sum(counts) if field.scope == "atom" else len(counts), *field.shape)
        if np.dtype(field.stored).kind == "f":
            arrays[name] = rng.normal(0, 10, shape).astype(field.stored)
        elif field.stored is np.bool_:
            arrays[name] = rng.random(shape) < 0.5
        else:
            arrays[name] = rng.integers(1, 100 if name == "numbers" else 3, shape)
    arrays["energy"] = rng.normal(-4e4, 10, len(counts))
    identifiers = np.array([f"m{k}" for k in range(len(counts))], dtype=object)
    return Block(np.array(counts), arrays, "test", "PBE", identifiers, identifiers, {"gap": rng.normal(size=len(counts))})


def test_the_table_is_complete() -> None:
    assert set(ATOM_FIELDS) | set(MOLECULE_FIELDS) == set(FIELDS) == set(INPUT_FIELDS) | set(TARGET_FIELDS)
    batch_fields, target_fields = ({f.name for f in dataclasses.fields(kind)} for kind in (Batch, Targets))
    assert set(INPUT_FIELDS) <= batch_fields and set(TARGET_FIELDS) <= target_fields
    assert not set(TARGET_FIELDS) & batch_fields, "a target among the inputs is a leak"
    for field in FIELDS.values():
        if field.target and np.dtype(field.stored).kind == "f":
            assert math.isnan(field.missing), f"{field.name}: a missing float label is NaN, never a plausible value"


def test_every_field_survives_system_and_block() -> None:
    block = filled([3, 1, 5])
    again = block_of([block.system(k) for k in range(3)])
    assert (again.source, again.level) == ("test", "PBE")
    assert again.molecule is not None and again.molecule.tolist() == ["m0", "m1", "m2"]
    assert np.array_equal(again.properties["gap"], block.properties["gap"])
    for name, field in FIELDS.items():
        assert again.arrays[name].dtype == block.arrays[name].dtype == np.dtype(field.stored), name
        assert np.array_equal(again.arrays[name], block.arrays[name]), name


def test_what_is_not_known_is_filled_with_its_missing_value() -> None:
    bare = System({"numbers": np.array([8], dtype=np.uint8), "positions": np.zeros((1, 3))})
    joined = block_of([filled([3]).system(0), bare])
    for name, field in FIELDS.items():
        if name in ("numbers", "positions"):
            continue
        rows = slice(3, 4) if field.scope == "atom" else slice(1, 2)
        value = joined.arrays[name][rows]
        assert np.array_equal(value, bare.get(name).reshape(value.shape), equal_nan=value.dtype.kind == "f"), name
        assert np.isnan(value).all() if math.isnan(field.missing) else (value == field.missing).all(), name
    assert joined.source == "" and np.isnan(joined.properties["gap"][1])


def test_taking_from_a_block() -> None:
    block = filled([3, 1, 5, 2])
    for rows in ([2, 0], [1, 1, 3], [], [3]):
        taken = block.take(np.array(rows, dtype=int))
        assert taken.counts.tolist() == [[3, 1, 5, 2][k] for k in rows]
        for place, row in enumerate(rows):
            a, b = taken.system(place), block.system(row)
            assert a.molecule == b.molecule and all(np.array_equal(a.arrays[name], b.arrays[name]) for name in FIELDS)
    assert np.array_equal(block.take(np.array([True, False, False, True])).arrays["forces"], block.take([0, 3]).arrays["forces"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"numbers": np.array([300, 1, 1])}, "holds 1 to 300, beyond what is possible"),
        ({"charge": np.array([200])}, "charge holds 200 to 200"),
        ({"forces": np.zeros((2, 3))}, r"forces has shape \(2, 3\), expected \(3, 3\)"),
        ({"velocities": np.zeros((3, 3))}, "unknown field 'velocities'"),
        ({"positions": None}, "the field 'positions' is missing"),
    ],
)
def test_impossible_blocks(change: dict[str, Any], message: str) -> None:
    arrays = {"numbers": np.array([8, 1, 1]), "positions": np.eye(3), **change}
    with pytest.raises(InputError, match=message):
        Block(np.array([3]), {name: value for name, value in arrays.items() if value is not None}, source="test")


def test_atoms_and_back() -> None:
    from ase.calculators.singlepoint import SinglePointCalculator

    atoms = molecule("CH3CH2OH", cell=np.array([[9.0, 0.0, 0.0], [1.0, 9.0, 0.0], [0.0, 2.0, 9.0]]), pbc=True)
    atoms.info |= {"charge": -1, "spin": 2}
    rng = np.random.default_rng(0)
    stress = rng.normal(size=(3, 3))
    forces = rng.normal(size=(9, 3)).astype(np.float32).astype(float)
    atoms.calc = SinglePointCalculator(atoms, energy=-4211.123456789, forces=forces, stress=stress + stress.T)
    back = System.from_atoms(atoms, level="PBE").to_atoms()
    assert back == atoms and back.info == atoms.info
    assert back.get_potential_energy() == atoms.get_potential_energy()
    assert np.array_equal(back.get_forces(), forces)
    assert np.allclose(back.get_stress(voigt=False), stress + stress.T, rtol=0, atol=1e-15)
    kept = System.from_atoms(atoms)
    atoms.positions += 1.0
    atoms.cell[:] = 0.0
    assert np.array_equal(kept.positions, back.positions) and np.array_equal(kept.get("cell"), back.cell)
    bare = System.from_atoms(molecule("H2O")).to_atoms()
    assert bare.calc is None and not bare.pbc.any()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("charge", 200, "charge is 200; expected a whole number from -128 to 127"),
        ("spin", -1, "spin is -1; expected a whole number from 1 to 255"),
        ("charge", 0.5, r"charge is 0.5; expected a whole number"),
        ("charge", "none", "expected a whole number"),
        ("spin", None, "expected a whole number"),
        ("numbers", [300, 1, 1], "numbers holds 1 to 300"),
    ],
)
def test_impossible_atoms(key: str, value: Any, message: str) -> None:
    atoms = molecule("H2O")
    if key == "numbers":
        atoms.numbers[:] = value
    atoms.info[key] = value
    with pytest.raises(InputError, match=message) as caught:
        System.from_atoms(atoms)
    print(caught.value)


def equal(a: Batch, b: Batch) -> bool:
    pairs = [(getattr(x, f.name), getattr(y, f.name)) for x, y in ((a, b), (a.targets, b.targets)) for f in dataclasses.fields(x)]
    tensors = [(x, y) for x, y in pairs if isinstance(x, torch.Tensor)]
    return all(x.dtype == y.dtype and x.shape == y.shape and torch.allclose(x, y, rtol=0, atol=0, equal_nan=True) for x, y in tensors)


def test_a_batch_carries_every_field() -> None:
    block = filled([3, 1, 5])
    batch = Batch.from_block(block, dtype=torch.float64, level=[2, 0, 1], source=4, index=[7, 8, 9])
    for name, field in FIELDS.items():
        tensor = getattr(batch.targets if field.target else batch, name)
        assert np.array_equal(tensor.numpy().astype(field.stored), block.arrays[name]), name
        kind = np.dtype(field.stored).kind
        assert tensor.dtype == {"f": torch.float64, "b": torch.bool}.get(kind, torch.int64), name
    assert batch.molecule.tolist() == [0, 0, 0, 1, 2, 2, 2, 2, 2] and batch.offsets.tolist() == [0, 3, 4, 9]
    assert (batch.level.tolist(), batch.source.tolist(), batch.index.tolist()) == ([2, 0, 1], [4, 4, 4], [7, 8, 9])
    assert not batch.role.any() and not batch.condition.any() and torch.isnan(batch.targets.noise_target).all()
    systems = [block.system(k) for k in range(3)]
    assert equal(batch, Batch.from_systems(systems, dtype=torch.float64, level=[2, 0, 1], source=4, index=[7, 8, 9]))


def test_a_batch_does_not_share_memory_it_could_spoil() -> None:
    """Read-only arrays (a memory map) become tensors that may be written to, without a warning from torch."""
    warnings.simplefilter("error")
    block = filled([3])
    for array in block.arrays.values():
        array.flags.writeable = False
    batch = Batch.from_block(block, dtype=torch.float64)
    kept = block.arrays["positions"].copy()
    batch.positions += 1.0
    assert np.array_equal(block.arrays["positions"], kept)


def test_take_and_concatenate_are_inverse() -> None:
    batch = Batch.from_block(filled([3, 1, 5, 2]), dtype=torch.float64, level=[0, 1, 2, 3], index=[5, 6, 7, 8])
    batch.targets.noise_target[:] = torch.arange(33, dtype=torch.float64).reshape(11, 3)
    batch.role[2] = 1
    singles = [batch.take(torch.tensor([k])) for k in range(4)]
    assert equal(concatenate(singles), batch)
    order = torch.tensor([2, 0, 3, 2])
    assert equal(batch.take(order), concatenate([singles[k] for k in order.tolist()]))
    assert batch.take(order).molecule.tolist() == [0] * 5 + [1] * 3 + [2] * 2 + [3] * 5
    mask = torch.tensor([True, False, True, False])
    assert equal(batch.take(mask), concatenate([singles[0], singles[2]]))
    empty = batch.take(torch.zeros(4, dtype=torch.bool))
    assert len(empty) == 0 and len(empty.positions) == 0
    assert equal(concatenate([empty, batch]), batch)


def test_conversion_keeps_energies_in_double() -> None:
    batch = Batch.from_block(filled([3, 1, 5]), dtype=torch.float64)
    single = batch.to(dtype=torch.float32)
    for f in dataclasses.fields(Batch):
        if f.name != "targets":
            was = getattr(batch, f.name)
            expected = torch.float32 if was.dtype.is_floating_point else was.dtype
            assert getattr(single, f.name).dtype == expected, f.name
    assert torch.equal(single.targets.energy, batch.targets.energy)  # float32 would lose 1e-3 eV at -40,000 eV
    assert single.targets.forces.dtype == single.targets.stress.dtype == single.targets.noise_target.dtype == torch.float32
    assert batch.positions.dtype == torch.float64
    assert equal(batch.to("cpu"), batch)
    assert batch.to(torch.device("meta")).targets.energy.device.type == "meta"


def test_positions_keep_their_digits() -> None:
    """float32 on disk would be off by 5e-7 Å at 10 Å; forces are labels and lose nothing that matters."""
    system = System.from_atoms(ase.Atoms("H", [[10.123456789012345, 0, 0]]))
    assert system.positions[0, 0] == 10.123456789012345
    assert FIELDS["energy"].stored is np.float64 and FIELDS["forces"].stored is np.float32
