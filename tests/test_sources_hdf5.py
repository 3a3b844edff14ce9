"""Sources that come as HDF5: real files where there are any, else files written here in exactly upstream's layout."""

import itertools
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest

from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES, layout_of
from forcewell.sources.mapped_smiles import ordered_atoms, total_charge
from forcewell.store import open_data
from forcewell.system import Block

DATA = Path(__file__).parent / "data"
BUNDLED = Path(str(files("forcewell"))) / "bundled"
HARTREE, BOHR = 27.211386245988, 0.529177210903  # written out, so that the package's own table is not its own witness
SPICE, ANI1X, ANI1, BYTEFF2 = (DATA / name for name in ("spice_1.1.4_2.hdf5", "ani1x_5.hdf5", "ani_gdb_s01_150.h5", "byteff2_10.h5"))


def read(source: str, *paths: Path, **options: object) -> Block:
    """Everything a source gives, as one Block."""
    blocks = list(SOURCES[source].read(list(paths), **options))
    assert len(blocks) == 1
    return blocks[0]


def test_spice_forces_are_minus_the_gradients():
    """The real file: bohr, Hartree, gradients; and forces pull stretched bonds back."""
    block = read("spice", SPICE)
    with h5py.File(SPICE) as file:
        group = file["103147721"]
        positions = block.arrays["positions"][: 50 * 27].reshape(50, 27, 3)
        assert np.allclose(positions, group["conformations"][:].astype(float) * BOHR, rtol=1e-12)
        assert np.allclose(block.arrays["energy"][:50], group["dft_total_energy"][:] * HARTREE, rtol=1e-14)
        expected = -group["dft_total_gradient"][:] * (HARTREE / BOHR)
        assert np.allclose(block.arrays["forces"][: 50 * 27].reshape(50, 27, 3), expected, rtol=1e-6)
    positions, forces = (block.arrays[name][: 50 * 27].reshape(50, 27, 3).astype(float) for name in ("positions", "forces"))
    hydrogens, carbons = (np.flatnonzero(block.arrays["numbers"][:27] == z) for z in (1, 6))
    apart = positions[:, hydrogens, None] - positions[:, None, carbons]
    distance = np.linalg.norm(apart, axis=-1)
    frame, hydrogen, carbon = np.nonzero(distance < 1.3)
    length = distance[frame, hydrogen, carbon]
    pull = (forces[frame, hydrogens[hydrogen]] * apart[frame, hydrogen, carbon]).sum(-1) / length
    correlation = np.corrcoef(length, pull)[0, 1]
    print(f"{len(length)} C-H bonds, correlation of length and outward force {correlation:.3f}")
    assert len(length) > 500 and correlation < -0.9
    assert len(block) == 55 and block.counts.tolist() == [27] * 50 + [5] * 5
    assert set(block.molecule) == {"spice/103147721", "spice/C#C.[Na+]"} and (block.arrays["equilibrium"] == 0).all()


def test_spice_charges_agree_with_the_electron_density():
    """Total charge from the SMILES, an independent second path: the MBIS charges of the same file add up to it."""
    block = read("spice", SPICE)
    with h5py.File(SPICE) as file:
        sums = file["103147721"]["mbis_charges"][:].sum(axis=(1, 2))
    error = np.abs(sums - block.arrays["charge"][:50]).max()
    print(f"largest difference {error:.1e} e")  # 5e-4
    assert error < 5e-3 and (block.arrays["charge"] == 1).all()
    formal = block.arrays["formal_charges"][: 50 * 27].reshape(50, 27)
    nitrogen = np.flatnonzero(block.arrays["numbers"][:27] == 7)
    assert (formal[:, nitrogen] == 1).all() and (formal.sum(axis=1) == 1).all()  # [N+:9]
    assert block.arrays["formal_charges"][-5:].tolist() == [0, 0, 0, 0, 1]  # [Na+:5] is the last


def test_spice_of_other_elements_is_refused(tmp_path):
    path = tmp_path / "s.hdf5"
    path.write_bytes(SPICE.read_bytes())
    with h5py.File(path, "r+") as file:
        numbers = file["103147721/atomic_numbers"][:]
        file["103147721/atomic_numbers"][:] = numbers[::-1]  # as RDKit's order of re-added hydrogens would be
    with pytest.raises(InputError, match=r"103147721: the elements of its SMILES .* are not those of atomic_numbers"):
        read("spice", path)


def test_spice_subset():
    assert len(read("spice", SPICE, subset="pubchem")) == 50 and len(read("spice", SPICE, subset="DES370K")) == 5


@pytest.mark.parametrize(
    ("smiles", "charge"),
    [("[NH3+]CC(=O)[O-]", 0), ("[Ca+2].[Cl-].[Cl-]", 0), ("[Fe+++]", 3), ("[O--]", -2), ("C[n+]1ccccc1", 1), ("[13CH3-:7]", -1), ("C", 0)],
)
def test_charge_of_a_smiles(smiles, charge):
    assert total_charge(smiles) == charge


def test_order_of_a_mapped_smiles():
    numbers, charges = ordered_atoms("[H:4][N+:1]([H:2])([H:3])[C@@:5]([H:6])([Cl:7])[c:8]1[nH:9][se:10]1")
    assert numbers.tolist() == [7, 1, 1, 1, 6, 1, 17, 6, 7, 34] and charges.tolist() == [1] + [0] * 9
    assert ordered_atoms("[H:2][O:1]C") is None and ordered_atoms("CCO") is None and ordered_atoms("[CH3:1][OH:3]") is None


def test_ani1x_in_electronvolts():
    block = read("ani1x", ANI1X)
    with h5py.File(ANI1X) as file:
        energy = np.concatenate([group["wb97x_dz.energy"][:] for group in file.values()])
        forces = np.concatenate([group["wb97x_dz.forces"][:].reshape(-1, 3) for group in file.values()])
    assert np.allclose(block.arrays["energy"], energy * HARTREE, rtol=1e-14)
    assert np.allclose(block.arrays["forces"], forces * HARTREE, rtol=1e-6, atol=1e-7)
    assert block.molecule[0] == "ani1x/C1H4N4O4" and block.level == "wB97X/6-31G(d)" and (block.arrays["equilibrium"] == 0).all()


def test_ani1x_keeps_rows_with_forces_and_tells_minima_by_them(tmp_path):
    """NaN where upstream has no label. The rule: a largest force below 0.05 eV/Å."""
    path = tmp_path / "a.h5"
    path.write_bytes(ANI1X.read_bytes())
    with h5py.File(path, "r+") as file:
        forces = file["C1H6N2O5/wb97x_dz.forces"][:]
        forces[0] = np.nan
        forces[1] *= 0.049 / (np.linalg.norm(forces[1], axis=1).max() * HARTREE)
        forces[2] *= 0.051 / (np.linalg.norm(forces[2], axis=1).max() * HARTREE)
        file["C1H6N2O5/wb97x_dz.forces"][:] = forces
    block, everything = read("ani1x", path), read("ani1x", path, all="yes")
    assert (len(block), len(everything)) == (7, 8)
    assert block.arrays["equilibrium"].tolist() == [0, 0, 0, 1, 0, 0, 0]
    assert everything.arrays["equilibrium"].tolist() == [0, 0, 0, -1, 1, 0, 0, 0]
    assert np.isnan(everything.arrays["forces"]).any() and np.isfinite(block.arrays["forces"]).all()
    assert read("ani1x", path, equilibrium_force=0.06).arrays["equilibrium"].sum() == 2
    other = read("ani1x", path, label="ccsd(t)_cbs")
    assert other.level == "CCSD(T)*/CBS" and "forces" not in other.arrays and 0 < len(other) <= 8
    with pytest.raises(InputError, match=r"unknown label 'wb97x'.*did you mean"):
        read("ani1x", path, label="wb97x")
    with pytest.raises(InputError, match="expected a number above 0"):
        read("ani1x", path, equilibrium_force="-1")


def test_isomers_are_looked_at_one_by_one(tmp_path):
    """One formula group with dimethyl ether first and ethanol second: only the ethanol stays out."""
    from ase.build import molecule

    path = tmp_path / "a.h5"
    ether, ethanol = molecule("CH3OCH3"), molecule("CH3CH2OH")
    order = [np.argsort(atoms.numbers, kind="stable") for atoms in (ether, ethanol)]
    assert np.array_equal(ether.numbers[order[0]], ethanol.numbers[order[1]])
    with h5py.File(path, "w") as file:
        group = file.create_group("C2H6O1")
        group["atomic_numbers"] = ether.numbers[order[0]].astype(np.uint8)
        group["coordinates"] = np.stack([ether.positions[order[0]], ethanol.positions[order[1]]]).astype(np.float32)
        group["wb97x_dz.energy"], group["wb97x_dz.forces"] = np.full(2, -154.9), np.full((2, 9, 3), 0.01, dtype=np.float32)
    done = import_source("ani1x", [path], tmp_path / "a.fw", unchecked=True)
    assert (done.kept, done.left_out) == (1, 1)
    assert np.allclose(done.store[0].positions, ether.positions[order[0]], atol=1e-6)


def test_ani1_leaves_the_high_energies_out(tmp_path):
    """The real file, with ten high-energy rows put into its (here empty) groups of that name."""
    path = tmp_path / "a.h5"
    path.write_bytes(ANI1.read_bytes())
    with h5py.File(path, "r+") as file:
        group = file["gdb11_s01/gdb11_s01-2"]
        del group["coordinatesHE"], group["energiesHE"]
        group["coordinatesHE"], group["energiesHE"] = np.zeros((10, 3, 3), dtype=np.float32), np.zeros(10)
    for found in (read("ani1", ANI1), read("ani1", path)):
        assert len(found) == 150 and found.arrays["energy"].max() < -1000
    block = read("ani1", ANI1)
    assert list(dict.fromkeys(block.molecule)) == [f"ani1/gdb11_s01-{k}" for k in range(3)]
    assert list(dict.fromkeys(block.smiles)) == ["[H]C([H])([H])[H]", "[H]N([H])[H]", "[H]O[H]"]
    with h5py.File(ANI1) as file:
        water = file["gdb11_s01/gdb11_s01-2/energies"][:]
    assert np.allclose(block.arrays["energy"][-50:], water * HARTREE, rtol=1e-14)
    assert "forces" not in block.arrays


def test_comp6_changes_the_sign_of_s66x8_alone(tmp_path):
    """Upstream's layout (its readers: torchmdnet/datasets/comp6.py of github.com/torchmd/torchmd-net; the library pyanitools of
    github.com/isayev/ASE_ANI): one group, in it one per molecule, species as bytes. Labels are the real S66x8's."""
    arrays = np.load(BUNDLED / "s66x8.npz")
    offsets = np.concatenate([[0], np.cumsum(arrays["natoms"])])
    symbols = {1: b"H", 6: b"C", 7: b"N", 8: b"O"}
    for name in ("s66x8_wb97x6-31gd.h5", "other.h5"):
        with h5py.File(tmp_path / name, "w") as file:
            for dimer, rows in itertools.groupby(range(len(arrays["natoms"])), key=lambda k: str(arrays["mol"][k])):
                rows = list(rows)
                atoms = [slice(offsets[k], offsets[k + 1]) for k in rows]
                group = file.create_group(f"s66x8/{dimer}")
                group["species"] = np.array([symbols[z] for z in arrays["z"][atoms[0]]])
                group["coordinates"] = np.stack([arrays["pos"][a] for a in atoms])
                group["energies"] = arrays["energy"][rows] / HARTREE
                group["forces"] = np.stack([-arrays["forces"][a] for a in atoms]) / HARTREE  # gradients, as upstream has them
    right = import_source("comp6", [tmp_path / "s66x8_wb97x6-31gd.h5"], tmp_path / "right.fw")  # checked: slope +1
    assert right.kept == 440
    # A file of another name keeps its sign, and the check of the import finds it out.
    with pytest.raises(InputError, match="wrong sign"):
        import_source("comp6", [tmp_path / "other.h5"], tmp_path / "wrong.fw")
    turned, kept = read("comp6", tmp_path / "other.h5", gradients="yes"), read("comp6", tmp_path / "other.h5")
    assert np.array_equal(turned.arrays["forces"], -kept.arrays["forces"])
    first = str(arrays["mol"][0])
    block = right.store.block(np.flatnonzero(right.store.column("molecule") == f"comp6/s66x8_wb97x6-31gd/{first}"))
    assert np.allclose(block.arrays["forces"], arrays["forces"][: block.counts.sum()], atol=1e-6)
    assert np.allclose(block.arrays["energy"], arrays["energy"][: len(block)], rtol=1e-12)


def test_transition1x_endpoints_are_minima_and_saddles_are_not(tmp_path):
    """Upstream's layout (dataloader.py of gitlab.com/matschreiner/Transition1x): SPLIT/FORMULA/RXN, endpoints as sub-groups;
    train, val and test link to the entries of data."""
    rng = np.random.default_rng(0)
    energy, forces = "wB97x_6-31G(d).energy", "wB97x_6-31G(d).forces"
    z = np.array([6, 7, 1])
    geometry = np.array([[0.0, 0, 0], [1.15, 0, 0], [-1.07, 0, 0]])

    def fill(group: h5py.Group, frames: int, scale: float) -> None:
        group["atomic_numbers"], group["positions"] = z, geometry + rng.normal(0, 0.02, (frames, 3, 3))
        group[energy], group[forces] = np.full(frames, -2541.0), scale * rng.uniform(0.5, 0.57, (frames, 3, 3))

    path = tmp_path / "Transition1x.h5"
    with h5py.File(path, "w") as file:
        for reaction in ("rxn0000", "rxn0001"):
            group = file.create_group(f"data/C1H1N1/{reaction}")
            fill(group, 8, 1.0)
            for part, scale in (("reactant", 0.05), ("product", 1.0 if reaction == "rxn0001" else 0.05), ("transition_state", 0.05)):
                fill(group.create_group(part), 1, scale)
        file["train/C1H1N1/rxn0001"] = file["data/C1H1N1/rxn0001"]
    block = read("transition1x", path)
    assert len(block) == 22 == SOURCES["transition1x"].count(path)
    role, flag = block.properties["role"], block.arrays["equilibrium"]
    assert role[:11].tolist() == [0] * 8 + [1, 2, 3]
    assert flag[role == 0].tolist() == [0] * 16 and flag[role == 3].tolist() == [0, 0]
    assert flag[role == 1].tolist() == [1, 1] and flag[role == 2].tolist() == [1, -1]  # the second product's forces are not small
    assert set(block.molecule) == {"transition1x/C1H1N1"}
    assert len(read("transition1x", path, split="train")) == 11
    with pytest.raises(InputError, match="has no group 'val'"):
        read("transition1x", path, split="val")


def test_qm7x_minima_are_the_opt_groups(tmp_path):
    """Upstream's layout (createDB.py of zenodo.org/records/4288677): MOLECULE/Geom-mM-iI-cC-opt|dD with these arrays."""
    rows = np.load(BUNDLED / "qm7x_hand.npz")
    path, names = tmp_path / "1000.hdf5", ["Geom-m1-i1-c1-opt", "Geom-m1-i1-c1-d1", "Geom-m1-i2-c1-opt", "Geom-m1-i2-c1-d7"]
    with h5py.File(path, "w") as file:
        for k, name in enumerate(names):
            real = rows["z"][k] != 0
            group = file.create_group(f"1/{name}")
            group["atNUM"], group["atXYZ"] = rows["z"][k][real], rows["pos"][k][real]
            group["ePBE0+MBD"], group["totFOR"] = np.array([rows["energy"][k]]), rows["forces"][k][real]
            group["sRMSD"] = np.zeros(1)
    block = read("qm7x", path)
    order = np.argsort(names)  # HDF5 keeps names sorted
    assert block.arrays["equilibrium"].tolist() == [int(names[k].endswith("opt")) for k in order]
    assert np.array_equal(block.arrays["energy"], rows["energy"][order]) and set(block.molecule) == {"qm7x/1"}
    expected = np.concatenate([rows["forces"][k][rows["z"][k] != 0] for k in order])
    assert np.array_equal(block.arrays["forces"], expected.astype(np.float32)) and SOURCES["qm7x"].count(path) == 4
    (tmp_path / "DupMols.dat").write_text("Geom-m1-i2-c1-opt\n")
    assert len(read("qm7x", path, duplicates=tmp_path / "DupMols.dat")) == 2
    with h5py.File(path, "r+") as file:
        del file["1/Geom-m1-i1-c1-d1/totFOR"]
    with pytest.raises(InputError, match="Geom-m1-i1-c1-d1 lacks a data set"):
        read("qm7x", path)


def test_the_generic_door_with_a_mapping_equals_the_spice_source():
    declared = {
        "map": "dft_total_energy=energy,dft_total_gradient=-forces",
        "energy_unit": "Hartree",
        "force_unit": "Hartree/bohr",
        "length_unit": "bohr",
        "level": "wB97M-D3BJ/def2-TZVPPD",
    }
    generic, own = read("hdf5", SPICE, **declared), read("spice", SPICE)
    for field in ("numbers", "positions", "energy", "forces"):
        assert np.allclose(generic.arrays[field], own.arrays[field], rtol=1e-6 if field == "forces" else 1e-12), field
    assert generic.molecule[0] == "103147721" and generic.smiles[0] == own.smiles[0]


def test_byteff2_through_the_generic_door(tmp_path):
    """Real groups without elements: they follow from upstream's JSON of group name -> mapped SMILES."""
    smiles = {
        "100": "[C:1](=[C:2]([Cl:3])[Cl:4])([H:5])[H:6]",
        "10000": "[C:1]([C:2](=[C:4]1[C:5]([H:13])([H:14])[C:6]1([H:15])[H:16])[C:3]([H:10])([H:11])[H:12])([H:7])([H:8])[H:9]",
    }
    import json

    (tmp_path / "chembl_inc_01.json").write_text(json.dumps(smiles))
    with h5py.File(BYTEFF2) as file, h5py.File(tmp_path / "two.h5", "w") as two:
        for name in smiles:
            file.copy(file[f"chembl_inc_01/{name}"], two.require_group("chembl_inc_01"))
    options = {"energy_unit": "kcal/mol", "smiles": tmp_path / "chembl_inc_01.json"}
    block = read("hdf5", tmp_path / "two.h5", **options)
    assert block.counts.tolist() == [6, 6, 16, 16] and block.arrays["numbers"][:6].tolist() == [6, 6, 17, 17, 1, 1]
    # C6H10's energy from atoms' (-37.85, -0.50 Hartree) and about 0.1 Hartree per bond.
    assert -6400 < block.arrays["energy"][2] < -6300
    done = import_source("hdf5", [tmp_path / "two.h5"], tmp_path / "b.fw", options=options)
    assert done.kept == 4
    with pytest.raises(InputError, match=r"chembl_inc_01/1 has no elements: map them"):
        read("hdf5", BYTEFF2, **options)


def test_layouts_are_recognised():
    assert [layout_of(path) for path in (SPICE, ANI1X, ANI1, BYTEFF2)] == ["spice", "ani1x", "ani1", "hdf5"]
    assert len(open_data(SPICE)) == 55


def test_counting_from_shapes():
    assert SOURCES["spice"].count(SPICE) == 55 and SOURCES["ani1x"].count(ANI1X) == 8 and SOURCES["ani1"].count(ANI1) == 150


def test_damaged_hdf5(tmp_path):
    path = tmp_path / "a.hdf5"
    path.write_bytes(SPICE.read_bytes()[:20000])
    for source in ("spice", "hdf5", "ani1"):
        with pytest.raises(InputError, match="not a whole HDF5 file") as caught:
            read(source, path)
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="does not exist"):
        read("ani1x", tmp_path / "none.h5")
    with h5py.File(path, "w") as file:
        file["a/positions"] = np.zeros((2, 3, 4))
    with pytest.raises(InputError, match=r"expected \(F, A, 3\)"):
        read("hdf5", path)
    with pytest.raises(InputError, match=r"no field 'force'.*did you mean 'forces'"):
        read("hdf5", SPICE, map="dft_total_gradient=-force")
    with pytest.raises(InputError, match="no group with geometry"):
        read("hdf5", SPICE, map="geometry=positions")
    with h5py.File(path, "w") as file:
        file["a/coordinates"], file["a/species"], file["a/energies"] = np.zeros((2, 3, 3)), np.array([b"H", b"Qq", b"H"]), np.zeros(2)
    with pytest.raises(InputError, match="'Qq' is not an element"):
        read("ani1", path)
