"""Sources on real files: units proven by physics, keys of ASE, MACE and ORCA, and clear refusals."""

from importlib.resources import files
from pathlib import Path

import ase
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from forcewell.doctor import check_path
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES, layout_of
from forcewell.sources.card import count_conformations
from forcewell.sources.trajectory_npz import molecule_name
from forcewell.store import open_data
from forcewell.units import KCAL_PER_MOL

BUNDLED = Path(str(files("forcewell"))) / "bundled"
DATA = Path(__file__).parent / "data"
ETHANOL = BUNDLED / "rmd17_ethanol_train_01.npz"
QM9 = BUNDLED / "qm9_minima_4002.npz"


def test_rmd17_in_electronvolts():
    block = next(iter(SOURCES["rmd17"].read([ETHANOL])))
    raw = np.load(ETHANOL)
    # 23.060548 kcal/mol per eV, the CODATA 2018 value written out.
    assert np.allclose(block.arrays["energy"] * 23.06054783, raw["energies"], rtol=1e-9)
    assert np.allclose(block.arrays["forces"] * 23.06054783, raw["forces"].reshape(-1, 3), rtol=1e-6)
    assert -4211 < block.arrays["energy"].mean() < -4208
    assert set(block.molecule) == {"ethanol"} and (block.arrays["equilibrium"] == 0).all()
    assert np.array_equal(block.properties["frame"], raw["old_indices"])
    old = next(iter(SOURCES["rmd17"].read([ETHANOL], old_labels=True)))
    assert np.allclose(old.arrays["energy"] * 23.06054783, raw["old_energies"], rtol=1e-9)
    assert old.level != block.level


@pytest.mark.parametrize(
    ("name", "molecule"),
    [
        ("rmd17_ethanol_train_01", "ethanol"),
        ("toluene_4895", "toluene"),
        ("md17_salicylic", "salicylic"),
        ("aspirin_ccsd-train", "aspirin"),
        ("ethanol_dft", "ethanol"),
    ],
)
def test_molecule_from_file_name(name, molecule):
    assert molecule_name(Path(f"{name}.npz")) == molecule


def test_what_is_assumed_of_common_names_is_said(tmp_path, capsys):
    """z, R, E, F may be of MD17, in kcal/mol, or of anybody, in eV: it is said, and more where upstream's file name, or what sGDML writes,
    does not speak for it."""
    raw = np.load(ETHANOL)
    arrays = {"z": raw["nuclear_charges"], "R": raw["coords"][:200], "E": raw["energies"][:200], "F": raw["forces"][:200]}
    mine, revised = tmp_path / "mine.npz", tmp_path / "revised.npz"
    np.savez(mine, **arrays)
    np.savez(revised, **{name: raw[name] for name in ("nuclear_charges", "coords", "energies", "forces")})
    for file, source in ((mine, "md17"), (revised, "rmd17")):
        assert layout_of(file) == source
        said = " ".join(capsys.readouterr().out.split())
        assert f"read as {source} (kcal/mol" in said and "if its unit is another: forcewell data import npz" in said
    assert np.allclose(open_data(mine, energy_unit="eV").column("energy"), arrays["E"])
    assert capsys.readouterr().out == ""
    np.savez(tmp_path / "volts.npz", **arrays | {"E": KCAL_PER_MOL * arrays["E"], "F": KCAL_PER_MOL * arrays["F"]})
    assert check_path(mine).ok and not check_path(tmp_path / "volts.npz").ok  # in eV and read as kcal/mol: the doctor notices
    capsys.readouterr()
    own = {"name": "ethanol", "theory": "unknown", "md5": "d41d"}
    for name, more, source in (("md17_x", {}, "md17"), ("x_dft", {}, "md17"), ("md22_x", {}, "md22"), ("mine", own, "md17")):
        np.savez(tmp_path / f"{name}.npz", **arrays, **more)
        assert layout_of(tmp_path / f"{name}.npz") == source
        said = " ".join(capsys.readouterr().out.split())
        assert f"{name}.npz: read as {source} (kcal/mol, kcal/mol/Å, Å; " in said and "if its unit" not in said
    np.savez(mine, **arrays, **own, e_unit="eV")
    with pytest.raises(InputError, match=r"e_unit is eV\. Import it: forcewell data import npz"):
        layout_of(mine)


def test_other_npz_layouts_agree_with_the_first(tmp_path):
    raw = np.load(ETHANOL)
    shared = {"z": raw["nuclear_charges"], "pos": raw["coords"], "energy": raw["energies"], "forces": raw["forces"]}
    np.savez(tmp_path / "ethanol_x.npz", **shared, md17_index=raw["old_indices"])
    np.savez(tmp_path / "md17_ethanol.npz", z=shared["z"], R=shared["pos"], E=raw["energies"][:, None], F=shared["forces"])
    np.savez(tmp_path / "any.npz", **shared)
    padded = {"z": np.pad(np.tile(shared["z"], (1000, 1)), ((0, 0), (0, 3))), "pos": np.pad(raw["coords"], ((0, 0), (0, 3), (0, 0)))}
    padded["forces"] = np.pad(-raw["forces"], ((0, 0), (0, 3), (0, 0)))
    np.savez(tmp_path / "padded.npz", **padded, energy=raw["energies"])
    assert [layout_of(tmp_path / f"{name}.npz") for name in ("ethanol_x", "md17_ethanol", "any")] == ["rmd17", "md17", "npz"]
    expected = open_data(ETHANOL).block(np.arange(1000))
    found = {
        "ethanol_x": open_data(tmp_path / "ethanol_x.npz"),
        "md17_ethanol": open_data(tmp_path / "md17_ethanol.npz"),
        "any": open_data(tmp_path / "any.npz", energy_unit="kcal/mol"),
        "padded": open_data(tmp_path / "padded.npz", energy_unit="kcal/mol", map="forces=-forces"),
    }
    for name, data in found.items():
        block = data.block(np.arange(1000))
        for field in ("numbers", "positions", "energy", "forces"):
            assert np.allclose(block.arrays[field], expected.arrays[field], rtol=1e-12, atol=1e-6 if field == "forces" else 0), (
                name,
                field,
            )


def test_qm9_labels_join_by_identifier():
    blocks = list(SOURCES["qm9"].read([QM9], labels=DATA / "qm9_labels_100.csv"))
    gap = np.concatenate([block.properties["gap"] for block in blocks])
    energy = np.concatenate([block.arrays["energy"] for block in blocks])
    known = np.isfinite(gap)
    assert known.sum() == 100 and (np.isfinite(energy) == known).all()
    homo, lumo = (np.concatenate([block.properties[name] for block in blocks]) for name in ("homo", "lumo"))
    error = np.abs(lumo - homo - gap)[known].max()
    print(f"largest |LUMO - HOMO - gap| {error:.2e} eV")  # rounding to 1e-4 Hartree: 2.7e-3
    assert error < 6e-3 and 2 < gap[known].min() < gap[known].max() < 16
    # Label and structure are the same molecule: total energies follow from the composition within 4 eV of 11,000.
    numbers = np.concatenate([block.arrays["numbers"] for block in blocks])
    counts = np.concatenate([block.counts for block in blocks])
    design = np.zeros((len(counts), 9))
    np.add.at(design, (np.repeat(np.arange(len(counts)), counts), numbers), 1)
    fit = design[known] @ np.linalg.lstsq(design[known], energy[known], rcond=None)[0]
    worst = np.abs(fit - energy[known]).max()
    print(f"largest residual {worst:.2f} eV")
    assert worst < 5


def test_water_units_by_option():
    data = open_data(DATA / "water_mp2_200.npz", energy_unit="kcal/mol", level="MP2/def2-TZVP")
    assert -2077.5 < data.column("energy").mean() < -2075 and data.levels == ["MP2/def2-TZVP"]
    with pytest.raises(InputError, match="unknown energy unit 'kcal'"):
        open_data(DATA / "water_mp2_200.npz", energy_unit="kcal")
    with pytest.raises(InputError, match="no option 'energy_units'; did you mean 'energy_unit'"):
        open_data(DATA / "water_mp2_200.npz", energy_units="eV")


def test_extended_xyz_equals_ase():
    data = open_data(DATA / "acac_300K_100.xyz")
    frames = ase.io.read(DATA / "acac_300K_100.xyz", ":")
    block = data.block(np.arange(100))
    assert np.array_equal(block.arrays["energy"], [atoms.get_potential_energy() for atoms in frames])
    assert np.array_equal(block.arrays["forces"], np.concatenate([atoms.get_forces() for atoms in frames]).astype(np.float32))
    assert np.array_equal(block.arrays["positions"], np.concatenate([atoms.positions for atoms in frames]))
    assert len(set(block.molecule)) == 1 and block.molecule[0].startswith("C5H8O2-")
    assert "cell" not in data.fields  # its lattice is a box around an open molecule


def test_keys_of_mace_and_charge(tmp_path):
    water = ase.Atoms("OH2", [[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]], info={"REF_energy": -2.0, "charge": 1, "spin": 2})
    water.arrays["REF_forces"] = np.arange(9.0).reshape(3, 3)
    water.calc = SinglePointCalculator(water, energy=-99.0, forces=np.zeros((3, 3)))  # some other method's results
    bare = ase.Atoms("OH2", water.positions, info={"total_charge": -1})
    ase.io.write(tmp_path / "m.xyz", [water, bare], format="extxyz")
    block = open_data(tmp_path / "m.xyz").block([0, 1])
    assert np.array_equal(block.arrays["energy"], [-2.0, np.nan], equal_nan=True)
    assert np.array_equal(block.arrays["forces"][:3], np.arange(9.0).reshape(3, 3)) and np.isnan(block.arrays["forces"][3:]).all()
    assert block.arrays["charge"].tolist() == [1, -1] and block.arrays["spin"].tolist() == [2, 1]
    ase.io.write(tmp_path / "g.xyz", water, format="extxyz")
    gradients = open_data(tmp_path / "g.xyz", map="REF_forces=-forces", force_unit="Hartree/bohr", energy_unit="Hartree")
    assert np.isclose(gradients[0].arrays["energy"], -2 * 27.211386245988)
    assert np.isclose(gradients[0].arrays["forces"][2, 2], -8 * 51.42206747, rtol=1e-7)


def test_comment_line_of_orca(tmp_path):
    (tmp_path / "o.xyz").write_text("2\nCoordinates from ORCA-job h2 E -1.162543210987\nH 0 0 0\nH 0 0 0.74\n")
    assert np.isclose(open_data(tmp_path / "o.xyz")[0].arrays["energy"], -1.162543210987 * 27.211386245988, rtol=1e-14)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no frame|frame 0"),
        ("2\n\nH 0 0 0\n", "frame 0"),
        ("1\n\nH 0 0 0\n2\n\nH 0 0 x\nH 0 0 1\n", "frame"),
        ("1\n\nQq 0 0 0\n", "frame 0"),
        ("1\nenergy=low\nH 0 0 0\n", "frame 0: energy is 'low'"),
        ("1\ncharge=0.5\nH 0 0 0\n", "whole number"),
    ],
)
def test_damaged_xyz(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        open_data(tmp_path / "a.xyz")
    assert "\n" not in str(caught.value)


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, z=np.array([{"a": 1}], dtype=object), pos=np.zeros((1, 1, 3)))
    with pytest.raises(InputError, match=r"'z'.*pickled"):
        open_data(path)
    path.write_bytes(ETHANOL.read_bytes()[:5000])
    with pytest.raises(InputError, match="not a whole"):
        open_data(path)
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(100))
    with pytest.raises(InputError, match="does not begin like one"):
        open_data(path)
    np.savez(path, z=np.array([8, 1]), pos=np.zeros((4, 3, 3)))
    with pytest.raises(InputError, match="neither shared, padded nor ragged"):
        open_data(path)
    np.savez(path, z=np.array([8.0, 1.0]), pos=np.zeros((4, 2, 3)))
    with pytest.raises(InputError, match="expected atomic numbers"):
        open_data(path)
    with pytest.raises(InputError, match="does not exist"):
        open_data(tmp_path / "none.npz")
    with pytest.raises(InputError, match=r"\.csv cannot be read as it is; give a store"):
        open_data(DATA / "qm9_labels_100.csv")


def test_unknown_source_names_the_nearest(tmp_path):
    with pytest.raises(InputError, match="did you mean 'rmd17'"):
        import_source("rmd71", [ETHANOL], tmp_path / "a.fw")


def test_counting_without_reading():
    assert count_conformations(ETHANOL) == 1000 and count_conformations(QM9) == 4002
    assert count_conformations(DATA / "acac_300K_100.xyz") == 100
    assert count_conformations(DATA / "qm9_labels_100.csv") is None
