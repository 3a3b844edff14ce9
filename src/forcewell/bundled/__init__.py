"""Real data that ships with the package; sources and licences are in README.md here."""

from forcewell.errors import InputError, nearest

# Data shipped in the package: name -> (source, files, whether it is a benchmark molecule's own trajectory).
BUNDLED = {
    "qm9": ("qm9", ("qm9_minima_4002.npz",), False),
    "qm7x": ("qm7x", ("qm7x_hand.npz",), False),
    "s66x8": ("s66x8", ("s66x8.npz",), False),
    "corpus": ("generated", ("corpus.npz",), False),
    "corpus-dft": ("generated", ("corpus_dft.npz",), False),
    "ethanol": ("rmd17", ("rmd17_ethanol_train_01.npz",), True),
    "ethanol-test": ("rmd17", ("rmd17_ethanol_test_01.npz",), True),
}


def bundled_set(name: str) -> tuple[str, tuple[str, ...], bool]:
    """Source and files of a bundled data set, and whether it is a benchmark molecule's own. Raises InputError for an unknown name."""
    if name not in BUNDLED:
        raise InputError(f"there is no bundled data set {name!r}{nearest(name, BUNDLED)} (known: {', '.join(BUNDLED)})")
    return BUNDLED[name]
