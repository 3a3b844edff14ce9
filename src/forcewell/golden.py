"""Comparison with stored outputs of published implementations (``python -m forcewell.testing golden FILE``).

A golden file is an .npz of parameters (``param/<published name>``), inputs (``<system>/z``, ``pos``, ``batch``) and
outputs (``energy``, ``forces``, ``encoder_x``, ``encoder_v``, ``noise_pred``), with a .json of hyperparameters beside it.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.nn import equivariant_transformer, heads
from forcewell.potential import Potential
from forcewell.system import Block

COMPARED = ("energy", "forces", "encoder_x", "encoder_v", "noise_pred")


def compare(path: Path) -> dict[str, float]:
    """The largest absolute difference from each stored output over all systems of a golden file, in float64.

    Values stored as NaN are not defined and are left out. Raises InputError for a file of another layout or model.
    """
    hyperparameters, arrays = _read(path)
    try:
        potential, scale, shift = _build(hyperparameters, arrays, path)
    except (KeyError, RuntimeError) as error:
        raise InputError(f"{path}: its settings and parameters are not those of one model ({' '.join(str(error).split())[:200]})") from None
    systems = sorted({name.split("/")[0] for name in arrays if name.endswith("/pos")})
    errors: dict[str, float] = {}
    for system in systems:
        mine = _outputs(
            potential, scale, shift, {name.split("/", 1)[1]: value for name, value in arrays.items() if name.startswith(f"{system}/")}
        )
        for name in COMPARED:
            if f"{system}/{name}" not in arrays:
                continue
            theirs = arrays[f"{system}/{name}"]
            known = np.isfinite(theirs)
            if not known.any():
                continue
            if name not in mine:
                raise InputError(f"{path}: {name} is stored, but this model has no such output")
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
        hyperparameters = json.loads(description.read_text())["hyperparameters"]
    except (ValueError, KeyError, TypeError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a readable golden file ({error})") from None
    return hyperparameters, arrays


def _build(given: dict[str, Any], arrays: dict[str, np.ndarray], path: Path) -> tuple[Potential, float, float]:
    """The model that the hyperparameters describe, in its published form, with the stored parameters."""
    if given.get("model") != "equivariant-transformer" or given.get("layernorm_on_vec") is not None:
        raise InputError(f"{path}: this model is not available; expected a TorchMD-Net equivariant-transformer without whitening")
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
    }
    noise = given.get("output_model_noise") is not None
    potential = Potential({"encoder": settings, "head": {"noise": noise}}).double()
    state = {name.removeprefix("param/"): torch.from_numpy(value) for name, value in arrays.items() if name.startswith("param/")}

    def under(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}

    potential.encoder.load_state_dict(equivariant_transformer.from_torchmd(under("representation_model."), settings["heads"]))
    potential.head.load_state_dict(heads.from_torchmd(under("output_model.output_network.")))
    if potential.noise_head is not None:
        potential.noise_head.load_state_dict(heads.from_torchmd(under("output_model_noise.output_network.")))
    for module in potential.modules():
        if isinstance(module, heads.GatedEquivariantBlock):
            module.softening = 1e-20  # the published norm, kept finite at zero
    return potential, float(state["std"]), float(state["mean"])


def _outputs(potential: Potential, scale: float, shift: float, system: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Energy and forces on the published scale (std * E + mean per molecule), and the encoder's features."""
    counts = np.bincount(system["batch"]) if "batch" in system else np.array([len(system["z"])])
    batch = Batch.from_block(Block(counts, {"numbers": system["z"], "positions": system["pos"]}), dtype=torch.float64)
    prediction = potential(batch, noise=potential.noise_head is not None)
    with torch.no_grad():
        features = potential.encoder(batch)
    assert prediction.forces is not None
    mine = {
        "energy": prediction.energy * scale + shift,
        "forces": prediction.forces * scale,
        "encoder_x": features.scalars,
        "encoder_v": features.vectors,
    }
    if prediction.noise is not None:
        mine["noise_pred"] = prediction.noise
    return {name: value.detach().numpy() for name, value in mine.items()}
