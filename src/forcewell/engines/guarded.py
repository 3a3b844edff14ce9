"""An ASE calculator whose failures are this package's own."""

from __future__ import annotations

from typing import Any

import numpy as np
from ase.calculators.abc import GetPropertiesMixin
from ase.calculators.calculator import PropertyNotImplementedError

from forcewell.engines.base import EngineFailure


class Guarded(GetPropertiesMixin):
    """Hands every question on to ``calculator``, a program of which nobody knows what it raises where it fails.

    level: for messages. failures: the exceptions that are a structure's, not a mistake of ours; any by default.
    """

    def __init__(self, calculator: Any, level: str, failures: tuple[type[Exception], ...] = (Exception,)) -> None:
        self._calculator, self._level, self._failures = calculator, level, failures

    def get_property(self, name: str, atoms: Any = None, allow_calculation: bool = True) -> Any:
        """As of ASE. Raises EngineFailure where the calculator fails or gives what is not finite."""
        try:
            found = self._calculator.get_property(name, atoms, allow_calculation)
        except (PropertyNotImplementedError, EngineFailure):  # the first is an answer: ASE then asks for something else
            raise
        except self._failures as error:
            raise EngineFailure(f"{self._level}: {type(error).__name__}: {' '.join(str(error).split())}") from None
        if found is not None and not np.isfinite(found).all():
            raise EngineFailure(f"{self._level}: {name} {'are' if name == 'forces' else 'is'} not finite")
        return found
