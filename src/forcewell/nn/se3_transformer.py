"""The SE(3)-Transformer (Fuchs et al., NeurIPS 2020) as Wang et al. pre-trained it (JCTC 2023)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.graph import neighbours, places_of
from forcewell.nn.activation import silu
from forcewell.nn.embedding import WANG_CLASSES, Encoder, OneHot
from forcewell.nn.features import Features
from forcewell.nn.radial import ExponentialNormalBasis, cosine_cutoff
from forcewell.nn.spherical import Couplings, clebsch_gordan

# Signs of the coupling matrices of Wang et al.'s published checkpoint relative to Racah's, in the order of
# ``Couplings(4, published=True).names``. The checkpoint has none: they were found by minimising its denoising error, 28 of
# the 44 with a clear margin; flipping all those with exactly one of l_in and l_out equal to a given degree changes nothing.
PUBLISHED_SIGNS = "+----+--++++++-+---++---++---+---+-+-+-----+"
HIDDEN = 32  # width of every radial network, as published
PUBLISHED_INPUTS = 5  # a published radial network sees four zeros and the distance


class SE3Transformer(Encoder):
    """Attention between features of several degrees of rotation: Batch -> Features (scalars).

    channels C (a multiple of degrees; each atom has C / degrees channels of every degree l < degrees); values and
    keys have C / degrees / divisor channels, a multiple of heads; cutoff in Å; radial: size of the distance basis.

    The default form mends what is unsound in the published one, which ``published=True`` restores for its weights
    (239,057 parameters at the defaults, a pooled head of 1,089 included, with its 28 atom classes):

    ======================  ========================================  ==========================================
    .                       published                                 default
    ======================  ========================================  ==========================================
    attention               softmax over the neighbours: jumps        each weight damped by the cosine cutoff, and
                            where one crosses the cutoff              a null neighbour of logit 0
    last convolution        mean over neighbours: jumps; nothing      damped sum; the atom's own term always
                            for an atom without neighbours
    coupling l_in, J, l_out all: mirror images differ in energy       l_in + l_out + J even: the same
    nonlinearity            ReLU(LayerNorm(abs v)) v / abs v: jumps   softened norm; scalars by SiLU(LayerNorm)
                            where v is zero, scalars' sign included
    radial networks         of the bare distance, LayerNorm, ReLU;    of a radial basis, SiLU; one for both
                            one for values and one for keys
    atoms                   one-hot, 28 (element, charge) classes     learned embedding by atomic number
    ======================  ========================================  ==========================================

    Also as published: ``truncated_gradient=True`` takes the directions between atoms as constants, so that "forces"
    are the radial part alone of the energy's gradient (its error can exceed the force itself). Every pair of atoms is
    there twice in the published graph, which changes neither a softmax nor a mean and is left out.
    The published coupling matrices have arbitrary signs; ``couplings.signs`` keeps those that the weights were trained with.
    """

    def __init__(
        self,
        channels: int = 32,
        layers: int = 3,
        heads: int = 2,
        degrees: int = 4,
        divisor: int = 4,
        radial: int = 16,
        cutoff: float = 5.0,
        published: bool = False,
        truncated_gradient: bool = False,
        **inputs: Any,
    ) -> None:
        rows = len(WANG_CLASSES) if inputs.get("classes") == "wang" else inputs.get("elements", 100)
        super().__init__(rows if published else channels, cutoff, **inputs)
        if channels % (degrees * divisor * heads):
            raise InputError(
                f"se3-transformer: channels ({channels}) must be a multiple of degrees x divisor x heads ({degrees * divisor * heads})"
            )
        if channels < 2 * degrees:  # the norm of one channel is a constant
            raise InputError(f"se3-transformer: channels ({channels}) must be 2 or more for each of the degrees ({degrees})")
        first, self.channels = self.channels, channels
        self.published, self.truncated_gradient = published, truncated_gradient
        width = channels // degrees
        self.couplings = Couplings(degrees, published)
        if published:
            self.embedding = OneHot(rows)
        else:
            self.basis = ExponentialNormalBasis(radial, cutoff)
        width_in = PUBLISHED_INPUTS if published else radial
        self.layers = nn.ModuleList(
            AttentionLayer(self.couplings, width_in, 1 if k == 0 else degrees, first if k == 0 else width, width, divisor, heads, published)
            for k in range(layers)
        )
        self.norms = nn.ModuleList(NormNonlinearity(degrees, width, published) for _ in range(layers))
        self.last = RadialConvolution(self.couplings, width_in, degrees, width, [channels], published)
        self.own = nn.Parameter(torch.randn(width, channels) / math.sqrt(width))

    def forward(self, batch: Batch, layers: bool = False) -> Features:
        """Scalars (N, C), differentiable in ``batch.positions`` and ``batch.cell``; ``layers``: the degree-0 features
        (N, C / degrees) after each layer, too."""
        geometry = self._geometry(batch)
        x = self.embed(batch)
        kept: list[Tensor] = []
        features = x[:, None]  # (N, 1, C) of degree 0; (N, degrees², C / degrees) after the first layer
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = norm(layer(features, geometry))
            kept.append(features[:, 0])
        (messages,) = self.last(geometry.couple(features, 1), geometry.radial)  # (E, 1, C)
        messages = geometry.pad(messages[:, 0])
        own = features[:, 0] @ self.own
        if self.published:
            degree = geometry.mask.sum(1, keepdim=True)
            mean = (messages * geometry.mask[:, :, None]).sum(1) / degree.clamp_min(1)
            return Features((mean + own) * degree.clamp_max(1), layers=tuple(kept) if layers else None)
        return Features((messages * geometry.envelope[:, :, None]).sum(1) + own, layers=tuple(kept) if layers else None)

    def _geometry(self, batch: Batch) -> Geometry:
        near = neighbours(batch, self.cutoff)
        places = places_of(near)
        directions = (near.vectors / near.distances[:, :, None]).flatten(0, 1).index_select(0, places.place)
        if self.truncated_gradient:
            directions = directions.detach()
        r = near.distances.reshape(-1).index_select(0, places.place[:: places.ways])
        bare = [torch.zeros_like(r)] * (PUBLISHED_INPUTS - 1) + [r]
        radial = torch.stack(bare, dim=1) if self.published else self.basis(r)
        return Geometry(
            near.sender.reshape(-1)[places.place],
            # Padded places show the first edge; what they hold is masked.
            torch.where(places.row < len(places.place), places.row, 0),
            near.mask,
            near.mask if self.published else near.mask * cosine_cutoff(near.distances, self.cutoff),
            radial,
            self.couplings(directions),
            self.couplings.paths,
        )


@dataclass(slots=True)
class Geometry:
    """What all layers share, for N atoms with K neighbours each (padded places have ``mask`` 0) and E edges (``graph.Places``)."""

    sender: Tensor  # (E,)
    row: Tensor  # (N K,) edge of each padded place
    mask: Tensor  # (N, K)
    envelope: Tensor  # (N, K) mask times the cutoff envelope (the mask alone in the published form)
    radial: Tensor  # (E / ways, R) what the radial networks see
    kernels: list[Tensor]  # per degree l_in: (E, rows, 2 l_in + 1), rows being (l_out, m_out, path)
    paths: dict[tuple[int, int], list[int]]

    def pad(self, values: Tensor) -> Tensor:
        """(E, ...) -> (N, K, ...)."""
        return values.index_select(0, self.row).unflatten(0, self.mask.shape)

    def couple(self, features: Tensor, outputs: int) -> list[Tensor]:
        """Neighbours' features (N, degrees², C) -> per degree l_out < ``outputs``: (E, 2 l_out + 1, paths C), all
        l_in in a row."""
        parts: list[list[Tensor]] = [[] for _ in range(outputs)]
        gathered = _by_degree(features.index_select(0, self.sender))
        for l_in, values in enumerate(gathered):
            sizes = [(2 * l_out + 1) * len(self.paths[l_in, l_out]) for l_out in range(outputs)]
            coupled = torch.bmm(self.kernels[l_in].narrow(1, 0, sum(sizes)), values)
            for l_out, part in enumerate(coupled.split(sizes, dim=1)):
                parts[l_out].append(part.unflatten(1, (2 * l_out + 1, -1)).flatten(2))
        return [torch.cat(part, dim=2) for part in parts]


class RadialConvolution(nn.Module):
    """Coupled features times learned functions of the distance, to ``outputs[l]`` channels of each degree l.

    A network R -> 32 -> 32 -> (out, paths, in) of the distance for every pair of degrees (l_in, l_out).
    """

    def __init__(self, couplings: Couplings, inputs: int, degrees: int, channels: int, outputs: Sequence[int], published: bool) -> None:
        super().__init__()
        self.published = published
        pairs = [(l_in, l_out) for l_in in range(degrees) for l_out in range(len(outputs))]
        self.outputs = list(outputs)
        self.scale = [
            1.0 if published else 1 / math.sqrt(channels * sum(len(couplings.paths[l_in, l_out]) for l_in in range(degrees)))
            for l_out in range(len(outputs))
        ]
        size = {pair: len(couplings.paths[pair]) * channels * outputs[pair[1]] for pair in pairs}
        # Networks of one size stand together, so that one batched product evaluates all of them.
        self.pairs = sorted(pairs, key=lambda pair: size[pair])
        self.sizes = {value: list(size.values()).count(value) for value in sorted(set(size.values()))}  # size -> networks of it
        P = len(self.pairs)
        self.first, self.first_bias = _uniform(P, inputs, HIDDEN), _uniform_bias(P, inputs, HIDDEN)
        self.second, self.second_bias = _uniform(P, HIDDEN, HIDDEN), _uniform_bias(P, HIDDEN, HIDDEN)
        self.third = nn.ParameterList(_uniform(count, HIDDEN, value) for value, count in self.sizes.items())
        self.third_bias = nn.ParameterList(_uniform_bias(count, HIDDEN, value) for value, count in self.sizes.items())
        if published:
            self.norm_weights = nn.ParameterList(nn.Parameter(torch.ones(P, 1, HIDDEN)) for _ in range(2))
            self.norm_biases = nn.ParameterList(nn.Parameter(torch.zeros(P, 1, HIDDEN)) for _ in range(2))

    def forward(self, coupled: list[Tensor], radial: Tensor) -> list[Tensor]:
        """Coupled features (see Geometry.couple) and radial (E / ways, R) -> per degree l: (E, 2 l + 1, outputs[l])."""
        x = self._activate(torch.matmul(radial, self.first) + self.first_bias, 0)  # (P, E, 32)
        x = self._activate(torch.baddbmm(self.second_bias, x, self.second), 1)
        weights: dict[tuple[int, int], Tensor] = {}
        pairs = iter(self.pairs)
        for hidden, third, bias in zip(x.split(list(self.sizes.values())), self.third, self.third_bias, strict=True):
            weights |= {next(pairs): values for values in torch.baddbmm(bias, hidden, third).unbind()}
        results = []
        for l_out, source in enumerate(coupled):
            mine = [weights[pair].unflatten(1, (self.outputs[l_out], -1)) for pair in sorted(weights) if pair[1] == l_out]
            # The directions of a pair share their weights: their components stand side by side in one product.
            ways = len(source) // max(len(radial), 1)
            pairs = source.reshape(len(radial), ways * source.shape[1], source.shape[2])
            mixed = torch.bmm(pairs, torch.cat(mine, dim=2).mT).reshape(*source.shape[:2], self.outputs[l_out])
            results.append(mixed * self.scale[l_out])
        return results

    def _activate(self, x: Tensor, which: int) -> Tensor:
        if not self.published:
            return silu(x)
        x = nn.functional.layer_norm(x, x.shape[-1:])
        return relu(x * self.norm_weights[which] + self.norm_biases[which])


class AttentionLayer(nn.Module):
    """Attention over neighbours, concatenated with the atom's own features and mixed per degree.

    value and key: radial convolutions of the neighbour's features; query: linear in the atom's own; one weight per
    head for all degrees (Fuchs et al. eq. 10-11; logits divided by the square root of the number of key features).
    """

    def __init__(
        self, couplings: Couplings, inputs: int, degrees_in: int, channels_in: int, width: int, divisor: int, heads: int, published: bool
    ) -> None:
        super().__init__()
        self.heads, self.published = heads, published
        inner, degrees = width // divisor, couplings.degrees
        both = [inner if published or degree >= degrees_in else 2 * inner for degree in range(degrees)]
        self.value = RadialConvolution(couplings, inputs, degrees_in, channels_in, both, published)
        self.key = RadialConvolution(couplings, inputs, degrees_in, channels_in, [inner] * degrees_in, published) if published else None
        self.query = nn.ParameterList(nn.Parameter(torch.randn(channels_in, inner) / math.sqrt(channels_in)) for _ in range(degrees_in))
        joined = [inner + (channels_in if n < degrees_in else 0) for n in range(degrees)]
        self.mix = nn.ParameterList(nn.Parameter(torch.randn(size, width) / math.sqrt(size)) for size in joined)

    def forward(self, features: Tensor, geometry: Geometry) -> Tensor:
        """Features (N, degrees_in², C_in) -> (N, degrees², C / degrees)."""
        coupled = geometry.couple(features, len(self.mix))
        value = self.value(coupled, geometry.radial)
        inner = self.query[0].shape[1]
        if self.key is None:
            key = [part[:, :, inner:] for part in value[: len(self.query)]]
            value = [part[:, :, :inner] for part in value]
        else:
            key = self.key(coupled[: len(self.query)], geometry.radial)
        value, key = (geometry.pad(torch.cat(part, dim=1)).unflatten(3, (self.heads, -1)) for part in (value, key))
        query = torch.cat([part @ matrix for part, matrix in zip(_by_degree(features), self.query, strict=True)], dim=1)
        size = query.shape[1] * query.shape[2]
        logits = torch.einsum("nkmhc,nmhc->nkh", key, query.unflatten(2, (self.heads, -1))) / math.sqrt(size)
        attended = torch.einsum("nkh,nkmhc->nmhc", self._weights(logits, geometry), value).flatten(2)
        own = _by_degree(features)
        mixed = []
        for n, (part, matrix) in enumerate(zip(_by_degree(attended), self.mix, strict=True)):
            mixed.append((torch.cat([part, own[n]], dim=2) if n < len(own) else part) @ matrix)
        return torch.cat(mixed, dim=1)

    def _weights(self, logits: Tensor, geometry: Geometry) -> Tensor:
        """Logits (N, K, heads) -> attention weights, zero in padded places and for an atom without neighbours."""
        logits = logits.masked_fill(geometry.mask[:, :, None] == 0, -torch.inf)
        null = torch.zeros_like(logits[:, :1]) if logits.shape[1] else logits.new_zeros(len(logits), 1, self.heads)
        shift = torch.cat([logits, null], dim=1).detach().amax(1, keepdim=True)
        raised = torch.exp(logits - shift) * geometry.envelope[:, :, None]
        if self.published:
            return raised / (raised.sum(1, keepdim=True) + (geometry.mask.sum(1) == 0)[:, None, None])
        return raised / (raised.sum(1, keepdim=True) + torch.exp(-shift))


class NormNonlinearity(nn.Module):
    """Scales every feature vector by a function of all norms of its degree (Fuchs et al.; the published GNormSE3)."""

    # Softened norm sqrt(|v|² + δ²): its curvature is at most 1/δ, so that a symmetric site, where v is zero, is smooth.
    SOFTENING = 0.1

    def __init__(self, degrees: int, channels: int, published: bool) -> None:
        super().__init__()
        self.published = published
        # Where the few channels' norms are alike, LayerNorm with the published 1e-5 magnifies their differences up to 300
        # times: relative errors of float32 forces reached 5e-5, with 1e-2 they stay below 6e-6.
        self.norms = nn.ModuleList(nn.LayerNorm(channels, eps=1e-5 if published else 1e-2) for _ in range(degrees))

    def forward(self, features: Tensor) -> Tensor:
        """(N, degrees², C) -> (N, degrees², C)."""
        results = []
        for n, (part, norm) in enumerate(zip(_by_degree(features), self.norms, strict=True)):
            square = (part**2).sum(1, keepdim=True)
            if self.published:
                length = torch.sqrt(square.clamp_min(1e-24))
                results.append(relu(norm(length)) * part / length)
            elif n == 0:
                results.append(silu(norm(part)))
            else:
                length = torch.sqrt(square + self.SOFTENING**2)
                results.append(silu(norm(length)) * part / length)
        return torch.cat(results, dim=1)


def _by_degree(features: Tensor) -> list[Tensor]:
    """(N, degrees², C) -> per degree (N, 2 l + 1, C)."""
    degrees = math.isqrt(features.shape[1])
    return list(features.split([2 * n + 1 for n in range(degrees)], dim=1))


def _uniform(networks: int, inputs: int, outputs: int) -> nn.Parameter:
    bound = math.sqrt(6 / inputs)  # Kaiming's for ReLU, as published
    return nn.Parameter(torch.empty(networks, inputs, outputs).uniform_(-bound, bound))


def _uniform_bias(networks: int, inputs: int, outputs: int) -> nn.Parameter:
    bound = 1 / math.sqrt(inputs)
    return nn.Parameter(torch.empty(networks, 1, outputs).uniform_(-bound, bound))


def from_published(
    state: Mapping[str, Tensor], encoder: SE3Transformer, matrices: Mapping[str, np.ndarray] | None = None
) -> dict[str, Tensor]:
    """Tensors of a published state dict (``Gblock.*``) under the names of ``encoder`` (published form) and in its layout.

    matrices: the coupling matrices the weights were trained with, ``J{J}_in{l_in}_out{l_out}`` of shape
    ((2 l_out + 1)(2 l_in + 1), 2 J + 1). Raises InputError where one of them is no coupling at all.
    """
    renamed = {"couplings.signs": encoder.couplings.signs if matrices is None else _signs(encoder.couplings, matrices)}
    for k, layer in enumerate(encoder.layers):
        theirs = f"Gblock.{2 * k}"
        for ours, name in (("value", "v"), ("key", "k")):
            renamed |= _convolution(state, f"{theirs}.GMAB.{name}", f"layers.{k}.{ours}", getattr(layer, ours))
        assert isinstance(layer, AttentionLayer)
        for n in range(len(layer.query)):
            renamed[f"layers.{k}.query.{n}"] = state[f"{theirs}.GMAB.q.transform.{n}"].T
        for n in range(len(layer.mix)):
            renamed[f"layers.{k}.mix.{n}"] = state[f"{theirs}.project.transform.{n}"].T
            for kind in ("weight", "bias"):
                renamed[f"norms.{k}.norms.{n}.{kind}"] = state[f"Gblock.{2 * k + 1}.transform.{n}.0.bn.{kind}"]
    last = f"Gblock.{2 * len(encoder.layers)}"
    renamed |= _convolution(state, last, "last", encoder.last)
    renamed["own"] = state[f"{last}.kernel_self.0"][0].T
    return renamed


def published_matrices() -> dict[str, np.ndarray]:
    """The coupling matrices of Wang et al.'s published checkpoint, as ``from_published`` takes them."""
    names = Couplings(4, published=True).names
    return {
        f"J{J}_in{l_in}_out{l_out}": (1 if sign == "+" else -1) * clebsch_gordan(l_out, l_in, J).reshape(-1, 2 * J + 1)
        for sign, (l_in, l_out, J) in zip(PUBLISHED_SIGNS, names, strict=True)
    }


def _convolution(state: Mapping[str, Tensor], theirs: str, ours: str, target: RadialConvolution) -> dict[str, Tensor]:
    nets = [f"{theirs}.kernel_unary.({l_in},{l_out}).rp.net" for l_in, l_out in target.pairs]

    def stacked(name: str) -> Tensor:
        return torch.stack([state[f"{net}.{name}"] for net in nets])

    renamed = {}
    for number, layer in (("0", "first"), ("3", "second")):
        renamed[f"{ours}.{layer}"] = stacked(f"{number}.weight").mT
        renamed[f"{ours}.{layer}_bias"] = stacked(f"{number}.bias")[:, None]
    for place, number in enumerate(("1", "4")):
        renamed[f"{ours}.norm_weights.{place}"] = stacked(f"{number}.bn.weight")[:, None]
        renamed[f"{ours}.norm_biases.{place}"] = stacked(f"{number}.bn.bias")[:, None]
    rows = []
    for net, pair in zip(nets, target.pairs, strict=True):
        # Their rows are [out, in, path], ours [out, path, in].
        shape = (target.outputs[pair[1]], -1, 2 * min(pair) + 1)
        both = torch.cat([state[f"{net}.6.bias"][:, None], state[f"{net}.6.weight"]], dim=1)
        rows.append(both.unflatten(0, shape).permute(3, 0, 2, 1).flatten(1))
    for place, count in enumerate(target.sizes.values()):
        both = torch.stack(rows[:count])
        rows = rows[count:]
        renamed[f"{ours}.third_bias.{place}"], renamed[f"{ours}.third.{place}"] = both[:, :1], both[:, 1:]
    return renamed


def _signs(couplings: Couplings, matrices: Mapping[str, np.ndarray]) -> Tensor:
    """The sign of each stored matrix relative to the Clebsch-Gordan tensor it must equal otherwise."""
    signs = []
    for l_in, l_out, J in couplings.names:
        name = f"J{J}_in{l_in}_out{l_out}"
        ours = clebsch_gordan(l_out, l_in, J).reshape(-1, 2 * J + 1)
        if name not in matrices or matrices[name].shape != ours.shape:
            raise InputError(f"coupling matrices: {name} of shape {ours.shape} is missing")
        sign = math.copysign(1.0, float((matrices[name] * ours).sum()))
        if np.abs(matrices[name] - sign * ours).max() > 1e-5:
            raise InputError(f"coupling matrices: {name} is not the Clebsch-Gordan tensor of these degrees, up to a sign")
        signs.append(sign)
    return torch.tensor(signs)
