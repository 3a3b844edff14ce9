"""Imports of large files: killed at any moment, continued, and the same to the last byte; mappings on the command line."""

import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import h5py
import numpy as np
import pytest

from forcewell.cli import main
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES
from forcewell.sources.card import CHUNK, merged
from forcewell.sources.mapping import as_options
from forcewell.store import Store, open_data
from forcewell.system import Block

DATA = Path(__file__).parent / "data"
BUNDLED = Path(str(files("forcewell"))) / "bundled"
SPICE = DATA / "spice_1.1.4_2.hdf5"
SHARD = 200_000  # bytes


@pytest.fixture(scope="module")
def ani1x(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ANI-1x's layout: 40 formula groups of 250 displaced QM9 minima."""
    path, rows = tmp_path_factory.mktemp("ani") / "ani1x.h5", np.load(BUNDLED / "qm9_minima_4002.npz")
    offsets, rng = np.concatenate([[0], np.cumsum(rows["natoms"])]), np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k in np.flatnonzero(rows["natoms"] > 9)[:40]:
            z, minimum = (rows[name][offsets[k] : offsets[k + 1]] for name in ("z", "pos"))
            shift = rng.normal(0, 0.05, (250, *minimum.shape))
            group = file.create_group(f"F{k:05d}")
            group["atomic_numbers"], group["coordinates"] = z, (minimum + shift).astype(np.float32)
            group["wb97x_dz.forces"] = (-0.4 * shift).astype(np.float32)
            group["wb97x_dz.energy"] = -38.0 * len(z) + 0.2 * (shift**2).sum(axis=(1, 2))
    return path


def contents(store: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in store.iterdir()}


def test_an_import_killed_again_and_again_is_the_same_to_the_last_byte(ani1x, tmp_path):
    """SIGKILL at three moments, among them the writing of shards and manifests, which the slowed process is in for most of its
    time; then the same command to the end."""
    whole, path = tmp_path / "whole.fw", tmp_path / "killed.fw"
    import_source("ani1x", [ani1x], whole, shard_bytes=SHARD, unchecked=True)
    script = (
        "import time, os\nimport forcewell.sources.card as card\nfrom forcewell.importing import import_source\n"
        "card.CHUNK = 500\n"
        "replace = os.replace\n"
        "def slow(*arguments):\n    time.sleep(0.03)\n    replace(*arguments)\n    time.sleep(0.03)\n"
        "os.replace = slow\n"
        f"import_source('ani1x', [{str(ani1x)!r}], {str(path)!r}, shard_bytes={SHARD}, unchecked=True)\n"
    )
    rng, kills, seen = np.random.default_rng(1), 0, []
    while kills < 3:
        process = subprocess.Popen([sys.executable, "-c", script])
        before, deadline = len(list(path.glob("shard*"))), time.monotonic() + 60
        while len(list(path.glob("shard*"))) < before + 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        assert process.poll() is None, "the import ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        kills += 1
        store = Store(path)
        store.verify()
        seen.append(len(store))
    print(f"conformations after each kill: {seen}")
    assert not Store(path).complete and 0 < seen[0] < seen[-1] < 10_000 and seen == sorted(seen)
    # Uninterrupted, with the blocks that the killed process made.
    reference = tmp_path / "reference.fw"
    subprocess.run([sys.executable, "-c", script.replace(str(path), str(reference)).replace("time.sleep(0.03)", "pass")], check=True)
    subprocess.run([sys.executable, "-c", script.replace("time.sleep(0.03)", "pass")], check=True)
    assert contents(path) == contents(reference)
    # Larger blocks cut the shards elsewhere, but the rows are the same.
    everything = np.arange(10_000)
    for field in ("positions", "forces", "energy", "equilibrium"):
        assert np.array_equal(Store(path).block(everything).arrays[field], Store(whole).block(everything).arrays[field])


def test_memory_stays_bounded(ani1x):
    """Blocks hold at most a chunk and one group more, whatever the file's size; small groups are joined."""
    sizes = [len(block) for block in SOURCES["ani1x"].read([ani1x])]
    assert sum(sizes) == 10_000 and max(sizes) <= CHUNK + 250 and len(sizes) == 2


def test_joined_blocks_keep_what_only_one_knows():
    one = Block.shared([1, 1], np.zeros((2, 2, 3)), energy=np.array([1.0, 2.0]), level="a", properties={"p": np.array([5.0, 6.0])})
    two = Block.shared([8], np.ones((1, 1, 3)), charge=np.array([-1]), level="a")
    three = Block.shared([8], np.ones((1, 1, 3)), level="b")
    first, second = merged([one, two, three])
    assert first.counts.tolist() == [2, 2, 1] and first.arrays["charge"].tolist() == [0, 0, -1]
    assert np.array_equal(first.arrays["energy"], [1.0, 2.0, np.nan], equal_nan=True)
    assert np.array_equal(first.properties["p"], [5.0, 6.0, np.nan], equal_nan=True) and second.level == "b"


def test_mapping_on_the_command_line_and_as_a_file(tmp_path):
    """SPICE's real file as if it were anybody's: --map and --unit, and the same as YAML, give the same store."""
    words = ["--map", "dft_total_energy=energy", "--map", "dft_total_gradient=-forces"]
    words += ["--unit", "energy=Hartree", "--unit", "forces=Hartree/bohr", "--unit", "positions=bohr"]
    (tmp_path / "mine.yaml").write_text(
        "map: {dft_total_energy: energy, dft_total_gradient: -forces}\n"
        "unit: {energy: Hartree, forces: Hartree/bohr, positions: bohr}\nlevel: wB97M\n"
    )
    main(["data", "import", "hdf5", str(SPICE), "--out", str(tmp_path / "a.fw"), *words, "--option", "level=wB97M"])
    main(["data", "import", "hdf5", str(SPICE), "--out", str(tmp_path / "b.fw"), "--map", str(tmp_path / "mine.yaml")])
    main(["data", "import", "spice", str(SPICE), "--out", str(tmp_path / "c.fw")])
    a, b, c = (Store(tmp_path / f"{name}.fw") for name in "abc")
    assert a.fingerprint == b.fingerprint and a.levels == ["wB97M"]
    for field in ("positions", "energy"):
        assert np.allclose(a.block(np.arange(55)).arrays[field], c.block(np.arange(55)).arrays[field], rtol=1e-12)


def test_properties_and_signs_by_mapping(tmp_path):
    raw = np.load(BUNDLED / "rmd17_ethanol_train_01.npz")
    gap = np.linspace(5, 6, 20)
    np.savez(tmp_path / "m.npz", Z=raw["nuclear_charges"], xyz=raw["coords"][:20], grad=-raw["forces"][:20], e=raw["energies"][:20], g=gap)
    options = as_options(["e=energy", "grad=-forces,g=property:gap"], ["energy=kcal/mol", "property:gap=eV"])
    done = import_source("npz", [tmp_path / "m.npz"], tmp_path / "m.fw", exclude="none", options=options)
    assert done.store.manifest["properties"] == {"gap": "eV"} and np.array_equal(done.store.column("property:gap"), gap)
    expected = open_data(BUNDLED / "rmd17_ethanol_train_01.npz").block(np.arange(20))
    assert np.allclose(done.store.block(np.arange(20)).arrays["forces"], expected.arrays["forces"], rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match="cannot give stress by another name"):
        open_data(tmp_path / "m.npz", map="g=stress")
    import ase.io

    atoms = ase.io.read(DATA / "acac_300K_100.xyz", ":3")
    for k, frame in enumerate(atoms):
        frame.info |= {"dip": 1.5 + k, "E0": float(k)}
    ase.io.write(tmp_path / "p.xyz", atoms, format="extxyz")
    block = open_data(tmp_path / "p.xyz", map="dip=property:dipole,E0=-energy").block([0, 1, 2])
    assert block.properties["dipole"].tolist() == [1.5, 2.5, 3.5] and block.arrays["energy"].tolist() == [0.0, -1.0, -2.0]


def test_water_of_mbgdml_through_the_npz_door(tmp_path):
    """z, R, E, F would be MD17's; mbGDML's files name pos and energy."""
    words = ["--unit", "energy=kcal/mol", "--option", "level=MP2/def2-TZVP"]
    main(["data", "import", "npz", str(DATA / "water_mp2_200.npz"), "--out", str(tmp_path / "w.fw"), *words])
    assert -2077.5 < Store(tmp_path / "w.fw").column("energy").mean() < -2075


@pytest.mark.parametrize(
    ("maps", "units", "message"),
    [
        (["a"], [], "map 'a' is not of the form name=value"),
        ([], ["energy"], "unit 'energy' is not of the form"),
        ([], ["energies=eV"], r"unit energies=eV: expected energy.*did you mean 'energy'"),
        (["none.yaml"], [], "does not exist"),
        (["bad.yaml"], [], "unknown key 'mapp'"),
        (["worse.yaml"], [], "not YAML"),
        (["list.yaml"], [], "not a mapping"),
    ],
)
def test_bad_mappings(tmp_path, monkeypatch, maps, units, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text("mapp: {a: energy}\n")
    (tmp_path / "worse.yaml").write_text("map: {a: [\n")
    (tmp_path / "list.yaml").write_text("- a\n")
    with pytest.raises(InputError, match=message) as caught:
        as_options(maps, units)
    assert "\n" not in str(caught.value)


def test_sources_are_listed_with_sizes_and_where_to_get_them(capsys):
    main(["data", "sources"])
    listed = capsys.readouterr().out
    for name, source in SOURCES.items():
        card = source.CARD
        assert f"\n{name}\n" in f"\n{listed}" and card.title in listed and card.size in listed and card.conformations in listed, name
        if card.page:  # a data set, not a door for a user's own files
            assert card.licence and card.citation and card.level and card.units and card.files and card.size and card.download, name
            assert "http" in card.page and card.download in listed, name
    main(["data", "sources", "spice"])
    shown = " ".join(capsys.readouterr().out.split())
    assert "37.5 GB" in shown and "zenodo.org/records/10975225" in shown.replace(" ", "") and "option subset" in shown
    with pytest.raises(SystemExit):
        main(["data", "sources", "spcie"])
    assert "did you mean 'spice'" in capsys.readouterr().err
