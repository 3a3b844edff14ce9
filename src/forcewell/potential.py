"""Encoder + head -> energy, forces, stress. The only place that differentiates an energy."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError, nearest
from forcewell.fields import ELEMENTS
from forcewell.fused import INSTRUCTIONS, Fused, functions, instructions
from forcewell.graph import ListedBatch
from forcewell.nn import EquivariantTransformer, Features, encoder
from forcewell.nn.heads import ENERGY_HEADS, NOISE_HEADS, PROPERTY_HEADS, Displacement, GradientNoise, read_out, sum_atoms
from forcewell.nn.normaliser import RunningNormaliser
from forcewell.products import Precision, products
from forcewell.system import System, block_of, consecutive

if TYPE_CHECKING:
    import ase


UNSEEN_STATE = "charged or not singlets, which this model does not see (it was built without model.encoder.electronic)"


@dataclass(slots=True)
class Prediction:
    """What a potential says of a batch; a part that was not asked for is None."""

    energy: Tensor  # (M,) eV, without reference energies, in the model's dtype
    forces: Tensor | None = None  # (N, 3) eV/Å
    stress: Tensor | None = None  # (M, 3, 3) eV/Å³
    noise: Tensor | None = None  # (N, 3), where the potential has a noise head
    properties: Tensor | None = None  # (M, P) standardised, where it has a property head (``Potential.property_values``)


class Potential(nn.Module):
    """A conservative force field: E = Σ_atoms head(encoder(batch)), F = -dE/dr.

    config: ``{"encoder": {"name": ..., settings}, "head": {"energy": kind, "noise": kind}}``, enough to rebuild the model.
    Without "energy" the head is the encoder's own default, size-extensive; "noise" True is the encoder's default noise
    head, False (the default) none (kinds: nn/heads.py).
    levels: names of the levels of theory it was trained on, the last fine-tuned one last. references: per level,
    (119,) float64 eV by atomic number; they are outside the network, so float32 never sees a total energy. Entry 0, which
    is no element, is added once per molecule (zero but for converted models that have such a constant).
    elements: atomic numbers met in training.

    What a run's objectives need is in ``head``, too. properties: {"names", "pool", "classes", "mean", "spread"}, P numbers per molecule,
    standardised by mean and spread, or logits of classes. normalise: settings of the running normalisation of noise targets
    (nn/normaliser.py), if any. level_scale: a learned factor of energies and forces for each level of theory (at first 1), so that data of
    levels whose forces differ in size can be pooled.

    precision: of the matrix products, an attribute to be set: "float32", "tf32" (10-bit mantissa, on a GPU) or "bfloat16" (7-bit; in the
    compiled kernels only the weights of the encoder's linear maps are, and gradients are those at the rounded weights).
    Geometry, sums and norms stay in the parameters' dtype, and what the choice costs in forces is for the user to judge (docs/speed.md).
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        levels: Sequence[str] = (),
        references: Mapping[str, np.ndarray] | None = None,
        elements: Sequence[int] = (),
    ) -> None:
        super().__init__()
        settings, head = dict(config["encoder"]), dict(config.get("head") or {})
        self.config = {"encoder": dict(settings), "head": head}
        self.encoder = encoder(settings.pop("name"), **settings)
        head["energy"] = head.get("energy") or self.encoder.energy_head
        noise = head["noise"] = self.encoder.noise_head if head.get("noise") is True else head.get("noise", False)
        self.head = read_out(self.encoder, head["energy"], ENERGY_HEADS)
        self.noise_head = read_out(self.encoder, noise, NOISE_HEADS) if noise else None
        self.properties = tuple(head["properties"]["names"]) if head.get("properties") else ()
        self.property_head = self._property_head(head) if self.properties else None
        self.noise_normaliser = RunningNormaliser(**head["normalise"]) if head.get("normalise") else None
        self.levels = tuple(levels)
        self.energy_spread = float(head.get("energy_spread") or 1.0)
        scaled = bool(head.get("level_scale")) and self.levels
        self.level_scale: Tensor | None
        self.register_parameter("level_scale", nn.Parameter(torch.zeros(len(self.levels))) if scaled else None)
        if self.encoder.levels is not None and len(self.levels) > len(self.encoder.levels):
            raise InputError(f"the encoder embeds {len(self.encoder.levels)} levels of theory, and these are {len(self.levels)}")
        self.references = {level: np.zeros(ELEMENTS) for level in self.levels}
        self.references |= {level: np.asarray(values, dtype=np.float64) for level, values in (references or {}).items()}
        self.elements = tuple(sorted(elements))
        self._fused: Fused | None = None
        # Asked for the prediction of a run's step first; gives None where it has none (step_path.StepPath).
        self.step_path: Callable[[Batch, Mapping[str, bool], bool], Prediction | None] | None = None
        self.precision: Precision = "float32"

    def __getstate__(self) -> dict[str, Any]:
        """For pickle and copies: the kernels are addresses in this process, and made again when they are needed."""
        return {**self.__dict__, "_fused": None}

    def _property_head(self, head: dict[str, Any]) -> nn.Module:
        default = "equivariant" if "vectors" in self.encoder.provides else "pooled"
        described = head["properties"] = {**head["properties"], "pool": head["properties"].get("pool") or default}
        return read_out(self.encoder, described["pool"], PROPERTY_HEADS, len(self.properties))

    @property
    def cutoff(self) -> float:
        """Å; two atoms farther apart do not see each other directly."""
        return float(self.encoder.cutoff)

    @property
    def dtype(self) -> torch.dtype:
        """dtype of the parameters."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return next(self.parameters()).device

    def forward(
        self,
        batch: Batch,
        *,
        forces: bool = True,
        stress: bool = False,
        noise: bool = False,
        properties: bool = False,
        create_graph: bool = False,
    ) -> Prediction:
        """Energy, and on request forces, stress, the noise head's output and the property head's.

        create_graph keeps the forces differentiable (training), and noise that is a gradient; the input batch is never
        changed. An objective that needs neither forces nor stress passes ``forces=False`` and no second-order graph is
        built, except for a noise head that is itself a gradient. Raises InputError where there is no noise head.
        """
        if noise and self.noise_head is None:
            raise InputError("this potential has no noise head; set model.head.noise to true before pre-training")
        if properties and self.property_head is None:
            raise InputError("this model has no properties; train it with the objective property first")
        if self.step_path is not None and not stress:
            found = self.step_path(batch, {"forces": forces, "noise": noise, "properties": properties}, create_graph)
            if found is not None:
                return found
        gradient_noise = noise and isinstance(self.noise_head, GradientNoise)
        differentiate = forces or stress or gradient_noise
        kernels = None if stress or gradient_noise else self.kernels(batch, forces)
        if kernels is not None:
            return self._by_kernels(kernels, batch, forces, noise, properties, create_graph)
        grad = torch.enable_grad() if differentiate else torch.set_grad_enabled(torch.is_grad_enabled())
        half = torch.autocast(self.device.type, torch.bfloat16) if self.precision == "bfloat16" else contextlib.nullcontext()
        with grad, products(self.precision):
            positions, cell, strain = batch.positions.detach(), batch.cell, None
            if forces or gradient_noise:
                positions = positions.requires_grad_(True)
            if stress:
                # r -> r (1 + ε) with ε symmetric; dE/dε at ε = 0 is volume times stress.
                strain = torch.zeros_like(cell).requires_grad_(True)
                deform = torch.eye(3, dtype=cell.dtype, device=cell.device) + 0.5 * (strain + strain.mT)
                cell = cell @ deform
            moved = positions if strain is None else torch.einsum("na,nab->nb", positions, deform.index_select(0, batch.molecule))
            with half:  # not the head, whose energies need more than three digits
                features: Features = self.encoder(dataclasses.replace(batch, positions=moved, cell=cell))
            energy, scale = self.head.energies(features, batch), self.energy_scale(batch)  # type: ignore[operator]
            prediction = Prediction(energy if scale is None else energy * scale)
            if properties and self.property_head is not None:
                prediction.properties = self.property_head(features, batch)
            if noise:
                prediction.noise = self._noise(features, positions, create_graph)
            if forces or stress:
                self._differentiate(prediction, positions if forces else None, strain, batch, create_graph)
        if not torch.is_grad_enabled() and not create_graph:
            prediction.energy = prediction.energy.detach()
        return prediction

    def _by_kernels(self, kernels: Fused, batch: Batch, forces: bool, noise: bool, properties: bool, create_graph: bool) -> Prediction:
        """``forward`` where compiled kernels give energies and forces, or the features that the heads read."""
        graph, found = torch.is_grad_enabled(), None
        features = kernels.features(batch, graph) if noise or properties or not forces else None
        with torch.set_grad_enabled(graph and (create_graph or not forces)):
            if forces:
                atomic, found = kernels(batch, torch.is_grad_enabled())
                energy = sum_atoms(atomic, batch)
            else:
                energy = self.head.energies(features, batch)  # type: ignore[operator]
            scale = self.energy_scale(batch)
            if scale is not None:
                energy, found = energy * scale, found if found is None else found * scale.index_select(0, batch.molecule)[:, None]
        prediction = Prediction(energy, found)
        if features is not None and properties and self.property_head is not None:
            prediction.properties = self.property_head(features, batch)
        if features is not None and noise:
            prediction.noise = self._noise(features, batch.positions, create_graph=False)
        return prediction

    def energy_scale(self, batch: Batch) -> Tensor | None:
        """(M,) factor of the network's energies: the spread of standardised labels times that of the level of theory, or None for 1."""
        if self.level_scale is not None:
            return self.energy_spread * torch.exp(self.level_scale)[batch.level]
        return None if self.energy_spread == 1.0 else torch.full((len(batch),), self.energy_spread, dtype=self.dtype, device=self.device)

    def _noise(self, features: Features, positions: Tensor, create_graph: bool) -> Tensor:
        """(N, 3): what the noise head says, by its own kind."""
        head = self.noise_head
        assert head is not None
        if isinstance(head, GradientNoise):
            # The graph is kept for the energy, which shares the encoder.
            pseudo = head(features).sum()
            return -torch.autograd.grad(pseudo, positions, create_graph=create_graph, retain_graph=True, materialize_grads=True)[0]
        return head(features, positions) if isinstance(head, Displacement) else head(features)

    def kernels(self, batch: Batch, forces: bool = True) -> Fused | None:
        """Compiled kernels for this batch's features and, with ``forces``, its energy and forces; None where there are none. Never for
        a batch that is being traced."""
        if isinstance(batch, ListedBatch):
            return None
        if batch.positions.dtype != torch.float32 or batch.positions.device.type != "cpu" or self.dtype != torch.float32:
            return None
        if not math.isfinite(float(batch.positions.sum())):
            return None  # an atom that is nowhere is no atom alone: PyTorch's energy of it is no number
        half = self.precision == "bfloat16"
        if self._fused is None or self._fused.half != half or not self._fused.of(self.encoder, self.head):
            found = instructions(self.encoder, self.head, forces=False)
            if found == 0:
                return None
            self._fused = Fused(self.encoder, self.head, found, half)  # type: ignore[arg-type]
        return self._fused if self._fused.gives_forces or not forces else None

    @property
    def path(self) -> str:
        """How energies and forces are computed here, in words for the user."""
        return self.path_of({"forces": True})

    def path_of(self, asked: Mapping[str, bool]) -> str:
        """The same of a prediction with these parts (``forward``)."""
        forces = asked.get("forces", False)
        on_cpu, half = self.device.type == "cpu", self.precision == "bfloat16"
        products = f" (matrix products in {self.precision})" if half or (self.precision == "tf32" and not on_cpu) else ""
        if not on_cpu or self.dtype != torch.float32:
            fused = isinstance(self.encoder, EquivariantTransformer) and self.encoder.fused(self.device)
            return f"{'Triton kernels' if fused else 'PyTorch'} on {self.device.type}, {str(self.dtype).removeprefix('torch.')}{products}"
        if functions() is None:
            return f"PyTorch on cpu, float32{products} (no compiled kernels: the package was installed without a C++ compiler)"
        gradient_noise = asked.get("noise", False) and isinstance(self.noise_head, GradientNoise)
        found = 0 if gradient_noise else instructions(self.encoder, self.head, forces=forces)
        if not found:
            return f"PyTorch on cpu, float32{products} (no compiled kernels for this model)"
        return f"compiled kernels, {INSTRUCTIONS[found]}{', weights of the linear maps in bfloat16' if half else ''}"

    def _differentiate(
        self, prediction: Prediction, positions: Tensor | None, strain: Tensor | None, batch: Batch, create_graph: bool
    ) -> None:
        variables = [variable for variable in (positions, strain) if variable is not None]
        keep = create_graph or prediction.noise is not None
        gradients = torch.autograd.grad(
            prediction.energy.sum(), variables, create_graph=create_graph, retain_graph=keep, materialize_grads=True
        )
        if not create_graph:
            prediction.energy = prediction.energy.detach()
        if positions is not None:
            prediction.forces = -gradients[0]
        if strain is not None:
            volume = torch.linalg.det(batch.cell).abs()
            if bool((volume == 0).any()):
                raise InputError("stress needs a periodic cell with a volume; this structure has none")
            prediction.stress = gradients[-1] / volume[:, None, None]

    def reference_energy(self, batch: Batch) -> Tensor:
        """(M,) float64 eV: the sum of each conformation's reference energies at its ``batch.level``."""
        if not self.levels:
            return batch.targets.energy.new_zeros(len(batch))
        table = torch.from_numpy(np.stack([self.references[level] for level in self.levels])).to(batch.numbers.device)
        atomic = table[batch.level.index_select(0, batch.molecule), batch.numbers]
        return table[batch.level, 0].index_add(0, batch.molecule, atomic)

    def property_values(self, prediction: Prediction) -> Tensor:
        """(M, P) float64: the predicted properties in their units, or the probabilities of classes."""
        assert prediction.properties is not None
        described = self.config["head"]["properties"]
        values = prediction.properties.detach().double()
        if described["classes"]:
            return torch.sigmoid(values)
        return values * values.new_tensor(described["spread"]) + values.new_tensor(described["mean"])

    def total_energy(self, prediction: Prediction, batch: Batch) -> Tensor:
        """(M,) float64 eV, reference energies included."""
        return prediction.energy.double() + self.reference_energy(batch)

    def level_index(self, level: str | None = None) -> int:
        """Index of a level of theory; None is the last one fine-tuned. Raises InputError for an unknown level."""
        if level is None:
            return max(len(self.levels) - 1, 0)
        if level not in self.levels:
            known = ", ".join(name or "one that was not stated" for name in self.levels) or "none"
            raise InputError(f"the model does not know the level of theory {level!r}{nearest(level, self.levels)} (known: {known})")
        return self.levels.index(level)

    def check_electrons(self, charge: int, spin: int) -> None:
        """Raises InputError for a charge or a spin multiplicity that a model without such an input would pass over."""
        if (charge, spin) != (0, 1) and not self.config["encoder"].get("electronic"):
            raise InputError(f"the model does not know of charge {charge} and spin {spin}: it was built without model.encoder.electronic")

    def states_passed_over(self, columns: Mapping[str, Any]) -> int:
        """How many of M conformations are charged or not singlets ("charge" and "spin", each (M,) or not there) where the encoder has no
        input for either."""
        if self.encoder.electronic is not None:
            return 0
        apart = [np.asarray(columns[name]) != usual for name, usual in (("charge", 0), ("spin", 1)) if name in columns]
        return int(np.any(apart, axis=0).sum()) if apart else 0

    def check_elements(self, numbers: np.ndarray | Tensor) -> None:
        """Raises InputError where ``numbers`` has elements that the model was never trained on, or cannot embed."""
        limit = self.encoder.elements
        if len(numbers) and int(numbers.max()) >= limit:
            raise InputError(f"the model embeds atomic numbers below {limit}, and {int(numbers.max())} is not")
        unseen = sorted(set(np.unique(numbers.cpu().numpy() if isinstance(numbers, Tensor) else numbers).tolist()) - set(self.elements))
        if self.elements and unseen:
            raise InputError(f"the model never saw {_symbols(unseen)}; it was trained on {_symbols(self.elements)}")

    def predict(
        self, systems: Iterable[ase.Atoms | System], level: str | None = None, *, stress: bool = False, batch_atoms: int = 4096
    ) -> dict[str, Any]:
        """Energies and forces of molecules, in batches of at most ``batch_atoms`` atoms.

        Returns ``{"energy": (M,) eV float64, "forces": [(n, 3) eV/Å, ...]}``, ``"stress": (M, 3, 3)`` on request and, of a model
        that was trained on properties, ``"properties": {name: (M,)}``.
        Warns of charges and spins that the encoder does not see. Raises InputError for unusable structures, unseen elements or an
        unknown level.
        """
        if isinstance(systems, System) or hasattr(systems, "numbers"):  # ase.Atoms are a sequence, of atoms
            raise InputError("predict takes a list of structures, and this is a single one: predict([atoms])")
        systems = list(systems)
        for entry in systems:
            if not isinstance(entry, System) and not hasattr(entry, "numbers"):
                raise InputError(
                    f"predict takes a list of ase.Atoms or Systems, and {entry!r} is neither; ase.io.read(file, ':') reads a file"
                )
        converted = [entry if isinstance(entry, System) else System.from_atoms(entry) for entry in systems]
        index = self.level_index(level)
        if converted:
            whole = block_of(converted)
            whole.validate()  # all at once, so that a message counts conformations as the caller does
            self.check_elements(whole.arrays["numbers"])
            if passed_over := self.states_passed_over(whole.arrays):
                warnings.warn(f"{passed_over} of {len(whole)} conformations are {UNSEEN_STATE}", stacklevel=2)
        energies, forces, stresses, properties = [], [], [], []
        for part in consecutive([len(system) for system in converted], batch_atoms):
            batch = Batch.from_block(block_of(converted[part]), dtype=self.dtype, level=index).to(self.device)
            out = self(batch, stress=stress, properties=bool(self.properties))
            energies.append(self.total_energy(out, batch).detach().cpu().numpy())
            forces += [one.numpy() for one in out.forces.detach().cpu().split(batch.counts.tolist())]
            if self.properties:
                properties.append(self.property_values(out).cpu().numpy())
            if stress:
                stresses.append(out.stress.detach().cpu().numpy())
        result: dict[str, Any] = {"energy": np.concatenate(energies) if energies else np.zeros(0), "forces": forces}
        if stress:
            result["stress"] = np.concatenate(stresses) if stresses else np.zeros((0, 3, 3))
        if self.properties:
            columns = np.concatenate(properties) if properties else np.zeros((0, len(self.properties)))
            result["properties"] = dict(zip(self.properties, columns.T, strict=True))
        return result


def _symbols(numbers: Sequence[int]) -> str:
    from ase.data import chemical_symbols

    return ", ".join(chemical_symbols[number] for number in numbers)
