"""Whole data sets from a recipe: which molecules and loops, how each is sampled, by which engine."""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from forcewell.errors import InputError, nearest
from forcewell.generate.families import choose_families
from forcewell.generate.planning import Request, Sampling, choose, molecule_jobs, source_smiles, validated
from forcewell.generate.ring_opening import loop, open_ring
from forcewell.generate.species import Species, read_species

if TYPE_CHECKING:
    from forcewell.engines import Engine


class Molecules(BaseModel):
    """Molecules of a collection, of a list of SMILES, or both, all sampled in one way.

    elements, heavy_atoms (at least, at most), neutral: which of the collection. limit: so many of those, drawn at random.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Literal["molecules"]
    source: str = ""
    smiles: list[str] = []
    elements: list[str] = []
    heavy_atoms: tuple[int, int] = (1, 1000)
    neutral: bool = True
    limit: int | None = Field(default=None, ge=1)
    sampling: Sampling = Sampling()


class Loops(BaseModel):
    """Loops of ring-opened monomers (``forcewell generate polymers``). families: names or classes, or all. atoms: at most."""

    model_config = ConfigDict(extra="forbid")

    kind: Literal["loops"]
    families: str = "all"
    loops: list[int] = [3, 4, 5, 6]
    atoms: int = Field(default=64, ge=1)
    sampling: Sampling = Sampling()


class Recipe(BaseModel):
    """A whole data set.

    engine: labels. sampler: another engine that relaxes and moves the molecules, "" for the same. exclude: benchmark molecules to
    leave out: all, benchmark, none or names.
    """

    model_config = ConfigDict(extra="forbid")

    title: str
    engine: str = "gfn2"
    engine_settings: dict[str, float | str] = {}
    sampler: str = ""
    seed: int = 0
    exclude: str = "all"
    parts: list[Annotated[Molecules | Loops, Field(discriminator="kind")]] = Field(min_length=1)


def load_recipe(name: str) -> Recipe:
    """A recipe by the name of a packaged one or the path of a YAML file. Raises InputError for anything else."""
    folder = resources.files("forcewell.generate") / "recipes"
    known = sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))
    if name in known:
        text = (folder / f"{name}.yaml").read_text(encoding="utf-8")
    elif Path(name).is_file():
        text = Path(name).read_text(encoding="utf-8")
    else:
        raise InputError(f"there is no recipe {name!r}{nearest(name, known)} (known: {', '.join(known)}; or the path of a YAML file)")
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: expected a mapping with title, engine and parts")
    return validated(Recipe, values, name)


def recipe_jobs(recipe: Recipe, engine: Engine | None = None) -> list[tuple[str, dict[str, Any]]]:
    """(kind, arguments) of all jobs of a recipe; the same every time. engine: what is to label them, to be asked whether it can.

    Raises InputError for a SMILES of its lists that cannot be used.
    """
    jobs: list[tuple[str, dict[str, Any]]] = []
    met: set[str] = set()
    for part in recipe.parts:
        found = _loops(part) if isinstance(part, Loops) else _molecules(part, recipe, engine)
        # What several parts, or several families, name belongs to the first.
        species = [one for one in {one.smiles: one for one in found}.values() if one.smiles not in met]
        met |= {one.smiles for one in species}
        _listed(part.sampling.partners, recipe, engine)
        of = "loop" if isinstance(part, Loops) else ""
        jobs += [(of or "molecule", arguments) for arguments in molecule_jobs(species, part.sampling, recipe.seed, of)]
    return jobs


def _molecules(part: Molecules, recipe: Recipe, engine: Engine | None) -> list[Species]:
    listed = _listed(part.smiles, recipe, engine)
    if not part.source:
        return listed
    requests = source_smiles(part.source)
    found = choose(requests, exclude=recipe.exclude, elements=part.elements, heavy_atoms=part.heavy_atoms, neutral=part.neutral).species
    limited = part.limit is not None and part.limit < len(found)
    return [*listed, *(random.Random(recipe.seed).sample(found, part.limit or 0) if limited else found)]


def _listed(smiles: list[str], recipe: Recipe, engine: Engine | None) -> list[Species]:
    chosen = choose([Request(one, None, "recipe") for one in smiles], exclude=recipe.exclude, engine=engine)
    if chosen.left_out:
        raise InputError(chosen.left_out[0])
    if chosen.excluded:
        raise InputError(
            f"recipe: {chosen.excluded} of the SMILES listed are of benchmark molecules, which exclude: {recipe.exclude} forbids"
        )
    return chosen.species


def _loops(part: Loops) -> list[Species]:
    openings = [open_ring(family.smiles) for family in choose_families(part.families)]
    wanted = [(opening, repeats) for opening in openings for repeats in part.loops if opening.atoms * repeats <= part.atoms]
    return [read_species(loop(opening, repeats)) for opening, repeats in wanted]
