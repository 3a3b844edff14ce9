"""Reading, sampling, importing and training at scale, with data made by repeating the QM7-X conformations of the package.

Usage: .venv/bin/python benchmarks/data.py --out DIR [--sections batches import sources ranks resume large] [--large 16000000]

Every figure is for one core. What is compared is run in turns within one process, and the median over the rounds is given:
rates in CPU time, which other programs on the machine disturb least, with wall time beside it. ``large`` needs about 10 GB of
disk for its store, removed at the end (--keep keeps it), and as much memory that the system may use as a file cache to be warm.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from forcewell.bonds import BENCHMARK
from forcewell.importing import import_source
from forcewell.loader import Loader, Source
from forcewell.sources import SOURCES
from forcewell.store import Store, StoreWriter, open_data
from forcewell.system import Block
from forcewell.units import HARTREE

BATCH, BATCHES, ROUNDS = 256, 100, 9
MAX_ATOMS = 1 << 20
RUN = """
objectives: {{forces: {{}}}}
model: {{encoder: {{name: equivariant-transformer, channels: 64, layers: 3, heads: 4, radial: 32}}}}
data: [{{path: "{store}"}}]
training: {{steps: 60, batch_size: 32, validate_every: 30, log_every: 10, save_every: 30}}
validation: {{maximum: 200}}
"""


def base() -> Block:
    """QM7-X conformations of at most 17 atoms: about 560 bytes each in a store, which 16 million make 9 GB of."""
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        block = open_data(folder / "qm7x_hand.npz")
        return block.block(np.flatnonzero(block.counts <= 17))


def repeated(conformations: int) -> Iterator[Block]:
    """The base again and again, its molecules renamed every ten times, so that a molecule has 100 conformations."""
    block, names = base(), None
    assert block.molecule is not None
    original, made = block.molecule, 0
    while made < conformations:
        turn = made // len(block) // 10
        if names is None or made // len(block) % 10 == 0:
            names = np.array([f"{name}/{turn}" for name in original], dtype=object)
        block.molecule = names
        yield block if made + len(block) <= conformations else block.take(np.arange(conformations - made))
        made += len(block)


def made_store(path: Path, conformations: int, shard_bytes: int | None = None) -> Store:
    """A store by repetition, made once; its manifest says, as an import's does, which molecules were left out (none is there)."""
    if not (path / "manifest.json").is_file():
        writer = StoreWriter(path, settings={"source": "repetition", "exclude": list(BENCHMARK)}, shard_bytes=shard_bytes)
        for block in repeated(conformations):
            writer.append(block)
        writer.finish()
    return Store(path)


def whole(store: Store, name: str = "all", weight: float = 1.0) -> Source:
    return Source(name, store, np.arange(len(store)), weight, np.zeros(len(store), dtype=np.int8), np.arange(len(store.levels)))


def in_turns(tasks: dict[str, Callable[[], object]], molecules: int) -> dict[str, dict[str, float]]:
    """Molecules/s of each task, in CPU and in wall time: medians over rounds in which every task has its turn."""
    for task in tasks.values():
        task()
    cpu: dict[str, list[float]] = {name: [] for name in tasks}
    wall: dict[str, list[float]] = {name: [] for name in tasks}
    for _ in range(ROUNDS):
        for name, task in tasks.items():
            began = time.process_time(), time.perf_counter()
            task()
            cpu[name].append(molecules / (time.process_time() - began[0]))
            wall[name].append(molecules / (time.perf_counter() - began[1]))
    return {
        name: {"per_second_cpu": round(statistics.median(cpu[name])), "per_second_wall": round(statistics.median(wall[name]))}
        for name in tasks
    }


def drawn(loader: Loader) -> Callable[[], object]:
    return lambda: [loader.next() for _ in range(BATCHES)]


def memory_map(store: Store, folder: Path) -> Callable[[np.ndarray], object]:
    """What NumPy alone does: the same columns as flat files, mapped, gathered by the same rows."""
    columns = {}
    for name in ("numbers", "positions", "forces", "energy"):
        parts = [store._shard(k).arrays[name] for k in range(len(store._sizes))]
        np.concatenate(parts).tofile(folder / name)
        columns[name] = np.asarray(np.memmap(folder / name, dtype=parts[0].dtype)).reshape(-1, *parts[0].shape[1:])
        columns[name].sum()  # warm
    offsets = np.concatenate([[0], np.cumsum(store.counts)])

    def gathered(rows: np.ndarray) -> object:
        first, counts = offsets[rows], store.counts[rows]
        ends = np.cumsum(counts)
        atoms = np.repeat(first - (ends - counts), counts) + np.arange(ends[-1])
        return {name: column.take(rows if name == "energy" else atoms, axis=0, mode="clip") for name, column in columns.items()}

    return gathered


def batches(out: Path) -> dict[str, object]:
    """Random batches of 256 from a warm store of a million conformations, beside NumPy memory maps of the same columns."""
    store = made_store(out / "million.fw", 1_000_000)
    generator = np.random.default_rng(0)
    rows = [generator.integers(0, len(store), BATCH) for _ in range(BATCHES)]
    loader = Loader([whole(store)], BATCH, MAX_ATOMS, seed=0)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        mapped = memory_map(store, Path(folder))
        tasks = {
            "NumPy memory map, arrays": lambda: [mapped(row) for row in rows],
            "Store.block, with identifiers": lambda: [store.block(row) for row in rows],
            "Loader.next, tensors": drawn(loader),
        }
        return in_turns(tasks, BATCH * BATCHES)


def importing(out: Path) -> dict[str, object]:
    """Conformations/s written to a store from Blocks in memory, and imported from HDF5 in the layout of ANI-1x."""
    found: dict[str, object] = {}
    path = out / "written.fw"
    blocks = list(repeated(300_000))
    began = time.process_time(), time.perf_counter()
    writer = StoreWriter(path)
    for block in blocks:
        writer.append(block)
    writer.finish()
    found["StoreWriter, blocks in memory"] = _rates(300_000, *began)
    shutil.rmtree(path)
    if "ani1x" not in SOURCES:
        return found
    file = out / "ani1x.h5"
    number = _ani1x_file(file, repeats=250)
    ways = {"checked": {}, "--unchecked": {"unchecked": True}, "--unchecked --exclude none": {"unchecked": True, "exclude": "none"}}
    for name, keywords in ways.items():
        began = time.process_time(), time.perf_counter()
        store = import_source("ani1x", [file], path, **keywords).store
        assert len(store) == number
        found[f"import of ANI-1x HDF5, {name}"] = _rates(number, *began)
        shutil.rmtree(path)
    file.unlink()
    return found


def _rates(number: int, cpu: float, wall: float) -> dict[str, float]:
    rates = number / (time.process_time() - cpu), number / (time.perf_counter() - wall)
    return {"per_second_cpu": round(rates[0]), "per_second_wall": round(rates[1])}


def _ani1x_file(path: Path, repeats: int) -> int:
    """A group per molecule with the data sets of the published file (Smith et al., 2020): Å, Hartree, Hartree/Å."""
    import h5py

    block, made = base(), 0
    assert block.molecule is not None
    with h5py.File(path, "w") as file:
        for name in dict.fromkeys(block.molecule.tolist()):
            frames = block.take(block.molecule == name)
            shape, count = (len(frames) * repeats, int(frames.counts[0]), 3), len(frames) * repeats
            group = file.create_group(name.replace("/", "-"))
            group["atomic_numbers"] = frames.arrays["numbers"][: shape[1]]
            for key, values, unit in (("coordinates", "positions", 1.0), ("wb97x_dz.forces", "forces", HARTREE)):
                array = frames.arrays[values].reshape(len(frames), -1, 3) / unit
                group[key] = np.tile(array, (repeats, 1, 1)).astype(np.float32)
            group["wb97x_dz.energy"] = np.tile(frames.arrays["energy"] / HARTREE, repeats)
            made += count
    return made


def ten_sources(out: Path) -> dict[str, object]:
    """A million conformations as one store, as one with as many shards as ten stores have, and as ten stores: drawn evenly,
    by weights, and by a temperature."""
    one = made_store(out / "million.fw", 1_000_000)
    ten = [made_store(out / f"tenth-{k}.fw", 100_000) for k in range(10)]
    weights = {
        "ten sources, evenly": [1.0] * 10,
        "ten sources, weights 1 to 10": [float(k + 1) for k in range(10)],
        "ten sources, temperature 2": [len(store) ** 0.5 for store in ten],
    }
    shards = sum(len(store.manifest["shards"]) for store in ten)
    cut = made_store(out / "cut.fw", 1_000_000, sum(entry["bytes"] for entry in one.manifest["shards"]) // shards)
    tasks = {
        f"one source, {len(one.manifest['shards'])} shards": drawn(Loader([whole(one)], BATCH, MAX_ATOMS, seed=0)),
        f"one source, {len(cut.manifest['shards'])} shards": drawn(Loader([whole(cut)], BATCH, MAX_ATOMS, seed=0)),
    }
    for name, given in weights.items():
        sources = [whole(store, str(k), weight) for k, (store, weight) in enumerate(zip(ten, given, strict=True))]
        tasks[name] = drawn(Loader(sources, BATCH, MAX_ATOMS, seed=0))
    found = in_turns(tasks, BATCH * BATCHES)
    for name in ("cut", *(f"tenth-{k}" for k in range(10))):
        shutil.rmtree(out / f"{name}.fw")
    return found


def ranks(out: Path) -> dict[str, object]:
    """Whether two and eight processes see together, without overlap, every conformation of an epoch once."""
    store, found = made_store(out / "million.fw", 1_000_000), {}
    for world in (2, 8):
        seen = np.zeros(len(store), dtype=np.int64)
        shares = []
        for rank in range(world):
            loader = Loader([whole(store)], 250, MAX_ATOMS, seed=1, rank=rank, world=world)
            share = np.concatenate([_indices(loader) for _ in range(len(store) // 250)])
            shares.append(len(share))
            np.add.at(seen, share, 1)
        found[f"{world} processes"] = {"seen_once": int((seen == 1).sum()), "of": len(store), "shares": shares}
        assert (seen == 1).all()
    return found


def _indices(loader: Loader) -> np.ndarray:
    """Rows of this process's share of the next batch, without the cost of reading them."""
    chosen, rows, cost = loader._candidates()
    size = loader._advance(chosen, cost)
    return rows[:size][loader.rank :: loader.world]


def resume(out: Path) -> dict[str, object]:
    """A loader stopped in the middle of its second epoch and one that was not: the same samples after it."""
    store = made_store(out / "million.fw", 1_000_000)
    steady, stopped = (Loader([whole(store)], BATCH, MAX_ATOMS, seed=3) for _ in range(2))
    while steady.drawn < 1_500_000:
        _indices(steady)
    stopped.restore(json.loads(json.dumps(steady.state())))
    same = all(torch.equal(steady.next().index, stopped.next().index) for _ in range(100))
    assert same
    return {"after 1.5 million samples": {"the next 100 batches are the same": same}}


def large(out: Path, conformations: int, keep: bool) -> dict[str, object]:
    """Opening, sampling and training on a store of many conformations."""
    began, path = (time.process_time(), time.perf_counter()), out / "large.fw"
    new = not path.exists()
    made_store(path, conformations)
    found: dict[str, object] = {"written": _rates(conformations, *began)} if new else {}
    began_wall = time.perf_counter()
    store = Store(path)
    size = len(store)
    opened = time.perf_counter() - began_wall
    store[0]
    first = time.perf_counter() - began_wall
    store[size - 1]
    last = time.perf_counter() - began_wall
    _ = store.counts
    checked = time.perf_counter() - began_wall
    found["open"] = {
        "conformations": size,
        "gigabytes": round(sum(entry["bytes"] for entry in store.manifest["shards"]) / 1e9, 2),
        "shards": len(store.manifest["shards"]),
        "seconds_to_open": round(opened, 4),
        "seconds_to_first_conformation": round(first, 3),
        "seconds_to_last_conformation": round(last, 3),
        "seconds_until_every_shard_is_verified": round(checked, 2),
    }
    small = made_store(out / "million.fw", 1_000_000)
    tasks = {
        "Loader.next, a million": drawn(Loader([whole(small)], BATCH, MAX_ATOMS, seed=0)),
        f"Loader.next, {conformations:,}": drawn(Loader([whole(store)], BATCH, MAX_ATOMS, seed=0)),
    }
    found |= in_turns(tasks, BATCH * BATCHES)
    tiny = made_store(out / "tiny.fw", 2000)
    del store, tasks
    for name, place in (("2,000", tiny.path), (f"{conformations:,}", path)):
        found[f"pretrain on {name}"] = _pretrained(out, place)
    if not keep:
        shutil.rmtree(path)
    return found


def _pretrained(out: Path, store: Path) -> dict[str, float]:
    """Largest anonymous memory of a ``forcewell pretrain`` of 60 steps, and its times."""
    run = out / "run"
    shutil.rmtree(run, ignore_errors=True)
    config = out / "run.yaml"
    config.write_text(RUN.format(store=store))
    code = "from forcewell.cli import main; main()"
    began, largest, mapped, busy = time.perf_counter(), 0, 0, 0.0
    process = subprocess.Popen(
        [sys.executable, "-c", code, "pretrain", str(config), "--out", str(run)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    started = None
    while process.poll() is None:
        largest, mapped = max(largest, _resident(process.pid, "RssAnon")), max(mapped, _resident(process.pid, "RssFile"))
        if started is None and (run / "log.jsonl").exists() and (run / "log.jsonl").stat().st_size:
            started, busy = time.perf_counter() - began, _processor_seconds(process.pid)
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"forcewell pretrain ended with {process.returncode}")
    return {
        "largest_anonymous_megabytes": round(largest / 1024),
        "largest_mapped_megabytes": round(mapped / 1024),
        "seconds_until_step_0": round(started or 0.0, 1),
        "processor_seconds_until_step_0": round(busy, 1),
        "seconds": round(time.perf_counter() - began, 1),
    }


def _processor_seconds(process: int) -> float:
    """User and system time of a process so far."""
    words = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def _resident(process: int, kind: str) -> int:
    """Kilobytes, from the system; 0 once the process is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith(kind)), 0)


def main() -> None:
    """Runs the sections, printing figures as they come, and writes data.json."""
    sections = {"batches": batches, "import": importing, "sources": ten_sources, "ranks": ranks, "resume": resume}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sections", nargs="+", choices=[*sections, "large"], default=[*sections, "large"])
    parser.add_argument("--large", type=int, default=16_000_000, help="conformations of the large store")
    parser.add_argument("--keep", action="store_true", help="do not remove the large store")
    given = parser.parse_args()
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    results = {}
    for name in given.sections:
        results[name] = large(given.out, given.large, given.keep) if name == "large" else sections[name](given.out)
        print(name)
        for what, figures in results[name].items():
            print(f"  {what}: " + ", ".join(f"{key} {value}" for key, value in figures.items()), flush=True)
        (given.out / "data.json").write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
