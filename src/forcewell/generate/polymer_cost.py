"""What a campaign of polymers will cost, before it runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from forcewell.generate.polymers import Polymer, PolymerSampling

# CPU seconds of one energy with forces on one Zen 5 core, of (atoms, electrons), restarted from the last density as dynamics does.
# gfn2: 1.1 ms for 9 atoms, 75 ms for 60, 1.3 s for 180, 5.1 s for 360; the law is within 30 % of seven sizes. gfn1: 1.1 to 1.7 times
# as much, 1.4 in the mean of six sizes from 12 to 180 atoms. pyscf: with density fitting, ωB97X/6-31G* of ethanol 2.8 s and of aspirin
# 54 s (PBE/def2-SVP 3.9 and 60 s): two sizes, so beyond 100 electrons it is an extrapolation. A Forcewell model: forcewell-small in float64
# as ASE's calculator, 21, 56 and 280 ms for 12, 48 and 192 atoms on a machine so busy that gfn2 took twice its time: halved.
LAWS: dict[str, Callable[[int, int], float]] = {
    "gfn2": lambda atoms, electrons: 0.075 * (atoms / 60) ** 2.3,
    "gfn1": lambda atoms, electrons: 0.105 * (atoms / 60) ** 2.3,
    "pyscf": lambda atoms, electrons: 2.8 * (electrons / 26) ** 2.3,
    "forcewell-small": lambda atoms, electrons: 0.004 + 7e-4 * atoms,
}
TITLES = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB", "pyscf": "DFT, ωB97X/6-31G* with pyscf", "forcewell-small": "forcewell-small"}
# Steps of BFGS from MMFF94's minimum: GFN2, γ-butyrolactone, 42 for 12 atoms, 227 for 36, 173 for 60.
RELAXATION = 3.5  # per atom
LABEL = 1.7  # a label from scratch at accuracy 0.1, in units of a warm evaluation at 1.0: 1.4 to 1.7 from 12 to 72 atoms


@dataclass(frozen=True, slots=True)
class Cost:
    """Of all starts of the polymers with ``repeats`` units. atoms: fewest and most. jobs: starts. frames: labelled.

    evaluations: of energy and forces while they move. moving, labelling: CPU seconds by engine, of those and of the frames.
    """

    repeats: int
    atoms: tuple[int, int]
    jobs: int
    frames: int
    evaluations: int
    moving: dict[str, float]
    labelling: dict[str, float]

    def hours(self, engine: str, sampler: str | None = None) -> float:
        """CPU hours with one engine of ``LAWS``, or with one that labels and another that moves."""
        return (self.moving[sampler or engine] + self.labelling[engine]) / 3600


def costs(polymers: Sequence[Polymer], sampling: PolymerSampling) -> list[Cost]:
    """By the number of repeat units, from the scaling laws ``LAWS``."""
    asked = sum(sampling.dynamics.values())
    steps = sum(sampling.equilibration + frames * sampling.spacing for frames in sampling.dynamics.values() if frames) / sampling.timestep
    found = []
    for repeats in sorted({one.repeats for one in polymers}):
        group = [one for one in polymers if one.repeats == repeats]
        frames = evaluations = 0
        moving, labelling = dict.fromkeys(LAWS, 0.0), dict.fromkeys(LAWS, 0.0)
        for one in group:
            each = round(steps) + round(RELAXATION * one.atoms)
            minima = 0 if not sampling.minima else 1 if repeats == 1 else sampling.starts
            labels = sampling.starts * asked + minima
            frames, evaluations = frames + labels, evaluations + sampling.starts * each
            for name, law in LAWS.items():
                moving[name] += sampling.starts * each * law(one.atoms, one.electrons)
                labelling[name] += (LABEL if name in ("gfn2", "gfn1") else 1.0) * labels * law(one.atoms, one.electrons)
        sizes = [one.atoms for one in group]
        found.append(Cost(repeats, (min(sizes), max(sizes)), len(group) * sampling.starts, frames, evaluations, moving, labelling))
    return found


def law_of(engine: str) -> str | None:
    """Which of ``LAWS`` an engine follows; None for one that was never measured (``ase:``)."""
    if engine.startswith("ase:"):
        return None
    kind = engine.partition(":")[0]
    return kind if kind in LAWS else "forcewell-small"
