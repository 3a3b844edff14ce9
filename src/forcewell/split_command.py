"""``forcewell data split``: the command-line door to splits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from forcewell.display import say
from forcewell.errors import InputError, nearest

if TYPE_CHECKING:
    from forcewell.split import Split
    from forcewell.store import Dataset

Method = Literal["molecule", "time", "random", "scaffold", "balanced-scaffold", "leave-one-out", "size", "element"]
MOST_FILES = 50  # that one command writes


@Parameter(name="*")
@dataclass(frozen=True)
class Held:
    """What leave-one-out, size and element test on.

    Parameters
    ----------
    leave
        leave-one-out: the molecule (or store) to test on; default: each in turn, a file for each.
    per_molecule
        leave-one-out: use so many random frames of each of the other molecules; default all.
    tested
        leave-one-out: test on so many random frames; default all.
    largest
        size: train on conformations of up to so many atoms, test on larger ones.
    elements
        element: test on conformations with any of these, e.g. S,Cl.
    validation
        All three: the share of the rest to validate on.
    """

    leave: str | None = None
    per_molecule: int | None = None
    tested: int | None = None
    largest: int | None = None
    elements: str | None = None
    validation: float = 0.1


ALL = Held()


def split_command(
    store: Path,
    /,
    *more: Path,
    method: Method = "molecule",
    fractions: str = "0.8,0.1,0.1",
    counts: str | None = None,
    blocks: int = 10,
    gap: int = 0,
    held: Held = ALL,
    seed: int = 0,
    out: Path | None = None,
    allow_leaks: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Divide a store into parts, saved as JSON that training reads (data.0.split=FILE), and look for leaks between them.

    Example: forcewell data split qm9.fw --method molecule --fractions 0.9,0.05,0.05 --seed 1

    Example: forcewell data split aspirin.fw --method random --counts 9500,500,rest

    Example: forcewell data split md17.fw --method leave-one-out --leave aspirin --per-molecule 50000 --tested 5000

    Parameters
    ----------
    store
        A store, or a file: extended XYZ (.xyz, .extxyz), .npz, HDF5 (.h5, .hdf5) or an ASE database (.db, .aselmdb).
    more
        With leave-one-out: further stores, where each molecule has its own.
    method
        molecule: a molecule stays whole. time: stretches of a trajectory. random: single conformations. scaffold,
        balanced-scaffold: by Bemis-Murcko scaffold. leave-one-out, size, element: test on what training never sees.
    fractions
        Of train, validation, test, 1 in all; or with names: train=0.9,holdout=0.1. Not for leave-one-out, size and element.
    counts
        With --method random, instead of fractions: so many conformations; rest stands for those that are left.
    blocks
        With --method time: stretches per trajectory.
    gap
        With --method time: frames dropped on either side of a border.
    seed
        Of the random choice.
    out
        Default: split-METHOD.json in the store, or beside the file. A folder where several are written. Another split that
        is there is never replaced.
    allow_leaks
        Save also a split whose parts share what the method rules out.
    """
    from forcewell.store import open_data

    datasets = {path: open_data(path) for path in (store, *more)}
    if more and method != "leave-one-out":
        raise InputError(f"--method {method} divides one store; several are for leave-one-out")
    if counts is not None and method != "random":
        raise InputError(f"--counts is for --method random; {method} divides larger things than single conformations")
    if method == "leave-one-out":
        return _save(_left_out(datasets, held, seed), datasets, out, allow_leaks)
    shares = named(fractions) if counts is None else counted(counts, len(datasets[store]))
    split = _divided(datasets[store], method, shares, (blocks, gap), held, seed)
    return _save({(store, method): split}, datasets, out, allow_leaks)


def _divided(
    dataset: Dataset, method: str, shares: Mapping[str, float] | Sequence[float], time: tuple[int, int], held: Held, seed: int
) -> Split:
    """One store by any method but leave-one-out. time: blocks and gap."""
    from forcewell import split as splits

    if method in ("size", "element"):
        return _unlike(dataset, method, held, seed)
    if method == "time":
        return splits.by_time_block(dataset, shares, blocks=time[0], gap=time[1], seed=seed)
    if method in ("scaffold", "balanced-scaffold"):
        return splits.by_scaffold(dataset, shares, seed if method == "balanced-scaffold" else None)
    return (splits.by_molecule if method == "molecule" else splits.random)(dataset, shares, seed)


def _left_out(datasets: Mapping[Path, Dataset], held: Held, seed: int) -> dict[tuple[Path, str], Split]:
    """Splits by store and file name: for one store a file for each molecule left out, for several a file in each store."""
    from forcewell import split as splits

    made: dict[tuple[Path, str], Split] = {}
    leave, settings = held.leave, (held.validation, seed, held.per_molecule, held.tested)
    if len(datasets) == 1:
        path, dataset = next(iter(datasets.items()))
        names = splits.identifiers(dataset, splits.first_rows(dataset.molecule_codes())).tolist() if leave is None else [leave]
        _few(names)
        for name in names:
            made[path, f"leave-one-out-{_plain(name)}"] = splits.leave_out(dataset, name, *settings)
        return made
    stores = {path.stem: path for path in datasets}
    if len(stores) < len(datasets):
        raise InputError(f"two stores have the same name ({', '.join(path.stem for path in datasets)}); rename one")
    if leave is not None and Path(leave).stem not in stores:
        raise InputError(f"none of the stores is named {leave!r}{nearest(leave, stores)} (they are: {', '.join(stores)})")
    for left in [Path(leave).stem] if leave is not None else _few(list(stores)):
        for name, split in splits.leave_store_out({name: datasets[path] for name, path in stores.items()}, left, *settings).items():
            made[stores[name], f"leave-one-out-{_plain(left)}"] = split
    return made


def _few(names: Sequence[str]) -> Sequence[str]:
    if len(names) > MOST_FILES:
        raise InputError(f"leaving out each of {len(names)} molecules would write {len(names)} files; choose one with --leave NAME")
    return names


def _plain(name: str) -> str:
    """A molecule's name as part of a file's."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)


def _unlike(dataset: Dataset, method: str, held: Held, seed: int) -> Split:
    from ase.data import atomic_numbers

    from forcewell import split as splits

    if method == "size":
        if held.largest is None:
            raise InputError("--method size needs --largest N: train on up to N atoms, test on more")
        return splits.by_size(dataset, held.largest, held.validation, seed)
    wanted = [symbol.strip() for symbol in (held.elements or "").split(",") if symbol.strip()]
    unknown = [symbol for symbol in wanted if symbol not in atomic_numbers]
    if unknown or not wanted:
        raise InputError(f"--method element needs --elements with symbols such as S,Cl, not {held.elements!r}")
    return splits.by_element(dataset, [atomic_numbers[symbol] for symbol in wanted], held.validation, seed)


def _save(made: Mapping[tuple[Path, str], Split], datasets: Mapping[Path, Dataset], out: Path | None, allow_leaks: bool) -> None:
    """Checks all of the splits, then writes them; nothing is written where one has a leak that was not allowed, or would
    replace another file."""
    found = {key: split.leaks(datasets[key[0]]) for key, split in made.items()}
    wrong = {key: split.ruled_out(found[key]) for key, split in made.items()}
    for (path, _), leaks in wrong.items():
        if leaks and not allow_leaks:
            raise InputError(f"{path}: {leaks[0]}; nothing was written (another seed or method, or --allow-leaks)")
    targets = {key: _target(*key, out, len(made)) for key in made}
    for key, target in targets.items():
        if target.exists() and (target.is_dir() or target.read_bytes() != made[key].content(wrong[key])):
            raise InputError(f"{target} already exists and is not this split; name another with --out, or remove it")
    for (path, name), split in made.items():
        target = targets[path, name]
        split.save(target, accepted=wrong[path, name])
        say(f"{target}: " + ", ".join(f"{part} {len(rows)}" for part, rows in split.parts.items()))
        if split.settings.get("left_out") and isinstance(split.settings["left_out"], int):
            say(f"  {split.settings['left_out']} conformations without a SMILES that can be read are in no part")
        for leak in found[path, name]:
            say(f"  {'leak, allowed' if leak in wrong[path, name] else 'note'}: {leak}")


def _target(path: Path, name: str, out: Path | None, number: int) -> Path:
    """Where the split ``name`` of the data at ``path`` is written, one of ``number``."""
    if out is None:
        return (path if path.is_dir() else path.parent) / f"split-{name}.json"
    return out if number == 1 else out / f"{path.stem}-{name}.json"


def pairs(words: Sequence[str]) -> dict[str, str]:
    """``key=value`` words as a dictionary. Raises InputError for a word of another form."""
    found = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise InputError(f"option {word!r} is not of the form key=value")
        found[key] = value
    return found


def named(text: str) -> dict[str, float] | list[float]:
    """Fractions from ``0.8,0.1,0.1`` or ``train=0.8,test=0.2``.

    Raises InputError for anything else, a single part, and fractions that do not add up to 1.
    """
    try:
        names = pairs(text.split(",")) if "=" in text else {}
        values = [float(word) for word in names.values() or text.split(",")]
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"fractions are numbers separated by commas, such as 0.8,0.1,0.1, not {text!r}") from None
    # The half that --fractions 0.5 does not name would be dropped without a word.
    if len(values) < 2 or not abs(sum(values) - 1) < 1e-6:
        raise InputError(
            f"--fractions {text} makes {len(values)} part(s) of {sum(values):g} in all; give two or more that add up to 1: 0.8,0.1,0.1"
        )
    return dict(zip(names, values, strict=True)) if names else values


def counted(text: str, total: int) -> dict[str, float]:
    """Fractions of ``total`` conformations from ``9500,500,rest`` or ``train=9500,holdout=500``.

    Raises InputError for other words, several rests, and more conformations than there are.
    """
    from forcewell.split import PARTS

    words = pairs(text.split(",")) if "=" in text else dict(zip(PARTS, text.split(","), strict=False))
    rests = [name for name, word in words.items() if word.strip() == "rest"]
    given = {name: word.strip() for name, word in words.items() if name not in rests}
    if len(rests) > 1 or len(words) != text.count(",") + 1 or not all(word.isdecimal() and int(word) for word in given.values()):
        raise InputError(f"counts are up to three whole numbers (or named ones), at most one of them rest: 9500,500,rest, not {text!r}")
    left = total - sum(map(int, given.values()))
    if left < len(rests):
        raise InputError(f"the data have {total} conformations, too few for --counts {text}")
    return {name: (left if name in rests else int(word)) / total for name, word in words.items()}
