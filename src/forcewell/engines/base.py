"""What every engine is: a level of theory that labels one structure with energy and forces, or drives ASE's MD with them."""

from __future__ import annotations

import dataclasses
import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.errors import InputError
from forcewell.fields import PROVENANCE
from forcewell.system import System

if TYPE_CHECKING:
    import ase
    from ase.calculators.calculator import BaseCalculator


MOVED_BY = "moved_by"  # in the provenance of a frame: the engine that moved it, which may be another than the one that labelled it


class EngineFailure(Exception):
    """One structure could not be labelled; the message is the reason, e.g. an SCF that did not converge."""


@dataclass(frozen=True, slots=True)
class Labels:
    """energy (eV); forces (n, 3) eV/Å; notes: what else the engine reports, e.g. ``net_force`` (eV/Å) that was removed."""

    energy: float
    forces: np.ndarray
    notes: dict[str, float | str] = field(default_factory=dict)


class Engine(ABC):
    """A level of theory, ready to label.

    name: as asked for ("gfn2"). level: level of theory as stored ("GFN2-xTB"). version: of the program ("tblite 0.8.0").
    settings: plain values that decide the labels.
    """

    name: str
    level: str
    version: str
    settings: dict[str, Any]
    atoms_per_job = 1  # how much labelling is worth one job of a campaign; a DFT frame takes minutes, and each is a job of its own

    @property
    def provenance(self) -> str:
        """Name, version and settings as one line of JSON: what a store keeps with every frame, together with what moved it."""
        return json.dumps({"engine": self.name, "version": self.version, "settings": self.settings}, sort_keys=True, ensure_ascii=False)

    def check(self, system: System) -> None:
        """Raises InputError for an element or a radical that this engine does not have, and for an impossible spin."""
        check_spin(system)

    @abstractmethod
    def label(self, system: System) -> Labels:
        """Energy and forces of one structure; a function of the structure alone, whatever was labelled before.

        Raises InputError as ``check`` does, and EngineFailure where this one structure cannot be labelled.
        """

    @abstractmethod
    def calculator(self, system: System, accuracy: float | None = None) -> BaseCalculator:
        """An ASE calculator for structures of this composition, charge and spin; it restarts from its last density.

        accuracy: of gfn1 and gfn2, as xtb counts it (1.0 for sampling, smaller is tighter); None for that of labels.
        Raises InputError as ``check`` does. What the calculator raises where it fails is an EngineFailure.
        """

    def atoms(self, system: System, accuracy: float | None = None) -> ase.Atoms:
        """The structure as this engine takes it, without labels, with ``calculator``, to be moved. Raises InputError as ``check`` does."""
        atoms = self._atoms_of(system)
        atoms.calc = self.calculator(system, accuracy)
        return atoms

    def _atoms_of(self, system: System) -> ase.Atoms:
        return atoms_of(system)


def atoms_of(system: System) -> ase.Atoms:
    """The structure without its labels; ``info`` has its charge and spin."""
    atoms = system.to_atoms()
    atoms.calc = None
    return atoms


def check_positive(name: str, **settings: float) -> None:
    """Raises InputError for a setting of engine ``name`` that is not a finite number above 0."""
    for key, value in settings.items():
        if not 0 < value < math.inf:
            raise InputError(f"engine {name!r}: {key} is {value}; expected a number above 0")


def check_spin(system: System) -> None:
    """Raises InputError where the number of electrons does not allow the spin multiplicity."""
    electrons = int(system.numbers.astype(np.int64).sum()) - int(system.get("charge"))
    spin = int(system.get("spin"))
    if electrons < 0 or not 1 <= spin <= electrons + 1 or (electrons - spin) % 2 == 0:
        right = "an even multiplicity (2 for a radical)" if electrons % 2 else "an odd multiplicity (1 for a closed shell)"
        raise InputError(f"{named(system)}: {electrons} electrons cannot have spin multiplicity {spin}; expected {right}")


def named(system: System) -> str:
    """What to call a structure in a message: its SMILES, identifier or formula."""

    from ase import Atoms

    return system.smiles or system.molecule or Atoms(system.numbers).get_chemical_formula()


def labelled(
    system: System,
    engine: Engine,
    *,
    temperature: float | None = None,
    seed: int | None = None,
    trajectory: int | None = None,
    time: float | None = None,
    equilibrium: bool | None = None,
    moved_by: Engine | None = None,
) -> System:
    """The structure with the engine's labels, level and provenance in place of what labels it had.

    What is not given here of the four below and of what moved it, and is known of the structure already, is kept.

    temperature: K it was sampled at. seed: of the sampling. trajectory: a number that the frames of one trajectory share.
    time: fs since that trajectory began. equilibrium: whether it is a relaxed minimum of this engine; None for not known.
    moved_by: the engine that relaxed it or whose dynamics or modes it is of; it stays with the structure, whoever labels it later.
    Raises InputError and EngineFailure as ``Engine.label`` does.
    """
    labels = engine.label(system)
    arrays: dict[str, Any] = {
        name: value for name, value in system.arrays.items() if name not in ("energy", "forces", "stress", "equilibrium")
    }
    arrays |= {"energy": np.float64(labels.energy), "forces": labels.forces.astype(np.float32)}
    if equilibrium is not None:
        arrays["equilibrium"] = np.int8(equilibrium)
    known = {"temperature": temperature, "seed": seed, "trajectory": trajectory, "time": time}
    properties = {name: value for name, value in system.properties.items() if name in PROVENANCE}
    properties |= {name: float(value) for name, value in known.items() if value is not None}
    properties |= {name: value for name, value in labels.notes.items() if isinstance(value, float)}
    provenance, mover = json.loads(engine.provenance), mover_of(system.engine) if moved_by is None else _mover(moved_by)
    told = json.dumps(provenance | ({MOVED_BY: mover} if mover else {}), sort_keys=True, ensure_ascii=False)
    return dataclasses.replace(system, arrays=arrays, level=engine.level, engine=told, properties=properties)


def _mover(engine: Engine) -> dict[str, Any]:
    return {"level": engine.level, **json.loads(engine.provenance)}


def mover_of(provenance: str) -> dict[str, Any] | None:
    """What moved a frame of this provenance: level, engine, version and settings; None where it does not say."""
    return json.loads(provenance).get(MOVED_BY) if provenance else None


def labeller_of(provenance: str) -> dict[str, Any] | None:
    """What labelled a frame of this provenance: engine, version and settings; None where it does not say."""
    return {key: value for key, value in json.loads(provenance).items() if key != MOVED_BY} if provenance else None
