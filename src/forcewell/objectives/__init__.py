"""Pre-training and fine-tuning objectives: small values that say what a conformation teaches."""

from forcewell.objectives.base import COORDINATES, CORRUPTED, DATA, DENOISING, Noise, Objective, Term, share
from forcewell.objectives.building import OBJECTIVES, PRESETS, build
from forcewell.objectives.denoising import CoordinateDenoising, ForceDenoising, FractionalDenoising, NonEquilibriumDenoising, noisy
from forcewell.objectives.labels import EnergyMatching, ForceMatching, ForceNorm, PropertyMatching, ZeroForce
from forcewell.objectives.rigid import remove_rigid_motion

__all__ = [
    "COORDINATES",
    "CORRUPTED",
    "DATA",
    "DENOISING",
    "OBJECTIVES",
    "PRESETS",
    "CoordinateDenoising",
    "EnergyMatching",
    "ForceDenoising",
    "ForceMatching",
    "ForceNorm",
    "FractionalDenoising",
    "Noise",
    "NonEquilibriumDenoising",
    "Objective",
    "PropertyMatching",
    "Term",
    "ZeroForce",
    "build",
    "noisy",
    "remove_rigid_motion",
    "share",
]
