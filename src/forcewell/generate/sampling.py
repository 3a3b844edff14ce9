"""The job of one molecule: conformers, minima, and whatever is sampled around them, labelled."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np

from forcewell.engines import Engine, EngineFailure, labelled
from forcewell.generate.campaign import JobFailure, engine_of
from forcewell.generate.conformers import BIGGEST, alike, conformers, moments_of
from forcewell.generate.dimers import dimer
from forcewell.generate.dynamics import molecular_dynamics
from forcewell.generate.relaxation import moved, relax
from forcewell.generate.species import Species, intact, kept_stereo, read_species
from forcewell.generate.torsions import scan_torsions
from forcewell.generate.vibrations import Modes, resting, sample_modes, settle
from forcewell.system import System
from forcewell.units import thermal_energy

LARGEST = 30.0  # eV/Å: a frame with a larger force is no conformation of the molecule any more
ABOVE = 3.0  # times the mean potential energy of the harmonic molecule at its temperature: rejected as not thermal
REST = 0.02  # eV/Å: a minimum relaxed to 0.01 has less when labelled more accurately
PAIRS = 300.0  # K at which the molecules of a dimer are displaced
HIGH = 1.0  # eV above the best: a minimum of conformers that no temperature here reaches


def molecule(arguments: dict[str, Any]) -> tuple[list[System], dict[str, list[str]]]:
    """Labelled frames of one molecule; and by reason the kinds of those that were dropped.

    arguments: smiles, spin, seed and of; what ``planning.Sampling`` declares, temperatures as text; ``campaign.engine_settings``, and under
    "sampler" those of another engine that moves the molecule, or None.

    Raises JobFailure with the reason where RDKit cannot embed it, relaxation changes its bonds or stereo, or nothing converges.
    """
    species = read_species(arguments["smiles"], arguments["spin"])
    job = Sampler(species, engine_of(arguments["sampler"] or arguments), engine_of(arguments), arguments["seed"], arguments["of"])
    minima = job.minima(arguments["conformers"], arguments["vibrations"])
    frames = [frame for modes in minima for frame in job.minimum(modes)] if arguments["minima"] else []
    for temperature, count in arguments["modes"].items():
        for modes, share in zip(minima, _shares(count, len(minima)), strict=True):
            frames += job.thermal(modes, float(temperature), share)
    timing = {name: arguments[name] for name in ("spacing", "timestep", "equilibration")}
    for temperature, count in arguments["dynamics"].items():
        for modes, share in zip(minima, _shares(count, len(minima)), strict=True):
            frames += job.trajectory(modes, float(temperature), share, **timing)
    frames += job.torsions(minima[0], arguments["torsion_points"], arguments["rotors"])
    frames += job.dimers(minima, arguments["dimers"], arguments["partners"])
    return job.made(frames)


def _shares(count: int, parts: int) -> list[int]:
    """``count`` divided as evenly as can be, the first ones getting more."""
    return [count // parts + (k < count % parts) for k in range(parts)]


@lru_cache(maxsize=64)
def _partner(smiles: str, maker: Engine) -> tuple[Species, Modes]:
    """The best minimum of another molecule, kept for the next job of this process; the same whichever job asks."""
    job = Sampler(read_species(smiles), maker, maker, seed=0)
    return job.species, job.minima(1)[0]


class Sampler:
    """What is sampled of one molecule. engine: moves it; labeller: labels its frames, the same or a dearer one.

    ``generator`` makes all random choices. Frames are of a source named after their kind, with ``of`` before it. left_out: by reason
    the kinds of frames that were dropped, one for each.
    """

    def __init__(self, species: Species, engine: Engine, labeller: Engine, seed: int, of: str = "") -> None:
        self.species, self.engine, self.labeller, self.seed, self.of = species, engine, labeller, seed, of
        self.generator = np.random.default_rng(seed)
        self.left_out: dict[str, list[str]] = {}

    def minima(self, count: int, vibrations: bool = True) -> list[Modes]:
        """Up to ``count`` different minima with their normal modes (without ``vibrations`` none), best first; of those that the
        engine relaxes to a copy of another, break, lose their stereo or end far above the best, none. Raises JobFailure where
        none is left."""
        starts = conformers(self.species, count, self.seed)
        if not starts:
            atoms = len(self.species.numbers)
            size = f": it has {atoms} atoms, more than {BIGGEST}" if atoms > BIGGEST else ""
            raise JobFailure(f"RDKit cannot embed it in three dimensions{size}")
        found: list[tuple[float, np.ndarray, Modes]] = []
        reasons: list[str] = []
        for start in starts:
            try:
                modes = settle(start, self.engine) if vibrations else resting(relax(start, self.engine))
                self._check(modes.minimum.positions)
                energy = self.engine.label(modes.minimum).energy
            except (JobFailure, EngineFailure) as failure:
                reasons.append(str(failure))
                continue
            moments = moments_of(modes.minimum)
            if not any(alike(energy, moments, other, others) for other, others, _ in found):
                found.append((energy, moments, modes))
        if not found:
            raise JobFailure(reasons[0])
        best = min(energy for energy, _, _ in found)
        return [modes for energy, _, modes in sorted(found, key=lambda entry: entry[0]) if energy - best < HIGH]

    def _check(self, positions: np.ndarray) -> None:
        if not intact(self.species.bonds, self.species.numbers, positions):
            raise JobFailure("relaxation with this engine changes its bonds")
        if not kept_stereo(self.species, positions):
            raise JobFailure("relaxation with this engine changes its stereo")

    def minimum(self, modes: Modes) -> list[System]:
        """The minimum itself, flagged so; none where the label has forces left. Another engine's minimum is a frame like others."""
        own = self.labeller is self.engine
        frame = self._labelled(modes.minimum, "minimum", equilibrium=own)
        if frame is not None and own and np.abs(frame.arrays["forces"]).max() > REST:
            self._leave_out(f"a minimum whose label has forces above {REST} eV/Å", "minimum")
            return []
        return [frame] if frame is not None else []

    def _thermal_start(self, modes: Modes, temperature: float) -> np.ndarray | None:
        """Positions displaced along the modes in which all bonds are kept; None where ten tries gave none."""
        for positions in sample_modes(modes, temperature, 10, self.generator):
            if intact(self.species.bonds, self.species.numbers, positions):
                return positions
        return None

    def thermal(self, modes: Modes, temperature: float, count: int) -> list[System]:
        """``count`` frames displaced along the normal modes, fewer where three times as many tries do not give them."""
        frames: list[System] = []
        limit = ABOVE * 0.5 * len(modes.frequencies) * thermal_energy(temperature)
        if not count or not len(modes.frequencies):
            return []
        try:
            bottom, before = self.labeller.label(modes.minimum).energy, self._number_left_out
        except EngineFailure as failure:
            self._leave_out(str(failure), "normal modes", count)
            return []
        for positions in sample_modes(modes, temperature, 3 * count, self.generator):
            if len(frames) == count:
                break
            if intact(self.species.bonds, self.species.numbers, positions):
                frame = self._labelled(moved(modes.minimum, positions), "normal modes", temperature=temperature)
                if frame is not None and frame.arrays["energy"] - bottom < limit:
                    frames.append(frame)
        # What was replaced by a later try is not missing.
        missing = count - len(frames) - (self._number_left_out - before)
        self._leave_out("other bonds or too high an energy in three times as many tries", "normal modes", missing)
        return frames

    def trajectory(
        self, modes: Modes, temperature: float, count: int, spacing: float, timestep: float, equilibration: float
    ) -> list[System]:
        """``count`` frames of molecular dynamics, fewer where a bond breaks before."""
        start = self._thermal_start(modes, temperature)
        if start is None:
            self._leave_out("no displaced start in ten tries that keeps its bonds", "molecular dynamics", count)
        if not count or start is None or len(start) < 2:
            return []
        seed = int(self.generator.integers(2**31))
        frames = molecular_dynamics(
            moved(modes.minimum, start), self.engine, temperature, frames=count, seed=seed, bonds=self.species.bonds,
            spacing=spacing, timestep=timestep, equilibration=equilibration,
        )  # fmt: skip
        why = f"the trajectory at {temperature:g} K, {timestep:g} fs a step, ended before: a bond changed or the engine failed"
        self._leave_out(why, "molecular dynamics", count - len(frames))
        where = {"temperature": temperature, "seed": seed, "trajectory": seed}
        made = [self._labelled(frame, "molecular dynamics", time=time, **where) for time, frame in frames]
        return [frame for frame in made if frame is not None]

    def torsions(self, modes: Modes, points: int, rotors: int) -> list[System]:
        """Points of relaxed scans of the first ``rotors`` rotatable bonds of a minimum."""
        if not points or not rotors:
            return []
        scanned, missing = scan_torsions(self.species, modes.minimum, self.engine, points, rotors)
        self._leave_out("the point could not be relaxed with its bonds", "torsion scan", missing)
        made = [self._labelled(frame, "torsion scan") for _, _, frame in scanned]
        return [frame for frame in made if frame is not None]

    def dimers(self, minima: list[Modes], count: int, partners: list[str], temperature: float = PAIRS) -> list[System]:
        """``count`` pairs with one of ``partners`` or itself in turn, both displaced thermally, not relaxed."""
        frames: list[System] = []
        for k in range(count):
            mine = minima[k % len(minima)]
            species, other = self.species, minima[int(self.generator.integers(len(minima)))]
            if partners and k % 2 == 0:
                chosen = partners[int(self.generator.integers(len(partners)))]
                try:
                    species, other = _partner(chosen, self.engine)
                except JobFailure as failure:
                    self._leave_out(f"its partner {chosen}: {failure}", "dimer")
                    continue
            first, second = (moved(one.minimum, sample_modes(one, temperature, 1, self.generator)[0]) for one in (mine, other))
            both = dimer(first, second, self.generator)
            bonds = np.concatenate([self.species.bonds, species.bonds + len(self.species.numbers)])
            if intact(bonds, both.numbers, both.positions):
                frame = self._labelled(both, "dimer", temperature=temperature)
                frames += [frame] if frame is not None else []
            else:
                self._leave_out("the two molecules overlap", "dimer")
        return frames

    def made(self, frames: list[System]) -> tuple[list[System], dict[str, list[str]]]:
        """The frames and what was left out. Raises JobFailure with the first reason where there are no frames."""
        if not frames:
            raise JobFailure(f"no frame of it could be labelled: {next(iter(self.left_out), 'it has no vibrations')}")
        return frames, self.left_out

    def _leave_out(self, reason: str, kind: str, number: int = 1) -> None:
        if number > 0:
            self.left_out.setdefault(reason, []).extend([kind] * number)

    @property
    def _number_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    def _labelled(self, system: System, kind: str, **known: Any) -> System | None:
        """A frame with its labels and where it is from; None where the engine fails or a force is beyond any molecule's."""
        try:
            frame = labelled(system, self.labeller, moved_by=self.engine, **{"seed": self.seed, "equilibrium": False, **known})
        except EngineFailure as failure:
            self._leave_out(str(failure), kind)
            return None
        forces = frame.arrays["forces"]
        if not np.isfinite(forces).all() or np.linalg.norm(forces, axis=1).max() > LARGEST:
            self._leave_out(f"forces above {LARGEST:g} eV/Å", kind)
            return None
        return dataclasses.replace(frame, source=f"{self.of} {kind}".strip())
