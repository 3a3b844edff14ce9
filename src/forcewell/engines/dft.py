"""Density functional theory and Hartree-Fock by PySCF, with density fitting. Needs the extra "qm"."""

from __future__ import annotations

import contextlib
import importlib
import re
import warnings
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from forcewell.engines.base import Engine, EngineFailure, Labels, check_positive, check_spin, named
from forcewell.errors import InputError
from forcewell.system import System
from forcewell.units import BOHR, HARTREE

if TYPE_CHECKING:
    from ase.calculators.calculator import BaseCalculator

PREFIX, DISPERSIONS = "pyscf:", ("d3bj", "d4")
FAILURES = (np.linalg.LinAlgError, ValueError, RuntimeError, MemoryError)  # what PySCF raises of a structure; CuPy's lack of memory, too
CYCLES, SECOND_ORDER = 100, 50  # iterations of DIIS, then of the second-order optimiser where that has not converged


class DFT(Engine):
    """``pyscf:METHOD/BASIS[+d3bj|+d4]``: METHOD is HF or a functional that libxc knows, BASIS one that PySCF knows.

    Closed shells are restricted, open ones unrestricted. On an NVIDIA GPU where gpu4pyscf is installed. grid_level: PySCF's,
    0 to 9. grid_response: forces with the derivative of the grid's weights, where PySCF has it. Without it they do not add up to
    zero (0.009 eV/Å for ethanol at ωB97X/6-31G*, grid level 3) and are off by 6e-4 eV/Å against finite differences for water;
    with it, by 1e-5, for a tenth more time. What net force is left is noted and removed, the same from each atom.
    tolerance: Hartree, of the SCF energy.

    Raises InputError where PySCF or the dispersion correction is missing, and for a method or basis that it does not know.
    """

    def __init__(self, name: str, grid_level: int = 3, grid_response: bool = True, tolerance: float = 1e-9) -> None:
        asked = re.fullmatch(r"pyscf:(?P<method>[^/]+)/(?P<basis>.+?)(\+(?P<dispersion>d3bj|d4))?", name)
        if asked is None:
            raise InputError(f"engine {name!r} is not of the form pyscf:METHOD/BASIS[+d3bj|+d4], such as pyscf:wB97X/6-31G*")
        self.name, self.level = name, name.removeprefix(PREFIX)
        self._method, self._basis, self._dispersion = asked["method"], asked["basis"], asked["dispersion"]
        _check_installed(name, self._dispersion)
        _check_method(self._method, self._dispersion)
        if not 0 <= grid_level <= 9:
            raise InputError(f"engine {name!r}: grid_level is {grid_level}; expected 0 to 9")
        inside = _dispersion_of(self._method)
        _check_installed(name, inside)
        self._gpu = gpu_present()
        self.version = f"pyscf {version('pyscf')}"
        self.version += f", pyscf-dispersion {version('pyscf-dispersion')}" if self._dispersion or inside else ""
        self.version += ", gpu4pyscf" if self._gpu else ""
        check_positive(name, tolerance=tolerance)
        self.settings: dict[str, Any] = {"grid_level": int(grid_level), "grid_response": bool(grid_response), "tolerance": float(tolerance)}

    def check(self, system: System) -> None:
        check_spin(system)
        if system.get("pbc").any():
            raise InputError(f"{named(system)}: engine {self.name!r} takes molecules, not periodic structures")
        self._cores(system)

    def _cores(self, system: System) -> dict[str, str]:
        """The basis for each element whose core it replaces. Raises InputError for an element that the basis does not have."""
        from ase.data import chemical_symbols
        from pyscf import gto

        cores = {}
        for symbol in sorted({chemical_symbols[z] for z in system.numbers}):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # advice to install another source of bases
                try:
                    gto.basis.load(self._basis, symbol)
                except Exception:  # of several kinds, by how the name fails to be one
                    raise InputError(f"{named(system)}: PySCF has no basis {self._basis!r} for {symbol}") from None
                with contextlib.suppress(RuntimeError):  # PySCF's for a basis that has no effective cores at all
                    if gto.basis.load_ecp(self._basis, symbol):
                        cores[symbol] = self._basis
        return cores

    def label(self, system: System) -> Labels:
        self.check(system)
        return self._labels(self._converged(self._field(system), None))

    def _field(self, system: System) -> Any:
        """PySCF's mean field of a structure, not solved yet."""
        from pyscf import dft, gto, scf

        molecule = gto.M(
            atom=[(int(z), tuple(place)) for z, place in zip(system.numbers, system.positions / BOHR, strict=True)],
            unit="Bohr",
            basis=self._basis,
            ecp=self._cores(system),
            charge=int(system.get("charge")),
            spin=int(system.get("spin")) - 1,
            verbose=0,
        )
        field: Any
        if self._method.upper() == "HF":
            field = (scf.UHF if molecule.spin else scf.RHF)(molecule).density_fit()
        else:
            field = (dft.UKS if molecule.spin else dft.RKS)(molecule, xc=self._method).density_fit()
            field.grids.level = self.settings["grid_level"]
        field = field.to_gpu() if self._gpu else field
        values = {"disp": self._dispersion, "conv_tol": self.settings["tolerance"], "max_cycle": CYCLES}
        for key, value in values.items():
            setattr(field, key, value)
        return field

    def _converged(self, field: Any, density: Any) -> Any:
        """The field solved from a density (None: PySCF's guess), by DIIS, else to second order. Raises EngineFailure."""
        try:
            field.kernel(dm0=density)
            if not field.converged:
                field = field.newton()
                field.max_cycle = SECOND_ORDER
                # By default the square root of the energy's: forces of water were off by 1.3e-4 eV/Å.
                field.conv_tol_grad = 0.1 * self.settings["tolerance"] ** 0.5
                field.kernel(dm0=field.make_rdm1())
        except FAILURES as error:
            raise EngineFailure(f"{self.level}: the SCF failed ({' '.join(str(error).split())})") from None
        if not field.converged or not np.isfinite(field.e_tot):
            raise EngineFailure(f"{self.level}: the SCF did not converge in {CYCLES} cycles, nor to second order after that")
        return field

    def _labels(self, field: Any) -> Labels:
        gradient = field.nuc_grad_method()
        response = self.settings["grid_response"] and hasattr(gradient, "grid_response")
        if response:
            gradient.grid_response = True
        try:
            try:
                slope = gradient.kernel()
            except NotImplementedError:  # of some functionals
                gradient.grid_response = response = False
                slope = gradient.kernel()
        except FAILURES as error:
            raise EngineFailure(f"{self.level}: the gradient failed ({' '.join(str(error).split())})") from None
        forces = -np.asarray(slope.get() if hasattr(slope, "get") else slope) * (HARTREE / BOHR)
        if not np.isfinite(forces).all():
            raise EngineFailure(f"{self.level}: forces are not finite")
        net = forces.sum(axis=0)
        return Labels(float(field.e_tot) * HARTREE, forces - net / len(forces), {"net_force": float(np.linalg.norm(net))})

    def calculator(self, system: System, accuracy: float | None = None) -> BaseCalculator:
        from ase.calculators.calculator import Calculator, all_changes

        self.check(system)
        engine, known = self, {name: value for name, value in system.arrays.items() if name in ("charge", "spin")}

        class FieldCalculator(Calculator):
            """Each step begins with the density of the one before."""

            implemented_properties = ["energy", "free_energy", "forces"]  # noqa: RUF012 (ASE's own form)
            density: Any = None

            def calculate(self, atoms: Any = None, properties: Any = ("energy",), system_changes: Any = all_changes) -> None:
                super().calculate(atoms, properties, system_changes)
                assert self.atoms is not None
                arrays = {"numbers": self.atoms.numbers, "positions": self.atoms.positions, **known}
                field = engine._field(System(arrays))
                start = self.density if list(system_changes) == ["positions"] else None
                self.density = None  # not that of a step that failed
                field = engine._converged(field, start)
                labels = engine._labels(field)
                self.density = field.make_rdm1()
                self.results = {"energy": labels.energy, "free_energy": labels.energy, "forces": labels.forces}

        return FieldCalculator()


def gpu_present() -> bool:
    """Whether gpu4pyscf is installed and sees a GPU."""
    try:
        import cupy  # pyright: ignore[reportMissingImports]
        import gpu4pyscf  # noqa: F401  # pyright: ignore[reportMissingImports]

        return cupy.cuda.runtime.getDeviceCount() > 0
    except Exception:  # not installed, or no driver, of which CuPy has an exception of its own
        return False


def _check_installed(name: str, dispersion: str | None) -> None:
    for module, package in (("pyscf", "PySCF"), *((("pyscf.dispersion", "pyscf-dispersion"),) if dispersion else ())):
        try:
            importlib.import_module(module)
        except ImportError:
            raise InputError(f"engine {name!r} needs {package}: pip install 'forcewell[qm]'") from None


def _dispersion_of(method: str) -> str | None:
    """The correction that a functional's own name asks for (wB97X-D3BJ), which PySCF adds by itself; None for none."""
    from pyscf.scf.dispersion import parse_disp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a later PySCF will mean another functional by the name
        return parse_disp(method)[1]


def _check_method(method: str, dispersion: str | None) -> None:
    """Raises InputError for a functional that libxc does not know, or that the dispersion correction has no parameters for."""
    from pyscf import dft, gto

    try:
        dft.libxc.parse_xc(method)
        _dispersion_of(method)
    except (KeyError, ValueError, NotImplementedError):  # the last of functionals whose own dispersion PySCF does not have
        raise InputError(f"PySCF knows no method {method!r}; expected HF or a functional of libxc, such as PBE or wB97X") from None
    if dispersion:
        from pyscf.dispersion import dftd3, dftd4

        hydrogen = gto.M(atom="H 0 0 0; H 0 0 0.74", verbose=0)
        try:
            if dispersion == "d4":
                dftd4.DFTD4Dispersion(hydrogen, xc=method)
            else:
                dftd3.DFTD3Dispersion(hydrogen, xc=method, version=dispersion)
        except RuntimeError:
            raise InputError(
                f"there are no {dispersion} parameters for {method!r}; leave out +{dispersion}, or take the other one"
            ) from None
