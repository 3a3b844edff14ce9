"""What ``forcewell generate polymers`` and ``forcewell generate poly24`` do."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from forcewell.display import say
from forcewell.engines import engine
from forcewell.errors import InputError
from forcewell.generate.campaign import Job, run
from forcewell.generate.families import choose_families
from forcewell.generate.molecules_command import campaign_settings, frames_at
from forcewell.generate.planning import validated
from forcewell.generate.polymer_cost import LAWS, TITLES, Cost, costs, law_of
from forcewell.generate.polymers import PolymerSampling, polymer_jobs, polymers_of
from forcewell.generate.ring_opening import ENDS, Opening, open_ring
from forcewell.generate.species import bare, read_species


def polymers(
    *,
    out: Path | None = None,
    monomer: str | None = None,
    family: str | None = None,
    loops: str = "1,3,4,5,6,15",
    chains: str = "none",
    ends: str = ",".join(ENDS),
    starts: int = 10,
    engine_name: Annotated[str, Parameter(name="--engine")] = "gfn2",
    sampler: str | None = None,
    minima: bool = True,
    dynamics: str = "500:100",
    spacing: float = 10.0,
    timestep: float = 1.0,
    equilibration: float = 1000.0,
    largest: int | None = None,
    seed: int = 0,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    executor: str = "local",
    workers: int | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Sample ring-opened polymers and label every conformation; the same command continues a campaign that was interrupted.

    The monomer's ring is opened at the bond where it polymerises (said for each), and so many repeat units are closed to a loop
    without end groups. Each start is embedded, relaxed and simulated with the engine. Stereo that the monomer leaves open
    comes out at random and is written down with every frame.

    Example: forcewell generate polymers --family gamma-butyrolactone --loops 1,3,4,5 --out gbl.fw

    Example: forcewell generate polymers --monomer "C[C@@H]1OC(=O)[C@H](C)OC1=O" --loops 1,3 --chains 2,4 --out lactide.fw

    Example: forcewell generate polymers --family lactones --dry-run

    Parameters
    ----------
    out
        The store to write, e.g. gbl.fw; the campaign's journal is kept in it.
    monomer
        SMILES of a cyclic monomer.
    family
        Instead of a monomer: names or classes (cycloalkanes, lactones, ethers, others) of the package's 24 families, separated
        by commas, or all.
    loops
        Repeat units of the loops, separated by commas; 1 is the monomer, none for no loops.
    chains
        Repeat units of chains with end groups, likewise.
    ends
        End groups of the chains as SMILES with a *: at the oxygen's (nitrogen's, ...) end, then at the other.
    starts
        Embeddings of each polymer, each with a trajectory of its own.
    engine_name
        What relaxes, samples and labels: gfn2, gfn1, pyscf:METHOD/BASIS, ase:MODULE.CLASS, or a Forcewell model.
    sampler
        Another engine that relaxes and samples; the frames are then labelled by --engine alone.
    minima
        Relax to minima and keep them, flagged as such.
    dynamics
        Frames of molecular dynamics of each start, as TEMPERATURE:FRAMES, separated by commas; "none" for none.
    spacing
        Between frames of a trajectory (fs).
    timestep
        Of the dynamics (fs).
    equilibration
        Before the first frame of a trajectory (fs).
    largest
        Leave out polymers with more atoms.
    seed
        Of all random choices.
    dry_run
        Only say what would be done and what it would cost.
    executor
        local, or parsl:FILE for a cluster.
    workers
        Processes; default one per core.
    retry_failed
        Try failed starts again.
    """
    if (monomer is None) == (family is None):
        raise InputError("give either --monomer SMILES or --family NAME")
    sampling = validated(PolymerSampling, {
        "loops": _numbers(loops, "--loops"), "chains": _numbers(chains, "--chains"), "ends": ends.split(","), "starts": starts, "minima": minima,
        "dynamics": frames_at(dynamics, "--dynamics"), "spacing": spacing, "timestep": timestep, "equilibration": equilibration,
        "largest": largest,
    }, "forcewell generate polymers")  # fmt: skip
    named = {monomer: monomer} if monomer is not None else {one.title: one.smiles for one in choose_families(family or "")}
    openings = [_told(title, open_ring(smiles)) for title, smiles in named.items()]
    _campaign(openings, sampling, engine_name, sampler, seed, out, dry_run, executor, workers, retry_failed)


def poly24(
    *,
    out: Path | None = None,
    engine_name: Annotated[str, Parameter(name="--engine")] = "gfn2",
    sampler: str | None = None,
    seed: int = 0,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    executor: str = "local",
    workers: int | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """The whole poly24 campaign: 24 families, loops of 1, 3, 4, 5, 6 and 15 repeat units, ten starts of each.

    It is ``forcewell generate polymers --family all`` with its defaults. Look at what it costs first; it is meant for a cluster.

    Example: forcewell generate poly24 --dry-run

    Example: forcewell generate poly24 --executor parsl:cluster.yaml --out poly24.fw

    Parameters
    ----------
    out
        The store to write; the campaign's journal is kept in it.
    engine_name
        What relaxes, samples and labels: gfn2, gfn1, pyscf:METHOD/BASIS, ase:MODULE.CLASS, or a Forcewell model.
    sampler
        Another engine that relaxes and samples; the frames are then labelled by --engine alone.
    seed
        Of all random choices.
    dry_run
        Only say what would be done and what it would cost with each engine.
    executor
        local, or parsl:FILE for a cluster.
    workers
        Processes; default one per core.
    retry_failed
        Try failed starts again.
    """
    openings = [_told(one.title, open_ring(one.smiles)) for one in choose_families("all")]
    _campaign(openings, PolymerSampling(), engine_name, sampler, seed, out, dry_run, executor, workers, retry_failed)


def _told(title: str, opening: Opening) -> Opening:
    say(f"{title}: the {opening.bond} bond opens; repeat unit {opening.repeat_unit}, {opening.atoms} atoms")
    return opening


def _campaign(
    openings: Sequence[Opening], sampling: PolymerSampling, engine_name: str, sampler: str | None, seed: int, out: Path | None,
    dry_run: bool, executor: str, workers: int | None, retry_failed: bool,
) -> None:  # fmt: skip
    found = polymers_of(openings, sampling)
    if not found:
        raise InputError("there is no polymer to sample: neither --loops nor --chains gives any of at most --largest atoms")
    maker = engine(engine_name)
    for one in found:
        maker.check(bare(read_species(one.smiles)))
    jobs = [Job("polymer", arguments) for arguments in polymer_jobs(found, sampling, seed)]
    say(f"{len(found)} polymers, {len(jobs)} starts")
    if dry_run:
        for line in _estimate(costs(found, sampling), engine_name):
            say(line)
        return
    if out is None:
        raise InputError("give --out STORE, where to write to (or --dry-run)")
    done = run(
        jobs, "forcewell.generate.polymers:polymer", out, campaign_settings(maker, sampler or "", "none"), executor=executor,
        workers=workers, retry_failed=retry_failed, progress=True,
    )  # fmt: skip
    for line in done.lines():
        say(line)


def _estimate(rows: Sequence[Cost], engine_name: str) -> list[str]:
    """The table of a dry run: by repeat units for the engine that was asked for, and in all for each that was measured."""
    law = law_of(engine_name)
    lines = ["repeat units   atoms       starts   frames   evaluations   " + ("CPU hours" if law else "")]
    for row in rows:
        atoms = f"{row.atoms[0]}-{row.atoms[1]}" if row.atoms[0] < row.atoms[1] else str(row.atoms[0])
        hours = f"{row.seconds[law] / 3600:>12,.2f}" if law else ""
        lines.append(f"{row.repeats:>12}   {atoms:<10} {row.jobs:>7,} {row.frames:>8,} {row.evaluations:>13,} {hours}")
    lines.append(
        f"{'all':>12}   {'':<10} {sum(r.jobs for r in rows):>7,} {sum(r.frames for r in rows):>8,} {sum(r.evaluations for r in rows):>13,}"
    )
    for name in LAWS:
        hours = sum(row.seconds[name] for row in rows) / 3600
        lines.append(f"{TITLES[name]}: {hours:,.3g} CPU hours" + (", extrapolated from 94 electrons" if name == "pyscf" else ""))
    if law is None:
        lines.append(f"{engine_name}: its cost was never measured; multiply the evaluations by the time of one")
    return lines


def _numbers(text: str, option: str) -> list[int]:
    if text.strip() in ("", "none"):
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected numbers of repeat units separated by commas, e.g. 1,3,4, or none") from None
