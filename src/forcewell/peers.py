"""Models of other packages at their published sizes, to be timed beside Forcewell's: the packages are imported only here.

Needs nothing but PyTorch and NumPy of its own, so that it runs in an environment that holds one of the packages and no more.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

SYMBOLS = {1: "H", 6: "C", 7: "N", 8: "O", 9: "F"}
ET = {"embedding_dimension": 256, "num_layers": 8, "num_rbf": 64, "num_heads": 8, "cutoff_upper": 5.0}


class Structure:
    """Molecules as flat tensors, with the directed pairs within a cutoff (Å), and random labels to train on.

    numbers (N,), positions (N, 3) Å, counts (M,) atoms of each molecule.
    """

    def __init__(self, numbers: np.ndarray, positions: np.ndarray, counts: np.ndarray, cutoff: float) -> None:
        self.numbers, self.counts = torch.from_numpy(numbers).long(), torch.from_numpy(counts).long()
        self.positions = torch.from_numpy(positions).float()
        self.molecule = torch.repeat_interleave(torch.arange(len(self.counts)), self.counts)
        near = torch.cdist(self.positions.double(), self.positions.double()) < cutoff
        near &= self.molecule[:, None] == self.molecule
        near.fill_diagonal_(False)
        self.edges = near.nonzero().T.contiguous()
        generator = torch.Generator().manual_seed(0)
        self.energy = torch.randn(len(self.counts), generator=generator)
        self.forces = torch.randn(self.positions.shape, generator=generator)


Call = Callable[[Structure], tuple[torch.Tensor, torch.Tensor]]
Built = tuple[torch.nn.Module, float, Call]


def training_step(call: Call, given: Structure, optimiser: torch.optim.Optimizer) -> None:
    """One step of an optimiser on the labels of ``given``."""
    optimiser.zero_grad()
    energy, forces = call(given)
    (((energy - given.energy) ** 2).mean() + ((forces - given.forces) ** 2).mean()).backward()
    optimiser.step()


def torchmd_net() -> Built:
    """TorchMD-Net's Equivariant Transformer at its published size."""
    from torchmdnet.models.model import create_model

    common = {"model": "equivariant-transformer", "precision": 32, "rbf_type": "expnorm", "trainable_rbf": False, "activation": "silu"}
    attention = {"attn_activation": "silu", "neighbor_embedding": True, "distance_influence": "both", "vector_cutoff": True}
    rest = {"cutoff_lower": 0.0, "max_z": 100, "max_num_neighbors": 64, "aggr": "add", "derivative": True, "prior_model": None}
    model = create_model({**ET, **common, **attention, **rest, "output_model": "Scalar", "reduce_op": "add", "atom_filter": -1})

    def call(s: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        energy, forces = model(s.numbers, s.positions.clone(), s.molecule)
        return energy[:, 0], forces

    return model, 5.0, call


def nequip(l_max: int, layers: int, cutoff: float) -> Built:
    """NequIP: 32 features of both parities; l_max 3, 5 layers and 4 Å is the MD17 configuration of the literature."""
    from nequip.model import NequIPGNNModel
    from nequip.utils.global_state import set_global_state

    set_global_state()
    settings = {"num_layers": layers, "l_max": l_max, "parity": True, "num_features": 32, "radial_mlp_depth": 2, "radial_mlp_width": 64}
    scales = {"avg_num_neighbors": 15.0, "per_type_energy_scales": 1.0, "per_type_energy_shifts": 0.0}
    names = list(SYMBOLS.values())
    model = NequIPGNNModel(seed=0, model_dtype="float32", type_names=names, r_max=cutoff, **settings, **scales)
    places = torch.zeros(119, dtype=torch.long)
    places[list(SYMBOLS)] = torch.arange(len(SYMBOLS))

    def call(s: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        data = {"pos": s.positions.clone(), "atom_types": places[s.numbers], "edge_index": s.edges}
        found = model(data | {"batch": s.molecule, "num_atoms": s.counts})
        return found["total_energy"][:, 0], found["forces"]

    return model, cutoff, call


def mace(irreps: str) -> Built:
    """MACE with two interactions, correlation 3, l 3."""
    torch.serialization.add_safe_globals([slice])  # e3nn 0.4 keeps slices in a file of its own

    from e3nn import o3
    from mace.modules import ScaleShiftMACE, interaction_classes

    numbers = list(SYMBOLS)
    model = ScaleShiftMACE(
        r_max=5.0, num_bessel=8, num_polynomial_cutoff=5, max_ell=3, num_interactions=2, num_elements=len(numbers), correlation=3,
        interaction_cls=interaction_classes["RealAgnosticResidualInteractionBlock"], hidden_irreps=o3.Irreps(irreps),
        interaction_cls_first=interaction_classes["RealAgnosticResidualInteractionBlock"], MLP_irreps=o3.Irreps("16x0e"),
        atomic_energies=np.zeros(len(numbers)), avg_num_neighbors=15.0, atomic_numbers=numbers, gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0, atomic_inter_shift=0.0,
    )  # fmt: skip
    rows = torch.zeros(119, dtype=torch.long)
    rows[numbers] = torch.arange(len(numbers))

    def call(s: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        attributes = torch.nn.functional.one_hot(rows[s.numbers], len(numbers)).float()
        pointer = torch.cat([torch.zeros(1, dtype=torch.long), s.counts.cumsum(0)])
        shifts, cell = torch.zeros(s.edges.shape[1], 3), torch.zeros(3 * len(s.counts), 3)
        graph = {"edge_index": s.edges, "shifts": shifts, "unit_shifts": shifts, "cell": cell, "batch": s.molecule, "ptr": pointer}
        found = model(graph | {"positions": s.positions.clone(), "node_attrs": attributes}, training=model.training)
        return found["energy"], found["forces"]

    return model, 5.0, call


def schnetpack(kind: str) -> Built:
    """SchNetPack's PaiNN (3 layers) or SchNet (6 layers), 128 features, 5 Å."""
    import torch.utils.data.dataloader as dataloader

    if not hasattr(dataloader, "T_co"):  # the name that schnetpack 2.1 imports is gone from torch 2.13
        from typing import TypeVar

        dataloader.T_co = TypeVar("T_co", covariant=True)  # type: ignore[attr-defined]
    from schnetpack.atomistic import Atomwise, Forces, PairwiseDistances
    from schnetpack.model import NeuralNetworkPotential
    from schnetpack.nn import CosineCutoff, GaussianRBF
    from schnetpack.representation import PaiNN, SchNet

    common = {"n_atom_basis": 128, "radial_basis": GaussianRBF(20, 5.0), "cutoff_fn": CosineCutoff(5.0)}
    representation = PaiNN(n_interactions=3, **common) if kind == "painn" else SchNet(n_interactions=6, **common)
    outputs = [Atomwise(n_in=128, output_key="energy"), Forces(energy_key="energy", force_key="forces")]
    model = NeuralNetworkPotential(representation, input_modules=[PairwiseDistances()], output_modules=outputs)

    def call(s: Structure) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = {"_idx_i": s.edges[0], "_idx_j": s.edges[1], "_offsets": torch.zeros(s.edges.shape[1], 3)}
        rest = {"_idx_m": s.molecule, "_n_atoms": s.counts, "_cell": torch.zeros(len(s.counts), 3, 3)}
        found = model({"_atomic_numbers": s.numbers, "_positions": s.positions.clone(), **pairs, **rest})
        return found["energy"], found["forces"]

    return model, 5.0, call


# Name: package to import, builder of (model, cutoff in Å, energies (M,) and forces (N, 3) of a Structure).
MODELS: dict[str, tuple[str, Callable[[], Built]]] = {
    "torchmd-net": ("torchmdnet", torchmd_net),
    "nequip-l3": ("nequip", lambda: nequip(3, 5, 4.0)),
    "nequip-l1": ("nequip", lambda: nequip(1, 4, 5.0)),
    "mace-128x1": ("mace", lambda: mace("128x0e + 128x1o")),
    "mace-128x0": ("mace", lambda: mace("128x0e")),
    "painn": ("schnetpack", lambda: schnetpack("painn")),
    "schnet": ("schnetpack", lambda: schnetpack("schnet")),
}
