"""Equations of motion for a batch: velocity Verlet, Langevin (BAOAB) and Nosé-Hoover chains.

Many replicas, of one or of several molecules, advance together in one State; every sum runs per molecule, so each replica
has its own thermostat. ``init`` makes a State, the ``*_step`` functions advance it in place. Positions and velocities are
float64 even where the model runs in float32: a float32 coordinate at 10 Å moves in steps of 1e-6 Å, which makes the energy
of a micro-canonical run drift.

Symbols of the equations below

====== ============================== ==================================
r      ``State.positions``            (N, 3) Å
v      ``State.velocities``           (N, 3) Å/fs
m      ``State.masses``               (N, 1) amu
F      ``State.forces``               (N, 3) eV/Å
a      F/m                            Å/fs², by ``units.ACCELERATION``
f      ``State.freedom``              (M,) degrees of freedom
h      ``timestep``                   fs
γ      ``friction``                   1/fs
kT     ``units.thermal_energy``       eV
η, ν   ``State.chain`` [0], [1]       (M, C) each, dimensionless and 1/fs
====== ============================== ==================================
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.units import ACCELERATION, BOLTZMANN, thermal_energy

# A coordinate that moves further than this in one step (20 Å/fs at 0.5 fs, 7 % of the speed of light) belongs to a replica
# that has blown up. The model goes on seeing its last sane value, so that one replica cannot make the neighbour search of
# all of them fail or grow without bound before the next check removes it.
LONGEST_STEP = 10.0  # Å

# Fourth-order Suzuki-Yoshida weights, H. Yoshida, Phys. Lett. A 150, 262 (1990).
_OUTER = 1 / (2 - 2 ** (1 / 3))
SUZUKI_YOSHIDA = (_OUTER, 1 - 2 * _OUTER, _OUTER)
MOVING = ("positions", "velocities", "forces", "energy", "chain")  # what a step changes of a State
FEW = 12  # molecules whose Nosé-Hoover chains are faster one by one than in NumPy


@dataclass(slots=True)
class State:
    """A batch in motion; letters and units in the module's table.

    energy: (M,) eV, total potential energy. zero: (M,) eV, what ``Potential.total_energy`` adds to the model's energy.
    share: (N, 1) each atom's part of the mass of its molecule, by which the momentum is kept at zero; 0 where it is free.
    generator: the source of all noise. rows (N,) and drawn: noise is drawn for the ``drawn`` atoms of the start and
    ``rows`` picks those still there, so that taking a broken replica out does not change the random numbers of the others.
    """

    batch: Batch
    positions: Tensor
    velocities: Tensor
    masses: Tensor
    share: Tensor
    forces: Tensor
    energy: Tensor
    zero: Tensor
    freedom: Tensor
    chain: Tensor
    rows: Tensor
    drawn: int
    generator: torch.Generator

    def __len__(self) -> int:
        return len(self.batch)

    def take(self, molecules: Tensor) -> State:
        """The molecules at ``molecules`` ((M,) mask), sharing the generator."""
        atoms = molecules[self.batch.molecule]
        of_atoms = ("positions", "velocities", "masses", "share", "forces", "rows")
        parts: dict[str, Any] = {name: getattr(self, name)[atoms] for name in of_atoms}
        parts |= {name: getattr(self, name)[molecules] for name in ("energy", "zero", "freedom")}
        return dataclasses.replace(self, batch=self.batch.take(molecules), chain=self.chain[:, molecules], **parts)


def masses_of(numbers: Tensor) -> Tensor:
    """(N, 1) standard atomic masses in amu, as in ``ase.data.atomic_masses`` (IUPAC 2016), float64."""
    from ase.data import atomic_masses

    table = torch.as_tensor(atomic_masses, dtype=torch.float64)
    return table.to(numbers.device)[numbers][:, None]


def per_molecule(values: Tensor, batch: Batch) -> Tensor:
    """(N, ...) summed over the atoms of each molecule, (M, ...)."""
    return values.new_zeros((len(batch), *values.shape[1:])).index_add_(0, batch.molecule, values)


def without_center(velocities: Tensor, share: Tensor, batch: Batch) -> Tensor:
    """Velocities (N, 3) less the velocity of each molecule's centre of mass; ``share`` as in State."""
    return velocities - per_molecule(share * velocities, batch)[batch.molecule]


def init(batch: Batch, potential: Any, *, temperature: float, generator: torch.Generator, fix_center: bool = True, chain: int = 0) -> State:
    """A State at rest in ``batch``'s positions, with Maxwell-Boltzmann velocities at ``temperature`` (K) and its first forces.

    fix_center: take the momentum of each molecule out, which leaves f = 3n - 3 degrees of freedom, else f = 3n. One atom
    alone keeps its momentum, and 3. chain: length of the Nosé-Hoover chains; 0 where the ensemble has none.
    """
    masses = masses_of(batch.numbers)
    positions = batch.positions.double()
    noise = torch.randn(positions.shape, generator=generator, dtype=torch.float64, device=positions.device)
    velocities = noise * torch.sqrt(thermal_energy(temperature) * ACCELERATION / masses)
    freedom, share = 3.0 * batch.counts.double(), torch.zeros_like(masses)
    if fix_center:
        held = (batch.counts > 1).double()
        share = masses / per_molecule(masses, batch)[batch.molecule] * held[batch.molecule][:, None]
        freedom = freedom - 3.0 * held
    state = State(
        batch=dataclasses.replace(batch, positions=batch.positions.clone()),
        positions=positions.clone(),
        velocities=without_center(velocities, share, batch),
        masses=masses,
        share=share,
        forces=torch.zeros_like(positions),
        energy=freedom.new_zeros(len(batch)),
        zero=freedom.new_zeros(len(batch)),
        freedom=freedom,
        chain=freedom.new_zeros((2, len(batch), chain)),
        rows=torch.arange(len(positions), device=positions.device),
        drawn=len(positions),
        generator=generator,
    )
    prediction = potential(state.batch, forces=True)
    state.zero = potential.total_energy(prediction, state.batch).detach() - prediction.energy.detach().double()
    _store(state, prediction)
    return state


def kinetic_energy(state: State) -> Tensor:
    """(M,) eV."""
    return 0.5 / ACCELERATION * per_molecule((state.masses * state.velocities**2).sum(1), state.batch)


def temperatures(state: State) -> Tensor:
    """(M,) K, T = 2 E_kin / (f k_B)."""
    return 2.0 * kinetic_energy(state) / (state.freedom * BOLTZMANN)


def verlet_step(state: State, potential: Any, timestep: float) -> None:
    """One step of velocity Verlet (constant energy), in place: v += h/2 a; r += h v; a = F(r)/m; v += h/2 a.

    W. C. Swope et al., J. Chem. Phys. 76, 637 (1982).
    """
    _kick(state, timestep / 2)
    state.positions = torch.add(state.positions, state.velocities, alpha=timestep)
    _evaluate(state, potential)
    _kick(state, timestep / 2)


def langevin_step(state: State, potential: Any, timestep: float, temperature: float, friction: float) -> None:
    """One step of Langevin dynamics by the BAOAB splitting, in place.

    B: v += h/2 a. A: r += h/2 v. O: v = e^(-γh) v + sqrt(kT/m (1 - e^(-2γh))) ξ, ξ ~ N(0, 1). Order B A O A B, one force
    per step. Its configurations are accurate to O(h⁴) at high friction and exact for a harmonic well, where velocity-type
    splittings err at O(h²): B. Leimkuhler and C. Matthews, J. Chem. Phys. 138, 174102 (2013).

    With the centre fixed the noise is projected as the velocities are; that is exact sampling of the 3n - 3 others.
    """
    _kick(state, timestep / 2)
    state.positions = torch.add(state.positions, state.velocities, alpha=timestep / 2)
    noise = torch.randn((state.drawn, 3), generator=state.generator, dtype=torch.float64, device=state.positions.device)
    noise = noise if len(state.rows) == state.drawn else noise[state.rows]
    spread = math.sqrt(thermal_energy(temperature) * ACCELERATION * -math.expm1(-2 * friction * timestep)) * state.masses.rsqrt()
    velocities = torch.addcmul(math.exp(-friction * timestep) * state.velocities, spread, noise)
    state.velocities = without_center(velocities, state.share, state.batch)
    state.positions = torch.add(state.positions, state.velocities, alpha=timestep / 2)
    _evaluate(state, potential)
    _kick(state, timestep / 2)


def nose_hoover_step(state: State, potential: Any, timestep: float, temperature: float, period: float, loops: int = 1) -> None:
    """One step of a Nosé-Hoover chain per molecule, in place: thermostat h/2, velocity Verlet h, thermostat h/2.

    With τ = ``period`` in fs, the rates ν = p_η/Q of the links and Q_1 = f kT τ², Q_j = kT τ²:
    dv/dt = a - ν_1 v, dη_j/dt = ν_j, dν_1/dt = (Σ m v²/(f kT) - 1)/τ² - ν_1 ν_2, dν_2/dt = f ν_1² - 1/τ² - ν_2 ν_3,
    dν_j/dt = ν_j-1² - 1/τ² - ν_j ν_j+1. The thermostat goes by Suzuki-Yoshida weights, ``loops`` times per half step.

    G. J. Martyna, M. L. Klein, M. Tuckerman, J. Chem. Phys. 97, 2635 (1992); M. E. Tuckerman et al., J. Phys. A 39, 5629
    (2006). ASE's ``NoseHooverChainNVT`` always counts f = 3n, also where the momentum is zero, and is then too hot by n/(n-1).
    """
    _thermostat(state, timestep / 2, temperature, period, loops)
    verlet_step(state, potential, timestep)
    _thermostat(state, timestep / 2, temperature, period, loops)


def thermostat_energy(state: State, temperature: float, period: float) -> Tensor:
    """(M,) eV, the chain's part of what a Nosé-Hoover run conserves: f kT η_1 + kT Σ_j>1 η_j + Σ Q ν²/2."""
    links = state.chain[0] + period**2 / 2 * state.chain[1] ** 2
    return thermal_energy(temperature) * (state.freedom * links[:, 0] + links[:, 1:].sum(1))


def _thermostat(state: State, span: float, temperature: float, period: float, loops: int) -> None:
    """The chain alone for ``span`` fs. Velocities only scale, so the sum over atoms is done once.

    Some 200 operations on (M,) per call: on the CPU in Python's floats for each of a few molecules (10 µs), in NumPy for more
    (150 µs, where torch takes 500); on other devices in torch, without waiting for them.
    """
    heat = 2 * kinetic_energy(state) / (state.freedom * thermal_energy(temperature))
    weights = [fraction * span / loops for fraction in SUZUKI_YOSHIDA * loops]
    if state.chain.device.type != "cpu":
        chain, scale = _chain_step(state.chain, heat, state.freedom, weights, period, torch.exp)
        state.chain, scale = torch.stack([torch.stack(part, 1) for part in chain]), torch.as_tensor(scale)
    elif len(state) > FEW:
        found, scale = _chain_step(state.chain.numpy(), heat.numpy(), state.freedom.numpy(), weights, period, np.exp)
        state.chain, scale = torch.from_numpy(np.stack([np.stack(part, 1) for part in found])), torch.from_numpy(scale)
    else:
        rows = zip(state.chain.transpose(0, 1).tolist(), heat.tolist(), state.freedom.tolist(), strict=True)
        done = [_chain_step(*row, weights, period, _exp) for row in rows]
        state.chain = torch.tensor([chain for chain, _ in done], dtype=torch.float64).transpose(0, 1).contiguous()
        scale = torch.tensor([factor for _, factor in done], dtype=torch.float64)
    state.velocities = state.velocities * scale.index_select(0, state.batch.molecule)[:, None]


def _chain_step(chain: Any, heat: Any, freedom: Any, weights: list[float], period: float, exp: Any) -> tuple[list[list[Any]], Any]:
    """η and ν of every link after one step of each of the weights (fs), and the factor of the velocities.

    chain: (2, M, C) or, for one molecule, [η, ν]; heat = 2 E_kin/(f kT) and freedom f: (M,) or numbers.
    """
    angle, rate = ([part[..., link] for link in range(part.shape[-1])] if hasattr(part, "shape") else list(part) for part in chain)
    links, pull, scale = range(len(rate)), period**-2, heat * 0 + 1.0

    def push(link: int, step: float) -> None:
        """The rate of one link for half a step, between two quarters of its friction from the next link."""
        drive = rate[link - 1] * rate[link - 1] if link else heat * (scale * scale) * pull
        drive = drive * freedom if link == 1 else drive
        damping = exp(-step / 4 * rate[link + 1]) if link + 1 < len(rate) else 1.0
        rate[link] = (rate[link] * damping + step / 2 * (drive - pull)) * damping

    for step in weights:
        for link in reversed(links):
            push(link, step)
        for link in links:
            angle[link] = angle[link] + step * rate[link]
        scale = scale * exp(-step * rate[0])
        for link in links:
            push(link, step)
    return [angle, rate], scale


def _exp(value: float) -> float:
    """As NumPy's: infinite, not an error, in a replica that has blown up."""
    return math.inf if value > 709 else math.exp(value)


def _kick(state: State, span: float) -> None:
    state.velocities = torch.addcdiv(state.velocities, state.forces, state.masses, value=span * ACCELERATION)


def _evaluate(state: State, potential: Any) -> None:
    """Energy and forces at the state's positions."""
    wanted, last = state.positions.to(state.batch.positions.dtype), state.batch.positions
    state.batch.positions = torch.where((wanted - last).abs() < LONGEST_STEP, wanted, last)
    _store(state, potential(state.batch, forces=True))


def _store(state: State, prediction: Any) -> None:
    state.energy = prediction.energy.detach().double() + state.zero
    state.forces = prediction.forces.detach().double()
