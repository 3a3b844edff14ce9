"""Published checkpoints -> Forcewell model files. Only tensors and settings are read (see torch_file.py)."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from forcewell.checkpoint import save_model
from forcewell.errors import InputError, nearest
from forcewell.fields import ELEMENTS
from forcewell.golden import MODELS, Published
from forcewell.nn.heads import EquivariantScalar, OwnEnergies
from forcewell.nn.se3_transformer import published_matrices
from forcewell.potential import Potential
from forcewell.torch_file import read_torch_file
from forcewell.units import energy_factor

_TORCHMD, _WANG = "torchmd/torchmd-net", "Denoise-Pretrain-ML-Potential models/"
_TUM, _MDSIM = "gemnet_pytorch", "MDsim mdsim/models/gemnet"
# What a TorchMD-Net model must be, since its tensors alone do not say so.
_REQUIRED: dict[str, tuple[Any, ...]] = {
    "model": ("equivariant-transformer",),
    "activation": ("silu",),
    "attn_activation": ("silu",),
    "rbf_type": ("expnorm",),
    "distance_influence": ("both",),
    "neighbor_embedding": (True,),
    "reduce_op": ("add",),
    "aggr": ("add",),
    "output_model": ("Scalar", "EquivariantScalar"),
    "output_model_noise": (None, "VectorOutput", "EquivariantVectorOutput"),
    "layernorm_on_vec": (None, "whitened"),
    "charge": (False, None),
    "spin": (False, None),
}
# Tensors that the energy does not depend on: dead modules, duplicates, a box of the neighbour search, statistics.
_UNUSED = re.compile(
    r"(x_t_layers|vec_t_layers)\.|interactions\.\d+\.conv\.nn\.|representation_model\.distance\.box$|pos_normalizer\."
    r"|prior_model\.(\d+\.)?initial_atomref$|out_blocks\.\d+\.seq_energy\.|.*\brbf\.offset$"
)
_ATOMREF = re.compile(r"prior_model\.(\d+\.)?atomref\.weight$")


@dataclass(frozen=True, slots=True)
class Layout:
    """A published layout: the tensor by which it is known, its model here, and the settings that tensors do not tell.

    free: their published names and values where a file does not store them; None must be stored or given.
    """

    title: str
    mark: str
    model: str
    free: Mapping[str, float | bool | None]


LAYOUTS = (
    Layout(
        "TorchMD-Net Equivariant Transformer",
        "representation_model.embedding.weight",
        _TORCHMD,
        {"num_heads": None, "cutoff_upper": None, "cutoff_lower": 0.0, "vector_cutoff": False},
    ),
    Layout("SE(3)-Transformer of Wang et al.", "Gblock.0.GMAB.q.transform.0", f"{_WANG}se3transformer", {"n_heads": 2, "cutoff": 5.0}),
    Layout(
        "Equivariant Transformer of Wang et al.",
        "attention_layers.0.q_proj.weight",
        f"{_WANG}torchmdnet",
        {"num_heads": 8, "cutoff_upper": 5.0, "cutoff_lower": 0.0},
    ),
    Layout("SchNet of Wang et al.", "interactions.0.mlp.0.weight", f"{_WANG}schnet", {"cutoff": 5.0}),
    Layout("EGNN of Wang et al.", "gcl_0.edge_mlp.0.weight", f"{_WANG}egnn", {"normalize": True, "tanh": True, "cutoff": 5.0}),
    Layout("GemNet-T of TUM's gemnet_pytorch", "rbf_basis.frequencies", _TUM, {"cutoff": 5.0, "envelope_exponent": 5}),
    Layout("GemNet-T of MDsim", "radial_basis.rbf.offset", _MDSIM, {"cutoff": 5.0, "envelope_exponent": 5}),
)


@dataclass(slots=True)
class Converted:
    """A potential from a checkpoint, and what to tell about it."""

    potential: Potential
    title: str
    notes: list[str]
    details: dict[str, Any]


def convert(
    checkpoint: Path,
    *,
    settings: Mapping[str, Any] | None = None,
    level: str = "converted",
    energy_unit: str = "eV",
    basis: Path | None = None,
) -> Converted:
    """The model of a published checkpoint (a file of ``torch.save``, with or without a training framework's wrapping).

    settings: hyperparameters by their published names, where the file has none or others are wanted. level: name for
    its level of theory. energy_unit: unit of the checkpoint's energies; the result is in eV. basis: an .npz with the
    coupling matrices that an SE(3)-Transformer was trained with; without it, those of Wang et al.'s checkpoint.
    Raises InputError for files of another layout, models that are not available here, and settings that are missing.
    """
    factor, wanted = energy_factor(energy_unit), dict(settings or {})
    state, stored = _contents(checkpoint)
    layout = next((layout for layout in LAYOUTS if layout.mark in state), None)
    if layout is None:
        known = "; ".join(layout.title for layout in LAYOUTS)
        raise InputError(f"{checkpoint}: no known model has these tensors ({', '.join(list(state)[:3])} ...); known: {known}")
    if layout.model == _TORCHMD:
        _check_torchmd(stored, checkpoint)
    given = _settings(layout, state, stored, wanted, checkpoint)
    arrays = {"param/std": np.array(1.0), "param/mean": np.array(0.0)} if layout.model == _TORCHMD else {}
    arrays |= {f"param/{name}": value.double().numpy() for name, value in state.items()}
    notes = []
    assumed = [f"{key} {given[key]}" for key in layout.free if key not in stored and key not in wanted]
    if assumed:
        notes.append(f"not stored in the file, taken as published (--set changes it): {', '.join(assumed)}")
    if layout.model == f"{_WANG}se3transformer":
        arrays |= _coupling_matrices(basis, given, notes)
    if layout.model.startswith(_WANG):
        notes.append("the published checkpoints of this kind predict coordinate noise: fine-tune before energies or forces are used")
    published = _build(layout, given, state, arrays, checkpoint)
    potential = _in_electronvolt(published, state, level, factor)
    potential.to(torch.float64 if state[layout.mark].dtype == torch.float64 else torch.float32)
    details = {"layout": layout.title, "settings": given, "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest()}
    return Converted(potential, layout.title, notes, details | _noise_statistics(state))


def convert_file(checkpoint: Path, out: Path, **options: Any) -> Converted:
    """Converts and writes a model file (``out``); see ``convert``. Raises InputError where ``out`` exists, too."""
    if out.exists():
        raise InputError(f"{out} already exists; choose another name or remove it")
    converted = convert(checkpoint, **options)
    save_model(out, converted.potential, converted=converted.details)
    return converted


def parse_settings(changes: list[str] | None) -> dict[str, Any]:
    """``key=value`` words -> settings. Raises InputError for a word of another form."""
    settings = {}
    for change in changes or []:
        key, sign, value = change.partition("=")
        if not key or not sign:
            raise InputError(f"--set {change}: expected key=value, e.g. num_heads=8")
        try:
            settings[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"--set {change}: {value!r} is not a plain value") from None
    return settings


def _contents(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """State dict (names without the wrapping's prefix) and stored hyperparameters of a checkpoint."""
    tree = read_torch_file(path)
    stored: dict[str, Any] = {}
    if isinstance(tree, dict) and isinstance(tree.get("state_dict"), dict):
        stored = tree.get("hyper_parameters") or {}
        if tree.get("normalizers"):
            raise InputError(f"{path}: its energies are normalised by numbers kept beside the tensors; such files cannot be converted")
        tree = tree["state_dict"]
    tensors = {str(name): value for name, value in tree.items() if isinstance(value, Tensor)} if isinstance(tree, dict) else {}
    if not tensors:
        raise InputError(f"{path} has no state dict: expected named tensors, or a Lightning checkpoint with a 'state_dict'")
    for prefix in ("model.", "module.", "module."):  # Lightning's; of data-parallel training, once or twice
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{path}: {name} has values that are not finite; the training that wrote it had failed")
    return tensors, dict(stored) if isinstance(stored, dict) else {}


def _settings(
    layout: Layout, state: Mapping[str, Tensor], stored: Mapping[str, Any], wanted: Mapping[str, Any], path: Path
) -> dict[str, Any]:
    """Hyperparameters under their published names: from shapes, what is published, the file's own, then the user's."""
    for key in wanted:
        if key not in layout.free:
            close = nearest(key, layout.free)
            raise InputError(f"--set {key}: not a setting of the {layout.title}{close} (possible: {', '.join(layout.free)})")
    try:
        given = _SHAPES[layout.model](state)
    except (KeyError, IndexError, TypeError, ZeroDivisionError) as error:
        raise InputError(f"{path}: its tensors are not those of one {layout.title} ({error} is missing or empty)") from None
    if "trainable_rbf" in given:
        given["trainable_rbf"] = bool(stored.get("trainable_rbf", given["trainable_rbf"]))
    for key, default in layout.free.items():
        value = given[key] = wanted.get(key, stored.get(key, default))
        if value is None:
            raise InputError(f"{path} does not store {key}; give it with --set, e.g. --set {key}={8 if 'heads' in key else 5.0}")
        if isinstance(default, bool):
            possible, expected = isinstance(value, bool), "true or false"
        elif "heads" in key or "exponent" in key:
            possible, expected = type(value) is int and value > 0, "a whole number above zero"
        else:
            possible = type(value) in (int, float) and math.isfinite(value) and value >= 0 and (value > 0 or key == "cutoff_lower")
            expected = "a length in Å"
        if not possible:
            raise InputError(f"{key} is {value!r}; expected {expected}")
    return given


def _check_torchmd(stored: Mapping[str, Any], path: Path) -> None:
    for key, possible in _REQUIRED.items():
        if key in stored and stored[key] not in possible:
            raise InputError(f"{path}: {key} is {stored[key]!r}; only {' or '.join(str(value) for value in possible)} can be converted")
    filtered = stored.get("atom_filter")
    if isinstance(filtered, int) and filtered > 0:
        raise InputError(f"{path}: atom_filter is {filtered}; a model that leaves out atoms cannot be converted")
    priors = stored.get("prior_model") or []
    for prior in priors if isinstance(priors, list | tuple) else [priors]:
        name = next(iter(prior)) if isinstance(prior, dict) else str(prior)
        if name not in ("Atomref", "LearnableAtomref"):
            raise InputError(f"{path}: prior_model {name} cannot be converted; only Atomref can")


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    numbers = [int(found[1]) for name in state if (found := re.match(pattern, name))]
    return 1 + max(numbers, default=-1)


def _torchmd_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    prefix = "representation_model."
    return {
        "embedding_dimension": state[f"{prefix}embedding.weight"].shape[1],
        "max_z": len(state[f"{prefix}embedding.weight"]),
        "num_layers": _count(state, r"representation_model\.attention_layers\.(\d+)\."),
        "num_rbf": len(state[f"{prefix}distance_expansion.means"]),
        "trainable_rbf": False,
        "output_model_noise": "VectorOutput" if any(name.startswith("output_model_noise.") for name in state) else None,
        "layernorm_on_vec": "whitened" if f"{prefix}out_norm_vec.weight" in state else None,
    }


def _wang_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "hidden_channels": state["type_embedding.weight"].shape[1],
        "num_layers": _count(state, r"attention_layers\.(\d+)\."),
        "num_rbf": len(state["distance_expansion.means"]),
        "trainable_rbf": True,
    }


def _schnet_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "hidden_channels": state["embedding.weight"].shape[1],
        "num_filters": len(state["interactions.0.mlp.0.weight"]),
        "num_interactions": _count(state, r"interactions\.(\d+)\."),
        "num_gaussians": len(state["distance_expansion.offset"]),
    }


def _egnn_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {
        "hidden_channels": state["type_embedding.weight"].shape[1],
        "n_layers": _count(state, r"gcl_(\d+)\."),
        "attention": "gcl_0.att_mlp.0.weight" in state,
    }


def _gemnet_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    # Published files have each dense layer's weight once or twice: under its own name, and under that of the linear layer within.
    weight = {name.replace(".linear.weight", ".weight"): value for name, value in state.items()}
    given: dict[str, Any] = {
        "emb_size_edge": len(weight["edge_emb.dense.weight"]),
        "num_blocks": _count(state, r"int_blocks\.(\d+)\."),
        "num_radial": weight["mlp_rbf3.weight"].shape[1],
        "emb_size_trip": len(weight["int_blocks.0.trip_interaction.down_projection.weight"]),
        "emb_size_cbf": weight["mlp_cbf3.weight"].shape[2],
    }
    return given | ({} if "rbf_basis.frequencies" in state else {"rbf": {"name": "gaussian"}})


def _se3_shapes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    width = state["Gblock.0.project.transform.0"].shape[0]
    return {
        "num_channels": width,
        "num_layers": _count(state, r"Gblock\.(\d+)\.") // 2,
        "num_degrees": _count(state, r"Gblock\.0\.project\.transform\.(\d+)"),
        "div": width // state["Gblock.0.GMAB.q.transform.0"].shape[0],
    }


_SHAPES = {
    _TORCHMD: _torchmd_shapes,
    f"{_WANG}torchmdnet": _wang_shapes,
    f"{_WANG}schnet": _schnet_shapes,
    f"{_WANG}egnn": _egnn_shapes,
    f"{_WANG}se3transformer": _se3_shapes,
    _TUM: _gemnet_shapes,
    _MDSIM: _gemnet_shapes,
}


def _coupling_matrices(basis: Path | None, given: Mapping[str, Any], notes: list[str]) -> dict[str, np.ndarray]:
    """The matrices ``Q/*`` of the user's file, or those recovered for Wang et al.'s checkpoint."""
    if basis is None:
        if given["num_degrees"] != 4:
            raise InputError("only for four degrees are the published coupling matrices known; give yours with --basis FILE.npz")
        notes.append("coupling matrices: those recovered for Wang et al.'s checkpoint (their signs are not in any checkpoint; see --basis)")
        return {f"Q/{name}": matrix for name, matrix in published_matrices().items()}
    try:
        with np.load(basis, allow_pickle=False) as archive:
            return {f"Q/{name.removeprefix('Q/')}": archive[name] for name in archive.files if re.match(r"(Q/)?J\d", name)}
    except (ValueError, OSError, EOFError) as error:
        raise InputError(f"{basis}: not a readable .npz of coupling matrices ({error})") from None


def _build(layout: Layout, given: dict[str, Any], state: Mapping[str, Tensor], arrays: dict[str, np.ndarray], path: Path) -> Published:
    """The published model with its tensors, each of which must have a place in it or be known to be of no use."""
    try:
        published = MODELS[layout.model](given, arrays)
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: its tensors are not those of one {layout.title} ({' '.join(str(error).split())[:200]})") from None
    placed = sum(value.numel() for name, value in published.potential.state_dict().items() if name != "encoder.couplings.signs")
    of_use = {name: value for name, value in state.items() if not (_UNUSED.match(name) or _ATOMREF.match(name) or name in ("mean", "std"))}
    if layout.model == f"{_WANG}schnet":
        of_use["embedding.weight"] = of_use["embedding.weight"][: published.potential.encoder.rows]  # 100 rows, of which 28 are classes
    if layout.model in (_TUM, _MDSIM):
        of_use = {name.replace(".linear.weight", ".weight"): value for name, value in of_use.items()}
    there = sum(value.numel() for value in of_use.values())
    if there != placed:
        raise InputError(
            f"{path}: {there} numbers where the {layout.title} has {placed}; it is another model, or has parts that are unknown"
        )
    return published


def _in_electronvolt(published: Published, state: Mapping[str, Tensor], level: str, factor: float) -> Potential:
    """Σ_i (std e_i + atomref_i) + mean, all times ``factor``: std goes into the last layer, atomref and mean into the
    reference energies of ``level``."""
    source = published.potential
    if isinstance(source.head, OwnEnergies):
        last: list[Any] = [block.energy.weight for block in source.encoder.outputs]  # type: ignore[union-attr]
    else:
        layer: Any = source.head.blocks[-1].gate if isinstance(source.head, EquivariantScalar) else source.head.out  # type: ignore[union-attr, index]
        last = [layer.weight, layer.bias]
    with torch.no_grad():
        for part in last:
            part[:1] *= published.scale * factor
    references = np.zeros(ELEMENTS)
    references[0] = published.shift * factor
    for name, value in state.items():
        if _ATOMREF.match(name):
            values = value.double().numpy().reshape(-1)[:ELEMENTS]
            references[1 : len(values)] += values[1:] * factor
    sharp = {"equivariant": "published-equivariant", "vectors": "published-vectors"}
    head = {key: sharp.get(kind, kind) for key, kind in source.config["head"].items()}
    potential = Potential({**source.config, "head": head}, levels=(level,), references={level: references}).double()
    potential.load_state_dict(source.state_dict())
    return potential


def _noise_statistics(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """NoisyNode's running statistics: its noise head predicts (noise - mean) / std, per axis, in Å."""
    if "pos_normalizer.acc_count" not in state:
        return {}
    count = max(float(state["pos_normalizer.acc_count"]), 1.0)
    mean = state["pos_normalizer.acc_sum"].double() / count
    variance = state["pos_normalizer.acc_squared_sum"].double() / count - mean**2
    return {"noise_mean": mean.tolist(), "noise_std": variance.clamp_min(0).sqrt().clamp_min(1e-8).tolist()}
