"""Whole data sets from a recipe: which molecules and loops, how each is sampled, by which engine."""

from __future__ import annotations

import random
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from forcewell.errors import InputError, nearest
from forcewell.generate.campaign import Job
from forcewell.generate.planning import Request, Sampling, choose, molecule_jobs, source_smiles, validated
from forcewell.generate.sampling import molecule
from forcewell.system import System


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


class Recipe(BaseModel):
    """A whole data set. exclude: benchmark molecules to leave out: all, benchmark, none or names."""

    model_config = ConfigDict(extra="forbid")

    title: str
    engine: str = "gfn2"
    engine_settings: dict[str, float | str] = {}
    seed: int = 0
    exclude: str = "all"
    parts: list[Molecules] = Field(min_length=1)


def frames(arguments: dict[str, Any]) -> list[System]:
    """The frames of one job of a recipe, whatever its kind. Raises JobFailure with the reason."""
    return molecule(arguments)


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


def recipe_jobs(recipe: Recipe) -> list[Job]:
    """All jobs of a recipe, longest kinds last; the same every time."""
    jobs: list[Job] = []
    met: set[str] = set()
    for part in recipe.parts:
        requests = [Request(smiles, None, f"recipe: {smiles}") for smiles in part.smiles]
        chosen = choose(requests, exclude=recipe.exclude)
        if chosen.left_out:
            raise InputError(chosen.left_out[0])
        species = chosen.species
        if part.source:
            found = choose(
                source_smiles(part.source), exclude=recipe.exclude, elements=part.elements, heavy_atoms=part.heavy_atoms, neutral=part.neutral
            ).species
            if part.limit is not None and part.limit < len(found):
                found = random.Random(recipe.seed).sample(found, part.limit)
            species = [*species, *found]
        # A molecule that several parts name belongs to the first.
        species = [one for one in species if one.smiles not in met]
        met |= {one.smiles for one in species}
        jobs += [Job("molecule", arguments) for arguments in molecule_jobs(species, part.sampling, recipe.seed)]
    return jobs
