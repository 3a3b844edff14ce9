"""A complete set of results for the report's tests: real ethanol geometries and forces, made-up models that err by known amounts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

ETHANOL = Path(__file__).parent / "data" / "ethanol_rmd17_40.xyz"
ATOMS = 9


def ethanol() -> tuple[list[str], np.ndarray, np.ndarray]:
    """Element symbols (9,), positions (40, 9, 3) Å and forces (40, 9, 3) eV/Å of rMD17's ethanol."""
    lines = ETHANOL.read_text(encoding="utf-8").splitlines()
    rows = [line.split() for k, line in enumerate(lines) if k % (ATOMS + 2) > 1]
    numbers = np.array([row[1:] for row in rows], dtype=float).reshape(-1, ATOMS, 6)
    return [row[0] for row in rows[:ATOMS]], numbers[..., :3], numbers[..., 3:]


def _model(label: str, error: float, stability: float, hr_error: float, drift: float, seed: int) -> dict[str, Any]:
    random = np.random.default_rng(seed)
    symbols, positions, forces = ethanol()
    steps, time = np.arange(0, 2001, 100), np.arange(0, 10, 0.1)
    i, j = np.triu_indices(ATOMS, 1)
    distances = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1) + random.normal(0, hr_error, (len(positions), len(i)))
    frames = [
        f"{ATOMS}\ntime={k / 4} ps\n" + "\n".join(f"{s} {x:.3f} {y:.3f} {z:.3f}" for s, (x, y, z) in zip(symbols, frame, strict=True))
        for k, frame in enumerate(positions - positions.mean(axis=1, keepdims=True))
    ]
    return {
        "label": label,
        "force_mae": error,
        "force_rmse": 1.5 * error,
        "force_cosine": 1 - error / 4000,
        "energy_mae": 0.6 * error,
        "stability": stability,
        "stability_fraction": stability / 10,
        "hr_error": hr_error,
        "energy_drift": drift,
        "parameters": 534018,
        "steps": 2000,
        "per_element": {"H": 0.7 * error, "C": 1.5 * error, "O": 1.3 * error},
        "curve": [{"step": int(s), "force_mae": error + 700 * np.exp(-s / 250), "seconds": 0.09 * float(s)} for s in steps],
        "parity": {"reference": forces.ravel(), "predicted": forces.ravel() + random.laplace(0, error / 1000, forces.size)},
        "hr": np.histogram(distances, bins=500, range=(1e-6, 10), density=True)[0],
        "md": {"time": time, "temperature": random.normal(300, 60, len(time)), "energy": random.normal(-4209, 0.2, len(time))},
        "nve": {"time": time, "energy": 9e-3 * drift * time},
        "trajectory": "\n".join(frames) + "\n",
    }


def sample_results() -> dict[str, Any]:
    """Every section of a report, filled."""
    _, positions, _ = ethanol()
    i, j = np.triu_indices(ATOMS, 1)
    reference, edges = np.histogram(np.linalg.norm(positions[:, i] - positions[:, j], axis=-1), bins=500, range=(1e-6, 10), density=True)
    decay = [(int(s), float(np.exp(-s / 500))) for s in range(0, 3001, 50)]
    return {
        "title": "Ethanol: pre-training against training from scratch",
        "summary": [
            "Both models saw the same 50 labelled conformations of ethanol; one was pre-trained on other molecules first.",
            "Force MAE is measured on 1000 held-out conformations; MD ran 4 replicas of 10 ps at 300 K for each model.",
        ],
        "command": "forcewell quickstart --out quickstart",
        "version": "0.1.0",
        "commit": "0123abc",
        "created": "2026-11-21T10:00:00Z",
        "hardware": "2 CPU cores, torch 2.13.0",
        "seconds": 512.3,
        "data": [
            {"name": "QM9, bundled part", "role": "pre-training", "conformations": 12000, "molecules": 12000, "level": "B3LYP/6-31G(2df,p)",
             "licence": "CC0-1.0"},
            {"name": "rMD17 ethanol", "role": "fine-tuning and test", "conformations": 1050, "molecules": 1, "level": "PBE/def2-SVP",
             "licence": "CC0-1.0"},
        ],
        "settings": {"encoder": "equivariant-transformer", "channels": 64, "cutoff": 5.0, "ema": True, "elements": ["H", "C", "O"]},
        "models": {
            "scratch": _model("from scratch", 42.13, 6.2, 0.081, 0.9, seed=1),
            "et-oreo": _model("pre-trained (ET-OREO)", 31.02, 10.0, 0.034, -0.21, seed=2),
        },
        "pretraining": {
            "curve": [{"step": s, "loss": 0.2 + 3 * x, "terms": {"force": 0.1 + 2 * x, "zero-force": 0.05 + 0.6 * x}} for s, x in decay],
            "table": [{"objective": "force matching", "weight": 1.0}, {"objective": "zero force", "weight": 1.0}],
        },
        "hr": {"r": (edges[1:] + edges[:-1]) / 2, "reference": reference, "floor": 0.021},
        "md": {"ensemble": "Langevin", "temperature": 300, "length_ps": 10.0, "replicas": 4, "timestep_fs": 0.5, "degrees_of_freedom": 27},
    }  # fmt: skip
