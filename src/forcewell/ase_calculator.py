"""The door to ASE: any potential as an ASE calculator."""

from __future__ import annotations

import copy
import os
import warnings
from typing import Any

import numpy as np
import torch
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from forcewell.batch import Batch
from forcewell.charge_spin import charge_and_spin
from forcewell.checkpoint import load
from forcewell.errors import InputError
from forcewell.potential import UNSEEN_STATE
from forcewell.process import check_device
from forcewell.system import System, block_of, initial_of

DTYPES = {"float64": torch.float64, "float32": torch.float32}


class PotentialCalculator(Calculator):
    """What ``calculator`` makes; it can be pickled, e.g. for multiprocessing.

    model: its own, on its device and in its dtype. index: of the level of theory.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012 (ASE's own form)

    def __init__(self, model: Any, index: int) -> None:
        super().__init__()
        self.model, self.index = model, index
        self.batch: Batch | None = None
        self.state: dict[str, int] | None = None  # charge and spin of the batch

    def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
        """See ASE. Raises InputError for elements the model never saw, and ASE's PropertyNotImplementedError for stress of what is not
        periodic."""
        super().calculate(atoms, properties, system_changes)
        from ase.stress import full_3x3_to_voigt_6_stress

        assert self.atoms is not None
        stress = "stress" in properties
        if stress and not self.atoms.pbc.all():
            raise PropertyNotImplementedError("stress needs atoms that are periodic in all three directions")
        batch = self._prepare(system_changes)
        out = self.model(batch, forces=True, stress=stress)
        energy = float(self.model.total_energy(out, batch)[0])
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
        self.model.check_elements(block.arrays["numbers"])
        if self.model.states_passed_over({name: np.array([value]) for name, value in state.items()}):
            warnings.warn(f"the atoms are {UNSEEN_STATE}", stacklevel=2)
        self.batch = Batch.from_block(block, dtype=self.model.dtype, level=self.index).to(self.model.device)
        self.state = state
        return self.batch


def calculator(potential: Any, device: str = "cpu", dtype: str = "float64", level: str | None = None) -> PotentialCalculator:
    """An ASE calculator with energy (eV, references included), forces (eV/Å) and, for periodic atoms, stress (eV/Å³).

    potential: a Potential, or the path of a model file or the name of a model in the package. It works on a copy of it, on
    ``device`` and in ``dtype``. The default is float64, which finite differences and tight optimisations need; "float32" goes by
    the compiled kernels, ten times as fast for small molecules, and is right for dynamics. level: level of theory of the energies,
    None for the model's last. Charge and spin are those of ``System.from_atoms``; where the encoder does not see them, a warning
    says so. Raises InputError for a model that cannot be read, an unknown dtype or level, and a device that is not there; computing
    does for elements the model never saw.
    """
    if dtype not in DTYPES:
        raise InputError(f"unknown dtype {dtype!r} (known: {', '.join(DTYPES)})")
    if isinstance(potential, str | os.PathLike):
        potential = load(os.fspath(potential))
    if not isinstance(potential, torch.nn.Module):
        raise InputError(f"calculator takes a potential, a model file or a model's name, not {type(potential).__name__}")
    model: Any = copy.deepcopy(potential).to(device=check_device(device), dtype=DTYPES[dtype]).eval().requires_grad_(False)
    return PotentialCalculator(model, model.level_index(level))
