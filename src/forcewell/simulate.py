"""Molecular dynamics of one structure or of many replicas in one batch, watched, recorded and restartable."""

from __future__ import annotations

import copy
import json
import math
import time as clock
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from forcewell import compiled, files, integrators, trajectory
from forcewell.batch import Batch
from forcewell.checkpoint import read_tensors, write_tensors
from forcewell.display import say
from forcewell.errors import InputError, nearest
from forcewell.evaluate.conservation import conservation
from forcewell.evaluate.distances import distance_error, histogram
from forcewell.files import write_bytes
from forcewell.integrators import State
from forcewell.monitor import Monitor, Replica, copies_of, frames_of
from forcewell.step_path import StepPath
from forcewell.stepping import stepper
from forcewell.system import Block, System, block_of
from forcewell.units import ns_per_day

if TYPE_CHECKING:
    import ase

ENSEMBLES = compiled.ENSEMBLES
CHAIN = 3  # links of a Nosé-Hoover chain, the usual number
CHECK_EVERY = 10  # steps between looks at the monitors: one wait for the device in ten steps, 5 fs of resolution
STATE, KIND = "state.safetensors", "simulation state"
SAVE_SECONDS = 60.0  # wall time between states saved; a kill costs at most that much


@dataclass(frozen=True, slots=True)
class Result:
    """summary: what ``summary.json`` holds. folder: where everything was written. observables: of ``trajectory.read_log``."""

    summary: dict[str, Any]
    folder: Path
    observables: dict[str, np.ndarray]


def simulate(
    potential: Any,
    systems: Sequence[System | ase.Atoms] | System | ase.Atoms,
    *,
    temperature: float,
    time: float,
    out: str | Path,
    timestep: float = 0.5,
    ensemble: str = "langevin",
    replicas: int = 1,
    relaxation: float = 100.0,
    seed: int = 0,
    record_every: int = 100,
    level: str | None = None,
    reference: Block | None = None,
    resume: bool = False,
    progress: bool = False,
) -> Result:
    """Runs ``replicas`` copies of each structure for ``time`` ps at ``temperature`` K, all of them in one batch.

    timestep: fs. ensemble: "nve", "langevin" (friction 1/relaxation) or "nose-hoover" (chains of 3, period
    ``relaxation``, in fs). Each molecule's momentum is zero: 3n - 3 degrees of freedom. record_every: steps between frames.
    level: level of theory whose energies are reported; None for the model's last. reference: frames of the same molecules,
    for the mean bond lengths (else the start's) and for the error of h(r).

    A replica breaks when a bond is more than 0.5 Å off its reference length, above 1e5 K, or with a value that is not
    finite; looked for every 10 steps. It is recorded with when and where, and leaves the batch; the others go on.

    Writes to the folder ``out``: ``replica-000.xyz`` ..., ``log.jsonl``, ``state.safetensors``, ``summary.json``. With
    ``resume`` a run that was killed goes on from its last saved state, on the CPU (same thread count) to the same bits; a
    longer ``time`` extends it. Raises InputError for impossible settings, structures (``start_of``) or folders.
    """
    given = systems if isinstance(systems, Sequence) else [systems]
    converted = [entry if isinstance(entry, System) else start_of(entry) for entry in given]
    steps = check_settings(temperature, time, timestep, ensemble, replicas, relaxation, record_every)
    if not converted:
        raise InputError("no structure to simulate")
    block = block_of(converted)
    block.validate()
    potential.check_elements(block.arrays["numbers"])
    frozen = copy.deepcopy(potential).eval().requires_grad_(False)
    members = copies_of(converted, replicas, reference)
    batch = Batch.from_systems([member.system for member in members], dtype=frozen.dtype, level=frozen.level_index(level)).to(frozen.device)
    settings = {
        "ensemble": ensemble,
        "temperature": float(temperature),
        "timestep": float(timestep),
        "relaxation": float(relaxation),
        "replicas": replicas,
        "seed": seed,
        "record_every": record_every,
        "level": level,
        "model": trajectory.fingerprint(frozen.state_dict()),
        "structure": trajectory.fingerprint(block.arrays),
        "reference": trajectory.fingerprint({str(i): member.lengths for i, member in enumerate(members)}, str(reference is not None)),
    }
    settings |= {"device": frozen.device.type, "precision": getattr(frozen, "precision", "float32")}
    run = _Run(frozen, members, batch, Path(out), settings, histograms=reference is not None)
    run.begin(resume, steps, progress)
    return run.finish(steps, *run.go(steps, progress), reference)


def start_of(atoms: ase.Atoms, where: str = "structure") -> System:
    """A start structure. Its momenta are not used: velocities are drawn.

    Raises InputError, naming ``where``, for what would be passed over: constraints, and masses more than 1 % off the standard ones.
    """
    from ase.data import atomic_masses

    if atoms.constraints:
        kinds = ", ".join(sorted({type(constraint).__name__ for constraint in atoms.constraints}))
        raise InputError(f"{where}: has constraints ({kinds}), and every atom moves in a simulation; remove them")
    masses, standard = atoms.get_masses(), atomic_masses[atoms.numbers]
    for atom in np.flatnonzero(~(np.abs(masses - standard) <= 0.01 * standard))[:1]:
        raise InputError(
            f"{where}: atom {atom} ({atoms.symbols[atom]}) has the mass {masses[atom]:g}, and simulations take the standard "
            f"{standard[atom]:g} amu; remove the masses"
        )
    return System.from_atoms(atoms)


def check_settings(
    temperature: float, time: float, timestep: float, ensemble: str, replicas: int, relaxation: float = 100.0, record_every: int = 100
) -> int:
    """Number of steps. Raises InputError for a setting that makes no sense."""
    if ensemble not in ENSEMBLES:
        raise InputError(f"unknown ensemble {ensemble!r}{nearest(ensemble, ENSEMBLES)} (known: {', '.join(ENSEMBLES)})")
    positive = {"time": time, "timestep": timestep, "relaxation": relaxation, "replicas": replicas, "record_every": record_every}
    for name, value in positive.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be positive and finite")
    if not (math.isfinite(temperature) and (temperature > 0 or (temperature == 0 and ensemble == "nve"))):
        raise InputError(f"temperature is {temperature} K; it must be positive and finite")
    steps = round(time * 1000 / timestep)
    if steps < 1:
        raise InputError(f"time is {time} ps, less than one time step of {timestep} fs")
    return steps


class _Run:
    """A simulation under way: the moving state of the replicas that are whole, and what is known of all of them."""

    def __init__(
        self, potential: Any, members: list[Replica], batch: Batch, folder: Path, settings: dict[str, Any], histograms: bool
    ) -> None:
        self.potential, self.members, self.batch, self.folder, self.settings = potential, members, batch, folder, settings
        self.counts = np.zeros((len(members), 500 if histograms else 0), dtype=np.int64)
        names = [f"replica-{index:03d}.xyz" for index in range(len(members))]
        self.trajectories = trajectory.Trajectories([folder / name for name in names], [member.system for member in members])
        self.log = folder / "log.jsonl"
        self.files = [self.log, *self.trajectories.paths]
        self.step = 0
        self.alive = list(range(len(members)))
        self.state: State
        self.monitor: Monitor
        self.path: StepPath | None = None
        self.advance: Callable[[State, int], None]

    # --- beginning and going on -------------------------------------------------------------------------------------

    def begin(self, resume: bool, steps: int, progress: bool) -> None:
        """Fresh velocities in a new folder, or the saved state of an existing one."""
        settings = self.settings
        if self.folder.exists() and not resume:
            raise InputError(f"{self.folder}: already exists; resume it, or name another folder to write to")
        if resume and not self.folder.exists():
            raise InputError(f"{self.folder} is not a simulation (no {STATE}); start without --resume")
        if self.folder.exists() and not (self.folder / STATE).exists():
            missing = self.folder / STATE
            raise InputError(f"{missing} does not exist: nothing was saved before it stopped; delete the folder and start again")
        saved = read_tensors(self.folder / STATE, KIND) if self.folder.exists() else None
        if saved is not None:
            self._agree(saved[1])
        generator = torch.Generator(device=self.batch.positions.device).manual_seed(settings["seed"])
        chain = CHAIN if settings["ensemble"] == "nose-hoover" else 0
        self.state = integrators.init(self.batch, self.potential, temperature=settings["temperature"], generator=generator, chain=chain)
        bath = {name: settings[name] for name in ("timestep", "temperature", "relaxation")}
        self.advance, self.path = stepper(self.potential, self.batch, settings["ensemble"], **bath, steps=steps, quiet=not progress)
        if saved is not None:
            self._restore(*saved)
        self.monitor = Monitor([self.members[index] for index in self.alive], self.state)
        if saved is None:
            self.folder.mkdir(parents=True)
            self.check()
            self.record()
            self.save()

    def _agree(self, facts: dict[str, Any]) -> None:
        if facts.get("kind") != KIND:
            raise InputError(f"{self.folder / STATE}: not the state of a simulation; name another folder")
        saved = facts["settings"]
        for name, value in self.settings.items():
            if saved.get(name, value) != value:  # an older version may not have written all of them
                shown = "" if name in ("model", "structure", "reference") else f" ({saved[name]} there, {value} now)"
                raise InputError(f"{self.folder}: was made with another {name}{shown}; resume with the same, or name another folder")

    def save(self) -> None:
        """Everything that the next step depends on, and the lengths of the files that belong to it."""
        state = self.state
        parts = {name: getattr(state, name) for name in ("positions", "velocities", "forces", "energy", "chain")}
        parts |= {"seen": state.batch.positions, "generator": state.generator.get_state(), "counts": torch.from_numpy(self.counts)}
        facts = {
            "kind": KIND,
            "step": self.step,
            "settings": self.settings,
            "alive": self.alive,
            "broke": [member.broke for member in self.members],
            "sizes": files.sizes(self.files),
            "path": None if self.path is None else self.path.state(),
        }
        write_tensors(self.folder / STATE, parts, facts)

    def _restore(self, parts: dict[str, Tensor], facts: dict[str, Any]) -> None:
        self.step, self.alive = facts["step"], facts["alive"]
        if self.path is not None:
            self.path.restore(facts.get("path"))
        for member, broke in zip(self.members, facts["broke"], strict=True):
            member.broke = broke
        whole = torch.zeros(len(self.members), dtype=torch.bool, device=self.batch.positions.device)
        whole[self.alive] = True
        self.state = self.state.take(whole)
        for name in ("positions", "velocities", "forces", "energy", "chain"):
            setattr(self.state, name, parts[name].to(whole.device))
        self.state.batch.positions = parts["seen"].to(whole.device)
        self.state.generator.set_state(parts["generator"])
        self.counts = parts["counts"].numpy()
        for path, size in zip(self.files, facts["sizes"], strict=True):
            if size or path.exists():
                files.cut(path, size)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def go(self, steps: int, progress: bool) -> tuple[float, int]:
        """Advances to ``steps`` or until nothing is whole; returns the wall time (s) and the steps taken."""
        every = self.settings["record_every"]
        first, begun, saved = self.step, clock.perf_counter(), clock.perf_counter()
        with _Bar(progress, steps, self.step, self.settings["timestep"]) as bar:
            while self.step < steps and self.alive:
                upcoming = min(every - self.step % every, CHECK_EVERY - self.step % CHECK_EVERY, steps - self.step)
                self.advance(self.state, upcoming)
                self.step += upcoming
                recording = self.step % every == 0 or self.step == steps
                if recording or self.step % CHECK_EVERY == 0:
                    self.check()
                    bar.update(self.step, len(self.alive), len(self.members))
                if recording:
                    self.record()
                self._choose_path()
                if recording and clock.perf_counter() - saved >= SAVE_SECONDS:
                    self.save()
                    saved = clock.perf_counter()
        elapsed, done = clock.perf_counter() - begun, self.step - first
        if done:
            self.save()
        return elapsed, done

    def _choose_path(self) -> None:
        """How the rest of the run computes forces; saved at once, so that what is resumed goes on as it would have."""
        if self.path is not None and self.path.due(self.step):
            pays, shape, words = self.path.plan(self.step)
            self.path.decide(pays, shape)
            self.save()
            if not self.path.quiet:
                say(words)

    def check(self) -> None:
        """Takes broken replicas out of the batch, each with its last frame; one wait for the device where all are whole."""
        broken = self.monitor.look(self.state)
        if broken is None:
            return
        for row in broken.nonzero()[:, 0].tolist():
            self.members[self.alive[row]].broke = {"time_ps": self._time(), "step": self.step, **self.monitor.describe(self.state, row)}
        self.record(rows=broken.nonzero()[:, 0].tolist())
        self.alive = [index for index, gone in zip(self.alive, broken.tolist(), strict=True) if not gone]
        self.state = self.state.take(~broken)
        self.monitor = Monitor([self.members[index] for index in self.alive], self.state)

    def record(self, rows: list[int] | None = None) -> None:
        """A frame of every whole replica and a line of the log; or only the last frames of the replicas in ``rows``.

        h(r) takes the first broken frame in, as the published figure does (see ``evaluate.stability``).
        """
        state = self.state
        counts = state.batch.counts.tolist()
        positions = [part.numpy() for part in state.positions.cpu().split(counts)]
        forces = [part.numpy() for part in state.forces.cpu().split(counts)]
        kinetic, hot = integrators.kinetic_energy(state).tolist(), integrators.temperatures(state).tolist()
        energy = state.energy.tolist()
        for row in range(len(state)) if rows is None else rows:
            index = self.alive[row]
            if not (np.isfinite(positions[row]).all() and np.isfinite(forces[row]).all() and math.isfinite(energy[row])):
                continue  # a replica that breaks with NaN has no last frame
            self.trajectories.append(index, positions[row], forces[row], energy=energy[row], time=self._time(), temperature=hot[row])
            if self.counts.shape[1]:
                self.counts[index] += histogram(positions[row][None])
        if rows is not None:
            return
        line: dict[str, Any] = {"step": self.step, "time": self._time()}
        total = [a + b for a, b in zip(energy, kinetic, strict=True)]
        for name, values in (("temperature", hot), ("potential", energy), ("kinetic", kinetic), ("total", total)):
            placed = dict(zip(self.alive, values, strict=True))
            line[name] = [placed.get(index) for index in range(len(self.members))]
        with self.log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def _time(self) -> float:
        return round(self.step * self.settings["timestep"] / 1000, 9)

    # --- the end ----------------------------------------------------------------------------------------------------

    def finish(self, steps: int, seconds: float, done: int, reference: Block | None) -> Result:
        """Judges the run and writes ``summary.json``."""
        seen = trajectory.read_log(self.log)
        rows = [self._judge(index, seen, reference) for index in range(len(self.members))]
        speed = done / seconds if done else math.nan
        timestep = self.settings["timestep"]
        summary: dict[str, Any] = {
            **{name: self.settings[name] for name in ("ensemble", "temperature", "timestep", "relaxation", "seed", "level")},
            "time_ps": self._time(),
            "steps": self.step,
            "stability_ps": float(np.mean([row["stability_ps"] for row in rows])),
            "whole": len(self.alive),
            "of": len(self.members),
        }
        for name in ("temperature_mean", "drift_mev_atom_ps", "distances_mae", "distances_floor"):
            values = [row[name] for row in rows if row.get(name) is not None]
            if values:
                summary[name] = float(np.mean(values))
        if done:
            summary |= {"steps_per_second": speed, "ns_per_day": ns_per_day(speed, timestep), "threads": torch.get_num_threads()}
        summary["replicas"] = rows
        write_bytes(self.folder / "summary.json", (json.dumps(summary, indent=1, allow_nan=False) + "\n").encode())
        return Result(summary, self.folder, seen)

    def _judge(self, index: int, seen: dict[str, np.ndarray], reference: Block | None) -> dict[str, Any]:
        member = self.members[index]
        whole = np.isfinite(seen["temperature"][:, index]) & (seen["time"] > 0)
        row: dict[str, Any] = {
            "structure": member.structure,
            "replica": member.number,
            "trajectory": self.trajectories.paths[index].name,
            "degrees_of_freedom": int(3 * len(member.system) - 3) if len(member.system) > 1 else 3,
            "stability_ps": member.broke["time_ps"] if member.broke else self._time(),
            "censored": member.broke is None,
            "broke": member.broke,
            "temperature_mean": float(seen["temperature"][whole, index].mean()) if whole.any() else None,
        }
        if self.settings["ensemble"] == "nve":
            kept = conservation(seen["time"], seen["total"][:, index], len(member.system))
            if math.isfinite(kept.drift):
                row |= {"drift_mev_atom_ps": kept.drift, "deviation_mev_atom": kept.deviation}
        if reference is not None:
            error = distance_error(self.counts[index], frames_of(reference, member.system))
            row |= {"distances_mae": error.mae, "distances_floor": error.floor if math.isfinite(error.floor) else None}
        return row


class _Bar:
    """Progress with steps/s, ns/day and the time left, on standard error; nothing where it is not wanted or no terminal."""

    def __init__(self, wanted: bool, steps: int, first: int, timestep: float) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        self.first, self.timestep, self.begun = first, timestep, clock.perf_counter()
        console = Console(stderr=True)
        columns = (TextColumn("[bold]simulating"), BarColumn(bar_width=24), TextColumn("{task.fields[speed]}"), TimeRemainingColumn())
        self.progress = Progress(*columns, console=console, disable=not (wanted and console.is_terminal))
        self.task = self.progress.add_task("", total=steps, completed=first, speed="")

    def __enter__(self) -> _Bar:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, step: int, whole: int, members: int) -> None:
        """To ``step``, with ``whole`` of ``members`` replicas left."""
        if self.progress.disable:
            return
        speed = (step - self.first) / max(clock.perf_counter() - self.begun, 1e-9)
        text = f"{speed:.1f} steps/s, {ns_per_day(speed, self.timestep):.3g} ns/day, {whole}/{members} whole"
        self.progress.update(self.task, completed=step, speed=text)
