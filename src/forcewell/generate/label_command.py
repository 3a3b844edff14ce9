"""What ``forcewell generate label`` does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import yaml
from cyclopts import Parameter

from forcewell.display import say
from forcewell.engines import engine as make_engine
from forcewell.errors import InputError


def label(
    *data: Path,
    engine: str,
    out: Path,
    settings: Annotated[tuple[str, ...], Parameter(name="--set", negative=())] = (),
    count: int | None = None,
    seed: int = 0,
    executor: str = "local",
    workers: int | None = None,
    retry_failed: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Label structures with energies and forces; the same command continues after an interruption and repeats nothing.

    Example: forcewell generate label structures.xyz --engine gfn2 --out labelled.fw

    Example: forcewell generate label corpus.fw --engine "pyscf:wB97X/6-31G*" --count 500 --out dft.fw

    Example: forcewell generate label corpus.fw --engine ase:orca.ORCA --set "charge={charge}" --set "mult={spin}" --out orca.fw

    Parameters
    ----------
    data
        Each a store, or a file: extended XYZ (.xyz, .extxyz), .npz, HDF5 (.h5, .hdf5) or an ASE database (.db, .aselmdb);
        labels that are in them are replaced.
    engine
        gfn2, gfn1, pyscf:METHOD/BASIS[+d3bj|+d4], ase:MODULE.CLASS, or a Forcewell model.
    out
        Store to write, or one that the same command began.
    settings
        A setting of the engine as key=value, e.g. accuracy=0.01 of gfn2, grid_level=4 of pyscf; may be repeated.
    count
        Label so many structures, chosen at random; default all.
    seed
        Of that choice.
    executor
        local, one process per core, or parsl:CONFIG for a cluster, with a YAML file.
    workers
        Processes of the local executor; default one per core.
    retry_failed
        Try what failed before again.
    """
    from forcewell.generate.label import label_data

    chosen = make_engine(engine, **parse_settings(settings))
    options = {"executor": executor, "workers": workers, "retry_failed": retry_failed, "progress": True}
    done = label_data(data, out, chosen, count=count, seed=seed, **options)
    for line in done.lines():
        say(line)
    say(f"{out}: {chosen.level}, {chosen.version}")
    say_net_force(out)


def say_net_force(out: Path) -> None:
    """The largest net force of a DFT grid that was removed, where there is one."""
    from forcewell.store import Store

    store = Store(out)
    if "net_force" in store.properties:
        say(f"largest net force of the grid, which was removed: {store.column('property:net_force').max():.1e} eV/Å")


def parse_settings(pairs: tuple[str, ...]) -> dict[str, Any]:
    """``key=value`` pairs, the values as YAML scalars; "{charge}" and "{spin}" stay words. Raises InputError for anything else."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise InputError(f"--set {pair!r} is not of the form key=value")
        try:
            value = text if text in ("{charge}", "{spin}") else yaml.safe_load(text)
        except yaml.YAMLError:
            value = text
        if isinstance(value, str) and _number(value) is not None:
            value = _number(value)  # 1e-9, which YAML takes for a word
        found[key] = value
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None
