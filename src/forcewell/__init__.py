"""Forcewell: force-centric pre-training, fine-tuning, simulation and evaluation of models of 3D molecules."""

__version__ = "0.1.0"
