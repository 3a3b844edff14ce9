"""What ``forcewell generate enthalpy`` does."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from forcewell.display import say
from forcewell.errors import InputError
from forcewell.files import write_bytes
from forcewell.generate.ring_energies import RingOpening, from_dynamics, from_minima
from forcewell.store import open_data
from forcewell.units import energy_factor


def enthalpy(
    store: Path,
    *,
    temperature: float | None = None,
    minima: Annotated[bool, Parameter(negative=())] = False,
    json_file: Annotated[Path | None, Parameter(name="--json")] = None,
) -> None:
    """Ring-opening enthalpies per repeat unit from sampled loops, with error bars and the limit of an endless loop.

    The value of a loop of L units is <E(loop)>/L - <E(monomer)>, averaged over molecular dynamics at one temperature; negative
    where opening the ring gains. Error bars are one standard error, from block averages. With --minima the lowest minima are
    compared instead: as energies, or as enthalpies where --temperature asks for the harmonic correction.

    Example: forcewell generate enthalpy gbl.fw

    Example: forcewell generate enthalpy gbl.fw --minima --temperature 298.15 --json gbl.json

    Parameters
    ----------
    store
        Made by forcewell generate polymers with --loops that contain 1.
    temperature
        In K: of the trajectories to average (default: each that is there), or with --minima of the harmonic correction.
    minima
        Compare the lowest minima instead of averages.
    json_file
        A file to write everything to, in eV.
    """
    if temperature is not None and not temperature > 0:
        raise InputError(f"--temperature is {temperature:g}; expected a temperature above 0 K")
    data = open_data(store)
    try:
        found = from_minima(data, temperature, say) if minima else from_dynamics(data, temperature)
    except InputError as error:
        raise InputError(f"{store}: {error}") from None
    for one in found:
        for line in lines(one):
            say(line)
    if json_file is not None:
        text = json.dumps([_plain(dataclasses.asdict(one)) for one in found], indent=1, ensure_ascii=False)
        write_bytes(json_file, (text + "\n").encode())


def lines(found: RingOpening) -> list[str]:
    """One monomer's table, in kJ/mol per repeat unit."""
    kj = 1 / energy_factor("kJ/mol")
    told = [f"{found.monomer}: ring-opening {found.quantity}, {found.level}, {found.method}, kJ/mol per repeat unit"]
    for unit in found.units:
        of = found.loops[unit.repeats]
        error = f" ± {unit.error * kj:.2f}" if unit.error else ""
        source = f"{of.frames} frames of {of.trajectories} trajectories" if unit.error else f"best of {of.frames} minima"
        told.append(f"  L = {unit.repeats:>2}   {unit.value * kj:>9.2f}{error}   ({source})")
    if found.limit is not None:
        error = f" ± {found.limit.error * kj:.2f}" if math.isfinite(found.limit.error) else ""
        fit = f", χ² per degree of freedom {found.limit.chi_squared:.2g}" if math.isfinite(found.limit.chi_squared) else ""
        told.append(f"  L → ∞    {found.limit.value * kj:>9.2f}{error}   (fit by 1/L over {len(found.units)} loops{fit})")
    return told


def _plain(value: Any) -> Any:
    """Without NaN, which JSON does not have: what is not known is left out."""
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items() if not (isinstance(one, float) and math.isnan(one))}
    return [_plain(one) for one in value] if isinstance(value, list) else value
