"""Forcewell beside its peers on one CPU core: each peer in an environment of its own, timed in turns with Forcewell.

    .venv/bin/python benchmarks/peers.py --out peers.json [--only nequip-l3] [--cache FOLDER] [--rounds 5] [--seconds 0.5]

Energy and forces of aspirin (21 atoms) and of nylon-4 oligomers of 106 and 366 atoms; training steps (energy and forces, AdamW) on 32
molecules of QM9 with 20 atoms. For every peer three processes answer in turns: Forcewell, the peer, and the peer with glibc told to keep
its memory (MALLOC_*; Forcewell does so by itself). CPU milliseconds per call, least of the rounds, so that what else runs on the
machine disturbs little; ratios are of the same rounds. TorchMD-Net's weights are Forcewell's, and forces are compared first.

Peers that are in the JSON file already are left out, so the same command goes on where it was stopped (--again repeats them). The
table is written beside it as Markdown. Environments need 4 GB and ten minutes once; the measurements about 15 minutes on a quiet core.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

TORCH = "torch==2.13.0"
# Environment: packages. SchNetPack 2.1 cannot be resolved beside this torch, but runs: its own dependencies are named here.
PACKAGES: dict[str, list[list[str]]] = {
    "torchmd-net": [["torchmd-net==3.1.0"]],
    "nequip": [["nequip==0.19.1"]],
    "mace": [["mace-torch==0.3.16"]],
    "schnetpack": [
        ["--no-deps", "schnetpack==2.1.1"],
        ["ase", "numpy", "hydra-core", "torchmetrics", "pytorch_lightning", "h5py", "tqdm", "dirsync", "fasteners", "matscipy"],
        ["torch_ema"],
    ],
}
PEERS = {  # model: environment and what it is
    "torchmd-net": ("torchmd-net", "TorchMD-Net 3.1.0 ET, 8 layers, 256 channels, 64 radial functions; Forcewell's weights"),
    "nequip-l3": ("nequip", "NequIP 0.19.1, MD17 configuration: l_max 3, 5 layers, 32 features, both parities"),
    "nequip-l1": ("nequip", "NequIP 0.19.1, l_max 1, 4 layers, 32 features, both parities"),
    "mace-128x1": ("mace", "MACE 0.3.16, 128x0e+128x1o, correlation 3, l 3"),
    "mace-128x0": ("mace", "MACE 0.3.16, 128x0e, correlation 3, l 3"),
    "painn": ("schnetpack", "PaiNN of SchNetPack 2.1.1, 3 layers, 128 features"),
    "schnet": ("schnetpack", "SchNet of SchNetPack 2.1.1, 6 layers, 128 features"),
    "forcewell-small": ("", "Forcewell's packaged model: ET, 3 layers, 64 channels, 32 radial functions"),
}
CASES = ("aspirin", "nylon-106", "nylon-366", "train:qm9-32x20")
# What PyTorch's libraries have instead of AVX-512 and AMX; Forcewell's kernels then are those for AVX2, too (peer_models.py).
AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
TUNED = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**34), "MALLOC_TOP_PAD_": str(2**28)}


def environment(name: str, cache: Path) -> Path:
    """The Python of a peer's environment, which is made the first time: torch alone and first, then all else with it held."""
    if not name:
        return Path(sys.executable)
    folder, done = cache / name, cache / name / "complete"
    python = folder / "bin" / "python"
    if done.exists():
        return python
    print(f"making the environment of {name} in {folder}", flush=True)
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    index = os.environ.get("TORCH_INDEX_URL")
    pip = [python, "-m", "pip", "install", "-q"]
    subprocess.run([*pip, TORCH, *(["--index-url", index] if index else [])], check=True)
    shown = subprocess.run([python, "-c", "import torch; print(torch.__version__)"], check=True, capture_output=True, text=True)
    held = folder / "constraints.txt"
    held.write_text(f"torch=={shown.stdout.strip()}\n")  # the CPU build stays the CPU build
    for packages in PACKAGES[name]:
        subprocess.run([*pip, "-c", held, *packages], check=True)
    done.touch()
    return python


def molecule(smiles: str) -> dict[str, np.ndarray]:
    """A conformer by RDKit, relaxed."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    found = Chem.AddHs(Chem.MolFromSmiles(smiles))
    if AllChem.EmbedMolecule(found, randomSeed=1, useRandomCoords=found.GetNumAtoms() > 100) < 0:
        raise SystemExit(f"RDKit found no conformer of {smiles}")
    AllChem.MMFFOptimizeMolecule(found, maxIters=500)
    numbers = np.array([atom.GetAtomicNum() for atom in found.GetAtoms()])
    return {"numbers": numbers, "positions": found.GetConformer().GetPositions(), "counts": np.array([len(numbers)])}


def structures(path: Path) -> Path:
    """All cases in one file, made the first time (the larger oligomer takes about a minute)."""
    if path.exists():
        return path
    from forcewell.store import open_data

    cases = {"aspirin": molecule("CC(=O)Oc1ccccc1C(=O)O")}
    cases |= {f"nylon-{13 * n + 2}": molecule("NCCCC(=O)" * n) for n in (8, 28)}
    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        data = open_data(folder / "qm9_minima_4002.npz")
    block = data.block(np.flatnonzero(data.counts == 20)[:32])
    cases["qm9-32x20"] = {"numbers": block.arrays["numbers"], "positions": block.arrays["positions"], "counts": block.counts}
    path.parent.mkdir(parents=True, exist_ok=True)
    np.savez(path, **{f"{name}/{key}": value for name, case in cases.items() for key, value in case.items()})  # type: ignore[arg-type]
    return path


class Worker:
    """A process of ``peer_models.py``."""

    def __init__(self, python: Path, model: str, *files: Path, tuned: bool = False) -> None:
        words = [str(python), str(Path(__file__).with_name("peer_models.py")), model, *map(str, files)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(TUNED if tuned else {})}
        self.name = f"{model} (allocator tuned)" if tuned else model
        self.process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables)

    def ask(self, line: str) -> dict[str, Any]:
        """The answer to one line."""
        assert self.process.stdin is not None and self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.name} failed at {line!r}; its message is above")
        return json.loads(answer)

    def close(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare_forces(ours: Worker, theirs: Worker, folder: Path, cases: list[str]) -> float:
    """Largest difference of forces over the largest force, of all cases."""
    worst = 0.0
    for case in cases:
        found = []
        for number, worker in enumerate((ours, theirs)):
            worker.ask(f"forces {case} {folder / f'{number}.npy'}")
            found.append(np.load(folder / f"{number}.npy"))
        worst = max(worst, float(np.abs(found[0] - found[1]).max() / np.abs(found[1]).max()))
    return worst


def measure(model: str, given: argparse.Namespace, files: tuple[Path, Path]) -> dict[str, Any]:
    """Figures of one peer and of Forcewell in the same rounds."""
    python = environment(PEERS[model][0], given.cache)
    workers = {"forcewell": Worker(Path(sys.executable), "forcewell", *files), "peer": Worker(python, model, files[0])}
    if PEERS[model][0]:
        workers["tuned"] = Worker(python, model, files[0], tuned=True)
    infos = {who: worker.ask("info") for who, worker in workers.items()}
    row: dict[str, Any] = {"model": PEERS[model][1], "info": infos["peer"], "forcewell": infos["forcewell"], "rounds": given.rounds}
    row["ms"] = {}
    if model == "torchmd-net":
        single = [case for case in given.cases if ":" not in case]
        with tempfile.TemporaryDirectory() as folder:
            row["force_error"] = compare_forces(workers["forcewell"], workers["peer"], Path(folder), single)
        print(f"{model}: forces with the same weights agree to {row['force_error']:.1e} of the largest", flush=True)
    for case in given.cases:
        best = dict.fromkeys(workers, float("inf"))
        for worker in workers.values():
            worker.ask(f"time {case} 0")  # the first call allocates and traces
        for _ in range(given.rounds):
            for who, worker in workers.items():
                best[who] = min(best[who], worker.ask(f"time {case} {given.seconds}")["ms"])
        row["ms"][case] = best
        print(f"{model:16s} {case:16s} " + "  ".join(f"{who} {ms:9.2f} ms" for who, ms in best.items()), flush=True)
    for worker in workers.values():
        worker.close()
    return row


def markdown(rows: dict[str, Any]) -> str:
    """The table: time of the peer (with its allocator tuned), and how many times Forcewell's, whose full-size model ran beside it."""
    cases = list(next(iter(rows.values()))["ms"])
    lines = [f"| model | parameters | cutoff Å | {' | '.join(cases)} |", "|---|---|---|" + "---|" * len(cases)]
    first = next(iter(rows.values()))
    ours = [f"{min(row['ms'][case]['forcewell'] for row in rows.values() if case in row['ms']):.1f}" for case in cases]
    info = first["forcewell"]
    own = f"**Forcewell ET, full size** ({info['path']}) | {info['parameters']:,} | {info['cutoff']}"
    lines.append(f"| {own} | {' | '.join(ours)} |")
    for row in rows.values():
        cells = []
        for case in cases:
            found = row["ms"].get(case)
            if found is None:
                cells.append("")
                continue
            tuned = f" ({found['tuned']:.1f})" if "tuned" in found else ""
            cells.append(f"{found['peer']:.1f}{tuned}; {found['peer'] / found['forcewell']:.2f} x")
        lines.append(f"| {row['model']} | {row['info']['parameters']:,} | {row['info']['cutoff']} | {' | '.join(cells)} |")
    notes = (
        "CPU ms per call, in brackets with the allocator tuned; then the peer's time (default allocator) over Forcewell's of the "
        "same rounds: below 1 the peer is faster."
    )
    return "\n".join([*lines, "", notes, ""])


def main() -> None:
    """Measures what is missing and writes JSON and Markdown after each peer."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("peers.json"))
    parser.add_argument("--cache", type=Path, default=Path.home() / ".cache" / "forcewell-peers", help="where the environments are kept")
    parser.add_argument("--only", nargs="+", choices=list(PEERS), default=list(PEERS))
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--avx2", action="store_true", help="all without AVX-512 and AMX")
    parser.add_argument("--again", action="store_true", help="measure peers again that are in the file")
    given = parser.parse_args()
    os.environ.update(AVX2 if given.avx2 else {})
    rows: dict[str, Any] = json.loads(given.out.read_text()) if given.out.exists() else {}
    geometry, weights = structures(given.cache / "structures.npz"), given.cache / "weights.npz"
    if not weights.exists():
        worker = Worker(environment("torchmd-net", given.cache), "torchmd-net", geometry)
        worker.ask(f"save {weights}")
        worker.close()
    for model in given.only:
        if model in rows and not given.again:
            print(f"{model}: measured before")
            continue
        rows[model] = measure(model, given, (geometry, weights))
        given.out.write_text(json.dumps(rows, indent=1) + "\n")
        given.out.with_suffix(".md").write_text(markdown(rows))
    print(markdown(rows))


if __name__ == "__main__":
    main()
