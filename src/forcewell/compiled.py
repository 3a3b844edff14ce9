"""Whole steps of molecular dynamics in the compiled kernels: neighbours, energies, forces and integrator in one call for many steps.

With a small model a step of one molecule takes about 1.2 ms, and PyTorch's calls around energy and forces would add a quarter.
kernels/dynamics.h has the equations; ``integrators`` stays the reference, and both agree to rounding.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.fused import Fused
from forcewell.integrators import LONGEST_STEP, MOVING, SUZUKI_YOSHIDA, State
from forcewell.potential import Potential
from forcewell.units import ACCELERATION, thermal_energy

ENSEMBLES = ("nve", "langevin", "nose-hoover")  # in the order of kernels/dynamics.h
_NUMBERS = ("timestep", "heat", "friction", "period", "acceleration", "longest")
_PLACES = ("offsets", "rows", "positions", "velocities", "forces", "masses", "share", "energy", "zero", "freedom", "angles", "rates")
_PLACES = (*_PLACES, "seen", "scale", "embedded", "neighbours", "noise")


class _Motion(ctypes.Structure):
    """``Motion`` of kernels/dynamics.h."""

    _fields_ = (
        *((name, ctypes.c_long) for name in ("molecules", "links", "drawn", "ensemble")),
        *((name, ctypes.c_double) for name in _NUMBERS),
        ("weights", ctypes.c_double * len(SUZUKI_YOSHIDA)),
        *((name, ctypes.c_void_p) for name in _PLACES),
    )


def possible(potential: Any, batch: Batch) -> bool:
    """Whether ``CompiledSteps`` can move ``batch``: by the kernels on the CPU, nothing periodic (their search is Python's)."""
    own = isinstance(potential, Potential) and type(potential).forward is Potential.forward
    return own and potential.kernels(batch) is not None and not bool(batch.pbc.any())


@dataclass(frozen=True, slots=True)
class _Ready:
    """A State that was taken over and what of it stays the same: embeddings (N, C), scale (M,) or None, offsets (M + 1,)."""

    state: State
    kernels: Fused
    fixed: dict[str, Tensor | None]


class CompiledSteps:
    """Steps of one ensemble (as ``integrators``' functions, same settings in K and fs), many at a time, in place.

    Noise is drawn step by step from the State's generator as the reference does, so that results do not depend on how many
    steps are asked for at once.
    """

    def __init__(self, potential: Potential, ensemble: str, timestep: float, temperature: float, relaxation: float) -> None:
        self.potential, self.ensemble = potential, ENSEMBLES.index(ensemble)
        numbers = (timestep, thermal_energy(temperature), 1.0 / relaxation, relaxation, ACCELERATION, LONGEST_STEP)
        self.numbers = dict(zip(_NUMBERS, numbers, strict=True))
        self.ready: _Ready | None = None

    def __call__(self, state: State, steps: int) -> None:
        """Advances ``state`` in place by ``steps``."""
        if self.ready is None or self.ready.state is not state:
            self.ready = self._take(state)
        kernels, tensors = self.ready.kernels, self.ready.fixed | self._moving(state)
        tensors["noise"] = self._noise(state, steps)
        motion = _Motion(len(state), state.chain.shape[2], state.drawn, self.ensemble, **self.numbers, weights=SUZUKI_YOSHIDA)
        for name, tensor in tensors.items():
            setattr(motion, name, None if tensor is None else tensor.data_ptr())
        kernels.load()
        threads = ctypes.c_long(torch.get_num_threads())
        if kernels.functions.forcewell_advance(kernels.handle, ctypes.byref(motion), ctypes.c_long(steps), threads):
            raise MemoryError("not enough memory for the neighbours of these molecules")

    def _take(self, state: State) -> _Ready:
        """Gives the state memory of its own, and finds what does not move."""
        kernels = self.potential.kernels(state.batch)
        assert kernels is not None
        for name in MOVING:
            setattr(state, name, getattr(state, name).contiguous().clone())
        state.batch.positions = state.batch.positions.contiguous().clone()
        with torch.no_grad():
            embedded, neighbours = kernels.embeddings(state.batch)
            scale = self.potential.energy_scale(state.batch)
        fixed = {"offsets": state.batch.offsets, "embedded": embedded, "neighbours": neighbours, "scale": scale}
        fixed |= {name: getattr(state, name) for name in ("rows", "masses", "share", "zero", "freedom")}
        return _Ready(state, kernels, {name: None if part is None else part.contiguous() for name, part in fixed.items()})

    def _moving(self, state: State) -> dict[str, Tensor | None]:
        return {
            "positions": state.positions,
            "velocities": state.velocities,
            "forces": state.forces,
            "energy": state.energy,
            "angles": state.chain[0],
            "rates": state.chain[1],
            "seen": state.batch.positions,
        }

    def _noise(self, state: State, steps: int) -> Tensor | None:
        """(steps, drawn, 3), drawn one step at a time: a single draw for all of them would give other numbers."""
        if ENSEMBLES[self.ensemble] != "langevin":
            return None
        noise = torch.empty((steps, state.drawn, 3), dtype=torch.float64)
        for part in noise:
            part.normal_(generator=state.generator)
        return noise
