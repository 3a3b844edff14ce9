"""Labels by any ASE calculator (ORCA, Psi4, CP2K, VASP ...), and by a Forcewell model."""

from __future__ import annotations

import importlib
import json
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell import __version__
from forcewell.engines.base import Engine, EngineFailure, Labels, atoms_of, check_spin, named
from forcewell.engines.guarded import Guarded
from forcewell.errors import InputError
from forcewell.system import System

if TYPE_CHECKING:
    import ase
    from ase.calculators.calculator import BaseCalculator

PREFIX = "ase:"
CHARGE, SPIN = "{charge}", "{spin}"

# Which calculators take the total charge or the spin from initial charges or moments of the atoms, read in their sources; by
# field, the keywords that stop that, with the value at which they do not.
READING: dict[str, dict[str, dict[str, Any]]] = {
    "ase.calculators.gaussian": {"charge": {"charge": None}, "spin": {"mult": None}},
    "ase.calculators.mopac": {"charge": {"charge": None}, "spin": {}},
    "tblite": {"charge": {"charge": None}, "spin": {"multiplicity": None}},
    # A start of the SCF, which their own settings can let go elsewhere (docs/generate.md).
    "ase.calculators.vasp": {"spin": {"ispin": 2, "magmom": None}},
    "gpaw": {"spin": {"spinpol": True}},
}
HOW = {"charge": '--set charge="{charge}"', "spin": '--set mult="{spin}" (ORCA) or multiplicity="{spin}" (Psi4, CP2K)'}
# Keywords of VASP that are counted otherwise.
OTHERWISE = {
    ("nelect", CHARGE): 'is a number of electrons, not a charge; give charge="{charge}", from which ASE counts the electrons',
    ("nupdown", SPIN): "is a number of unpaired electrons, not a multiplicity; leave it out, and VASP starts from initial moments",
}


class AnyASE(Engine):
    """``ase:MODULE.CLASS``: a calculator class of ASE (``ase:orca.ORCA``) or of another package (``ase:mace.calculators.MACECalculator``).

    settings: keyword arguments of the class; where one is "{charge}" or "{spin}", each structure's total charge or spin
    multiplicity is put in, e.g. ``charge="{charge}", mult="{spin}"`` for ORCA. Those of ``READING`` are told by initial charges or
    magnetic moments, which are put on the first atom. level: name of the level of theory to store; default: class and
    settings. Calculators that write files do so in a temporary folder. The programs themselves are configured as ASE says.

    Raises InputError where the class cannot be imported or does not take the settings, and for a setting that cannot be meant.
    """

    def __init__(self, name: str, level: str | None = None, **settings: Any) -> None:
        self.name, self.settings = name, settings
        for key, value in settings.items():
            if (reason := OTHERWISE.get((key.lower(), str(value)))) is not None:
                raise InputError(f"engine {name!r}: {key} {reason}")
        self._class, module = _class_of(name)
        try:
            package = module.partition(".")[0]
            self.version = f"{package} {version(package)}"
        except PackageNotFoundError:
            self.version = module
        described = " ".join(f"{key}={value}" for key, value in sorted(settings.items()))
        self.level = level or f"{self._class.__name__} {described}".strip()
        if level is not None:
            self.settings = {**settings, "level": level}
        self._keywords = settings
        self._made: dict[tuple[int, int], BaseCalculator] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="forcewell-engine-")
        self._make(0, 1)

    def check(self, system: System) -> None:
        check_spin(system)
        for field, usual in (("charge", 0), ("spin", 1)):
            if int(system.get(field)) != usual and not self._told(field) and not self._reads(field):
                raise InputError(
                    f"{named(system)} has {field} {int(system.get(field))}, of which engine {self.name!r} is not told; "
                    f"name the keyword that takes it, e.g. {HOW[field]}"
                )

    def _told(self, field: str) -> bool:
        """Whether a setting tells the calculator."""
        return (CHARGE if field == "charge" else SPIN) in map(str, self._keywords.values())

    def _reads(self, field: str) -> bool:
        """Whether the calculator takes it from the atoms, these settings given."""
        module = self._class.__module__
        known = next((fields for name, fields in READING.items() if module == name or module.startswith(f"{name}.")), {})
        return field in known and all(self._keywords.get(key, value) == value for key, value in known[field].items())

    def _make(self, charge: int, spin: int) -> BaseCalculator:
        filled = {CHARGE: charge, SPIN: spin}
        keywords = {key: filled.get(value, value) if isinstance(value, str) else value for key, value in self._keywords.items()}
        try:
            made = self._class(**keywords)
        except Exception as error:  # whatever a foreign class objects with
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise InputError(f"engine {self.name!r} cannot be set up with {json.dumps(keywords)} ({reason})") from None
        if hasattr(made, "directory"):
            made.directory = Path(self._folder.name) / f"{charge}-{spin}"
        return made

    def label(self, system: System) -> Labels:
        self.check(system)
        state = (int(system.get("charge")), int(system.get("spin")))
        if state not in self._made:
            self._made[state] = self._make(*state)
        calculator = self._made[state]
        getattr(calculator, "reset", lambda: None)()  # nothing is taken over from the structure before
        atoms = self._atoms_of(system)
        atoms.calc = calculator
        try:
            energy, forces = float(atoms.get_potential_energy()), np.asarray(atoms.get_forces(), dtype=np.float64)
        except Exception as error:  # a program that ended with an error, did not converge, or wrote what ASE cannot read
            del self._made[state]
            raise EngineFailure(f"{self.level}: {type(error).__name__}: {' '.join(str(error).split())}") from None
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise EngineFailure(f"{self.level}: energy or forces are not finite")
        return Labels(energy, forces)

    def _atoms_of(self, system: System) -> ase.Atoms:
        """With what the calculator takes from the atoms, and nothing else: of initial moments, ASE's Psi4 forgets its multiplicity."""
        atoms = atoms_of(system)
        first = np.arange(len(atoms)) == 0
        if int(system.get("charge")) and self._reads("charge"):
            atoms.set_initial_charges(np.where(first, float(system.get("charge")), 0.0))
        if int(system.get("spin")) > 1 and self._reads("spin"):
            atoms.set_initial_magnetic_moments(np.where(first, float(system.get("spin")) - 1.0, 0.0))
        return atoms

    def calculator(self, system: System, accuracy: float | None = None) -> BaseCalculator:
        self.check(system)
        return Guarded(self._make(int(system.get("charge")), int(system.get("spin"))), self.level)  # type: ignore[return-value]


def _class_of(name: str) -> tuple[Any, str]:
    """The class of ``ase:MODULE.CLASS`` and its module's name; ASE's own calculators need no ``ase.calculators``."""
    module, _, kind = name.removeprefix(PREFIX).rpartition(".")
    if not module:
        raise InputError(f"engine {name!r} is not of the form ase:MODULE.CLASS, such as ase:orca.ORCA")
    from ase.calculators.abc import GetPropertiesMixin

    for place in (f"ase.calculators.{module}", module):
        try:
            found = getattr(importlib.import_module(place), kind, None)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                continue  # there is no such module; another one that it imports is another matter
            raise InputError(f"engine {name!r} needs the module {error.name}, which is not installed") from None
        if isinstance(found, type) and issubclass(found, GetPropertiesMixin):
            return found, place
        raise InputError(f"engine {name!r}: {place} has no ASE calculator {kind!r}")
    raise InputError(f"engine {name!r}: there is no module {module!r}, in ase.calculators or installed")


FAILURES = (InputError, RuntimeError)  # of a model: two atoms on top of each other, say, or too little memory


class Model(Engine):
    """A Forcewell model, for distillation and pseudo-labels. model_level: its level of theory to predict; default its last.

    The stored level says that these are predictions: they are another surface than the level that the model learned.
    Raises InputError where there is no such model or it has no such level.
    """

    atoms_per_job = 16384

    def __init__(self, name: str, model_level: str | None = None) -> None:
        from forcewell.checkpoint import find_model, load
        from forcewell.store.shards import sha256

        path = find_model(name)
        self._potential = load(path)
        learned = self._potential.levels[self._potential.level_index(model_level)]
        digest = sha256(path)[:12]
        self.name, self.level = name, f"{learned} by {path.stem} {digest}"
        self.version, self.settings = f"forcewell {__version__}, model {digest}", {"model_level": learned}

    def check(self, system: System) -> None:
        check_spin(system)
        self._potential.check_elements(system.numbers)
        try:
            self._potential.check_electrons(int(system.get("charge")), int(system.get("spin")))
        except InputError as error:
            raise InputError(f"{named(system)}: {error}") from None

    def label(self, system: System) -> Labels:
        self.check(system)
        try:
            found = self._potential.predict([system], level=self.settings["model_level"])
        except FAILURES as error:
            raise EngineFailure(f"{self.level}: {' '.join(str(error).split())}") from None
        energy, forces = float(found["energy"][0]), np.asarray(found["forces"][0], dtype=np.float64)
        if not np.isfinite(energy) or not np.isfinite(forces).all():
            raise EngineFailure(f"{self.level}: energy or forces are not finite")
        return Labels(energy, forces)

    def calculator(self, system: System, accuracy: float | None = None) -> BaseCalculator:
        from forcewell.ase_calculator import calculator

        self.check(system)
        return Guarded(calculator(self._potential, level=self.settings["model_level"]), self.level, FAILURES)  # type: ignore[return-value]
