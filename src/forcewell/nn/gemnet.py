"""GemNet-T (Gasteiger, Becker & Günnemann, NeurIPS 2021): messages on directed edges, with angles between them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from forcewell.batch import Batch
from forcewell.errors import InputError, nearest
from forcewell.graph import neighbours
from forcewell.nn.activation import silu
from forcewell.nn.embedding import Encoder
from forcewell.nn.features import Features
from forcewell.nn.gemnet_basis import BesselBasis, GaussianRadialBasis, SphericalBesselBasis, zonal_harmonics
from forcewell.nn.triplets import Edges, edges_of

HALF = 1 / math.sqrt(2.0)  # keeps the variance of a sum of two independent terms
DEGREES = 7  # l = 0 ... 6 of the circular basis
BASES = {"bessel": BesselBasis, "gaussian": GaussianRadialBasis}


class GemNetT(Encoder):
    """Batch -> Features, with the atom energies of its own output blocks.

    Equal to the published GemNet-T in both common forms (1,892,294 trainable parameters and 17 fixed scale factors at
    the defaults): ``basis="bessel"`` is that of TUM's gemnet_pytorch, ``basis="gaussian"`` that of MDsim and the Open
    Catalyst Project, where the radial part of the circular basis is the same set of Gaussians for every degree.
    The function is the published one, with these differences of form: a sum over triplets is a matrix product over
    padded neighbours, spherical Bessel functions are polynomials that hold at short distance, and angles enter by
    their cosines alone, so collinear atoms have finite second derivatives. No neighbours are left out (MDsim keeps
    50 per atom, and jumps where another comes nearer).

    channels C (atoms and edges), layers (interaction blocks), radial R (functions of the distance, also of each degree
    of the circular basis), cutoff in Å; triplet_channels: size of messages in triplets (default C / 2);
    basis_channels: size that bases are projected to.

    As published, an atom without neighbours has energy 0. With ``electronic`` inputs x + e of an atom, f(x + e) - f(x)
    is added to its energy (f: two maps, C -> C -> 1), so that a lone ion or radical has one; 0 in neutral singlets.
    """

    provides: ClassVar[frozenset[str]] = frozenset({"energies"})
    energy_head: ClassVar[str] = "own"

    def __init__(
        self,
        channels: int = 128,
        layers: int = 4,
        radial: int = 6,
        cutoff: float = 5.0,
        triplet_channels: int | None = None,
        basis_channels: int = 16,
        basis: Literal["bessel", "gaussian"] = "bessel",
        envelope_exponent: int = 5,
        elements: int = 94,
        **inputs: Any,
    ) -> None:
        super().__init__(channels, cutoff, elements=elements, **inputs)
        if basis not in BASES:
            raise InputError(f"gemnet-t: unknown basis {basis!r}{nearest(basis, BASES)} (known: {', '.join(BASES)})")
        triplet_channels = max(1, channels // 2) if triplet_channels is None else triplet_channels
        if triplet_channels < 1:
            raise InputError(f"gemnet-t: triplet_channels is {triplet_channels}; it must be 1 or more")
        if self.class_table is None:
            self.embedding = nn.Embedding(elements - 1, channels)  # as published: the first row is hydrogen's
        table = self.embedding.weight
        assert isinstance(table, Tensor)
        nn.init.uniform_(table, -math.sqrt(3.0), math.sqrt(3.0))
        self.radial_basis = BASES[basis](radial, cutoff, envelope_exponent)
        # None: the radial basis serves for every degree.
        self.circular_basis = SphericalBesselBasis(DEGREES, radial, cutoff, envelope_exponent) if basis == "bessel" else None
        self.edge_embedding = Dense(2 * channels + radial, channels, activate=True)
        self.triplet_radial = Dense(radial, basis_channels)
        self.atom_radial = Dense(radial, basis_channels)
        self.output_radial = Dense(radial, basis_channels)
        self.circular = nn.Parameter(torch.empty(DEGREES, radial, basis_channels))
        he_orthogonal_(self.circular)
        self.blocks = nn.ModuleList(InteractionBlock(channels, triplet_channels, basis_channels) for _ in range(layers))
        self.outputs = nn.ModuleList(OutputBlock(channels, basis_channels) for _ in range(layers + 1))
        self.electronic_energy = (
            nn.Sequential(Dense(channels, channels, activate=True), Dense(channels, 1)) if self.electronic is not None else None
        )

    def species(self, batch: Batch) -> Tensor:
        """(N,) row of each atom in the embedding."""
        rows = super().species(batch)
        return rows - 1 if self.class_table is None else rows

    def forward(self, batch: Batch, layers: bool = False) -> Features:
        """Scalars (N, C) and atom energies, one column for each output block, differentiable in ``batch.positions`` and
        ``batch.cell``; ``layers``: the scalars after each block, too."""
        edges = edges_of(neighbours(batch, self.cutoff))
        radial = self.radial_basis(edges.distances)  # (E, R)
        circular = radial[:, None] if self.circular_basis is None else self.circular_basis(edges.distances)
        angular = Angular(
            self.triplet_radial(radial),
            torch.einsum("elr,lrb->ebl", circular.expand(-1, DEGREES, -1), self.circular),
            _others(zonal_harmonics(edges.cosines(), DEGREES, dim=2)),
        )
        atom_radial, output_radial = self.atom_radial(radial), self.output_radial(radial)
        h = self.embed(batch)  # (N, C)
        m = self.edge_embedding(torch.cat([*edges.ends(h), radial], dim=1))  # (E, C)
        energies, kept = [self.outputs[0](m, output_radial, edges)], []
        for block, output in zip(self.blocks, self.outputs[1:], strict=True):  # type: ignore[arg-type]
            h, m = block(h, m, atom_radial, angular, edges)
            energies.append(output(m, output_radial, edges))
            kept.append(h)
        if self.electronic is not None and self.electronic_energy is not None:
            x = self.embedding(self.species(batch))
            energies.append((self.electronic_energy(x + self.electronic(x, batch)) - self.electronic_energy(x))[:, 0])
        return Features(h, layers=tuple(kept) if layers else None, energies=torch.stack(energies, dim=1))

    def scales(self) -> dict[str, ScaleFactor]:
        """The scale factors by name, in the order in which data pass them."""
        names = {module: name for name, module in self.named_modules() if isinstance(module, ScaleFactor)}
        order = [self.outputs[0].update.scale]  # type: ignore[union-attr]
        for block, output in zip(self.blocks, self.outputs[1:], strict=True):  # type: ignore[arg-type]
            order += [block.triplets.radial_scale, block.triplets.sum_scale, block.update.scale, output.update.scale]  # type: ignore[union-attr]
        return {names[module]: module for module in order}  # type: ignore[index,misc]

    @property
    def scales_fitted(self) -> bool:
        """False while every scale factor is still 1, as built."""
        return any(float(scale.factor) != 1.0 for scale in self.scales().values())

    @torch.no_grad()
    def fit_scales(self, batch: Batch) -> dict[str, float]:
        """Sets each scale factor α so that Var(α y) = Var(reference) on ``batch``; returns the factors by name.

        Published as a fit of one factor after another (GemNet's "scaling factors"); one forward pass does the same,
        since each is set before its output goes on. Variances are over edges or atoms, averaged over
        channels. Give a few hundred atoms or more. Raises InputError where a variance is zero: without neighbours, or
        without three atoms in a molecule. Then all factors are left as they were.
        """
        scales = self.scales()
        before = {name: scale.factor.clone() for name, scale in scales.items()}
        try:
            with _fitting(scales):
                self(batch)
        except InputError:
            for name, scale in scales.items():
                scale.factor.copy_(before[name])
            raise
        return {name: float(scale.factor) for name, scale in scales.items()}

    @torch.no_grad()
    def scale_ratios(self, batch: Batch) -> dict[str, float]:
        """Var(α y) / Var(reference) of each scale factor on ``batch``: 1 where it was fitted to such data."""
        ratios: dict[str, float] = {}

        def observe(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
                ratios[name] = float(variance(output) / variance(inputs[1]))

            return hook

        hooks = [scale.register_forward_hook(observe(name)) for name, scale in self.scales().items()]
        self(batch)
        for hook in hooks:
            hook.remove()
        return ratios


class Dense(nn.Linear):
    """A linear map without bias, he-orthogonal at the start, with SiLU / 0.6 behind it on request.

    1 / 0.6 gives SiLU's output about unit variance for a unit Gaussian input.
    """

    def __init__(self, inputs: int, outputs: int, activate: bool = False) -> None:
        super().__init__(inputs, outputs, bias=False)
        self.activate = activate
        he_orthogonal_(self.weight.mT)

    def forward(self, input: Tensor) -> Tensor:
        mapped = nn.functional.linear(input, self.weight)
        return silu(mapped) * (1 / 0.6) if self.activate else mapped


def he_orthogonal_(weight: Tensor) -> None:
    """Fills ``weight`` (inputs..., outputs) with a random orthogonal matrix, standardised per output, / sqrt(inputs)."""
    with torch.no_grad():
        matrix = torch.empty(weight.shape[:-1].numel(), weight.shape[-1])
        nn.init.orthogonal_(matrix)
        if len(matrix) > 1:  # a single input has no variance; the orthogonal matrix is kept as it is
            variance, mean = torch.var_mean(matrix, dim=0)
            matrix = (matrix - mean) / variance.sqrt()
        weight.copy_((matrix * len(matrix) ** -0.5).reshape(weight.shape))


class Residual(nn.Module):
    """(x + f(f(x))) / √2 with two activated maps."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first, self.second = Dense(channels, channels, activate=True), Dense(channels, channels, activate=True)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.second(self.first(x))) * HALF


class ScaleFactor(nn.Module):
    """Multiplies by a fixed number that was fitted so that the product has the variance of a reference."""

    factor: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("factor", torch.tensor(1.0))
        self.fitting = False

    def forward(self, values: Tensor, reference: Tensor) -> Tensor:
        """values and reference (rows, channels); the rows need not be the same."""
        if self.fitting:
            given, wanted = variance(values), variance(reference)
            if not (given > 0 and wanted > 0):
                raise InputError(
                    "gemnet-t: its scale factors cannot be fitted to these conformations; "
                    "give molecules of three and more atoms within the cutoff of each other"
                )
            self.factor.copy_((wanted / given).sqrt())
        return values * self.factor


def variance(values: Tensor) -> Tensor:
    """Variance over rows, averaged over channels; 0 without rows."""
    return values.double().var(dim=0, correction=0).mean() if len(values) else values.new_zeros((), dtype=torch.float64)


@contextlib.contextmanager
def _fitting(scales: Mapping[str, ScaleFactor]) -> Iterator[None]:
    for scale in scales.values():
        scale.fitting = True
    try:
        yield
    finally:
        for scale in scales.values():
            scale.fitting = False


@dataclass(slots=True)
class Angular:
    """What every interaction block needs of distances and angles."""

    radial: Tensor  # (E, B) projected radial basis
    circular: Tensor  # (E, B, L) projected radial part of the circular basis
    harmonics: Tensor  # (N, K, L, K) Y_l0 of the angle from an edge (first K) to another (second K), 0 for itself


class TripletInteraction(nn.Module):
    """Messages m_ba, weighed by distance and by the angle between b -> a and c -> a, summed for each edge c -> a.

    GemNet, figure 2, with the efficient bilinear layer. Sum over the triplets first, for each degree; then
    the radial part; then the bilinear map. Returns (E, C).
    """

    def __init__(self, channels: int, triplet_channels: int, basis_channels: int) -> None:
        super().__init__()
        self.incoming = Dense(channels, channels, activate=True)
        self.radial = Dense(basis_channels, channels)
        self.radial_scale = ScaleFactor()
        self.down = Dense(channels, triplet_channels, activate=True)
        self.bilinear = nn.Parameter(torch.empty(triplet_channels, basis_channels, triplet_channels))
        he_orthogonal_(self.bilinear)
        self.sum_scale = ScaleFactor()
        self.up = Dense(triplet_channels, channels, activate=True)
        self.up_reverse = Dense(triplet_channels, channels, activate=True)

    def forward(self, m: Tensor, angular: Angular, edges: Edges) -> Tensor:
        incoming = self.incoming(m)
        weighed = self.radial_scale(incoming * self.radial(angular.radial), incoming)
        x = self.down(weighed)  # (E, T)
        N, K, L, _ = angular.harmonics.shape
        summed = torch.bmm(angular.harmonics.reshape(N, K * L, K), edges.pad(x)).unflatten(1, (K, L))
        combined = torch.bmm(angular.circular, edges.flat(summed))  # (E, B, T)
        bilinear = self.bilinear.transpose(0, 1).flatten(0, 1)  # (B T, T)
        x = self.sum_scale(combined.flatten(1) @ bilinear, x)
        return (self.up(x) + self.up_reverse(x).index_select(0, edges.reverse)) * HALF


class AtomUpdate(nn.Module):
    """Messages of an atom's edges, weighed by distance and summed, through a map and two residual layers: (N, C)."""

    def __init__(self, channels: int, basis_channels: int) -> None:
        super().__init__()
        self.radial = Dense(basis_channels, channels)
        self.scale = ScaleFactor()
        self.layers = nn.Sequential(Dense(channels, channels, activate=True), Residual(channels), Residual(channels))

    def forward(self, m: Tensor, radial: Tensor, edges: Edges) -> Tensor:
        return self.layers(self.scale(edges.sum_to_atoms(m * self.radial(radial)), m))


class OutputBlock(nn.Module):
    """An atom update and one energy per atom (N,)."""

    def __init__(self, channels: int, basis_channels: int) -> None:
        super().__init__()
        self.update = AtomUpdate(channels, basis_channels)
        self.energy = Dense(channels, 1)

    def forward(self, m: Tensor, radial: Tensor, edges: Edges) -> Tensor:
        return self.energy(self.update(m, radial, edges))[:, 0]


class InteractionBlock(nn.Module):
    """Updates of edges m (E, C) by triplets, of atoms h (N, C) by edges, and of edges by atoms (GemNet, figure 2)."""

    def __init__(self, channels: int, triplet_channels: int, basis_channels: int) -> None:
        super().__init__()
        self.skip = Dense(channels, channels, activate=True)
        self.triplets = TripletInteraction(channels, triplet_channels, basis_channels)
        self.before_skip, self.after_skip = Residual(channels), Residual(channels)
        self.update = AtomUpdate(channels, basis_channels)
        self.concatenation = Dense(3 * channels, channels, activate=True)
        self.edge_residual = Residual(channels)

    def forward(self, h: Tensor, m: Tensor, radial: Tensor, angular: Angular, edges: Edges) -> tuple[Tensor, Tensor]:
        x = (self.skip(m) + self.triplets(m, angular, edges)) * HALF
        m = self.after_skip((m + self.before_skip(x)) * HALF)
        h = (h + self.update(m, radial, edges)) * HALF
        joined = torch.cat([*edges.ends(h), m], dim=1)
        return h, (m + self.edge_residual(self.concatenation(joined))) * HALF


def _others(harmonics: Tensor) -> Tensor:
    """(N, K, L, K) with zeros where an edge would be paired with itself."""
    K = harmonics.shape[1]
    return harmonics * (1.0 - torch.eye(K, dtype=harmonics.dtype, device=harmonics.device))[:, None]


# Published module names of one block, and ours.
_PUBLISHED = {
    "dense_ca": "skip",
    "trip_interaction.dense_ba": "triplets.incoming",
    "trip_interaction.mlp_rbf": "triplets.radial",
    "trip_interaction.scale_rbf": "triplets.radial_scale",
    "trip_interaction.mlp_cbf": "triplets.bilinear",
    "trip_interaction.scale_cbf_sum": "triplets.sum_scale",
    "trip_interaction.down_projection": "triplets.down",
    "trip_interaction.up_projection_ca": "triplets.up",
    "trip_interaction.up_projection_ac": "triplets.up_reverse",
    "layers_before_skip.0": "before_skip",
    "layers_after_skip.0": "after_skip",
    "concat_layer.dense": "concatenation",
    "residual_m.0": "edge_residual",
}
_TOP = {
    "rbf_basis.frequencies": "radial_basis.frequencies",
    "mlp_rbf3": "triplet_radial",
    "mlp_cbf3": "circular",
    "mlp_rbf_h": "atom_radial",
    "mlp_rbf_out": "output_radial",
    "atom_emb.embeddings": "embedding",
    "edge_emb.dense": "edge_embedding",
}


def from_published(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a published GemNet-T, TUM's or MDsim's (names without prefix), under our names.

    Their files name some tensors twice (``x.weight`` and ``x.linear.weight``, ``out_blocks.k.layers`` and
    ``seq_energy``). MDsim's stored centres of the Gaussians are not parameters here.
    """
    renamed: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if ".seq_energy." in name or name.endswith("rbf.offset"):  # stored twice, and fixed
            continue
        module, kind = name.replace(".linear.weight", ".weight").rsplit(".", 1)
        renamed[_ours(module, kind)] = tensor
    return renamed


def _ours(module: str, kind: str) -> str:
    if f"{module}.{kind}" in _TOP:
        return _TOP[f"{module}.{kind}"]
    if module in _TOP:
        return _TOP[module] if module == "mlp_cbf3" else f"{_TOP[module]}.{kind}"
    group, index, rest = module.split(".", 2)
    part, last = ("blocks", rest) if group == "int_blocks" else ("outputs", rest.replace("out_energy", "energy"))
    if group == "out_blocks" and last != "energy":
        last = f"atom_update.{last}"
    for theirs, ours in _PUBLISHED.items():
        if last == theirs or last.startswith(f"{theirs}."):
            last = ours + last.removeprefix(theirs)
    last = last.replace("atom_update.", "update.").replace("dense_rbf", "radial").replace("scale_sum", "scale")
    last = last.replace("dense_mlp.0", "first").replace("dense_mlp.1", "second")
    if last.endswith("bilinear"):
        return f"{part}.{index}.{last}"
    return f"{part}.{index}.{last}.{'factor' if kind == 'scale_factor' else kind}"
