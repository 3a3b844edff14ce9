"""The store: round trips, damage, kills, full disks, and gathering rows against a slow second path."""

import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from forcewell.errors import InputError
from forcewell.fields import ATOM_FIELDS
from forcewell.importing import import_source
from forcewell.sources import SOURCES
from forcewell.store import MemoryData, Store, StoreWriter, open_data, reference_fits, references
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"
QM7X, QM9 = BUNDLED / "qm7x_hand.npz", BUNDLED / "qm9_minima_4002.npz"
SHARD = 150_000  # bytes; makes several shards of each file


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return import_source("qm7x", [QM7X], tmp_path_factory.mktemp("data") / "qm7x.fw", exclude="none", shard_bytes=SHARD).store


@pytest.fixture(scope="module")
def source_block() -> Block:
    return next(iter(SOURCES["qm7x"].read([QM7X])))


def mixed_writer(path: Path, shard_bytes: int = SHARD) -> StoreWriter:
    """Appends QM9 (no labels) and QM7-X (labels) in turn: shards differ in fields, levels and sources."""
    writer = StoreWriter(path, shard_bytes=shard_bytes)
    for name, file in (("qm9", QM9), ("qm7x", QM7X)):
        for block in SOURCES[name].read([file]):
            for rows in np.array_split(np.arange(len(block)), 8):
                writer.append(block.take(rows))
    return writer


def test_rows_are_the_sources_rows(store, source_block):
    assert len(store) == len(source_block) == 2000
    rows = np.random.default_rng(0).permutation(2000)[:300]
    found, expected = store.block(rows), source_block.take(rows)
    assert found.counts.tolist() == expected.counts.tolist()
    for name, values in expected.arrays.items():
        assert found.arrays[name].dtype == values.dtype
        assert np.array_equal(found.arrays[name], values), name  # bit for bit
    assert found.molecule.tolist() == expected.molecule.tolist()
    assert (found.level, found.source) == ("PBE0+MBD", "qm7x")
    assert np.array_equal(store[7].positions, source_block.system(7).positions)


def test_block_over_shards_equals_row_by_row(tmp_path):
    store = mixed_writer(tmp_path / "mixed.fw").finish()
    assert len(store.manifest["shards"]) > 5
    rows = np.random.default_rng(1).integers(0, len(store), 257)  # with repetitions, in any order
    block = store.block(rows)
    singles = [store.block([row]) for row in rows]
    for name in store.fields:
        expected = np.concatenate([single.arrays[name] for single in singles])
        assert np.array_equal(block.arrays[name], expected, equal_nan=expected.dtype.kind == "f"), name
    assert block.molecule.tolist() == [single.molecule[0] for single in singles]
    assert block.level == "" and {single.level for single in singles} == set(store.levels)
    starts = np.concatenate([[0], np.cumsum(store.counts)])
    assert starts[-1] == store.manifest["atoms"]
    assert np.array_equal(store.counts[rows], block.counts)


def test_missing_labels_are_not_known_values(tmp_path):
    store = mixed_writer(tmp_path / "mixed.fw").finish()
    energy, level = store.column("energy"), store.column("level")
    unlabelled = level == store.levels.index("B3LYP/6-31G(2df,p)")
    assert unlabelled.sum() == 4002 and np.isnan(energy[unlabelled]).all() and np.isfinite(energy[~unlabelled]).all()
    one_of_each = store.block([0, len(store) - 1])
    assert np.isnan(one_of_each.arrays["forces"][: one_of_each.counts[0]]).all()
    assert store.column("charge").tolist() == [0] * len(store)
    assert len(np.unique(store.molecule_codes())) == 4002 + 200
    with pytest.raises(InputError, match="no column 'enrgy'"):
        store.column("enrgy")


def test_memory_and_disk_are_the_same_interface(store):
    memory = open_data(QM7X)
    rows = np.array([5, 1999, 0, 5])
    for name in ("numbers", "positions", "energy", "forces"):
        assert np.array_equal(memory.block(rows).arrays[name], store.block(rows).arrays[name])
    assert memory.counts.tolist() == store.counts.tolist() and memory.elements == store.elements
    copy = pickle.loads(pickle.dumps(store))  # as a loader's worker process receives it
    assert copy.fingerprint == store.fingerprint and np.array_equal(copy[3].positions, store[3].positions)


@pytest.mark.parametrize("rows", [[2000], [-1], [0, 99999]])
def test_index_out_of_range(store, rows):
    with pytest.raises(InputError, match="2000"):
        store.block(rows)


def test_every_flipped_byte_is_found(tmp_path):
    path = tmp_path / "a.fw"
    store = mixed_writer(path).finish()
    file = path / store.manifest["shards"][1]["file"]
    content = file.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 12):
        damaged = bytearray(content)
        damaged[place] ^= 1
        file.write_bytes(damaged)
        with pytest.raises(InputError, match=file.name):
            Store(path).verify()
        with pytest.raises(InputError, match=file.name):
            _ = Store(path).counts
    file.write_bytes(content)
    Store(path).verify()
    file.write_bytes(content[:-1])
    with pytest.raises(InputError, match="bytes long"):
        Store(path)
    file.unlink()
    with pytest.raises(InputError, match="missing"):
        Store(path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": "other"}', '{"format": "forcewell-store", "version": 99}'])
def test_damaged_manifest(tmp_path, text):
    import_source("qm7x", [QM7X], tmp_path / "a.fw", exclude="none")
    (tmp_path / "a.fw" / "manifest.json").write_text(text)
    with pytest.raises(InputError, match="manifest"):
        Store(tmp_path / "a.fw")
    with pytest.raises(InputError, match="not a Forcewell store"):
        open_data(tmp_path)


def test_killed_import_continues_without_duplicates(tmp_path):
    whole = import_source("qm9", [QM9], tmp_path / "whole.fw", shard_bytes=SHARD).store
    path = tmp_path / "killed.fw"
    script = (
        "import sys, time\nimport forcewell.sources.qm9 as source, forcewell.sources.card as card\n"
        "from forcewell.importing import import_source\nfrom forcewell.store import StoreWriter\n"
        "source.chunks = lambda frames: card.chunks(frames, 500)\n"
        "append = StoreWriter.append\n"
        "def slow(self, *arguments, **keywords):\n    append(self, *arguments, **keywords)\n    time.sleep(0.3)\n"
        "StoreWriter.append = slow\n"
        f"import_source('qm9', [{str(QM9)!r}], {str(path)!r}, shard_bytes={SHARD})\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script])
    deadline = time.monotonic() + 60
    while not (path / "shard-00001.arrow").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    with pytest.raises(InputError, match="being written by another process"):
        import_source("qm9", [QM9], path, shard_bytes=SHARD)
    process.send_signal(signal.SIGKILL)
    process.wait()
    half = Store(path)
    half.verify()
    assert not half.complete and 0 < len(half) < len(whole)
    with pytest.raises(InputError, match="other settings"):
        import_source("qm9", [QM9], path, exclude="none", shard_bytes=SHARD)
    done = import_source("qm9", [QM9], path, shard_bytes=SHARD)
    assert done.resumed == half.manifest["consumed"] > 0 and done.store.complete
    assert done.store.column("molecule").tolist() == whole.column("molecule").tolist()
    everything = np.arange(len(whole))
    assert np.array_equal(done.store.block(everything).arrays["positions"], whole.block(everything).arrays["positions"])
    assert (done.left_out, done.kept) == (1, 4001)
    with pytest.raises(InputError, match="is complete"):
        import_source("qm9", [QM9], path, shard_bytes=SHARD)


def test_full_disk_leaves_the_store_as_it_was(tmp_path):
    path = tmp_path / "full.fw"
    block = next(iter(SOURCES["qm7x"].read([QM7X])))
    writer = StoreWriter(path, shard_bytes=1)
    writer.append(block.take(np.arange(100)))
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))  # larger files fail with EFBIG, as on a full disk
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            writer.append(block.take(np.arange(100, 2000)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert caught.value.errno == errno.EFBIG
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    writer.close()
    continued = StoreWriter.resume(path, shard_bytes=1)
    assert continued.consumed == 100
    continued.append(block.take(np.arange(100, 2000)))
    store = continued.finish()
    assert np.array_equal(store.column("energy"), block.arrays["energy"])


def test_failed_manifest_takes_the_shard_back(tmp_path, monkeypatch):
    block = next(iter(SOURCES["qm7x"].read([QM7X])))
    writer = StoreWriter(tmp_path / "a.fw", shard_bytes=1)
    writer.append(block.take(np.arange(10)))
    replace = os.replace

    def full(source, target):
        if str(target).endswith("manifest.json"):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        writer.append(block.take(np.arange(10, 20)))
    assert sorted(file.name for file in (tmp_path / "a.fw").iterdir()) == ["manifest.json", "shard-00000.arrow"]
    assert len(Store(tmp_path / "a.fw")) == 10


def test_unusable_data_leave_nothing(tmp_path):
    block = next(iter(SOURCES["qm7x"].read([QM7X]))).take(np.arange(30))
    positions = block.arrays["positions"].reshape(-1, 3)
    positions[100] = np.nan
    arrays = {"natoms": block.counts, "z": block.arrays["numbers"], "pos": positions}
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(InputError, match="NaN"):
        import_source("npz", [tmp_path / "bad.npz"], tmp_path / "bad.fw")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.npz"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("precious")
    with pytest.raises(InputError, match="already exists"):
        import_source("qm7x", [QM7X], tmp_path / "taken", exclude="none")
    assert (tmp_path / "taken" / "thesis.txt").read_text() == "precious"


def test_manifest_says_what_was_imported(store):
    manifest = json.loads((store.path / "manifest.json").read_text())
    assert manifest["complete"] and manifest["consumed"] == manifest["conformations"] == 2000
    assert manifest["fields"] == {"numbers": "", "positions": "Å", "energy": "eV", "forces": "eV/Å", "equilibrium": ""}
    assert manifest["settings"]["card"]["licence"] == "CC-BY-4.0" and manifest["levels"] == ["PBE0+MBD"]
    assert store.elements == [1, 6, 7, 8, 16, 17]


def test_references_are_the_plain_least_squares(store):
    fit = reference_fits(store)["PBE0+MBD"]
    owner = np.repeat(np.arange(len(store)), store.counts)
    design = np.zeros((len(store), 119))
    np.add.at(design, (owner, store.block(np.arange(len(store))).arrays["numbers"]), 1)
    expected, _, rank, _ = np.linalg.lstsq(design, store.column("energy"), rcond=None)
    error = np.abs(fit.values - expected).max()
    print(f"largest difference {error:.2e} eV")  # 6e-10
    assert error < 5e-9 and fit.rank == rank == 6
    stored = store.manifest["references"]["PBE0+MBD"]["energies"]
    assert all(stored[str(z)] == fit.values[z] for z in store.elements)


def test_references_of_one_molecule_have_rank_one():
    data = open_data(BUNDLED / "rmd17_ethanol_train_01.npz")
    fit = reference_fits(data)["PBE/def2-SVP"]
    total = references(data)["PBE/def2-SVP"][[1, 6, 8]] @ [6, 2, 1]
    assert fit.rank == 1 and abs(total - data.column("energy").mean()) < 1e-8
    # Minimum norm: in proportion to the composition.
    assert np.allclose(fit.values[[1, 6, 8]] / fit.values[8], [6, 2, 1], rtol=1e-12)


def test_references_are_left_out_without_energies():
    assert references(open_data(QM9)) == {}


def test_periodic_and_charged_rows_survive(tmp_path):
    arrays = {
        "numbers": [11, 17, 8],
        "positions": [[0, 0, 0], [2.8, 0, 0], [0, 0, 0]],
        "cell": [np.eye(3) * 5.6, np.zeros((3, 3))],
        "pbc": [[True, True, False], [False] * 3],
        "charge": [-1, 2],
        "spin": [2, 3],
        "stress": np.arange(18.0).reshape(2, 3, 3),
    }
    block = Block([2, 1], {name: np.array(value) for name, value in arrays.items()}, level="x", properties={"gap": np.array([1.5, np.nan])})
    writer = StoreWriter(tmp_path / "p.fw")
    writer.append(block)
    store = writer.finish()
    found = store.block([1, 0])
    for name, values in block.take([1, 0]).arrays.items():
        assert np.array_equal(found.arrays[name], values) and found.arrays[name].dtype == values.dtype
    assert np.array_equal(store.column("property:gap"), [1.5, np.nan], equal_nan=True)
    assert store.column("pbc").shape == (2, 3) and set(ATOM_FIELDS).isdisjoint(["pbc"])
    assert store.manifest["references"] == {}


def test_empty_memory_data():
    with pytest.raises(InputError, match="no conformation"):
        MemoryData([])
