"""The one exception for a user's mistake; the command line turns it into one line and exit code 2."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Input that cannot be used. The message is one line: what is wrong, where, and what would be right."""


def nearest(word: str, known: Iterable[str]) -> str:
    """A hint naming the known word closest to a misspelt one, e.g. ``"; did you mean 'steps'?"``, else ``""``."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
