"""What data at scale must do whatever their size: the documented order of samples, shares of processes, readers and read-only stores."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import settings, write_yaml

from forcewell.config import load_config
from forcewell.importing import import_source
from forcewell.loader import Loader, Source
from forcewell.store import MemoryData, Store, StoreWriter, open_data
from forcewell.system import Block
from forcewell.training_data import gather

BUNDLED = Path(str(files("forcewell"))) / "bundled"
QM7X = BUNDLED / "qm7x_hand.npz"
ORDER = Path(__file__).parent / "data" / "loader_order.json"


def of_sizes(name: str, sizes: np.ndarray, weight: float, rows: np.ndarray | None = None, copies: int = 0) -> Source:
    """Conformations of so many atoms each, all in the same place."""
    total = int(sizes.sum())
    block = Block(sizes, {"numbers": np.ones(total, dtype=np.uint8), "positions": np.zeros((total, 3))}, level=name)
    data = MemoryData([block], name=name)
    return Source(name, data, np.arange(len(data)) if rows is None else rows, weight, np.full(len(data), copies), np.arange(1))


@pytest.mark.parametrize("case", range(3))
def test_the_order_of_samples_is_the_one_of_the_first_release(case: int) -> None:
    """700 batches of three sources, over several epochs and draws, against the order that a plain loop per sample gave."""
    expected = json.loads(ORDER.read_text())[case]
    sources = [
        of_sizes("a", 3 + np.arange(50) % 7, 3.0, rows=np.arange(3, 40), copies=1),
        of_sizes("b", 5 + np.arange(301) % 11, 1.0),
        of_sizes("c", 2 + np.arange(17) % 3, 0.2),
    ]
    loader = Loader(sources, expected["batch_size"], expected["max_atoms"], expected["seed"])
    digest, first = hashlib.sha256(), []
    for step in range(700):
        batch = loader.next()
        pairs = np.stack([batch.source.numpy(), batch.index.numpy()], axis=1).astype(np.int64)
        digest.update(pairs.tobytes())
        first += pairs.tolist() if step < 3 else []
    assert first == expected["first"]
    assert (digest.hexdigest(), loader.drawn, loader.used) == (expected["sha256"], expected["drawn"], expected["used"])


@pytest.mark.parametrize("world", [2, 8])
def test_processes_have_disjoint_and_complete_shares(world: int) -> None:
    source = of_sizes("a", 1 + np.arange(1000) % 9, 1.0)
    shares = []
    for rank in range(world):
        loader = Loader([source], 40, 10_000, seed=5, rank=rank, world=world)
        shares.append(np.concatenate([loader.next().index.numpy() for _ in range(25)]))  # one epoch
    together = np.sort(np.concatenate(shares))
    print(f"{world} processes: {[len(share) for share in shares]} samples")
    assert np.array_equal(together, np.arange(1000))


def test_a_resumed_loader_continues_in_the_middle_of_an_epoch() -> None:
    sources = [of_sizes("a", 1 + np.arange(500) % 9, 2.0), of_sizes("b", 1 + np.arange(90) % 5, 1.0)]
    steady, stopped = (Loader(sources, 16, 60, seed=2, rank=1, world=2) for _ in range(2))
    for _ in range(77):
        steady.next()
    assert all(used % len(source.rows) for used, source in zip(steady.used, sources, strict=True))
    stopped.restore(json.loads(json.dumps(steady.state())))
    for _ in range(60):
        expected, found = steady.next(), stopped.next()
        assert expected.source.tolist() == found.source.tolist() and expected.index.tolist() == found.index.tolist()


@pytest.mark.parametrize(("temperature", "share"), [(None, 0.5), (1.0, 0.8), (2.0, 2 / 3), (1e6, 0.5)])
def test_sampling_by_temperature(tmp_path: Path, temperature: float | None, share: float) -> None:
    """Sources of 1,600 and 400 training conformations: 4 : 1 at temperature 1, 2 : 1 at 2, evenly at none and at infinity."""
    paths = []
    for name, rows in (("large", 1684), ("small", 421)):
        writer = StoreWriter(tmp_path / f"{name}.fw")
        writer.append(open_data(QM7X).block(np.arange(rows)))
        writer.finish()
        paths.append(str(tmp_path / f"{name}.fw"))
    sampling = {} if temperature is None else {"temperature": temperature}
    config = settings(*paths, objectives="et-ore", sampling=sampling, validation={"fraction": 0.05, "by": "random"})
    _, training, _, _ = gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)
    sizes = [len(source.rows) for source in training]
    loader = Loader(training, 100, 100_000, seed=0)
    found = np.mean([float((loader.next().source == 0).float().mean()) for _ in range(100)])
    print(f"{sizes} conformations, temperature {temperature}: {found:.4f} from the larger, {share:.4f} expected")
    assert abs(found - share) < 5 * (share * (1 - share) / 10_000) ** 0.5 + 0.001


def test_readers_while_a_store_grows_and_its_writer_is_killed(tmp_path: Path) -> None:
    """Every reader sees whole shards with right numbers, whatever the writer is doing, and so after SIGKILL."""
    path, block = tmp_path / "growing.fw", open_data(QM7X).block(np.arange(2000))
    script = (
        "import sys, itertools, numpy as np\nfrom forcewell.store import StoreWriter, open_data\n"
        f"block = open_data({str(QM7X)!r}).block(np.arange(2000))\n"
        f"writer = StoreWriter({str(path)!r}, shard_bytes=1)\n"
        "for k in itertools.count():\n    writer.append(block.take(np.arange(100) + 100 * (k % 20)))\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", script], env={**os.environ, "OMP_NUM_THREADS": "1"})
    sizes: list[int] = []
    try:
        deadline = time.monotonic() + 120
        while (not sizes or sizes[-1] < 3000) and time.monotonic() < deadline and writer.poll() is None:
            if (path / "manifest.json").is_file():
                store = Store(path)
                rows = np.random.default_rng(len(sizes)).integers(0, max(1, len(store)), 50 if len(store) else 0)
                found, expected = store.block(rows), block.take(rows % 2000)
                assert np.array_equal(found.arrays["positions"], expected.arrays["positions"])
                assert not len(rows) or np.array_equal(found.arrays["energy"], expected.arrays["energy"])
                sizes.append(len(store))
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    left = Store(path)
    print(f"{len(sizes)} readings while the store grew from {sizes[0]} to {sizes[-1]}; {len(left)} conformations after the kill")
    assert len(set(sizes)) >= 5 and len(left) % 100 == 0 and not left.complete
    left.verify()


def test_two_processes_read_one_store(tmp_path: Path) -> None:
    """Four readers at the same time give what one gives."""
    store = import_source("qm7x", [QM7X], tmp_path / "a.fw", exclude="none", shard_bytes=150_000).store
    script = (
        "import sys, hashlib, numpy as np\nfrom forcewell.store import Store\n"
        f"store = Store({str(store.path)!r})\n"
        "block = store.block(np.random.default_rng(0).permutation(len(store)))\n"
        "print(hashlib.sha256(block.arrays['positions'].tobytes()).hexdigest())\n"
    )
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    readers = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) for _ in range(4)]
    answers = {reader.communicate()[0].strip() for reader in readers}
    mine = store.block(np.random.default_rng(0).permutation(len(store))).arrays["positions"]
    assert answers == {hashlib.sha256(mine.tobytes()).hexdigest()}


READ = """
import errno, os, sys
import numpy as np
try:
    os.close(os.open(os.path.join(sys.argv[1], "probe"), os.O_CREAT | os.O_WRONLY))
    print("writable")
except OSError as error:
    print(errno.errorcode[error.errno])
from forcewell.split import Split
from forcewell.store import Store
store = Store(sys.argv[1])
store.verify()
split = Split.load(os.path.join(sys.argv[1], "split.json"), store)
print(len(store), len(store.block(split.parts["train"][::112])))
"""


def test_a_read_only_file_system(tmp_path: Path) -> None:
    """A store on a file system mounted read-only in a mount namespace of its own, where not even root can write."""
    store = import_source("qm7x", [QM7X], tmp_path / "a.fw", exclude="none").store
    assert make_split(store) > 0
    before = {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in store.path.iterdir()}
    mount = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    command = ["unshare", "-rm", "sh", "-c", mount, str(store.path)]
    try:
        probe = subprocess.run([*command, "true"], capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("no unshare on this system; the test below covers it")
    if probe.returncode:
        pytest.skip(f"no mount namespaces here ({probe.stderr.strip()}); the test below covers it")
    done = subprocess.run([*command, sys.executable, "-c", READ, str(store.path)], capture_output=True, text=True)
    print(done.stdout, done.stderr[-500:])
    assert done.stdout.split() == ["EROFS", "2000", "17"], done.stderr
    assert {file.name: (file.stat().st_mtime_ns, file.stat().st_size) for file in store.path.iterdir()} == before
    # The control: the same program outside the namespace can write.
    done = subprocess.run([sys.executable, "-c", READ, str(store.path)], capture_output=True, text=True)
    assert done.stdout.split() == ["writable", "2000", "17"], done.stderr


def make_split(store: Store) -> int:
    from forcewell.split import by_molecule

    split = by_molecule(store, [0.9, 0.1], seed=0)
    split.save(store.path / "split.json")
    return len(split.parts["train"])


def test_reading_never_asks_to_write(tmp_path: Path) -> None:
    """Every file that the interpreter opens inside a store while reading is opened for reading: an audit hook sees the flags."""
    store = import_source("qm7x", [QM7X], tmp_path / "a.fw", exclude="none").store
    make_split(store)
    watch = (
        "import os, sys\nseen, writing = [], os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND\n"
        "def watch(event, arguments):\n"
        "    if event == 'open' and str(arguments[0]).startswith(sys.argv[1]):\n"
        "        seen.append((arguments[0], bool(arguments[2] & writing)))\n"
        "    if event in ('os.rename', 'os.remove', 'os.mkdir', 'os.truncate') and sys.argv[1] in str(arguments):\n"
        "        seen.append((event, True))\n"
        "sys.addaudithook(watch)\n"
    )
    report = "print(len(seen), [name for name, wrote in seen if wrote])\n"
    quiet = READ.split("except OSError")[0].split("try:")[0] + READ.split("errno.errorcode[error.errno])\n")[1]
    done = subprocess.run([sys.executable, "-c", watch + quiet + report, str(store.path)], capture_output=True, text=True)
    opened, wrote = done.stdout.splitlines()[-1].split(" ", 1)
    print(f"{opened} files opened in the store, for writing: {wrote}")
    assert int(opened) >= 3 and wrote == "[]", done.stderr
    # The control: the probe that tries to write is seen.
    done = subprocess.run([sys.executable, "-c", watch + READ + report, str(store.path)], capture_output=True, text=True)
    assert "probe" in done.stdout.splitlines()[-1]


def test_writing_where_one_cannot_is_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only target: the error names it, and nothing is left."""

    def refuse(*arguments: object, **keywords: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "a.fw"))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        StoreWriter(tmp_path / "a.fw")
    assert list(tmp_path.iterdir()) == []


def test_the_manifest_spares_the_search_for_benchmark_molecules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bond graphs are made of a store that was not searched at import, and not of one that was."""
    from forcewell import training_data

    looked: list[int] = []
    searched = training_data._benchmark_rows
    monkeypatch.setattr(training_data, "_benchmark_rows", lambda dataset: looked.append(len(dataset)) or searched(dataset))
    for exclude, expected in (("benchmark", []), ("none", [2000]), ("ethanol", [2000])):
        looked.clear()
        store = import_source("qm7x", [QM7X], tmp_path / f"{exclude}.fw", exclude=exclude).store
        config = settings(str(store.path), objectives="et-ore")
        gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "benchmark", quiet=True)
        assert looked == expected, exclude
