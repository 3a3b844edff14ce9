"""Loops and chains of ring-opening polymers: which are sampled, how, and the job of one start of one of them."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, model_validator

from forcewell.generate.campaign import JobFailure, engine_of
from forcewell.generate.conformers import conformers
from forcewell.generate.planning import LONGEST, Frames
from forcewell.generate.relaxation import FORCE, relax
from forcewell.generate.ring_opening import ENDS, Opening, chain, loop
from forcewell.generate.sampling import Sampler
from forcewell.generate.species import read_species
from forcewell.generate.vibrations import Modes, resting
from forcewell.system import System

POLY24 = (1, 3, 4, 5, 6, 15)  # repeat units of the poly24 loops; one is the monomer
LOOSE = 0.1  # eV/Å, where no minimum is kept: the dynamics needs no better start, and at 0.01 a floppy loop takes three times the steps
STEPS = 5000  # of relaxation

Repeats = Annotated[int, Field(ge=1)]


class PolymerSampling(BaseModel):
    """What is sampled of each polymer.

    loops, chains: repeat units of each; one repeat unit in a loop is the monomer. ends: end groups of chains. starts: embeddings,
    each relaxed and the start of a trajectory. dynamics: frames by temperature in K, of each start. spacing, timestep,
    equilibration: fs. minima: relax to 0.01 eV/Å and keep the minima, too. largest: atoms; larger polymers are left out.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    loops: list[Repeats] = list(POLY24)
    chains: list[Repeats] = []
    ends: list[str] = list(ENDS)
    starts: int = Field(default=10, ge=1)
    minima: bool = True
    dynamics: Frames = {500: 100}
    spacing: float = Field(default=10.0, gt=0)
    timestep: float = Field(default=1.0, gt=0, le=LONGEST)
    equilibration: float = Field(default=1000.0, ge=0)
    largest: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _something(self) -> PolymerSampling:
        if not self.minima and not any(self.dynamics.values()):
            raise ValueError("neither minima nor dynamics: no frame is asked for")
        return self


@dataclass(frozen=True, slots=True)
class Polymer:
    """smiles: canonical. repeats: repeat units. cyclic: a loop. atoms, electrons: of the whole."""

    smiles: str
    repeats: int
    cyclic: bool
    atoms: int
    electrons: int


def polymers_of(openings: Sequence[Opening], sampling: PolymerSampling) -> list[Polymer]:
    """The different polymers of the monomers, smallest first. Loops that monomers share (four cyclopropanes and three
    cyclobutanes both close to cyclododecane) are there once."""
    found: dict[str, Polymer] = {}
    for opening in openings:
        made = [(loop(opening, repeats), repeats, True) for repeats in sampling.loops]
        made += [(chain(opening, repeats, sampling.ends), repeats, False) for repeats in sampling.chains]
        for smiles, repeats, cyclic in made:
            species = read_species(smiles)
            atoms, electrons = len(species.numbers), int(species.numbers.sum()) - species.charge
            if sampling.largest is None or atoms <= sampling.largest:
                found.setdefault(smiles, Polymer(smiles, repeats, cyclic, atoms, electrons))
    return sorted(found.values(), key=lambda one: one.atoms)


def polymer_jobs(polymers: Sequence[Polymer], sampling: PolymerSampling, seed: int) -> list[dict[str, Any]]:
    """Arguments of ``polymer``, one for each start of each polymer, smaller polymers first.

    Seeds depend on the polymer, the start and ``seed`` alone. All starts of a monomer relax to its few minima: only its first keeps it.
    """
    shared = sampling.model_dump(include={"spacing", "timestep", "equilibration"})
    shared["dynamics"] = {f"{temperature:g}": frames for temperature, frames in sorted(sampling.dynamics.items())}
    jobs = []
    for one in polymers:
        of = "chain" if not one.cyclic else "loop" if one.repeats > 1 else "monomer"
        for start in range(sampling.starts):
            chosen = random.Random(f"{seed} {one.smiles} {start}").randrange(2**30)
            minima = sampling.minima and (one.repeats > 1 or start == 0)
            jobs.append({"smiles": one.smiles, "of": of, "start": start, "seed": chosen, "minima": minima, **shared})
    return jobs


def polymer(arguments: dict[str, Any]) -> tuple[list[System], dict[str, list[str]]]:
    """Labelled frames of one start of one polymer: its minimum, and trajectories from it; by reason the kinds of those dropped.

    arguments: those of ``polymer_jobs``, with the engines as in ``sampling.molecule``. Frames carry the stereo that this start obtained.

    Raises JobFailure with the reason where RDKit cannot embed it, or relaxation changes its bonds or stereo or does not end.
    """
    makers = engine_of(arguments["sampler"] or arguments), engine_of(arguments)
    job = _Start(read_species(arguments["smiles"]), *makers, arguments["seed"], arguments["of"])
    rest = job.rest(FORCE if arguments["minima"] else LOOSE)
    frames = job.minimum(rest) if arguments["minima"] else []
    timing = {name: arguments[name] for name in ("spacing", "timestep", "equilibration")}
    for temperature, count in arguments["dynamics"].items():
        frames += job.trajectory(rest, float(temperature), count, **timing)
    return job.made(frames)


class _Start(Sampler):
    """A sampler that does without normal modes, which for a loop of 180 atoms cost more than its trajectory."""

    def rest(self, force: float) -> Modes:
        """The best of a few embeddings, relaxed until no force is larger than ``force`` eV/Å, without modes to displace it along."""
        starts = conformers(self.species, 1, self.seed)
        if not starts:
            raise JobFailure("RDKit cannot embed it in three dimensions")
        minimum = relax(starts[0], self.engine, force, STEPS)
        self._check(minimum.positions)
        return resting(minimum)
