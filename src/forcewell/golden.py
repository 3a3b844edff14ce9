"""Comparison with stored outputs of published implementations (``python -m forcewell.testing golden FILE``).

A golden file is an .npz of parameters (``param/<published name>``), inputs (``<system>/z``, ``pos``, ``batch``) and
outputs (``energy``, ``forces``, ``encoder_x``, ``encoder_v``, ``noise_pred``), with a .json beside it that names the
published code (``reference``) and its hyperparameters. ``MODELS`` has a function for each code that builds it here.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.nn import egnn, equivariant_transformer, gemnet, heads, schnet, se3_transformer
from forcewell.nn.embedding import WANG_CLASSES
from forcewell.potential import Potential
from forcewell.system import Block
from forcewell.torch_file import read_torch_file

COMPARED = ("energy", "forces", "encoder_x", "encoder_v", "noise_pred")


@dataclass(slots=True)
class Published:
    """A published model in our code: a float64 potential, and its energies as ``scale`` * E + ``shift`` per molecule.

    more: further outputs of a batch, (N, ...) or (M, ...), by the names under which they are stored.
    """

    potential: Potential
    scale: float = 1.0
    shift: float = 0.0
    more: Callable[[Batch], dict[str, Tensor]] = lambda batch: {}


def compare(path: Path) -> dict[str, float]:
    """The largest absolute difference from each stored output over all systems of a golden file, in float64.

    Values stored as NaN are not defined and are left out. Raises InputError for a file of another layout or model.
    """
    description, arrays = _read(path)
    if not any(name.startswith("param/") for name in arrays):
        arrays |= _checkpoint(description, path)
    reference = str(description.get("reference", ""))
    build = next((function for name, function in MODELS.items() if name in reference), None)
    if build is None:
        raise InputError(f"{path}: no model here for the reference {reference!r} (known: {', '.join(MODELS)})")
    try:
        model = build(description["hyperparameters"], arrays)
    except (KeyError, IndexError, TypeError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: its settings and parameters are not those of one model ({' '.join(str(error).split())[:200]})") from None
    systems = sorted({name.split("/")[0] for name in arrays if name.endswith("/pos")})
    errors: dict[str, float] = {}
    for system in systems:
        batch = _batch(path, system, arrays)
        mine = _outputs(model, batch)
        for name in dict.fromkeys((*COMPARED, *mine)):
            if f"{system}/{name}" not in arrays:
                continue
            theirs = arrays[f"{system}/{name}"]
            known = np.isfinite(theirs)
            if not known.any():
                continue
            if name not in mine:
                raise InputError(f"{path}: {name} is stored, but this model has no such output")
            if mine[name].size != theirs.size:
                raise InputError(f"{path}: {system}/{name} has shape {theirs.shape}, and that of this model has {mine[name].shape}")
            ours = mine[name].reshape(theirs.shape)
            errors[name] = max(errors.get(name, 0.0), _largest(ours[known] - theirs[known]))
    if not errors:
        raise InputError(f"{path}: no stored outputs to compare with (looked for <system>/{{{', '.join(COMPARED)}}})")
    return errors


def _largest(difference: np.ndarray) -> float:
    # A NaN of ours must count as a disagreement, which max() would hide.
    return float(np.abs(difference).max()) if np.isfinite(difference).all() else float("inf")


def _read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    description = path.with_suffix(".json")
    for needed in (path, description):
        if not needed.is_file():
            raise InputError(f"{needed} does not exist; a golden file is an .npz with a .json of the same name beside it")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        described = json.loads(description.read_text())
        settings = described["hyperparameters"]
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable golden file ({error})") from None
    if not isinstance(settings, dict):
        raise InputError(f"{description}: hyperparameters is a {type(settings).__name__}; expected a mapping of names to values")
    return described, arrays


def _checkpoint(description: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The parameters from the published checkpoint, which has the SHA-256 that the file names and lies beside it."""
    wanted = description.get("checkpoint_sha256")
    for file in sorted(path.parent.glob("*.pth")):
        if hashlib.sha256(file.read_bytes()).hexdigest() == wanted:
            return {f"param/{name}": value.double().numpy() for name, value in read_torch_file(file).items()}
    raise InputError(f"{path} has no parameters, and no .pth file with the SHA-256 {wanted} lies beside it")


def _parameters(arrays: dict[str, np.ndarray], prefix: str = "") -> dict[str, Tensor]:
    """The stored parameters whose published names start with ``prefix``, which is cut off."""
    prefix = f"param/{prefix}"
    return {name.removeprefix(prefix): torch.from_numpy(value) for name, value in arrays.items() if name.startswith(prefix)}


def _torchmd(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    """TorchMD-Net's and NoisyNode's Equivariant Transformer."""
    settings = {
        "name": "equivariant-transformer",
        "channels": given["embedding_dimension"],
        "layers": given["num_layers"],
        "heads": given["num_heads"],
        "radial": given["num_rbf"],
        "cutoff": given["cutoff_upper"],
        "lower_cutoff": given["cutoff_lower"],
        "elements": given["max_z"],
        "smooth_cutoff": bool(given.get("vector_cutoff", False)),
        "trainable_radial": bool(given["trainable_rbf"]),
        "vector_norm": "published-whitened" if given.get("layernorm_on_vec") == "whitened" else "none",
    }
    noise = given.get("output_model_noise") is not None
    potential = Potential({"encoder": settings, "head": {"noise": noise}}).double()
    potential.encoder.load_state_dict(equivariant_transformer.from_torchmd(_parameters(arrays, "representation_model."), settings["heads"]))
    potential.head.load_state_dict(heads.from_torchmd(_parameters(arrays, "output_model.output_network.")))
    if potential.noise_head is not None:
        potential.noise_head.load_state_dict(heads.from_torchmd(_parameters(arrays, "output_model_noise.output_network.")))
    _published_norm(potential)
    return Published(potential, float(arrays["param/std"]), float(arrays["param/mean"]))


def _wang_transformer(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    settings = {
        "name": "equivariant-transformer",
        "channels": given["hidden_channels"],
        "layers": given["num_layers"],
        "heads": given["num_heads"],
        "radial": given["num_rbf"],
        "cutoff": given["cutoff_upper"],
        "classes": "wang",
        "smooth_cutoff": False,
        "trainable_radial": bool(given["trainable_rbf"]),
    }
    potential = Potential({"encoder": settings, "head": {"energy": "pooled", "noise": "vectors"}}).double()
    potential.encoder.load_state_dict(equivariant_transformer.from_torchmd(_parameters(arrays), settings["heads"]))
    potential.head.load_state_dict(heads.from_perceptron(_parameters(arrays, "energy_head.")))
    assert potential.noise_head is not None
    potential.noise_head.load_state_dict(heads.from_torchmd(_parameters(arrays, "force_head.")))
    _published_norm(potential)
    return Published(potential)


def _published_norm(potential: Potential) -> None:
    for module in potential.modules():
        if isinstance(module, heads.GatedEquivariantBlock):
            module.softening = 1e-20  # the published norm, kept finite at zero


def _schnet(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    settings = {
        "name": "schnet",
        "channels": given["hidden_channels"],
        "layers": given["num_interactions"],
        "filters": given["num_filters"],
        "radial": given["num_gaussians"],
        "cutoff": given["cutoff"],
        "classes": "wang",
        "published": True,
    }
    potential = Potential({"encoder": settings}).double()
    encoder, head = schnet.from_published(_parameters(arrays), len(WANG_CLASSES))
    potential.encoder.load_state_dict(encoder)
    potential.head.load_state_dict(head)
    return Published(potential, more=lambda batch: {"atomic_energy": potential.head(potential.encoder(batch))})


def _egnn(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    settings = {
        "name": "egnn",
        "channels": given["hidden_channels"],
        "layers": given["n_layers"],
        "cutoff": given["cutoff"],
        "attention": given["attention"],
        "normalise": given["normalize"],
        "tanh": given["tanh"],
        "classes": "wang",
        "published": True,
    }
    potential = Potential({"encoder": settings, "head": {"energy": "pooled", "noise": "coordinates"}}).double()
    potential.encoder.load_state_dict(egnn.from_published(_parameters(arrays)))
    potential.head.load_state_dict(heads.from_perceptron(_parameters(arrays, "energy_head.")))

    def layers(batch: Batch) -> dict[str, Tensor]:
        kept = potential.encoder(batch, layers=True).layers
        return {f"layer{k}_h": scalars for k, scalars in enumerate(kept)}

    return Published(potential, more=layers)


def _gemnet(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    """GemNet-T of TUM's gemnet_pytorch (spherical Bessel basis) and of MDsim (Gaussians)."""
    settings = {
        "name": "gemnet-t",
        "channels": given["emb_size_edge"],
        "layers": given["num_blocks"],
        "radial": given["num_radial"],
        "cutoff": given["cutoff"],
        "triplet_channels": given["emb_size_trip"],
        "basis_channels": given["emb_size_cbf"],
        "basis": given.get("rbf", {"name": "bessel"})["name"],
        "envelope_exponent": given["envelope_exponent"] if "envelope_exponent" in given else given["envelope"]["exponent"],
        "elements": len(arrays["param/atom_emb.embeddings.weight"]) + 1,
    }
    potential = Potential({"encoder": settings}).double()
    potential.encoder.load_state_dict(gemnet.from_published(_parameters(arrays)))

    def blocks(batch: Batch) -> dict[str, Tensor]:
        features = potential.encoder(batch, layers=True)
        energies = {f"out{k}_E": column for k, column in enumerate(features.energies.unbind(1))}
        scalars = {f"int{k}_h": h for k, h in enumerate(features.layers)}
        return {"atomic_energy": potential.head(features), **energies, **scalars}

    return Published(potential, more=blocks)


def _se3_transformer(given: dict[str, Any], arrays: dict[str, np.ndarray]) -> Published:
    settings = {
        "name": "se3-transformer",
        "channels": given["num_channels"] * given["num_degrees"],
        "layers": given["num_layers"],
        "heads": given["n_heads"],
        "degrees": given["num_degrees"],
        "divisor": given["div"],
        "cutoff": given["cutoff"],
        "classes": "wang",
        "published": True,
        "truncated_gradient": True,
    }
    potential = Potential({"encoder": settings, "head": {"energy": "mean-pooled"}}).double()
    encoder = potential.encoder
    assert isinstance(encoder, se3_transformer.SE3Transformer)
    matrices = {name.removeprefix("Q/"): value for name, value in arrays.items() if name.startswith("Q/")}
    encoder.load_state_dict(se3_transformer.from_published(_parameters(arrays), encoder, matrices))
    potential.head.load_state_dict(heads.from_perceptron(_parameters(arrays, "FCblock.")))

    def more(batch: Batch) -> dict[str, Tensor]:
        encoder.truncated_gradient = False
        with torch.enable_grad():
            full = potential(batch).forces
        encoder.truncated_gradient = True
        kept = encoder(batch, layers=True).layers
        return {"forces_full_gradient": full} | {f"block{2 * k + 1}_deg0": scalars for k, scalars in enumerate(kept or ())}

    return Published(potential, more=more)


# By a part of the reference that a file names; each function builds that model in its published form.
MODELS: dict[str, Callable[[dict[str, Any], dict[str, np.ndarray]], Published]] = {
    "torchmd/torchmd-net": _torchmd,
    "pre-training-via-denoising": _torchmd,
    "Denoise-Pretrain-ML-Potential models/torchmdnet": _wang_transformer,
    "Denoise-Pretrain-ML-Potential models/schnet": _schnet,
    "Denoise-Pretrain-ML-Potential models/egnn": _egnn,
    "gemnet_pytorch": _gemnet,
    "MDsim mdsim/models/gemnet": _gemnet,
    "Denoise-Pretrain-ML-Potential models/se3transformer": _se3_transformer,
}


def _batch(path: Path, system: str, arrays: dict[str, np.ndarray]) -> Batch:
    """The molecules of a system. Raises InputError where its arrays are not those of molecules."""
    if f"{system}/z" not in arrays:
        raise InputError(f"{path}: {system}/z, its atomic numbers, is missing")
    numbers, positions, molecule = arrays[f"{system}/z"], arrays[f"{system}/pos"], arrays.get(f"{system}/batch")
    try:
        counts = np.array([len(numbers)]) if molecule is None else np.bincount(molecule)
        return Batch.from_block(Block(counts, {"numbers": numbers, "positions": positions}), dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"{path}: {system}/z, pos and batch are not those of molecules ({error})") from None


def _outputs(model: Published, batch: Batch) -> dict[str, np.ndarray]:
    """Energy and forces on the published scale, and the encoder's features."""
    prediction = model.potential(batch, noise=model.potential.noise_head is not None)
    with torch.no_grad():
        features = model.potential.encoder(batch)
        more = model.more(batch)
    assert prediction.forces is not None
    mine = {
        "energy": prediction.energy * model.scale + model.shift,
        "forces": prediction.forces * model.scale,
        "encoder_x": features.scalars,
        "encoder_v": features.vectors,
        "noise_pred": prediction.noise,
        **more,
    }
    return {name: value.detach().numpy() for name, value in mine.items() if value is not None}
