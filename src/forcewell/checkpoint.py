"""Models in one file and resumable state: tensors in safetensors, everything else JSON. Nothing executable.

Every file carries a SHA-256 over its JSON and its tensors, so that a flipped byte anywhere is found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from forcewell import __version__
from forcewell.errors import InputError, nearest
from forcewell.files import write_bytes
from forcewell.potential import Potential

FORMAT = 1
UNITS = {"energy": "eV", "length": "Å", "forces": "eV/Å", "time": "fs", "mass": "amu"}
MODEL = "model.safetensors"  # of a run, in its folder
_HASHES = "geometry_hashes"  # of the first training; those of later ones have a number behind it


def digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a JSON text and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], description: Mapping[str, Any]) -> None:
    """One safetensors file with ``description`` as JSON in its header, written aside and renamed into place.

    An OSError (a full disk) leaves what was there before.
    """
    from safetensors.torch import save

    contiguous = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    text = json.dumps(description, sort_keys=True)
    data = save(contiguous, metadata={"forcewell": text, "sha256": digest(text, contiguous)})
    write_bytes(path, data)


def read_tensors(path: Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description of a file from ``write_tensors``; ``kind`` names it in messages.

    Raises InputError where the file is missing, is not safetensors (a pickle, say), is truncated, or has changed.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a {kind} (.safetensors)")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not a readable {kind}: expected an intact safetensors file ({str(error).splitlines()[0]})") from None
    if "forcewell" not in metadata or "sha256" not in metadata:
        raise InputError(f"{path} is a safetensors file, but not a {kind} written by forcewell")
    if digest(metadata["forcewell"], tensors) != metadata["sha256"]:
        raise InputError(f"{path} is damaged: its SHA-256 does not match its contents; restore it from a copy")
    return tensors, json.loads(metadata["forcewell"])


def save_model(path: Path, potential: Potential, *, hashes: Sequence[np.ndarray] = (), **details: Any) -> None:
    """Writes a model file; ``details`` (data, ancestry, training summary ...) go into its description.

    hashes: sketches (K,) uint64 of the geometries of each training, that of the last one last (see ``overlap``).
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in potential.state_dict().items()}
    tensors |= {_hashes(k): torch.from_numpy(sketch.view(np.int64).copy()) for k, sketch in enumerate(hashes)}
    description = {
        "format": FORMAT,
        "version": __version__,
        "units": UNITS,
        "config": potential.config,
        "levels": list(potential.levels),
        "references": {level: potential.references[level].tolist() for level in potential.levels},
        "elements": [int(z) for z in potential.elements],
        **details,
    }
    write_tensors(path, tensors, description)


def find_model(path: str | Path) -> Path:
    """The path of a model file: as given, in a run's folder, or by the name of one that comes with the package (``forcewell-small``).

    Raises InputError for a folder without a model and for a bare name that is none of these.
    """
    path = Path(path)
    if path.is_dir():
        if not (path / MODEL).is_file():
            raise InputError(f"{path} is a folder without a {MODEL}; expected a model file, or the folder of a run that has saved one")
        return path / MODEL
    if path.exists() or path.suffix or len(path.parts) != 1:
        return path
    shipped = Path(__file__).with_name("models")
    names = sorted(file.stem for file in shipped.glob("*.safetensors"))
    if path.name not in names:
        raise InputError(
            f"there is no model {str(path)!r}{nearest(path.name, names)}; expected a model file, or one of the package: {', '.join(names)}"
        )
    return shipped / f"{path.name}.safetensors"


def load_model(path: str | Path) -> tuple[Potential, dict[str, Any]]:
    """A potential and its description, from the file alone; ``path`` may be the name of a model in the package.

    Raises InputError for a missing, damaged or foreign file, or one of a newer format.
    """
    tensors, description = read_tensors(find_model(path), "model file")
    if description.get("format", 0) > FORMAT:
        raise InputError(f"{path} has model format {description['format']}; this forcewell reads up to {FORMAT}: update it")
    if "config" not in description:
        raise InputError(f"{path} is not a model file (a run's state?); expected model.safetensors")
    potential = Potential(
        description["config"],
        levels=description["levels"],
        references={level: np.array(values) for level, values in description["references"].items()},
        elements=description["elements"],
    )
    weights = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    potential.to(next(iter(weights.values())).dtype)  # a model trained in float64 stays one
    potential.load_state_dict(weights)
    return potential.eval(), description


def load(path: str | Path) -> Potential:
    """A potential from a model file. Raises InputError (see ``load_model``)."""
    return load_model(path)[0]


def training_hashes(path: str | Path) -> list[np.ndarray]:
    """Sketches (K,) uint64 of the conformations a model was trained on, one per training, the first first (see ``overlap``).

    One of length 0 stands for a training that the file says nothing of. Older files have all trainings in one.
    """
    tensors, _ = read_tensors(find_model(path), "model file")
    names = [_HASHES]
    while _hashes(len(names)) in tensors:
        names.append(_hashes(len(names)))
    return [tensors[name].numpy().view(np.uint64) if name in tensors else np.zeros(0, dtype=np.uint64) for name in names]


def _hashes(training: int) -> str:
    """The tensor with the sketch of a training, counted from 0."""
    return f"{_HASHES}.{training}" if training else _HASHES
