"""``forcewell simulate``: reads the structure, says what it will do, runs, and says how it went."""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from cyclopts import Parameter, Token

from forcewell.display import say
from forcewell.errors import InputError
from forcewell.process import check_device
from forcewell.system import Block, System

LONGEST = 2.0  # fs; of a step that goes without a warning
LONG = " (warning: that is long, since bonds to hydrogen vibrate within 10 fs; 0.5 fs is usual, 1 to 2 fs at most)"


def _help(text: str) -> Parameter:
    return Parameter(help=text)


def _whole(_: object, tokens: Sequence[Token]) -> int:
    """A whole number: rounding 1.9 replicas to 2 would do what nobody asked for."""
    try:
        return int(tokens[0].value)
    except ValueError:
        raise InputError(f"{tokens[0].keyword or 'argument'} is {tokens[0].value!r}; expected a whole number") from None


def _count(text: str) -> Parameter:
    return Parameter(help=text, converter=_whole)


def simulate(
    model: Annotated[Path, _help("A model file (.safetensors), or the folder of a run.")],
    structure: Annotated[Path, _help("A file that ASE reads, or an .npz of the MD17 or rMD17 layout; its first frame is the start.")],
    *,
    temperature: Annotated[float, _help("In K.")],
    time: Annotated[float, _help("In ps, of each replica.")],
    ensemble: Annotated[Literal["nve", "langevin", "nose-hoover"], _help("Relaxation time or chain period: 100 fs.")] = "langevin",
    timestep: Annotated[float, _help("In fs.")] = 0.5,
    replicas: Annotated[int, _count("Copies of the structure with different velocities, in one batch.")] = 1,
    level: Annotated[str | None, _help("Level of theory of the reported energies; default: the model's last.")] = None,
    charge: Annotated[int | None, _count("Total charge; default: what the structure says, else 0.")] = None,
    spin: Annotated[int | None, _count("Spin multiplicity; default: what the structure says, else 1.")] = None,
    reference: Annotated[Path | None, _help("Frames of the same molecule, for mean bond lengths and h(r).")] = None,
    seed: Annotated[int, _count("Of the start velocities and the noise.")] = 0,
    device: Annotated[str, _help("Where the model runs: cpu, cuda, cuda:1, ...")] = "cpu",
    precision: Annotated[Literal["float32", "tf32", "bfloat16"], _help("Of matrix products (tf32: on a GPU).")] = "float32",
    out: Annotated[Path, _help("Folder to write to; must be new unless resumed.")] = Path("simulation"),
    resume: Annotated[bool, Parameter(negative=(), help="Go on from the last saved state in the folder.")] = False,
) -> None:
    """Molecular dynamics of one structure, in one or many replicas at once.

    Writes to the folder a frame every 100 steps and its last one (replica-000.xyz, ... with forces), log.jsonl and summary.json.

    Example: forcewell simulate model.safetensors ethanol.xyz --temperature 500 --time 300 --replicas 8 --out md
    """
    from forcewell.checkpoint import load
    from forcewell.simulate import check_settings
    from forcewell.simulate import simulate as run

    check_settings(temperature, time, timestep, ensemble, replicas)
    _check_folder(out, resume)
    start = read_structure(structure, charge, spin)
    frames = None if reference is None else read_reference(reference, start)
    potential = load(model).to(check_device(device))
    potential.level_index(level)
    potential.check_electrons(int(start.get("charge")), int(start.get("spin")))
    if precision == "tf32" and potential.device.type == "cpu":
        raise InputError("--precision tf32 is of GPUs; on the CPU there are float32 and bfloat16")
    potential.precision = precision
    say(f"{structure}: {len(start)} atoms, {replicas} replica(s), {ensemble} at {temperature:g} K")
    say(f"{time:g} ps in steps of {timestep:g} fs{LONG * (timestep > LONGEST)}, {'going on with' if resume else 'writing to'} {out}/")
    say(_how(potential, len(start)))
    result = run(
        potential,
        start,
        temperature=temperature,
        time=time,
        timestep=timestep,
        ensemble=ensemble,
        replicas=replicas,
        seed=seed,
        level=level,
        reference=frames,
        out=out,
        resume=resume,
        progress=True,
    )
    for line in describe(result.summary):
        say(line)


def _check_folder(out: Path, resume: bool) -> None:
    from forcewell.simulate import STATE

    if out.exists() and not resume:
        raise InputError(f"{out}: already exists; add --resume to go on with it, or give another --out")
    if resume and not out.exists():
        raise InputError(f"{out} is not a simulation (no {STATE}); start without --resume")


def _how(potential: Any, atoms: int) -> str:
    step = ", each step one CUDA graph" if potential.device.type == "cuda" else ""
    freedom = 3 * atoms - 3 if atoms > 1 else 3
    return f"{freedom} degrees of freedom (no net momentum); energies and forces by {potential.path}{step}"


def describe(summary: dict[str, Any]) -> list[str]:
    """The lines printed of a summary."""
    lines = []
    for row in summary["replicas"]:
        broke = row["broke"]
        if broke is not None:
            where = {
                "bond": lambda b: f"bond {b['elements']} of atoms {b['atoms'][0]} and {b['atoms'][1]} is {b['deviation']:.2f} Å off",
                "temperature": lambda b: f"{b['temperature']:.0f} K",
                "not finite": lambda b: "a value is not finite",
            }[broke["reason"]](broke)
            lines.append(f"replica {row['replica']} broke at {broke['time_ps']:g} ps: {where}")
    whole = f"{summary['whole']} of {summary['of']} replicas whole at {summary['time_ps']:g} ps"
    lines.append(f"stable for {summary['stability_ps']:g} ps on average; {whole}")
    if "temperature_mean" in summary:
        lines.append(f"mean temperature {summary['temperature_mean']:.1f} K")
    if "drift_mev_atom_ps" in summary:
        lines.append(f"energy drift {summary['drift_mev_atom_ps']:.3g} meV/atom/ps")
    if "distances_mae" in summary:
        floor = f" (two halves of the reference differ by {summary['distances_floor']:.3f})" if "distances_floor" in summary else ""
        lines.append(f"h(r) error {summary['distances_mae']:.3f}{floor}")
    if "steps_per_second" in summary:
        lines.append(f"{summary['steps_per_second']:.1f} steps/s, {summary['ns_per_day']:.3g} ns/day per replica")
    return lines


def read_structure(path: Path, charge: int | None = None, spin: int | None = None) -> System:
    """The first frame of a file, with charge and spin multiplicity where given; says so where it has momenta, which are not used.

    Raises InputError where it is absent, unreadable, no sane structure, or has constraints or masses (``simulate.start_of``).
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {found}; STRUCTURE is a file that ASE reads or an .npz of the MD17 layout")
    system = _first_of_npz(path) if path.suffix == ".npz" else _first_of_ase(path)
    for name, value, least in (("charge", charge, -127), ("spin", spin, 1)):
        if value is not None:
            if not least <= value <= 127:
                raise InputError(f"{name} is {value}; expected {least} to 127")
            system.arrays[name] = np.asarray(value, dtype=np.int8 if name == "charge" else np.uint8)
    system.source = str(path)
    Block(np.array([len(system)]), {name: system.arrays[name] for name in ("numbers", "positions")}, source=str(path)).validate()
    return system


def read_reference(path: Path, system: System) -> Block:
    """The frames of DATA with as many atoms as the structure."""
    from forcewell.store import open_data

    data = open_data(path)
    rows = np.flatnonzero(np.asarray(data.counts) == len(system))
    if len(rows) == 0:
        raise InputError(f"{path}: holds no frame with {len(system)} atoms, as the structure has")
    return data.block(rows)


def _first_of_npz(path: Path) -> System:
    try:
        with np.load(path, allow_pickle=False) as data:
            for numbers, positions in (("nuclear_charges", "coords"), ("z", "R"), ("z", "pos")):
                if numbers in data and positions in data and data[positions].ndim == 3:
                    return Block.shared(data[numbers], data[positions][:1], source=str(path)).system(0)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable .npz file ({str(error).splitlines()[0]})") from None
    raise InputError(f"{path}: has neither nuclear_charges and coords (rMD17) nor z and R (MD17), with positions (F, n, 3)")


def _first_of_ase(path: Path) -> System:
    import ase.io

    from forcewell.simulate import start_of

    try:
        atoms = ase.io.read(path, index=0)
    except Exception as error:
        first = (str(error).splitlines() or [""])[0]
        raise InputError(f"{path}: ASE cannot read it ({type(error).__name__}: {first}); is the suffix right?") from None
    atoms.calc = None  # type: ignore[union-attr]
    start = start_of(atoms, str(path))  # type: ignore[arg-type]
    if atoms.has("momenta") and atoms.get_momenta().any():  # type: ignore[union-attr]
        say(f"{path}: its momenta are not used; the velocities of a simulation are drawn anew (--seed)")
    return start
