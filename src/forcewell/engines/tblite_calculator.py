"""tblite as an ASE calculator of energy and forces alone, for relaxation and dynamics."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from ase.calculators.calculator import BaseCalculator, PropertyNotImplementedError

from forcewell.engines.base import EngineFailure
from forcewell.units import BOHR, HARTREE


class TBLiteForces(BaseCalculator):
    """Restarts from the last density. tblite's own calculator spends 1 ms per call on charges, dipole and copies, as much as
    GFN2-xTB needs for nine atoms; this one 0.05 ms.

    made: tblite's own Calculator of a molecule, whose composition, charge, spin and (no) cell never change.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]  # type: ignore[misc]

    def __init__(self, made: Any) -> None:
        super().__init__()
        self._made, self._density = made, None
        self._place: np.ndarray | None = None

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """Energy [eV] or forces [eV/Å] (n, 3); the last ones where nothing has moved. Raises EngineFailure as ``calculate``."""
        if name not in ("energy", "free_energy", "forces"):
            raise PropertyNotImplementedError(f"{name} is not calculated here")
        if self._place is None or not np.array_equal(self._place, atoms.positions):
            if not allow_calculation:
                return None
            self.calculate(atoms)
        return self.results["forces"].copy() if name == "forces" else self.results["energy"]

    def calculate(self, atoms: Any, properties: Any = None, system_changes: Any = None) -> None:
        """Energy and forces of ``atoms``. Raises EngineFailure where the SCF does not converge."""
        self._place = None
        try:
            self._made.update(atoms.positions / BOHR)
            self._density = self._made.singlepoint(self._density)
        except RuntimeError as error:
            self._density = None  # of a failed cycle, which would spoil the next one
            raise EngineFailure(" ".join(str(error).split())) from None
        forces = -np.asarray(self._density.get("gradient")) * (HARTREE / BOHR)
        self.results = {"energy": float(self._density.get("energy")) * HARTREE, "forces": forces}
        self._place = atoms.positions.copy()
