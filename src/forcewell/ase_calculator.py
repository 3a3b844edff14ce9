"""The door to ASE: any potential as an ASE calculator."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forcewell.batch import Batch
from forcewell.charge_spin import charge_and_spin
from forcewell.errors import InputError
from forcewell.system import System, block_of, initial_of

if TYPE_CHECKING:
    from ase.calculators.calculator import Calculator

DTYPES = {"float64": torch.float64, "float32": torch.float32}


def calculator(potential: Any, device: str = "cpu", dtype: str = "float64", level: str | None = None) -> Calculator:
    """An ASE calculator with energy (eV, references included), forces (eV/Å) and, for periodic atoms, stress (eV/Å³).

    It works on a copy of the potential, on ``device`` and in ``dtype``. The default is float64: geometry optimisers and
    finite differences need it, and for one molecule it costs little. level: level of theory of the energies, None for the
    model's last. Charge and spin are those of ``System.from_atoms``. Raises InputError for elements the model never saw.
    """
    from ase.calculators.calculator import Calculator, all_changes

    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r} (known: {', '.join(DTYPES)})")
    model = copy.deepcopy(potential).to(device=device, dtype=DTYPES[dtype]).eval().requires_grad_(False)
    index = model.level_index(level)

    class PotentialCalculator(Calculator):
        """See ``forcewell.ase_calculator``."""

        implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own form)
        batch: Batch | None = None
        state: dict[str, int] | None = None  # charge and spin of the batch

        def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
            super().calculate(atoms, properties, system_changes)
            from ase.stress import full_3x3_to_voigt_6_stress

            assert self.atoms is not None
            stress = "stress" in properties
            if stress and not self.atoms.pbc.all():
                raise InputError("stress needs atoms that are periodic in all three directions")
            batch = self._prepare(system_changes)
            out = model(batch, forces=True, stress=stress)
            energy = float(model.total_energy(out, batch)[0])
            self.results = {"energy": energy, "free_energy": energy, "forces": out.forces.detach().cpu().double().numpy()}
            if stress:
                self.results["stress"] = full_3x3_to_voigt_6_stress(np.asarray(out.stress[0].detach().cpu().double()))

        def _prepare(self, changes: Any) -> Batch:
            """The atoms as a batch. Where they only moved (a step of MD), the last one with new positions: 0.5 ms cheaper."""
            atoms: Any = self.atoms
            state = charge_and_spin(atoms.info, *initial_of(atoms), "ase.Atoms")
            if self.batch is not None and list(changes) == ["positions"] and state == self.state and np.isfinite(atoms.positions).all():
                self.batch.positions = torch.from_numpy(atoms.positions.copy()).to(self.batch.positions)
                return self.batch
            bare = atoms.copy()
            bare.calc = None  # old results are no labels
            block = block_of([System.from_atoms(bare)])
            block.validate()
            model.check_elements(block.arrays["numbers"])
            self.batch, self.state = Batch.from_block(block, dtype=model.dtype, level=index).to(model.device), state
            return self.batch

    return PotentialCalculator()
