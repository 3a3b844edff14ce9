"""What a simulation leaves on disk: extended XYZ text and a log of observables, both cut back when it is resumed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from forcewell.checkpoint import digest
from forcewell.system import System


def fingerprint(parts: Mapping[str, Tensor | np.ndarray], text: str = "") -> str:
    """SHA-256 (hex) of named arrays, with their dtypes and shapes, and of a text."""
    tensors = {name: part if isinstance(part, Tensor) else torch.from_numpy(np.ascontiguousarray(part)) for name, part in parts.items()}
    return digest(text, tensors)


class Trajectories:
    """One extended XYZ text file per replica, appended frame by frame.

    Each frame has positions (Å, 8 decimals) and forces (eV/Å, 6 decimals), and ``energy`` (eV), ``time`` (ps) and
    ``temperature`` (K) on its comment line. Files are opened for each frame, so thousands of replicas need no
    thousands of open files; nothing is buffered here that a kill could lose.
    """

    def __init__(self, paths: Sequence[Path], systems: Sequence[System]) -> None:
        from ase.data import chemical_symbols

        self.paths = list(paths)
        self._heads, self._rows = [], []
        for system in systems:
            cell, pbc = system.get("cell"), system.get("pbc")
            lattice = f'Lattice="{" ".join(f"{value:.10g}" for value in cell.reshape(-1))}" ' if pbc.any() else ""
            periodic = " ".join("T" if value else "F" for value in pbc)
            self._heads.append(f'{len(system)}\n{lattice}Properties=species:S:1:pos:R:3:forces:R:3 pbc="{periodic}"')
            symbols = [chemical_symbols[number] for number in system.numbers]
            self._rows.append("".join(f"{symbol:<2} %.8f %.8f %.8f %.6f %.6f %.6f\n" for symbol in symbols))

    def append(self, replica: int, positions: np.ndarray, forces: np.ndarray, *, energy: float, time: float, temperature: float) -> None:
        """One frame of (n, 3) Å and (n, 3) eV/Å."""
        table = tuple(np.concatenate([positions, forces], axis=1).reshape(-1).tolist())
        head = f"{self._heads[replica]} energy={energy:.8f} time={time:.6f} temperature={temperature:.3f}\n"
        with self.paths[replica].open("a", encoding="utf-8") as file:
            file.write(head + self._rows[replica] % table)


def read_log(path: Path) -> dict[str, np.ndarray]:
    """``log.jsonl`` of a simulation: "time" (R,) in ps; "temperature" K, "potential", "kinetic" and "total" eV, each (R, M).

    NaN once a replica has broken.
    """
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    names = ("time", "temperature", "potential", "kinetic", "total")
    return {name: np.array([line[name] for line in lines], dtype=np.float64) for name in names}
