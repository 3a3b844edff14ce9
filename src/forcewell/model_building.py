"""The model of a run: fresh, or from a model file, with the heads and inputs that the run's objectives need."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from forcewell.config import ModelConfig, RunConfig, encoder_config, head_config
from forcewell.display import say
from forcewell.errors import InputError
from forcewell.loader import Source
from forcewell.objectives import EnergyMatching, Objective, PropertyMatching
from forcewell.potential import Potential
from forcewell.references import energy_spread

MOST_COUNTED = 100_000  # conformations whose atoms are counted


def fresh(
    config: RunConfig, objectives: Sequence[Objective], training: Sequence[Source], validation: Sequence[Source], levels: Sequence[str]
) -> Potential:
    """An untrained potential. Raises InputError for data with elements that its encoder cannot embed, and for objectives
    that it cannot serve."""
    encoder = config.model.encoder.model_dump() | _inputs(objectives)
    encoder["levels"] = max(encoder["levels"], len(levels)) if encoder["levels"] else 0
    heaviest = max(elements_of([*training, *validation]))
    if heaviest >= encoder["elements"]:
        raise InputError(f"model.encoder.elements is {encoder['elements']}: it must be above the data's atomic number {heaviest}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        head = with_heads(config.model.head.model_dump(), objectives, training)
        return Potential({"encoder": encoder, "head": head}, levels=levels, elements=elements_of(training))


def with_model_of(parent: Potential, config: RunConfig) -> RunConfig:
    """The configuration with the parent's network in it: fine-tuning does not change that."""
    model = ModelConfig(encoder=encoder_config(parent.config["encoder"]), head=head_config(parent.config["head"]))
    if config.model not in (ModelConfig(), model):
        say("the network is that of the model file; the configuration's own 'model' is not used")
    return config.model_copy(update={"model": model})


def adopt(
    parent: Potential,
    objectives: Sequence[Objective],
    training: Sequence[Source],
    validation: Sequence[Source],
    levels: Sequence[str],
    seed: int,
    quiet: bool,
) -> Potential:
    """The parent's network with this run's levels last, its elements added, and a report of its tensors."""
    config = {"encoder": dict(parent.config["encoder"]), "head": with_heads(parent.config["head"], objectives, training)}
    sources = [*training, *validation]
    for name, wanted in _inputs(objectives).items():
        if wanted or name in config["encoder"]:
            config["encoder"][name] = max(wanted, config["encoder"].get(name, wanted))
    order = [level for level in parent.levels if level not in levels] + list(levels)
    if config["encoder"].get("levels"):
        config["encoder"]["levels"] = max(config["encoder"]["levels"], len(order))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        elements = sorted({*parent.elements, *elements_of(sources)})
        potential = Potential(config, levels=order, references=parent.references, elements=elements)
    theirs, ours = parent.state_dict(), potential.state_dict()
    loaded = [name for name, value in theirs.items() if name in ours and ours[name].shape == value.shape]
    if parent.config["head"].get("normalise") != potential.config["head"].get("normalise"):  # statistics of other noise
        loaded = [name for name in loaded if not name.startswith("noise_normaliser.")]
    potential.load_state_dict({name: theirs[name] for name in loaded}, strict=False)
    carry_levels(parent, potential)
    if not quiet:
        _tell_factor(parent, potential, objectives)
        new, dropped = sorted(set(ours) - set(loaded)), sorted(set(theirs) - set(loaded))
        say(f"tensors loaded: {len(loaded)} of {len(ours)}; new: {', '.join(new) or 'none'}; dropped: {', '.join(dropped) or 'none'}")
    for source in sources:
        source.levels = np.array([potential.levels.index(level) for level in source.data.levels], dtype=np.int64)
    return potential


def _tell_factor(parent: Potential, potential: Potential, objectives: Sequence[Objective]) -> None:
    """What ``standardised`` does to a model that is trained already."""
    if not any(isinstance(objective, EnergyMatching) and objective.standardised for objective in objectives):
        return
    if potential.energy_spread != parent.energy_spread:
        done = f"energies and forces of the model file are multiplied by {potential.energy_spread / parent.energy_spread:.3g}"
    else:
        done = f"the factor of the model file stays, {parent.energy_spread:.3g} eV"
    say(f"objectives.energy.standardised: {done}")


def carry_levels(parent: Potential, potential: Potential) -> None:
    """Where levels of theory have vectors or scales, each keeps its own at its new place; a new one starts as their mean."""
    pairs = [(parent.encoder.levels, potential.encoder.levels), (parent.level_scale, potential.level_scale)]
    places = {level: row for row, level in enumerate(parent.levels)}
    with torch.no_grad():
        for theirs, ours in pairs:
            if theirs is None or ours is None:
                continue
            known = theirs.detach().clone()
            ours.zero_()
            for row, level in enumerate(potential.levels):
                ours[row] = known[places[level]] if level in places else known[: max(len(places), 1)].mean(0)


def tell_charges(potential: Potential, training: Sequence[Source]) -> None:
    """Says where the data have ions or open shells and the encoder has no input for either."""
    for source in training:
        stated = [name for name in ("charge", "spin") if name in source.data.fields]
        if count := potential.states_passed_over({name: source.data.column(name)[source.rows] for name in stated}):
            say(
                f"{source.name}: {count} conformations to train on are charged or not singlets, which this encoder does not see; "
                "set model.encoder.electronic=true before pre-training to tell such states apart"
            )


def _inputs(objectives: Sequence[Objective]) -> dict[str, Any]:
    """Settings of the encoder that the objectives decide."""
    return {
        "conditions": int(any(getattr(objective, "conditioned", False) for objective in objectives)),
        "given_forces": any(getattr(objective, "gives_forces", False) for objective in objectives),
    }


def learns_energies(objectives: Sequence[Objective]) -> bool:
    """Whether energies themselves are trained, not only their gradients."""
    return any("energy" in objective.needs for objective in objectives)


def with_heads(head: dict[str, Any], objectives: Sequence[Objective], sources: Sequence[Source]) -> dict[str, Any]:
    """The configuration of heads, with those that the objectives need. Properties and energies keep the scale that they were
    trained with."""
    head = dict(head)
    for objective in objectives:
        if isinstance(objective, EnergyMatching) and objective.standardised and not head.get("energy_spread"):
            head["energy_spread"] = energy_spread([(source.data, source.rows) for source in sources])
        if "noise" in objective.needs:
            head["noise"] = head.get("noise") or True
            kind = getattr(objective, "normalise", "none")
            head["normalise"] = (
                None if kind == "none" else {"per_component": kind == "per-component", "deviation": _deviation(objective, sources)}
            )
        if isinstance(objective, PropertyMatching):
            old = head.get("properties") or {}
            wanted = {"names": list(objective.names), "classes": objective.form == "bce"}
            pool = objective.pool or old.get("pool")
            if {**old, **wanted, "pool": pool} != old:
                head["properties"] = {**wanted, "pool": pool, **_spread(objective, sources)}
    return head


def _deviation(objective: Objective, sources: Sequence[Source]) -> float:
    """Standard deviation (Å) of the components of a noise target: σ, less what goes with the rigid-body motion that is taken out."""
    sigma = float(objective.sigma)  # type: ignore[attr-defined]
    if objective.rigid_motion or not sources:  # type: ignore[attr-defined]
        return sigma
    counts = np.concatenate([source.data.counts[source.rows[:: 1 + len(source.rows) // MOST_COUNTED]] for source in sources])
    atoms, rigid = counts.sum(), np.where(counts > 2, 6, np.where(counts == 2, 5, 3)).sum()
    return sigma * float(np.sqrt(max(1 - rigid / (3 * atoms), 0.0))) or sigma


def _spread(objective: PropertyMatching, sources: Sequence[Source]) -> dict[str, list[float]]:
    """Mean and standard deviation of each property over the training rows; 0 and 1 for classes.

    Raises InputError for a property without labels, or labels of classes other than 0 and 1.
    """
    columns = [source.properties[source.rows] for source in sources if source.properties is not None]
    values = np.concatenate(columns) if columns else np.zeros((0, len(objective.names)))
    mean, spread = [], []
    for name, column in zip(objective.names, values.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known) == 0:
            raise InputError(f"objectives.property.names: no conformation to train on has the property {name!r}")
        if objective.form == "bce":
            if not np.isin(known, (0.0, 1.0)).all():
                raise InputError(f"objectives.property: {name!r} has other values than 0 and 1; use form mse or mae")
            known = np.zeros(1)
        mean.append(float(known.mean()))
        spread.append(float(known.std()) or 1.0)
    return {"mean": mean, "spread": spread}


def elements_of(sources: Sequence[Source]) -> list[int]:
    """Atomic numbers in the sources."""
    return sorted({int(z) for source in sources for z in source.data.elements})
