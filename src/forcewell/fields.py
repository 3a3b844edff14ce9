"""THE table of fields: every array a conformation may carry, declared once.

Letters in shapes, here and in every docstring: N atoms, M molecules (conformations), K neighbours, C channels.
Storing, batching, slicing and moving all derive from this table; a name that is not in it is an error, never a guess.
"""

from dataclasses import dataclass

import numpy as np

ELEMENTS = 119  # length of a vector by atomic number, which ends at 118; entry 0 is no element


@dataclass(frozen=True, slots=True)
class Field:
    """One array of a conformation.

    scope: "atom" (leading dimension N) or "molecule" (leading dimension M). shape: the trailing dimensions.
    stored: dtype on disk and in a Block. missing: the value that means "not known"; for inputs, the default.
    target: True for what a model predicts (lives in ``Batch.targets``), False for what it may read.
    """

    name: str
    scope: str
    shape: tuple[int, ...]
    stored: type
    missing: float
    target: bool
    unit: str
    meaning: str


FIELDS: dict[str, Field] = {
    field.name: field
    for field in (
        Field("numbers", "atom", (), np.uint8, 0, False, "", "atomic number"),
        Field("positions", "atom", (3,), np.float64, np.nan, False, "Å", "Cartesian coordinates"),
        Field("formal_charges", "atom", (), np.int8, 0, False, "e", "formal charge"),
        Field("charge", "molecule", (), np.int8, 0, False, "e", "total charge"),
        Field("spin", "molecule", (), np.uint8, 1, False, "", "spin multiplicity, 1 for a singlet"),
        Field("cell", "molecule", (3, 3), np.float64, 0.0, False, "Å", "lattice vectors as rows; zero where open"),
        Field("pbc", "molecule", (3,), np.bool_, False, False, "", "periodic along each lattice vector"),
        Field("energy", "molecule", (), np.float64, np.nan, True, "eV", "total energy at its level of theory"),
        Field("forces", "atom", (3,), np.float32, np.nan, True, "eV/Å", "forces, F = -dE/dr"),
        Field("stress", "molecule", (3, 3), np.float64, np.nan, True, "eV/Å³", "stress, (dE/dstrain) / volume"),
        Field("equilibrium", "molecule", (), np.int8, -1, True, "", "1 a relaxed minimum at its own level, 0 not, -1 unknown"),
    )
}

# positions stay float64 on disk: a float32 coordinate at 10 Å is off by 5e-7 Å, which a C-H stretch (up to
# 140 eV/Å²) turns into 7e-5 eV/Å, more than the finite-difference checks tolerate. Forces are labels: float32.
ATOM_FIELDS = tuple(name for name, field in FIELDS.items() if field.scope == "atom")
MOLECULE_FIELDS = tuple(name for name, field in FIELDS.items() if field.scope == "molecule")
INPUT_FIELDS = tuple(name for name, field in FIELDS.items() if not field.target)
TARGET_FIELDS = tuple(name for name, field in FIELDS.items() if field.target)
REQUIRED = ("numbers", "positions")
# Where a generated frame is from: properties, with their units. Frames of one trajectory share its number. net_force: what a DFT
# grid had added to the forces, before it was removed.
PROVENANCE = {"temperature": "K", "seed": "", "trajectory": "", "time": "fs", "net_force": "eV/Å"}
