"""GFN1-xTB and GFN2-xTB by tblite. Needs the extra "qm"."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.engines.base import Engine, EngineFailure, Labels, check_positive, check_spin, named
from forcewell.engines.guarded import Guarded
from forcewell.engines.tblite_calculator import TBLiteForces
from forcewell.errors import InputError
from forcewell.system import System
from forcewell.units import BOHR, BOLTZMANN, HARTREE

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

METHODS = {"gfn2": "GFN2-xTB", "gfn1": "GFN1-xTB"}
HEAVIEST = 86  # radon, for both methods
# What a second try changes: neither is part of the method, so the energy converged to is the same.
CAREFUL = {"mixer-damping": 0.1, "max-iter": 1000}


class XTB(Engine):
    """``gfn2`` and ``gfn1`` (Bannwarth et al., JCTC 2019, 15, 1652; Grimme et al., JCTC 2017, 13, 1989).

    accuracy: xtb's number for SCF thresholds and integral cutoffs; at 0.1 finite differences of the energy agree with the
    forces to 4e-5 eV/Å, at 1.0 the forces differ by up to 6e-4. electronic_temperature: K, of the Fermi smearing.
    Open shells are occupied as the multiplicity says, without spin polarisation. Raises InputError where tblite is missing.
    """

    atoms_per_job = 4096  # seconds for molecules of 20 atoms, minutes for one of 360

    def __init__(self, name: str, accuracy: float = 0.1, electronic_temperature: float = 300.0) -> None:
        try:
            import tblite.interface  # noqa: F401
        except ImportError:
            raise InputError(f"engine {name!r} needs tblite: pip install 'forcewell[qm]'") from None
        check_positive(name, accuracy=accuracy, electronic_temperature=electronic_temperature)
        self.name, self.level = name, METHODS[name]
        self.version = f"tblite {version('tblite')}"
        self.settings: dict[str, Any] = {"accuracy": float(accuracy), "electronic_temperature": float(electronic_temperature)}

    def check(self, system: System) -> None:
        check_spin(system)
        heaviest = int(system.numbers.max())
        if heaviest > HEAVIEST:
            from ase.data import chemical_symbols

            raise InputError(f"{named(system)}: {self.level} has no parameters for {chemical_symbols[heaviest]}; it goes up to Rn")

    def label(self, system: System) -> Labels:
        self.check(system)
        reason = ""
        for careful in (False, True):
            try:
                found = self._calculator(system, careful).singlepoint()
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                continue
            energy, forces = float(found["energy"]) * HARTREE, -np.asarray(found["gradient"]) * (HARTREE / BOHR)
            if np.isfinite(energy) and np.isfinite(forces).all():
                return Labels(energy, forces)
            reason = "energy or forces are not finite"
        raise EngineFailure(f"{self.level}: {reason}")

    def _calculator(self, system: System, careful: bool) -> Any:
        from tblite.interface import Calculator

        periodic = system.get("pbc")
        cell = system.get("cell") / BOHR if periodic.any() else None
        charge, unpaired = float(system.get("charge")), int(system.get("spin")) - 1
        made = Calculator(self.level, system.numbers, system.positions / BOHR, charge, unpaired, cell, periodic)
        temperature = self.settings["electronic_temperature"] * BOLTZMANN / HARTREE
        values = {"verbosity": 0, "accuracy": self.settings["accuracy"], "temperature": temperature, **(CAREFUL if careful else {})}
        for key, value in values.items():
            made.set(key, value)
        return made

    def calculator(self, system: System, accuracy: float | None = None) -> BaseCalculator:
        from tblite.ase import TBLite

        self.check(system)
        if not system.get("pbc").any():
            made = self._calculator(system, careful=False)
            made.set("accuracy", self.settings["accuracy"] if accuracy is None else accuracy)
            return TBLiteForces(made)
        made = TBLite(
            method=self.level,
            charge=float(system.get("charge")),
            multiplicity=int(system.get("spin")),
            accuracy=self.settings["accuracy"] if accuracy is None else accuracy,
            electronic_temperature=self.settings["electronic_temperature"],
            verbosity=0,
        )
        return Guarded(made, self.level)  # type: ignore[return-value]
