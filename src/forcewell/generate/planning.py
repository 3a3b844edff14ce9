"""Which molecules are sampled, and how: settings, SMILES from files and known collections, and the jobs they make."""

from __future__ import annotations

import csv
import math
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from forcewell.bonds import resolve
from forcewell.conformers import require_rdkit
from forcewell.errors import InputError
from forcewell.generate.species import Species, bare, excluded_as, open_shell, read_species

if TYPE_CHECKING:
    from forcewell.engines import Engine

RDKIT_NCI, QM9 = "rdkit-nci", "qm9"
LONGEST = 5.0  # fs: dynamics of any bond to hydrogen (2,500 to 4,400 1/cm) is stable up to 4.2 to 2.4, of N=N and C=O up to 4.5 and 6
Frames = dict[Annotated[float, Field(gt=0, lt=math.inf)], Annotated[int, Field(ge=0)]]


class Sampling(BaseModel):
    """What is sampled of each molecule. Frames by temperature in K; 0 frames or an empty table: none of that kind.

    spacing, timestep, equilibration: fs, of molecular dynamics. torsion_points: per scan of a rotatable bond, of ``rotors`` bonds.
    vibrations: whether each minimum's normal modes are computed (6 n evaluations), so that saddle points are told and left downhill;
    without them there are no frames along modes and no dimers, and dynamics starts at the minimum.
    dimers: pairs, with molecules of ``partners`` (SMILES) or itself in turn.
    """

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    conformers: int = Field(default=2, ge=1)
    vibrations: bool = True
    minima: bool = True
    modes: Frames = {300: 20, 600: 20, 1000: 20}
    dynamics: Frames = {500: 20, 1000: 20}
    spacing: float = Field(default=10.0, gt=0)
    timestep: float = Field(default=0.5, gt=0, le=LONGEST)
    equilibration: float = Field(default=500.0, ge=0)
    torsion_points: int = Field(default=0, ge=0)
    rotors: int = Field(default=2, ge=0)
    dimers: int = Field(default=0, ge=0)
    partners: list[str] = []

    @model_validator(mode="after")
    def _possible(self) -> Sampling:
        if not self.vibrations and (self.modes or self.dimers):
            raise ValueError("frames along normal modes and dimers need vibrations: true")
        scans = self.torsion_points and self.rotors
        if not (self.minima or any(self.modes.values()) or any(self.dynamics.values()) or scans or self.dimers):
            raise ValueError("neither minima, modes, dynamics, torsions nor dimers: no frame is asked for")
        return self


@dataclass(frozen=True, slots=True)
class Request:
    """A SMILES as someone gave it, the multiplicity they gave (or None), and where, for messages."""

    smiles: str
    spin: int | None
    where: str


@dataclass(frozen=True, slots=True)
class Chosen:
    """species: to sample. left_out: one line each for what is not, and why. excluded: how many are benchmark molecules.

    assumed: one line each for what is taken as a singlet, since nothing else was said, and is none in its ground state.
    """

    species: list[Species]
    left_out: list[str]
    excluded: int
    assumed: list[str] = field(default_factory=list)


def read_smiles(file: Path) -> list[Request]:
    """From a text file: one SMILES a line, then, each if needed, a name and spin=N; empty lines and those from # on are
    skipped. From a .csv: the column smiles, and spin where there is one. Raises InputError where there is none."""
    if not file.is_file():
        wrong = "is a folder" if file.is_dir() else "does not exist"
        raise InputError(f"{file} {wrong}; give a file with one SMILES a line")
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InputError(f"{file} is not a text file; expected one SMILES a line") from None
    found = list(_of_table(text, file) if file.suffix == ".csv" else _of_lines(text, file))
    if not found:
        raise InputError(f"{file} has no SMILES; expected one a line")
    return found


def _of_table(text: str, file: Path) -> Iterator[Request]:
    rows = csv.DictReader(text.splitlines())
    names = {name.strip().lower(): name for name in rows.fieldnames or []}
    if "smiles" not in names:
        raise InputError(f"{file} has no column smiles (columns: {', '.join(rows.fieldnames or [])})")
    for row in rows:
        spin = (row.get(names.get("spin", "")) or "").strip()
        yield Request((row[names["smiles"]] or "").strip(), _spin(spin, f"{file}, line {rows.line_num}"), f"{file}, line {rows.line_num}")


def _of_lines(text: str, file: Path) -> Iterator[Request]:
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.split()  # "#" inside a SMILES is a triple bond
        if words and not words[0].startswith("#"):
            spin = next((word[5:] for word in words[1:] if word.startswith("spin=")), "")
            yield Request(words[0], _spin(spin, f"{file}, line {number}"), f"{file}, line {number}")


def _spin(text: str, where: str) -> int | None:
    if text and not text.isdigit():
        raise InputError(f"{where}: spin is {text!r}; expected a multiplicity, 1 for a singlet")
    return int(text) if text else None


def source_smiles(source: str) -> list[Request]:
    """SMILES of a collection: ``rdkit-nci``, 4,999 structures of the National Cancer Institute that RDKit carries; ``qm9``, 3,799 of
    the 4,002 molecules of the package's QM9 sample; or a store or file with SMILES. Raises InputError for anything else."""
    if source == RDKIT_NCI:
        require_rdkit()
        from rdkit import RDConfig

        file = Path(RDConfig.RDDataDir) / "NCI" / "first_5K.smi"
        if not file.is_file():
            raise InputError(f"this RDKit has no {file.name}; give SMILES in a file with --smiles")
        return [Request(line.split()[0], None, f"{RDKIT_NCI} {k}") for k, line in enumerate(file.read_text().splitlines(), start=1)]
    if source == QM9:
        return [Request(smiles, None, f"qm9 {k}") for k, smiles in enumerate(_qm9(), start=1)]
    from forcewell.store import open_data

    if not (source.startswith("bundled:") or Path(source).exists()):
        raise InputError(f"unknown source {source!r}; expected {RDKIT_NCI}, {QM9}, or a store or file with SMILES")
    dataset = open_data(source)
    spins = dataset.column("spin").tolist() if "spin" in dataset.fields else [None] * len(dataset)
    found = [(smiles, spin) for smiles, spin in dict.fromkeys(zip(dataset.column("smiles").tolist(), spins, strict=True)) if smiles]
    if not found:
        raise InputError(f"{source} has no SMILES; give one whose molecules have them, or a file with --smiles")
    return [Request(smiles, spin, f"{source}: {smiles}") for smiles, spin in found]


def _qm9() -> Iterator[str]:
    """SMILES of the bundled QM9 minima, whose bonds are perceived by RDKit; the 5 % in which it fails are passed over."""
    require_rdkit()
    from importlib import resources

    from rdkit import Chem, rdBase
    from rdkit.Chem import rdDetermineBonds

    from forcewell.store import open_data

    with resources.as_file(resources.files("forcewell.bundled")) as folder:
        dataset = open_data(folder / "qm9_minima_4002.npz")
    with rdBase.BlockLogs():
        for system in (dataset[row] for row in range(len(dataset))):
            symbols = (Chem.GetPeriodicTable().GetElementSymbol(int(z)) for z in system.numbers)
            lines = [f"{symbol} {x:.8f} {y:.8f} {z:.8f}" for symbol, (x, y, z) in zip(symbols, system.positions, strict=True)]
            molecule = Chem.MolFromXYZBlock("\n".join([str(len(system)), "", *lines, ""]))
            try:
                rdDetermineBonds.DetermineBonds(molecule, charge=0)
                yield Chem.MolToSmiles(Chem.RemoveHs(molecule))
            except (ValueError, RuntimeError):
                continue


def chosen_from(
    smiles: Path | None, source: str | None, exclude: str, neutralise: bool, elements: str, heavy_atoms: int | None, engine: Engine
) -> Chosen:
    """``choose`` from a file or a source. elements: symbols separated by commas. Raises InputError unless exactly one is given."""
    if (smiles is None) == (source is None):
        raise InputError("give either --smiles FILE or --source NAME")
    requests = read_smiles(smiles) if smiles is not None else source_smiles(str(source))
    symbols = [symbol.strip() for symbol in elements.split(",") if symbol.strip()]
    sizes = None if heavy_atoms is None else (1, heavy_atoms)
    return choose(requests, exclude=exclude, neutralise=neutralise, elements=symbols, heavy_atoms=sizes, engine=engine)


def choose(
    requests: Iterable[Request], *, exclude: str | Sequence[str] = "all", neutralise: bool = False, elements: Sequence[str] = (),
    heavy_atoms: tuple[int, int] | None = None, neutral: bool = False, engine: Engine | None = None,
) -> Chosen:  # fmt: skip
    """The different species of ``requests``, without benchmark molecules.

    elements, heavy_atoms (at least, at most), neutral (no formal charges): what else is passed over silently.
    engine: what is to label them; its elements and radicals are asked for.
    """
    names, seen, excluded = resolve(exclude), set(), 0
    species: list[Species] = []
    left_out: list[str] = []
    assumed: list[str] = []
    allowed = {_number(symbol) for symbol in elements}
    for request in requests:
        if _passed_over(request.smiles, allowed, heavy_atoms):
            continue
        try:
            one = read_species(request.smiles, request.spin, neutralise)
            if engine is not None:
                engine.check(bare(one))
        except InputError as error:
            left_out.append(f"{request.where}: {error}")
            continue
        key = (one.smiles, one.spin)
        if key in seen or (neutral and one.charges.any()):
            continue
        seen.add(key)
        if excluded_as(one, names):
            excluded += 1
        else:
            species.append(one)
            if request.spin is None and open_shell(one):
                assumed.append(f"{request.where}: {one.smiles} is taken as a singlet, which its ground state is not; say its multiplicity")
    return Chosen(species, left_out, excluded, assumed)


def _passed_over(smiles: str, allowed: set[int], heavy_atoms: tuple[int, int] | None) -> bool:
    """Whether size or elements alone rule a SMILES out; in a collection most are, and reading them in full takes ten times as long."""
    if not allowed and heavy_atoms is None:
        return False
    require_rdkit()
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, sanitize=False)
    if molecule is None:
        return False  # which ``read_species`` says
    heavy = [atom.GetAtomicNum() for atom in molecule.GetAtoms() if atom.GetAtomicNum() > 1]
    wrong_size = heavy_atoms is not None and not heavy_atoms[0] <= len(heavy) <= heavy_atoms[1]
    return wrong_size or bool(allowed and not set(heavy) <= allowed)


def _number(symbol: str) -> int:
    from ase.data import atomic_numbers

    if symbol not in atomic_numbers:
        raise InputError(f"unknown element {symbol!r}; expected symbols such as C")
    return atomic_numbers[symbol]


def molecule_jobs(species: Sequence[Species], sampling: Sampling, seed: int, of: str = "") -> list[dict[str, Any]]:
    """Arguments of ``sampling.molecule``, one for each species. of: what they are, where not plain molecules, e.g. "loop".

    Seed and partners depend on the species and ``seed`` alone, so that adding or removing a molecule leaves the others as they are.
    """
    jobs = []
    for one in species:
        chooser = random.Random(f"{seed} {one.smiles} {one.spin}")
        described = sampling.model_dump(exclude={"modes", "dynamics"})
        described |= {name: {f"{t:g}": n for t, n in sorted(getattr(sampling, name).items())} for name in ("modes", "dynamics")}
        jobs.append({"smiles": one.smiles, "spin": one.spin, "seed": chooser.randrange(2**31), "of": of, **described})
    return jobs


def validated(kind: type[BaseModel], values: dict[str, Any], where: str) -> Any:
    """A settings object. Raises InputError naming the first bad entry."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise InputError(f"{where}: {place}: {first['msg'].lower()}" if place else f"{where}: {first['msg'].lower()}") from None
