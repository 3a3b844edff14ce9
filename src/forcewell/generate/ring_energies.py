"""Which conformations of a store belong to which loop of which monomer, and what their energies say about opening the ring."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from forcewell.conformers import require_rdkit
from forcewell.engines import engine
from forcewell.engines.base import labeller_of, mover_of
from forcewell.engines.others import PREFIX
from forcewell.errors import InputError
from forcewell.generate.campaign import JobFailure
from forcewell.generate.enthalpy import Average, Limit, PerUnit, average, endless, per_repeat_unit
from forcewell.generate.ring_opening import loop, open_ring
from forcewell.generate.species import without_stereo
from forcewell.generate.vibrations import Modes, settle
from forcewell.store import Dataset, Store

DYNAMICS, MINIMA = "molecular dynamics", "minimum"  # how the sources of such frames end
LARGEST = 100  # repeat units
LABELLING = "forcewell.generate.label:label"  # the work of a campaign that moves nothing


@dataclass(frozen=True, slots=True)
class RingOpening:
    """What opening the rings of one monomer costs.

    quantity: "enthalpy", or "energy" where no temperature is in it. method: how it was obtained. temperature: K, NaN for energies.
    loops: averages by repeat units, eV. units: per repeat unit. limit: of an endless loop, None where there are fewer than two loops.
    """

    quantity: str
    method: str
    monomer: str
    level: str
    temperature: float
    loops: dict[int, Average]
    units: list[PerUnit]
    limit: Limit | None


def loops_in(molecules: list[str]) -> dict[str, dict[int, str]]:
    """For each monomer among SMILES without stereo: its loops that are among them, too, by repeat units; 1 is itself.

    A molecule may be in several: four cyclopropanes and three cyclobutanes both close to cyclododecane. Monomers that have no loop
    here are left out.
    """
    require_rdkit()
    from rdkit import Chem

    heavy, found = {smiles: Chem.MolFromSmiles(smiles).GetNumAtoms() for smiles in set(molecules)}, dict[str, dict[int, str]]()
    for monomer in sorted(heavy, key=lambda smiles: (heavy[smiles], smiles)):
        try:
            opening = open_ring(monomer)
        except InputError:
            continue
        multiples = sorted({count // heavy[monomer] for count in heavy.values() if count % heavy[monomer] == 0} - {1})
        made = {repeats: without_stereo(loop(opening, repeats)) for repeats in multiples if repeats <= LARGEST}
        loops = {repeats: smiles for repeats, smiles in made.items() if smiles in heavy}
        if loops:
            found[monomer] = {1: monomer, **loops}
    return found


def from_dynamics(data: Dataset, temperature: float | None = None) -> list[RingOpening]:
    """Ring-opening enthalpies from the trajectories in a store, of each monomer at each temperature, or at one.

    Raises InputError where there are no trajectories of a monomer and a loop, frames of several levels or engines, too few
    frames, or where another engine moved the molecules than the one that gave the energies: its averages would be of neither.
    """
    rows = _rows(data, DYNAMICS)
    kelvin, number = data.column("property:temperature"), data.column("property:trajectory")
    time, energy, molecules = data.column("property:time"), data.column("energy"), _molecules(data, rows)
    wanted = sorted({float(t) for t in kelvin[rows]}) if temperature is None else [temperature]

    def averages(smiles: str, at: float) -> Average | None:
        mine = rows[(molecules == smiles) & (kelvin[rows] == at)]
        apart = [mine[number[mine] == one] for one in np.unique(number[mine])]
        return average([energy[part[np.argsort(time[part], kind="stable")]] for part in apart]) if len(mine) else None

    found = []
    for at in wanted:
        method = f"molecular dynamics at {at:g} K"
        found += list(_openings(data, rows, molecules, "enthalpy", method, at, lambda smiles, at=at: averages(smiles, at)))
    return _some(found, f"trajectories{'' if temperature is None else f' at {temperature:g} K'}")


def from_minima(data: Dataset, temperature: float | None = None, progress: Callable[[str], None] | None = None) -> list[RingOpening]:
    """From the lowest minimum of each molecule. Without a temperature: differences of energies. With one (K): enthalpies of the ideal
    gas, harmonic vibrations with their zero-point energies and rigid rotation included, by the engine that made the store (but an ASE
    calculator: a data file does not start programs).

    progress: told of each molecule before its vibrations, which cost six evaluations per atom. Raises InputError as ``from_dynamics``,
    where no frame is flagged as a minimum of the level that labelled it, and where a molecule does not relax to a true minimum.
    """
    rows = _rows(data, MINIMA)
    rows = rows[data.column("equilibrium")[rows] == 1]
    if not len(rows):
        raise InputError("none of its minima is flagged as one of the level that labelled it; sample with the engine that is to label")
    energy, molecules = data.column("energy"), _molecules(data, rows)
    known: dict[str, Average] = {}

    def lowest(smiles: str) -> Average | None:
        mine = rows[molecules == smiles]
        if len(mine) and smiles not in known:
            best = int(mine[np.argmin(energy[mine])])
            value = float(energy[best])
            if temperature is not None:
                if progress is not None:
                    progress(f"vibrations of {smiles}, {int(data.counts[best])} atoms")
                value = _enthalpy(data, best, temperature)
            known[smiles] = Average(value, 0.0, len(mine), len(mine))
        return known.get(smiles)

    if temperature is None:
        found = _openings(data, rows, molecules, "energy", "lowest minima", math.nan, lowest)
    else:
        found = _openings(data, rows, molecules, "enthalpy", f"lowest minima, harmonic at {temperature:g} K", temperature, lowest)
    return _some(list(found), "minima")


def _enthalpy(data: Dataset, row: int, temperature: float) -> float:
    system = data[row]
    made = labeller_of(system.engine)
    if made is None:
        raise InputError("it does not say which engine made its minima, which the vibrations need; sample it with forcewell generate")
    if made["engine"].startswith(PREFIX):
        # Its settings may name any program of this machine, and a data file does not start programs.
        raise InputError(
            f"its minima were made by {made['engine']}, whose program a file cannot start; leave --temperature out for energies"
        )
    maker = engine(made["engine"], **made["settings"])
    try:
        modes = settle(system, maker)
    except JobFailure as failure:
        raise InputError(f"{system.smiles}: {failure}") from None
    return thermal_enthalpy(modes, maker.label(modes.minimum).energy, temperature)


def thermal_enthalpy(modes: Modes, energy: float, temperature: float) -> float:
    """Enthalpy in eV of an ideal gas of the molecule with this potential energy: harmonic vibrations, rigid rotation, p V = k_B T.

    What an imaginary mode of the noise is (below 40 1/cm) counts as a real one: either way it gives k_B T.
    """
    from ase.thermochemistry import IdealGasThermo
    from ase.units import invcm

    energies = np.abs(modes.frequencies) * invcm
    shape = "linear" if len(energies) == 3 * len(modes.minimum) - 5 else "nonlinear"
    gas = IdealGasThermo(energies.tolist(), shape, energy, modes.minimum.to_atoms(), symmetrynumber=1, spin=0)
    return float(gas.get_enthalpy(temperature, verbose=False))


def _openings(
    data: Dataset, rows: np.ndarray, molecules: np.ndarray, quantity: str, method: str, temperature: float,
    value: Callable[[str], Average | None],
) -> Iterator[RingOpening]:  # fmt: skip
    for monomer, loops in loops_in(sorted(set(molecules.tolist()))).items():
        averages = {repeats: one for repeats, smiles in loops.items() if (one := value(smiles)) is not None}
        if 1 in averages and len(averages) > 1:
            level = data.levels[int(data.column("level")[rows[0]])]
            units = per_repeat_unit(averages)
            yield RingOpening(quantity, method, monomer, level, temperature, averages, units, endless(averages))


def _rows(data: Dataset, kind: str) -> np.ndarray:
    """Rows of one kind with energies. Raises InputError where they are of several levels or engines, were moved by another level,
    or there are none."""
    kinds = np.array([name.endswith(kind) for name in data.sources])
    rows = np.flatnonzero(kinds[data.column("source")] & np.isfinite(data.column("energy"))) if kinds.any() else np.zeros(0, dtype=int)
    if not len(rows):
        raise InputError(f"there are no energies of a {kind} in it; expected a store made by forcewell generate polymers")
    levels = {data.levels[code] for code in data.column("level")[rows].tolist()}
    told = {data.engines[code] for code in data.column("engine")[rows].tolist()}
    engines = {json.dumps(labeller_of(text), sort_keys=True, ensure_ascii=False) for text in told}
    for name, met in (("level", levels), ("engine", engines)):
        if len(met) > 1:
            raise InputError(f"its energies are of {len(met)} {name}s ({', '.join(sorted(met))}), which cannot be subtracted; expected one")
    for text in sorted(told):
        _check_mover(data, text, next(iter(levels)))
    return rows


def _check_mover(data: Dataset, provenance: str, level: str) -> None:
    """Raises InputError where another level of theory moved the molecules than the one that labelled them.

    Frames of other programs, which do not say what moved them, are taken as they are; not so where a campaign only labelled them.
    """
    campaign = data.manifest["settings"].get("campaign", {}) if isinstance(data, Store) else {}
    mover = mover_of(provenance)  # older stores tell in the campaign alone
    moved = mover["level"] if mover else (campaign.get("sampler") or {}).get("engine", level)
    if moved != level:
        raise InputError(f"{moved} moved these molecules and {level} labelled them: energies would be of neither; sample with one")
    if mover is None and campaign.get("work") == LABELLING:
        raise InputError(f"it does not say what moved these molecules before {level} labelled them; sample with the engine that labels")


def _molecules(data: Dataset, rows: np.ndarray) -> np.ndarray:
    """SMILES without stereo of each row, "" where not known."""
    smiles = data.column("smiles")[rows]
    plain = {one: without_stereo(one) if one else "" for one in set(smiles.tolist())}
    return np.array([plain[one] for one in smiles.tolist()], dtype=object)


def _some(found: list[RingOpening], what: str) -> list[RingOpening]:
    if not found:
        raise InputError(f"there are no {what} of both a monomer (one repeat unit) and a loop of it; sample with --loops 1,3,4 or the like")
    return found
