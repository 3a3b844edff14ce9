"""What ``forcewell generate molecules``, ``corpus``, ``card`` and ``sample`` do."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from forcewell.display import say
from forcewell.errors import InputError
from forcewell.files import write_bytes

if TYPE_CHECKING:
    from forcewell.engines import Engine
    from forcewell.generate.planning import Chosen
    from forcewell.generate.species import Species

SHOWN = 10  # unusable SMILES named one by one
SETTINGS = 'A setting of that engine, key=value, e.g. accuracy=0.01 of gfn2, or "mult={spin}" of ase:orca.ORCA; may be repeated.'


def _help(text: str) -> Parameter:
    return Parameter(help=text, negative=())


def molecules(
    *,
    out: Annotated[Path, _help("Store to write, e.g. mine.fw; the campaign's journal is kept in it.")],
    smiles: Annotated[
        Path | None, _help("File with one SMILES a line, then name and spin=N if needed; or a .csv with column smiles.")
    ] = None,
    source: Annotated[str | None, _help("Instead of a file: rdkit-nci, qm9, or a store or file with SMILES.")] = None,
    engine_name: Annotated[str, Parameter(name="--engine", help="gfn2, gfn1, pyscf:METHOD/BASIS, ase:MODULE.CLASS or a model.")] = "gfn2",
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative=(), help=SETTINGS)] = (),
    sampler: Annotated[str | None, _help("Another engine that moves the molecules; no frame is then flagged as a minimum.")] = None,
    conformers: Annotated[int, _help("Different minima of each molecule at most.")] = 2,
    minima: Annotated[bool, Parameter(help="Keep the minima themselves.")] = True,
    modes: Annotated[str, _help("Frames along normal modes, TEMPERATURE:FRAMES of each molecule, ...; or none.")] = "300:20,600:20,1000:20",
    dynamics: Annotated[str, _help("Frames of molecular dynamics, likewise.")] = "500:20,1000:20",
    spacing: Annotated[float, _help("Between frames of a trajectory (fs).")] = 10.0,
    timestep: Annotated[float, _help("Of the dynamics (fs).")] = 0.5,
    equilibration: Annotated[float, _help("Before the first frame of a trajectory (fs).")] = 500.0,
    torsions: Annotated[int, _help("Points of a relaxed scan of each of up to two rotatable bonds.")] = 0,
    dimers: Annotated[int, _help("Pairs of the molecule with itself, at random orientations and distances.")] = 0,
    exclude: Annotated[str, _help("Left out by bond graph: all (nine molecules), benchmark (four of them), none, or names.")] = "all",
    elements: Annotated[str, _help("Only molecules of these elements, e.g. H,C,N,O.")] = "",
    heavy_atoms: Annotated[int | None, _help("Only molecules with at most so many atoms other than hydrogen.")] = None,
    limit: Annotated[int | None, _help("So many molecules, drawn at random.")] = None,
    neutralise: Annotated[bool, _help("Move protons until each molecule is neutral.")] = False,
    skip_unusable: Annotated[bool, _help("Leave out, and name, what cannot be used; a collection is always treated so.")] = False,
    seed: Annotated[int, _help("Of all random choices.")] = 0,
    executor: Annotated[str, _help("local, or parsl:FILE for a cluster.")] = "local",
    workers: Annotated[int | None, _help("Processes; default one per core.")] = None,
    retry_failed: Annotated[bool, _help("Try failed molecules again.")] = False,
) -> None:
    """Sample molecules from SMILES and label every conformation; the same command continues a campaign that was interrupted.

    Each molecule is embedded (ETKDGv3, several seeds), relaxed with the engine to true minima, and sampled around them.
    Charges are those of the SMILES. Stereo is kept; where the SMILES leaves it open, the stereo obtained is written down.

    Example: forcewell generate molecules --smiles mine.smi --out mine.fw

    Example: forcewell generate molecules --source rdkit-nci --heavy-atoms 9 --limit 100 --dimers 4 --out nci.fw
    """
    from forcewell.engines import engine
    from forcewell.generate.label_command import parse_settings
    from forcewell.generate.planning import Sampling, chosen_from, molecule_jobs, validated

    sampling = validated(Sampling, {
        "conformers": conformers, "minima": minima, "modes": frames_at(modes, "--modes"), "dynamics": frames_at(dynamics, "--dynamics"),
        "spacing": spacing, "timestep": timestep, "equilibration": equilibration, "torsion_points": torsions, "dimers": dimers,
    }, "forcewell generate molecules")  # fmt: skip
    maker = engine(engine_name, **parse_settings(settings))
    chosen = chosen_from(smiles, source, exclude, neutralise, elements, heavy_atoms, maker)
    for line in chosen.assumed:
        say(line)
    species = _usable(chosen, skip_unusable or smiles is None, limit, seed)
    say(
        f"{len(species)} molecule{'s' * (len(species) != 1)}"
        + (f"; {chosen.excluded} left out as benchmark molecules" if chosen.excluded else "")
    )
    jobs = [("molecule", arguments) for arguments in molecule_jobs(species, sampling, seed)]
    _campaign(jobs, campaign_settings(maker, sampler or "", exclude), out, executor, workers, retry_failed)


def corpus(
    recipe: str = "corpus",
    *,
    out: Path,
    executor: str = "local",
    workers: int | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Make a whole data set from a recipe: about 100,000 GFN2-xTB conformations in 1.4 hours on two cores by default.

    The same command continues a campaign that was interrupted.

    Example: forcewell generate corpus --out corpus.fw

    Example: forcewell generate corpus corpus-dft --out dft.fw

    Parameters
    ----------
    recipe
        corpus (GFN2-xTB), corpus-dft (ωB97X/6-31G*, for fine-tuning), or the path of a YAML file like them.
    out
        The store to write; the campaign's journal is kept in it.
    executor
        local, or parsl:FILE for a cluster.
    workers
        Processes; default one per core.
    retry_failed
        Try failed jobs again.
    """
    from forcewell.engines import engine
    from forcewell.generate.corpus import load_recipe, recipe_jobs

    plan = load_recipe(recipe)
    maker = engine(plan.engine, **plan.engine_settings)
    jobs = recipe_jobs(plan, maker)
    say(f"{plan.title}: {len(jobs)} jobs")
    _campaign(jobs, campaign_settings(maker, plan.sampler, plan.exclude), out, executor, workers, retry_failed)


def _campaign(
    jobs: list[tuple[str, dict[str, Any]]], settings: dict[str, Any], out: Path, executor: str, workers: int | None, retry_failed: bool
) -> None:
    """Runs the jobs (kind, arguments) and says how they went."""
    from forcewell.generate.campaign import Job, run

    work = "forcewell.generate.sampling:molecule"
    asked = [Job(kind, arguments) for kind, arguments in jobs]
    done = run(asked, work, out, settings, executor=executor, workers=workers, retry_failed=retry_failed, progress=True)
    for line in done.lines():
        say(line)
    done.check()


def card(store: Path, *, out: Path | None = None, title: str = "Generated data") -> None:
    """Write the data card of a generated store: counts, temperatures, forces, costs, the doctor's verdict, SHA-256, in Markdown.

    Example: forcewell generate card corpus.fw --out corpus.md --title "Forcewell corpus"

    Parameters
    ----------
    store
        A finished store.
    out
        The file to write; default: the terminal.
    title
        First line of the card.
    """
    from forcewell.generate.card import data_card
    from forcewell.generate.sample import open_generated

    text = data_card(open_generated(store), title)
    if out is None:
        say(text)
        return
    write_bytes(out, text.encode())
    say(f"wrote {out}")


def sample(store: Path, *, out: Path, megabytes: float = 5.0) -> None:
    """Write a stratified sample of a generated store: one small .npz file that holds every kind of frame in proportion.

    Example: forcewell generate sample corpus.fw --out corpus.npz --megabytes 5

    Parameters
    ----------
    store
        A finished store.
    out
        The file to write, .npz; `forcewell data import generated FILE` reads it.
    megabytes
        Its size at most, of 1,000,000 bytes.
    """
    from forcewell.generate.sample import open_generated, write_sample

    if not 0 < megabytes < math.inf:
        raise InputError(f"--megabytes is {megabytes}; expected a size above 0")
    number = write_sample(open_generated(store), out, int(megabytes * 1e6))
    say(f"wrote {out}: {number} conformations, {out.stat().st_size / 1e6:.2f} MB")


def campaign_settings(maker: Engine, sampler: str, exclude: str) -> dict[str, Any]:
    """What all jobs of a campaign share."""
    from forcewell.bonds import resolve
    from forcewell.engines import engine
    from forcewell.generate.campaign import engine_settings

    moving = engine_settings(engine(sampler)) if sampler and sampler != maker.name else None
    return {**engine_settings(maker), "sampler": moving, "exclude": resolve(exclude)}


def frames_at(text: str, option: str) -> dict[float, int]:
    """``"300:20,1000:10"`` as {300.0: 20, 1000.0: 10}; "none" as {}. Raises InputError for anything else."""
    if text.strip() in ("", "none"):
        return {}
    found = {}
    for entry in text.split(","):
        temperature, colon, number = entry.partition(":")
        try:
            found[float(temperature)] = int(number)
        except ValueError:
            colon = ""
        if not colon or not 0 < float(temperature) < math.inf or int(number) < 0:
            raise InputError(f"{option} {entry!r}: expected TEMPERATURE:FRAMES, e.g. 300:20,1000:20, or none")
    return found


def _usable(chosen: Chosen, skip: bool, limit: int | None, seed: int) -> list[Species]:
    import random

    if limit is not None and limit < 1:
        raise InputError(f"--limit is {limit}; expected 1 or more molecules")
    if chosen.left_out and not skip:
        more = f" (and {len(chosen.left_out) - 1} more like it; --skip-unusable leaves them out)" if len(chosen.left_out) > 1 else ""
        raise InputError(chosen.left_out[0] + more)
    for line in chosen.left_out[:SHOWN]:
        say(f"left out: {line}")
    if len(chosen.left_out) > SHOWN:
        say(f"left out: {len(chosen.left_out) - SHOWN} more that cannot be used")
    if not chosen.species:
        why = f"; {chosen.excluded} are benchmark molecules (--exclude none samples them)" if chosen.excluded else ""
        raise InputError(f"there is no molecule to sample{why}")
    many = limit is not None and limit < len(chosen.species)
    return random.Random(seed).sample(chosen.species, limit or 0) if many else chosen.species
