"""What ``forcewell data conformers`` does."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np

from forcewell.conformers import embedded, require_rdkit
from forcewell.display import Counting, say
from forcewell.errors import InputError
from forcewell.store import StoreWriter, open_data
from forcewell.system import System, block_of

AT_ONCE = 256  # molecules in memory


def conformers(data: Path, *, out: Path, count: int = 1, seed: int = 0) -> None:
    """Replace structures by ones embedded from SMILES, keeping what is labelled of the molecule.

    Models of properties are asked about molecules that have a SMILES and no relaxed structure; so they are pre-trained on such
    structures, too: energy and properties stay, forces go. The first conformation of each molecule is used.

    Example: forcewell data conformers pm6.fw --out pm6-etkdg.fw

    Parameters
    ----------
    data
        A store or a file with SMILES.
    out
        Store to write.
    count
        Conformers of each molecule.
    seed
        Of the embedding.
    """
    dataset = open_data(data)
    _, first = np.unique(dataset.molecule_codes(), return_index=True)
    rows = np.sort(first)
    smiles = dataset.column("smiles")
    rows = rows[[bool(text) for text in smiles[rows].tolist()]]
    if len(rows) == 0:
        raise InputError(f"{data} has no SMILES to make structures from; import it with labels that give them")
    if count < 1:
        raise InputError(f"--count is {count}; expected 1 or more")
    require_rdkit()
    failed: list[str] = []
    writer = StoreWriter(out, settings={"conformers": count, "seed": seed, "of": dataset.fingerprint})
    with Counting("embedding", len(rows), "molecules") as bar:
        for start in range(0, len(rows), AT_ONCE):
            block = dataset.block(rows[start : start + AT_ONCE])
            systems = []
            for k, row in enumerate(rows[start : start + AT_ONCE].tolist()):
                level, source = dataset.levels[int(dataset.column("level")[row])], dataset.sources[int(dataset.column("source")[row])]
                made = _made(dataclasses.replace(block.system(k), level=level, source=source), count, seed)
                systems += made
                if not made:
                    failed.append(str(smiles[row]))
            for level, source in dict.fromkeys((system.level, system.source) for system in systems):
                writer.append(block_of([system for system in systems if (system.level, system.source) == (level, source)]))
            bar.update(min(start + AT_ONCE, len(rows)))
    names = ", ".join(failed[:5]) + " ..." * (len(failed) > 5)
    why = "which RDKit cannot embed or whose SMILES has other atoms than the structure"
    if len(failed) == len(rows):
        writer.close()
        shutil.rmtree(out)
        raise InputError(f"{data}: none of its {len(rows)} molecules is left, {why}: {names}; give data whose SMILES are of its structures")
    store = writer.finish()
    say(f"{len(store)} conformations of {len(rows) - len(failed)} molecules in {out}")
    if failed:
        say(f"{len(failed)} molecules were left out, {why}: {names}")


def _made(system: System, count: int, seed: int) -> list[System]:
    """Embedded conformers with the labels of the molecule; none where the SMILES is of another composition."""
    found = embedded(system.smiles, count, seed)
    if found is None or sorted(found.numbers.tolist()) != sorted(system.numbers.tolist()):
        return []
    fields = {
        "numbers": found.numbers.astype(np.uint8),
        "formal_charges": found.charges.astype(np.int8),
        "charge": np.int8(found.charges.sum()),
        "spin": np.uint8(found.spin),
        "equilibrium": np.int8(-1),
        **{name: system.arrays[name] for name in ("energy",) if name in system.arrays},
    }
    return [dataclasses.replace(system, arrays={**fields, "positions": positions}) for positions in found.positions]
