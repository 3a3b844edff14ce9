"""Sources that come as text, archives or databases: real files where there are any, else written here in upstream's layout."""

import gzip
import io
import json
import sys
import tarfile
import zipfile
import zlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from forcewell.conformers import GAP
from forcewell.data_commands import info_command
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES, pubchemqc_pm6
from forcewell.sources.qm9_raw import TARGETS
from forcewell.store import reference_fits
from forcewell.system import Block

DATA = Path(__file__).parent / "data"
BUNDLED = Path(str(files("forcewell"))) / "bundled"
ETHANOL, QM9 = BUNDLED / "rmd17_ethanol_train_01.npz", BUNDLED / "qm9_minima_4002.npz"
HARTREE, KCAL = 27.211386245988, 1 / 23.06054783

# dsgdb9nsd_000001.xyz as published: methane. In the second line a number in Mathematica's notation stands for mu = 0.
METHANE = """5
gdb 1\t157.7118\t157.70997\t157.70699\t0.\t13.21\t-0.3877\t0.1171\t0.5048\t35.3641\t0.044749\
\t-40.47893\t-40.476062\t-40.475117\t-40.498597\t6.469\t
C\t-0.0126981359\t 1.0858041578\t 0.0080009958\t-0.535689
H\t 0.002150416\t-0.0060313176\t 0.0019761204\t 0.133921
H\t 1.0117308433\t 1.4637511618\t 0.0002765748\t 0.133922
H\t-0.540815069\t 1.4475266138\t-0.8766437152\t 0.133923
H\t-0.5238136345\t 1.4379326443\t 0.9063972942\t 0.133923
1341.307\t1341.3284\t1341.365\t1562.6731\t1562.7453\t3038.3205\t3151.6034\t3151.6788\t3151.7078
C\tC\t
InChI=1S/CH4/h1H4\tInChI=1S/CH4/h1H4
"""


def read(source: str, *paths: Path, **options: object) -> Block:
    """Everything a source gives, as one Block."""
    blocks = list(SOURCES[source].read(list(paths), **options))
    assert len(blocks) == 1
    return blocks[0]


def sdf(entries: list[tuple[str, list[str], np.ndarray, str]]) -> str:
    """V2000 text (CTFile Formats, Accelrys 2011) of (title, symbols, positions, property lines)."""
    text = ""
    for title, symbols, positions, extra in entries:
        text += f"{title}\n  written by a test\n\n{len(symbols):3d}  0  0  0  0  0  0  0  0  0999 V2000\n"
        rows = zip(symbols, positions, strict=True)
        text += "".join(f"{x:10.4f}{y:10.4f}{z:10.4f} {s:<3} 0  0  0  0  0  0  0  0  0  0  0  0\n" for s, (x, y, z) in rows)
        text += extra + "M  END\n> <note>\nM  CHG  1   1   9\n\n$$$$\n"
    return text


def test_raw_qm9_equals_the_table(tmp_path):
    (tmp_path / "dsgdb9nsd_000001.xyz").write_text(METHANE.replace("0.0019761204", "1.9761204*^-3"))
    with tarfile.open(tmp_path / "dsgdb9nsd.xyz.tar.bz2", "w:bz2") as archive:
        archive.add(tmp_path / "dsgdb9nsd_000001.xyz", "dsgdb9nsd_000001.xyz")
    single, packed = (read("qm9", tmp_path / name) for name in ("dsgdb9nsd_000001.xyz", "dsgdb9nsd.xyz.tar.bz2"))
    arrays = np.load(QM9)
    if 1 in arrays["ids"]:  # the same molecule from the package's own file
        start = int(arrays["natoms"][: int(np.argmax(arrays["ids"] == 1))].sum())
        assert np.allclose(single.arrays["positions"], arrays["pos"][start : start + 5], atol=1e-6)
    for block in (single, packed):
        assert block.molecule.tolist() == ["qm9/1"] and block.smiles.tolist() == ["C"]
        assert block.arrays["numbers"].tolist() == [6, 1, 1, 1, 1]
        assert block.arrays["positions"][1].tolist() == [0.002150416, -0.0060313176, 1.9761204e-3]
        assert set(block.properties) == set(TARGETS) and len(TARGETS) == 15
        assert np.isclose(block.properties["gap"][0], 0.5048 * HARTREE) and block.properties["a"][0] == 157.7118
        assert np.isclose(block.properties["lumo"][0] - block.properties["homo"][0], block.properties["gap"][0], atol=3e-3)
        assert np.isclose(block.arrays["energy"][0], (-40.47893 - 0.044749) * HARTREE) and block.arrays["equilibrium"][0] == 1
    (tmp_path / "uncharacterized.txt").write_text("Index  SMILES\n1 C C C\n")
    assert not list(SOURCES["qm9"].read([tmp_path / "dsgdb9nsd_000001.xyz"], leave_out=tmp_path / "uncharacterized.txt"))


def test_qm9_as_sdf_with_csv(tmp_path):
    """gdb9.sdf and gdb9.sdf.csv of DeepChem's gdb9.tar.gz: mol_id gdb_N, 19 targets, atomisation energies in kcal/mol."""
    water = molecule("H2O")
    (tmp_path / "gdb9.sdf").write_text(sdf([(f"gdb_{n}", water.get_chemical_symbols(), water.positions, "") for n in (3, 4)]))
    columns = "mol_id,A,B,C,mu,alpha,homo,lumo,gap,r2,zpve,u0,u298,h298,g298,cv,u0_atom,u298_atom,h298_atom,g298_atom"
    row = "gdb_3,799.58812,437.90386,282.94545,1.8511,6.31,-0.2928,0.0687,0.3615,19.0002,0.021375,"
    row += "-76.404702,-76.401867,-76.400922,-76.422349,6.002"
    (tmp_path / "gdb9.sdf.csv").write_text(f"{columns}\n{row},-213.087624,-213.974294,-215.159658,-201.407171\n")
    block = read("qm9", tmp_path / "gdb9.sdf", labels=tmp_path / "gdb9.sdf.csv")
    assert block.molecule.tolist() == ["qm9/3", "qm9/4"] and len(block.properties) == 19
    assert np.isclose(block.properties["u0_atom"][0], -213.087624 * KCAL) and np.isnan(block.properties["u0_atom"][1])
    # U0 and its atomisation energy differ by the atoms' energies of upstream's atomref.txt: H -0.500273, O -75.064579 Hartree.
    atoms = (2 * -0.500273 - 75.064579) * HARTREE
    assert abs(block.properties["u0"][0] - block.properties["u0_atom"][0] - atoms) < 2e-3
    assert SOURCES["qm9"].count(tmp_path / "gdb9.sdf") == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (METHANE.replace("gdb 1", "abc 1"), "is not named gdb_INDEX"),
        (METHANE.replace("0.5048", "x"), "not a QM9 file"),
        (METHANE[:150], "not a QM9 file"),
        ("", "not a QM9 file"),
    ],
)
def test_damaged_raw_qm9(tmp_path, text, message):
    (tmp_path / "a.xyz").write_text(text)
    with pytest.raises(InputError, match=message):
        read("qm9", tmp_path / "a.xyz")


def test_pcqm4mv2_streams_minima_out_of_the_packed_file(tmp_path):
    """Layout: OGB's page (ogb.stanford.edu/docs/lsc/pcqm4mv2) names pcqm4m-v2-train.sdf.tar.gz, the i-th structure is idx i, and
    raw/data.csv.gz with idx, smiles, homolumogap in eV."""
    names = ["CH4", "H2O", "CH3CH2OH", "NH3"]
    atoms = [molecule(name) for name in names]
    charge = "M  CHG  2   1   1   2  -1\n"
    entries = [(f"{k}", a.get_chemical_symbols(), a.positions, charge if k == 1 else "") for k, a in enumerate(atoms)]
    raw = sdf(entries).encode()
    with tarfile.open(tmp_path / "pcqm4m-v2-train.sdf.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("pcqm4m-v2-train.sdf")
        member.size = len(raw)
        archive.addfile(member, io.BytesIO(raw))
    (tmp_path / "plain.sdf").write_bytes(raw)
    with gzip.open(tmp_path / "data.csv.gz", "wt") as stream:
        stream.write("idx,smiles,homolumogap\n0,C,10.0\n1,O,8.5\n2,CCO,7.25\n3,N,6.5\n4,CC,\n")
    block = read("pcqm4mv2", tmp_path / "pcqm4m-v2-train.sdf.tar.gz", labels=tmp_path / "data.csv.gz")
    assert block.counts.tolist() == [5, 3, 9, 4] and (block.arrays["equilibrium"] == 1).all() and "energy" not in block.arrays
    assert np.allclose(block.arrays["positions"], np.concatenate([a.positions for a in atoms]), atol=5e-5)  # four decimals
    assert block.arrays["formal_charges"][5:8].tolist() == [1, -1, 0] and (block.arrays["charge"] == 0).all()
    assert block.molecule.tolist() == [f"pcqm4mv2/{k}" for k in range(4)] and block.smiles.tolist() == ["C", "O", "CCO", "N"]
    assert block.properties["homolumogap"].tolist() == [10.0, 8.5, 7.25, 6.5] and SOURCES["pcqm4mv2"].count(tmp_path / "plain.sdf") == 4
    done = import_source("pcqm4mv2", [tmp_path / "plain.sdf"], tmp_path / "p.fw")
    assert (done.kept, done.left_out) == (3, 1)  # ethanol
    mixed = _csv(tmp_path / "bad.csv", "idx,smiles,homolumogap\n1,O,8.5\n0,C,1\n2,C,1\n3,N,2\n")
    with pytest.raises(InputError, match="not in the order of the structures"):
        read("pcqm4mv2", tmp_path / "plain.sdf", labels=mixed)
    (tmp_path / "bare.sdf").write_text(sdf([("0", ["C", "O"], np.array([[0.0, 0, 0], [1.4, 0, 0]]), "")]))
    with pytest.raises(InputError, match="has no hydrogens"):
        read("pcqm4mv2", tmp_path / "bare.sdf")
    (tmp_path / "cut.sdf").write_bytes(raw[:200])
    with pytest.raises(InputError, match="entry 0 is not a whole V2000 structure"):
        read("pcqm4mv2", tmp_path / "cut.sdf")


def _csv(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_coupled_cluster_archives(tmp_path):
    """Layout of ethanol_ccsd_t.zip as NequIP's benchmark of aspirin_ccsd.zip and sGDML read it: NAME-train.npz and NAME-test.npz
    with z, R, E (F, 1), F, beside leftovers of macOS. Frames are real (revised MD17's)."""
    raw = np.load(ETHANOL)
    with zipfile.ZipFile(tmp_path / "ethanol_ccsd_t.zip", "w") as archive:
        for part, rows in (("test", slice(30, 40)), ("train", slice(0, 30))):
            buffer = io.BytesIO()
            frames = {"R": raw["coords"][rows], "E": raw["energies"][rows, None], "F": raw["forces"][rows]}
            np.savez(buffer, z=raw["nuclear_charges"], name=f"ethanol_ccsd_t-{part}", **frames)
            archive.writestr(f"ethanol_ccsd_t-{part}.npz", buffer.getvalue())
            archive.writestr(f"__MACOSX/._ethanol_ccsd_t-{part}.npz", b"\x00\x05\x16\x07")
    blocks = list(SOURCES["md17-ccsdt"].read([tmp_path / "ethanol_ccsd_t.zip"]))
    assert [(len(b), b.level, b.properties["test"][0]) for b in blocks] == [(30, "CCSD(T)/cc-pVTZ", 0), (10, "CCSD(T)/cc-pVTZ", 1)]
    assert np.allclose(blocks[0].arrays["energy"], raw["energies"][:30] * KCAL, rtol=1e-9) and blocks[0].molecule[0] == "ethanol"
    assert len(read("md17-ccsdt", tmp_path / "ethanol_ccsd_t.zip", part="test")) == 10
    (tmp_path / "water_ccsd_t.zip").write_bytes((tmp_path / "ethanol_ccsd_t.zip").read_bytes()[:900])
    with pytest.raises(InputError, match="not a whole"):
        read("md17-ccsdt", tmp_path / "water_ccsd_t.zip")


def test_md22_as_npz_and_as_xyz(tmp_path):
    """Both of sGDML's formats: z, R, E, F; and extended XYZ with Energy and forces in kcal/mol (as colabfit's MD22 script reads
    them). Frames are real (revised MD17's)."""
    raw = np.load(ETHANOL)
    np.savez(tmp_path / "md22_AT-AT.npz", z=raw["nuclear_charges"], R=raw["coords"][:6], E=raw["energies"][:6, None], F=raw["forces"][:6])
    symbols = [{1: "H", 6: "C", 8: "O"}[z] for z in raw["nuclear_charges"].tolist()]
    lines = ""
    for k in range(6):
        lines += f'{len(symbols)}\nProperties=species:S:1:pos:R:3:forces:R:3 Energy={raw["energies"][k]:.12f} pbc="F F F"\n'
        rows = np.concatenate([raw["coords"][k], raw["forces"][k]], axis=1)
        lines += "".join(f"{s} {' '.join(f'{x:.10f}' for x in row)}\n" for s, row in zip(symbols, rows, strict=True))
    (tmp_path / "md22_AT-AT.xyz").write_text(lines)
    npz, xyz = (read("md22", tmp_path / f"md22_AT-AT.{ending}") for ending in ("npz", "xyz"))
    for block in (npz, xyz):
        assert block.molecule[0] == "at-at" and block.level == "PBE+MBD" and block.source == "md22"
        assert (block.arrays["equilibrium"] == 0).all()
    for field in ("numbers", "positions", "energy", "forces"):
        assert np.allclose(npz.arrays[field], xyz.arrays[field], rtol=1e-6, atol=1e-8), field
    assert np.allclose(npz.arrays["energy"], raw["energies"][:6] * KCAL, rtol=1e-9)


def test_iso17_rows_and_ids(tmp_path):
    """Layout of iso17.tar.gz (its README, and kgcnn's ISO17Dataset): ASE SQLite with total_energy and data.atomic_forces in eV,
    eV/Å; train_ids.txt has row ids, from 1."""
    from ase.db import connect

    with connect(tmp_path / "reference.db") as database:
        for k in range(12):
            atoms = molecule("CH3CH2OH")
            atoms.rattle(0.03, seed=k)
            database.write(atoms, total_energy=-11000.0 - k, data={"atomic_forces": (np.full((9, 3), 0.1 * k)).tolist()})
    with connect(tmp_path / "reference_eq.db") as database:
        database.write(molecule("CH3CH2OH"), total_energy=-11000.0)
    (tmp_path / "train_ids.txt").write_text("3\n1\n7\n")
    block = read("iso17", tmp_path / "reference.db")
    assert block.arrays["energy"].tolist() == [-11000.0 - k for k in range(12)] and block.level == "PBE+vdW-TS"
    assert np.allclose(block.arrays["forces"].reshape(12, 9, 3)[:, 0, 0], 0.1 * np.arange(12)) and (block.arrays["equilibrium"] == 0).all()
    assert len(set(block.molecule)) == 1 and block.molecule[0].startswith("C2H6O-")
    chosen = read("iso17", tmp_path / "reference.db", ids=tmp_path / "train_ids.txt")
    assert chosen.arrays["energy"].tolist() == [-11000.0, -11002.0, -11006.0]
    minima = read("iso17", tmp_path / "reference_eq.db")
    assert minima.arrays["equilibrium"].tolist() == [1] and "forces" not in minima.arrays
    (tmp_path / "train_ids.txt").write_text("3\n99\n")
    with pytest.raises(InputError, match="1 of the 2 rows"):
        read("iso17", tmp_path / "reference.db", ids=tmp_path / "train_ids.txt")
    # The generic door with the same mapping gives the same.
    other = read("asedb", tmp_path / "reference.db", map="total_energy=energy,atomic_forces=-forces")
    assert np.array_equal(other.arrays["forces"], -block.arrays["forces"])
    (tmp_path / "bad.db").write_bytes(b"SQLite format 3\x00" + bytes(100))
    with pytest.raises(InputError, match="not a whole ASE database"):
        read("asedb", tmp_path / "bad.db")


def test_aselmdb_without_pickle(tmp_path):
    """fairchem's layout (ase_db_backends/aselmdb.py): keys 1 ... nextid - 1, nextid, deleted_ids; zlib-compressed JSON of ASE."""
    lmdb = pytest.importorskip("lmdb")
    from ase.io.jsonio import encode

    water = molecule("H2O")
    rows = [
        {"numbers": water.numbers, "positions": water.positions, "cell": np.zeros((3, 3)), "pbc": np.zeros(3, dtype=bool)}
        | {"energy": -2079.0 - k, "forces": (0.1 * k * np.ones((3, 3))).tolist()}
        | {"data": {"charge": 1 - k, "spin": 2, "source": "x"}, "key_value_pairs": {"smiles": "O"}}
        for k in range(4)
    ]
    path = tmp_path / "data0000.aselmdb"
    with lmdb.open(str(path), subdir=False, map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        for k, row in enumerate(rows):
            transaction.put(str(k + 1).encode(), zlib.compress(encode(row).encode()))
        transaction.delete(b"3")
        transaction.put(b"nextid", zlib.compress(b"5"))
        transaction.put(b"deleted_ids", zlib.compress(b"[3]"))
    block = read("aselmdb", path, level="wB97M-V/def2-TZVPD")
    assert block.arrays["energy"].tolist() == [-2079.0, -2080.0, -2082.0] and block.arrays["charge"].tolist() == [1, 0, -2]
    assert block.arrays["spin"].tolist() == [2, 2, 2] and block.smiles.tolist() == ["O"] * 3 and SOURCES["aselmdb"].count(path) == 3
    assert np.allclose(block.arrays["forces"][3:6], 0.1) and "cell" not in block.arrays
    with lmdb.open(str(path), subdir=False, map_size=1 << 20) as environment, environment.begin(write=True) as transaction:
        transaction.put(b"2", b"\x80\x04\x95\x0b\x00")  # a pickle
    with pytest.raises(InputError, match="pickled by other programs are not read"):
        read("aselmdb", path)


def test_pubchemqc_json_is_streamed(tmp_path, monkeypatch):
    """Layout of huggingface.co/datasets/molssiai-hub/pubchemqc-pm6: one array of records with these keys; energies in eV."""
    water, ion = molecule("H2O"), molecule("NH3")
    common = {"energy-alpha-homo": -11.9, "energy-alpha-lumo": 4.1, "energy-alpha-gap": 16.0, "orbital-energies": [[-1.0] * 300]}
    records = [
        {"cid": 962, "state": state, "pubchem-isomeric-smiles": "O", "atomic-numbers": water.numbers.tolist(), "charge": charge}
        | {"coordinates": water.positions.reshape(-1).tolist(), "total-energy": -322.7, "multiplicity": spin, "number-of-atoms": 3}
        | common
        for state, charge, spin in (("S0", 0, 1), ("D0", 1, 2), ("S0", -0.0, 1))
    ]
    records[2] |= {"cid": 222, "atomic-numbers": ion.numbers.tolist(), "coordinates": ion.positions.reshape(-1).tolist()}
    path = tmp_path / "000000001-000298189.json"
    path.write_text(json.dumps(records, indent=1))
    for buffer in (7, 1000, 1 << 22):  # records cut by the buffer at any place
        monkeypatch.setattr(pubchemqc_pm6, "BUFFER", buffer)
        block = read("pubchemqc-pm6", path)
        assert block.molecule.tolist() == ["pubchem/962", "pubchem/222"] and block.arrays["charge"].tolist() == [0, 0]
    assert np.allclose(block.arrays["positions"][:3], water.positions) and block.arrays["energy"].tolist() == [-322.7] * 2
    assert (block.arrays["equilibrium"] == 1).all() and block.properties["gap"].tolist() == [16.0, 16.0]
    everything = read("pubchemqc-pm6", path, states="all")
    assert everything.arrays["spin"].tolist() == [1, 2, 1] and everything.arrays["charge"].tolist() == [0, 1, 0]
    path.write_text(json.dumps(records)[:-200])
    with pytest.raises(InputError, match="breaks off or is damaged after record 2"):
        read("pubchemqc-pm6", path)
    del records[1]["total-energy"]
    path.write_text(json.dumps(records))
    with pytest.raises(InputError, match=r"record 1 cannot be used \(KeyError: 'total-energy'"):
        read("pubchemqc-pm6", path, states="all")


@pytest.mark.parametrize(
    ("name", "targets", "molecules"),
    [
        ("BBBP", 1, 8),
        ("bace", 2, 3),
        ("clintox", 2, 7),
        ("sider", 27, 5),
        ("ESOL_delaney-processed", 1, 12),
        ("FreeSolv_SAMPL", 1, 12),
        ("Lipophilicity", 1, 8),
    ],
)
def test_moleculenet_labels_and_structures(name, targets, molecules):
    """The first rows of the real files: every label is that of its row, and the structure is the SMILES's. A platinum complex
    that RDKit cannot read (ClinTox) and insulin (SIDER) stay out."""
    rdkit = pytest.importorskip("rdkit.Chem")
    path = DATA / "moleculenet" / f"{name}.csv"
    block = read("moleculenet", path)
    assert len(block) == molecules and len(block.properties) == targets and "energy" not in block.arrays
    import csv

    with open(path, newline="") as stream:
        every = list(csv.DictReader(stream))
    rows = [row for row in every if row["smiles"].strip() in set(block.smiles)]
    assert len(rows) == len(block) and SOURCES["moleculenet"].count(path) == len(every)
    for key, values in block.properties.items():
        assert values.tolist() == [float(row[key]) for row in rows]
    block.validate()  # no two atoms on top of each other, salts included
    for k in range(len(block)):
        parsed = rdkit.AddHs(rdkit.MolFromSmiles(block.smiles[k]))
        assert block.system(k).numbers.tolist() == [atom.GetAtomicNum() for atom in parsed.GetAtoms()]
        assert int(block.arrays["charge"][k]) == rdkit.GetFormalCharge(parsed)


def test_moleculenet_is_repeatable_and_names_what_it_cannot_embed(tmp_path, capsys):
    pytest.importorskip("rdkit")
    rows = ["iupac,smiles,expt,calc", "a,CCO,-5.0,-4.8", "b,C1CC,-1,-1", "c,[Na+].[Cl-],-2,-2", "d,OCC,-5.0,-4.8"]
    path = _csv(tmp_path / "SAMPL.csv", "\n".join(rows) + "\n")
    first, again = read("moleculenet", path, conformers=3), read("moleculenet", path, conformers=3)
    assert np.array_equal(first.arrays["positions"], again.arrays["positions"])
    assert not np.array_equal(first.arrays["positions"], read("moleculenet", path, conformers=3, seed=1).arrays["positions"])
    said = " ".join(capsys.readouterr().out.split())
    assert "1 molecules that RDKit cannot read or embed, or that are too large, were left out: row 2 C1CC" in said
    assert len(first) == 9 and first.molecule.tolist() == ["CCO"] * 3 + ["[Cl-].[Na+]"] * 3 + ["CCO"] * 3
    salt = first.system(3)
    assert np.linalg.norm(salt.positions[0] - salt.positions[1]) == pytest.approx(GAP)
    assert first.source == "moleculenet/freesolv" and first.smiles[-1] == "OCC"
    with pytest.raises(InputError, match="none of the seven sets"):
        read("moleculenet", _csv(tmp_path / "b.csv", "a,smiles\n1,C\n"))
    with pytest.raises(InputError, match="conformers is '0'"):
        read("moleculenet", path, conformers="0")


@pytest.mark.parametrize(("package", "source", "extra"), [("rdkit", "moleculenet", "qm"), ("lmdb", "aselmdb", "lmdb")])
def test_a_missing_package_names_the_extra(tmp_path, monkeypatch, package, source, extra):
    monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    monkeypatch.setitem(sys.modules, f"{package}.Chem", None)
    with pytest.raises(InputError, match=rf"pip install 'forcewell\[{extra}\]'"):
        list(SOURCES[source].read([DATA / "moleculenet" / "BBBP.csv"]))


def test_isolated_atoms_become_references(tmp_path, capsys):
    """3BPA's real files: the isolated atoms are no conformations; their energies stand in the manifest."""
    done = import_source("3bpa", [DATA / "3bpa_300K_5.xyz", DATA / "3bpa_iso_atoms.xyz"], tmp_path / "b.fw")
    assert done.kept == 5 and set(done.store.column("molecule")) == {"3bpa"}
    atoms = done.store.manifest["settings"]["isolated_atoms"]["wB97X/6-31G(d)"]
    assert atoms == {"6": -1029.4889999855063, "1": -13.587222780835477, "7": -1484.9814568572233, "8": -2041.9816003861047}
    # C12H12N2O: the energy of its atoms lies above the molecule's by the atomisation energy, about 150 eV.
    fit = reference_fits(done.store)["wB97X/6-31G(d)"]
    assert fit.isolated and {str(z): fit.values[z] for z in fit.elements} == atoms and fit.after.mean < -4
    assert done.store.manifest["references"]["wB97X/6-31G(d)"]["energies"] == atoms
    info_command(done.store.path)
    assert "(isolated atoms)" in " ".join(capsys.readouterr().out.split())
    total = sum(atoms[str(z)] for z in done.store[0].numbers.tolist())
    assert 100 < total - float(done.store[0].arrays["energy"]) < 200
    without = import_source("acac", [DATA / "acac_300K_100.xyz"], tmp_path / "a.fw").store
    assert without.levels == ["PBE-D3/def2-SVP"] and not reference_fits(without)["PBE-D3/def2-SVP"].isolated  # fitted as ever
