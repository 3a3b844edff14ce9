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
from forcewell.generate.label_command import parse_settings
from forcewell.generate.molecules_command import SETTINGS, campaign_settings, frames_at
from forcewell.generate.planning import validated
from forcewell.generate.polymer_cost import LAWS, TITLES, Cost, costs, law_of
from forcewell.generate.polymers import PolymerSampling, polymer_jobs, polymers_of
from forcewell.generate.ring_opening import ENDS, Opening, has_ring_double_bond, open_ring
from forcewell.generate.species import bare, read_species


def _help(text: str) -> Parameter:
    return Parameter(help=text)


def _flag(text: str) -> Parameter:
    return Parameter(negative=(), help=text)


_OUT = Annotated[Path | None, _help("The store to write, e.g. gbl.fw; the campaign's journal is kept in it.")]
_ENGINE = Annotated[
    str, Parameter("--engine", help="What relaxes, samples and labels: gfn2, gfn1, pyscf:METHOD/BASIS, ase:MODULE.CLASS, or a model.")
]
_SETTINGS = Annotated[tuple[str, ...], Parameter(name="--set", negative=(), help=SETTINGS)]
_SAMPLER = Annotated[str | None, _help("Another engine that relaxes and samples; --engine then labels alone.")]
_SEED = Annotated[int, _help("Of all random choices.")]
_DRY = Annotated[bool, _flag("Only say what would be done and what it would cost with each engine.")]
_EXECUTOR = Annotated[str, _help("local, or parsl:FILE for a cluster.")]
_WORKERS = Annotated[int | None, _help("Processes; default one per core.")]
_RETRY = Annotated[bool, _flag("Try failed starts again.")]


def polymers(
    *,
    out: _OUT = None,
    monomer: Annotated[str | None, _help("SMILES of a cyclic monomer.")] = None,
    family: Annotated[str | None, _help(
        "Instead: names or classes (cycloalkanes, lactones, ethers, others) of the package's 24 families, separated by commas, or all."
    )] = None,
    loops: Annotated[str, _help("Repeat units of the loops; 1 is the monomer, none for no loops.")] = "1,3,4,5,6,15",
    chains: Annotated[str, _help("Repeat units of chains with end groups.")] = "none",
    ends: Annotated[str, _help("Their end groups, SMILES with a *: at the O (N, ...), then at the other end.")] = ",".join(ENDS),
    starts: Annotated[int, _help("Embeddings of each polymer, each with trajectories of its own.")] = 10,
    engine_name: _ENGINE = "gfn2",
    settings: _SETTINGS = (),
    sampler: _SAMPLER = None,
    minima: Annotated[bool, _help("Relax to minima and keep them, flagged as such.")] = True,
    dynamics: Annotated[str, _help("Frames of dynamics of each start, TEMPERATURE:FRAMES separated by commas, or none.")] = "500:100",
    spacing: Annotated[float, _help("Between frames of a trajectory (fs).")] = 10.0,
    timestep: Annotated[float, _help("Of the dynamics (fs).")] = 1.0,
    equilibration: Annotated[float, _help("Before the first frame of a trajectory (fs).")] = 1000.0,
    largest: Annotated[int | None, _help("Leave out polymers with more atoms.")] = None,
    seed: _SEED = 0,
    dry_run: _DRY = False,
    executor: _EXECUTOR = "local",
    workers: _WORKERS = None,
    retry_failed: _RETRY = False,
) -> None:  # fmt: skip
    """Sample ring-opened polymers and label every conformation; the same command continues a campaign that was interrupted.

    The monomer's ring is opened at the bond where it polymerises (said for each), and so many repeat units are closed to a loop
    without end groups. Each start is embedded, relaxed and simulated with the engine. Stereo that the monomer leaves open
    comes out at random and is written down with every frame.

    Example: forcewell generate polymers --family gamma-butyrolactone --loops 1,3,4,5 --out gbl.fw

    Example: forcewell generate polymers --monomer "CC1CC(=O)O1" --loops 1,3 --chains 2,4 --out butyrolactone.fw

    Example: forcewell generate polymers --family lactones --dry-run
    """
    if (monomer is None) == (family is None):
        raise InputError("give either --monomer SMILES or --family NAME")
    asked = {"loops": _numbers(loops, "--loops"), "chains": _numbers(chains, "--chains"), "ends": ends.split(","), "starts": starts}
    asked |= {"minima": minima, "dynamics": frames_at(dynamics, "--dynamics"), "spacing": spacing, "timestep": timestep}
    sampling = validated(PolymerSampling, {**asked, "equilibration": equilibration, "largest": largest}, "forcewell generate polymers")
    named = {monomer: monomer} if monomer is not None else {one.title: one.smiles for one in choose_families(family or "")}
    openings = [_told(title, open_ring(smiles)) for title, smiles in named.items()]
    _campaign(openings, sampling, engine_name, settings, sampler, seed, out, dry_run, executor, workers, retry_failed)


def poly24(
    *,
    out: _OUT = None,
    engine_name: _ENGINE = "gfn2",
    settings: _SETTINGS = (),
    sampler: _SAMPLER = None,
    seed: _SEED = 0,
    dry_run: _DRY = False,
    executor: _EXECUTOR = "local",
    workers: _WORKERS = None,
    retry_failed: _RETRY = False,
) -> None:
    """The whole poly24 campaign: 24 families, loops of 1, 3, 4, 5, 6 and 15 repeat units, ten starts of each.

    It is ``forcewell generate polymers --family all`` with its defaults. Look at what it costs first; it is meant for a cluster.

    Example: forcewell generate poly24 --dry-run

    Example: forcewell generate poly24 --executor parsl:cluster.yaml --out poly24.fw
    """
    openings = [_told(one.title, open_ring(one.smiles)) for one in choose_families("all")]
    _campaign(openings, PolymerSampling(), engine_name, settings, sampler, seed, out, dry_run, executor, workers, retry_failed)


def _told(title: str, opening: Opening) -> Opening:
    say(f"{title}: the {opening.bond} bond opens; repeat unit {opening.repeat_unit}, {opening.atoms} atoms")
    if has_ring_double_bond(opening.smiles):
        say(f"{title}: its ring has a double bond, which metathesis would open; that polymer is another one, and is not made here")
    return opening


def _campaign(
    openings: Sequence[Opening], sampling: PolymerSampling, engine_name: str, settings: tuple[str, ...], sampler: str | None, seed: int,
    out: Path | None, dry_run: bool, executor: str, workers: int | None, retry_failed: bool,
) -> None:  # fmt: skip
    found = polymers_of(openings, sampling)
    if not found:
        raise InputError("there is no polymer to sample: neither --loops nor --chains gives any of at most --largest atoms")
    maker = engine(engine_name, **parse_settings(settings))
    for one in found:
        maker.check(bare(read_species(one.smiles)))
    jobs = [Job("polymer", arguments) for arguments in polymer_jobs(found, sampling, seed)]
    say(f"{len(found)} polymer{'s' * (len(found) != 1)}, {len(jobs)} start{'s' * (len(jobs) != 1)}")
    if dry_run:
        for line in _estimate(costs(found, sampling), engine_name, sampler):
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
    done.check()


def _estimate(rows: Sequence[Cost], engine_name: str, sampler: str | None) -> list[str]:
    """The table of a dry run: by repeat units for the engines that were asked for, and in all for each that was measured."""
    law, moving = law_of(engine_name), law_of(sampler or engine_name)
    lines = ["repeat units   atoms       starts   frames   evaluations   " + ("CPU hours" if law and moving else "")]
    for row in rows:
        atoms = f"{row.atoms[0]}-{row.atoms[1]}" if row.atoms[0] < row.atoms[1] else str(row.atoms[0])
        hours = f"{row.hours(law, moving):>12,.2f}" if law and moving else ""
        lines.append(f"{row.repeats:>12}   {atoms:<10} {row.jobs:>7,} {row.frames:>8,} {row.evaluations:>13,} {hours}")
    totals = (sum(row.jobs for row in rows), sum(row.frames for row in rows), sum(row.evaluations for row in rows))
    lines.append("{:>12}   {:<10} {:>7,} {:>8,} {:>13,}".format("all", "", *totals))
    for name in LAWS:
        hours = sum(row.hours(name) for row in rows)
        lines.append(f"{TITLES[name]}: {hours:,.3g} CPU hours" + (", extrapolated from 94 electrons" if name == "pyscf" else ""))
    hours = sum(row.hours("pyscf", "gfn2") for row in rows)
    lines.append(f"GFN2-xTB samples, that DFT labels: {hours:,.3g} CPU hours, extrapolated from 94 electrons")
    if law is None or moving is None:
        lines.append("The cost of an engine ase:... was never measured: multiply the evaluations or frames by the time of one")
    return lines


def _numbers(text: str, option: str) -> list[int]:
    if text.strip() in ("", "none"):
        return []
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: expected numbers of repeat units separated by commas, e.g. 1,3,4, or none") from None
