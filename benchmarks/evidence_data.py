"""The data folder of evidence.py and claims.py, made from two downloads and from what is in this repository.

Usage: .venv/bin/python benchmarks/evidence_data.py RMD17 QM9 DATA

RMD17: the folder rmd17-npz of github.com/andersx/rmd17-npz, five official splits of revised MD17 as they come. QM9: dsgdb9nsd.xyz.tar.bz2,
or a folder's unpacked dsgdb9nsd_*.xyz (`forcewell data sources` says where from); a few minutes. Pre-training takes QM9's minima without
fluorine (data/qm9_chosen.npz says which), the package's QM7-X and S66x8 conformations, and data/spice_replay500.npz. What is in DATA
already stays; what is missing among the downloads is said in one line.
"""

from __future__ import annotations

import argparse
import shutil
from importlib import resources
from pathlib import Path

import numpy as np
from evidence import RELATIVES, SIZES

from forcewell.errors import InputError
from forcewell.sources import qm9

HERE = Path(__file__).parent / "data"
SPLITS = range(1, 6)


def existing(path: Path) -> Path:
    """The path, if it is there."""
    if not path.exists():
        raise InputError(f"{path}: not found; benchmarks/evidence_data.py --help says where it comes from")
    return path


def union(folder: Path, molecule: str) -> dict[str, np.ndarray]:
    """The frames of a molecule's five training splits, each once, in the order of the original trajectory (4,895 of 5,000).

    z (n,); pos (F, n, 3) Å; energy (F,) kcal/mol and forces (F, n, 3) kcal/mol/Å, as upstream; md17_index (F,) places in it.
    """
    splits = [np.load(existing(folder / f"rmd17_{molecule}_train_0{split}.npz")) for split in SPLITS]
    index, first = np.unique(np.concatenate([split["old_indices"] for split in splits]), return_index=True)
    joined = {name: np.concatenate([split[name] for split in splits])[first] for name in ("coords", "energies", "forces")}
    single = {name: joined[name].astype(np.float32) for name in ("coords", "forces")}
    z = splits[0]["nuclear_charges"].astype(np.uint8)
    return {"z": z, "pos": single["coords"], "energy": joined["energies"], "forces": single["forces"], "md17_index": index}


def minima(path: Path) -> dict[str, np.ndarray]:
    """The chosen minima of QM9: ids (F,) and natoms (F,); z (N,) and pos (N, 3) Å of all their atoms, one after another."""
    files = sorted(path.glob("dsgdb9nsd_*.xyz")) if path.is_dir() else [existing(path)]
    with np.load(HERE / "qm9_chosen.npz") as packed:
        chosen = np.unpackbits(packed["packed"]).astype(bool)
    ids, counts, numbers, positions = [], [], [], []
    for block in qm9.read(files):
        indices = np.array([int(name.removeprefix("qm9/")) for name in block.molecule])
        part = block.take(chosen[indices])
        ids.append(indices[chosen[indices]])
        counts.append(part.counts)
        numbers.append(part.arrays["numbers"])
        positions.append(part.arrays["positions"])
    if not ids:
        raise InputError(f"{path}: no dsgdb9nsd_*.xyz in it")
    return {
        "ids": np.concatenate(ids).astype(np.int32), "natoms": np.concatenate(counts).astype(np.int8),
        "z": np.concatenate(numbers).astype(np.uint8), "pos": np.concatenate(positions).astype(np.float32),
    }  # fmt: skip


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """An .npz file, whole or not at all."""
    np.savez_compressed(path.with_suffix(".part.npz"), **arrays)
    path.with_suffix(".part.npz").rename(path)
    print(path)


def copy(source: Path, path: Path) -> None:
    """A file as it is, whole or not at all, unless it is there."""
    if not path.is_file():
        shutil.copyfile(existing(source), path.with_suffix(".part"))
        path.with_suffix(".part").rename(path)
        print(path)


def main() -> None:
    """Fills DATA."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("rmd17", "qm9", "data"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args()
    for name in ("rmd17", "qm9", "qm7x", "s66x8", "spice"):
        (given.data / name).mkdir(parents=True, exist_ok=True)
    try:
        for molecule in SIZES["full"].molecules:
            for part in ("train", "test"):
                copy(given.rmd17 / f"rmd17_{molecule}_{part}_01.npz", given.data / f"rmd17/rmd17_{molecule}_{part}_01.npz")
        for molecule in RELATIVES:
            if not (path := given.data / f"rmd17/{molecule}_4895.npz").is_file():
                write(path, union(given.rmd17, molecule))
        with resources.as_file(resources.files("forcewell.bundled")) as packaged:
            copy(packaged / "qm7x_hand.npz", given.data / "qm7x/qm7x_hand.npz")
            copy(packaged / "s66x8.npz", given.data / "s66x8/s66x8.npz")
        copy(HERE / "spice_replay500.npz", given.data / "spice/spice_replay500.npz")
        if not (path := given.data / "qm9/qm9_equilibrium.npz").is_file():
            write(path, minima(given.qm9))
    except InputError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
