"""From a configuration to sources: levels of theory, saved splits, what is validated on, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ase.build
import ase.io
import numpy as np
import pytest
from tiny_runs import MODEL, ethanol, npz, refuse, settings, succeed, write_yaml

from forcewell.config import load_config
from forcewell.errors import InputError
from forcewell.evaluate.errors import evaluate
from forcewell.potential import Potential
from forcewell.split import random
from forcewell.store import MemoryData, StoreWriter, open_data
from forcewell.system import System, block_of
from forcewell.training_data import gather
from forcewell.units import KCAL_PER_MOL


def test_a_stated_level_is_not_relabelled(tmp_path: Path) -> None:
    """``level`` names the level of sources that do not say, and of no other."""
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    frames = [system.to_atoms() for system in (open_data(data)[k] for k in range(20))]
    ase.io.write(tmp_path / "silent.xyz", frames, format="extxyz")
    config = settings(str(data), str(tmp_path / "silent.xyz"), objectives="et-ore", level="mine", exclude="none")
    _, training, _, levels = gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)
    assert [source.data.levels for source in training] == [["PBE/def2-SVP"], ["mine"]]
    assert levels == ["PBE/def2-SVP", "mine"]


def test_own_validation_data_do_not_become_the_last_level(tmp_path: Path) -> None:
    """Predictions are made at the last level by default: it must be one that was trained."""
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    frames = [open_data(data)[k].to_atoms() for k in range(20)]
    ase.io.write(tmp_path / "other.xyz", frames, format="extxyz")
    config = settings(str(data), objectives="et-ore", validation={"path": str(tmp_path / "other.xyz")})
    _, _, validation, levels = gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)
    assert levels == ["", "PBE/def2-SVP"] and len(validation) == 1 and len(validation[0].rows) == 6


def test_isomers_under_one_formula_are_told_apart(tmp_path: Path) -> None:
    """As in ANI-1x: behind dimethyl ether, under the same identifier, is ethanol, which pre-training must not see."""
    frames = [open_data(ethanol(tmp_path / "ethanol.npz"))[k].to_atoms() for k in range(12)]
    ether, torn = ase.build.molecule("CH3OCH3"), frames[0].copy()
    torn.positions[-1] += 3.0  # no ethanol by its bonds, but a frame of one by its identifier
    for name, several, left in (("ani1x/C2H6O1", [ether] * 8 + frames, 8), ("CCO", [*frames, torn] + [ether] * 8, 0)):
        store = tmp_path / f"{left}.fw"
        writer = StoreWriter(store)
        for number, atoms in enumerate(several):
            block = block_of([System.from_atoms(atoms)])
            block.molecule = np.array([name], dtype=object)
            block.arrays["positions"] += 1e-3 * number
            block.arrays["forces"] = np.zeros_like(block.arrays["positions"])
            writer.append(block)
        writer.finish()
        config = settings(str(store), objectives="et-ore", validation={"fraction": 0.2, "by": "random"})
        run = load_config(str(write_yaml(tmp_path / "c.yaml", config)))
        if not left:
            with pytest.raises(InputError, match="no conformations are left to train on"):
                gather(run, tmp_path / "data", "benchmark", quiet=True)
            continue
        _, training, validation, _ = gather(run, tmp_path / "data", "benchmark", quiet=True)
        assert np.sort(np.concatenate([training[0].rows, validation[0].rows])).tolist() == list(range(left))


def test_a_saved_split_is_used(tmp_path: Path) -> None:
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    split = random(open_data(data), {"train": 0.5, "validation": 0.1, "test": 0.4}, seed=1)
    split.save(tmp_path / "split.json")
    config = settings({"path": str(data), "split": str(tmp_path / "split.json")}, objectives="et-ore")
    _, training, validation, _ = gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)
    assert np.array_equal(training[0].rows, split.parts["train"]) and np.array_equal(validation[0].rows, split.parts["validation"])


def test_a_share_of_the_training_data(tmp_path: Path) -> None:
    """Smaller shares are parts of larger ones, drawn by the seed; validation stays whole."""
    data = ethanol(tmp_path / "rmd17_ethanol.npz", 100)
    rows, held = {}, {}
    for share, seed in ((0.05, 0), (0.2, 0), (0.5, 0), (1.0, 0), (0.5, 1)):
        config = settings(
            {"path": str(data), "fraction": share}, objectives="et-ore", validation={"fraction": 0.2, "by": "time"}, seed=seed
        )
        _, training, validation, _ = gather(
            load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True
        )
        rows[share, seed], held[share, seed] = set(training[0].rows.tolist()), validation[0].rows.tolist()
    print({key: len(kept) for key, kept in rows.items()})
    whole = len(rows[1.0, 0])
    assert [len(rows[share, 0]) for share in (0.05, 0.2, 0.5)] == [round(share * whole) for share in (0.05, 0.2, 0.5)]
    assert rows[0.05, 0] < rows[0.2, 0] < rows[0.5, 0] < rows[1.0, 0] and max(rows[0.05, 0]) > 20  # not the first ones
    assert held[0.05, 0] == held[1.0, 0] and rows[0.5, 1] != rows[0.5, 0]


def test_validation_that_measures_nothing_is_refused(tmp_path: Path) -> None:
    """Its loss would be zero at step 0, and the untrained model the best."""
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    frames = [open_data(data)[k].to_atoms() for k in range(5)]
    for frame in frames:
        frame.calc = None
    ase.io.write(tmp_path / "bare.xyz", frames, format="extxyz")
    config = write_yaml(tmp_path / "c.yaml", settings(str(data), objectives="et-ore", validation={"path": str(tmp_path / "bare.xyz")}))
    assert "validation data carry nothing" in refuse("finetune", config, "--from", MODEL, "--out", tmp_path / "run")
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_own_validation_with_restricted_objectives_is_refused(tmp_path: Path) -> None:
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    tree = settings({"path": str(data), "objectives": ["forces"]}, objectives="et-ore", validation={"path": str(data)})
    config = write_yaml(tmp_path / "c.yaml", tree)
    assert "cannot be combined" in refuse("finetune", config, "--from", MODEL, "--out", tmp_path / "run")


def test_resuming_from_another_parent_is_refused(tmp_path: Path) -> None:
    data = ethanol(tmp_path / "rmd17_ethanol.npz")
    config = write_yaml(tmp_path / "c.yaml", settings(str(data), objectives="et-ore"))
    succeed("finetune", config, "--from", MODEL, "--out", tmp_path / "run")
    other = tmp_path / "run" / "model.safetensors"
    assert str(MODEL) in refuse("finetune", config, "--from", other, "--out", tmp_path / "run", "--resume")


def test_energies_of_two_levels_are_not_mixed(tmp_path: Path) -> None:
    """The same frames at two levels with zeros 80 eV apart: the errors are those of one level alone."""
    data = open_data(ethanol(tmp_path / "rmd17_ethanol.npz"))
    first, second = data.block(np.arange(20)), data.block(np.arange(20))
    second.level = "other"
    second.arrays["energy"] = second.arrays["energy"] - 80.0
    encoder = {"name": "equivariant-transformer", "channels": 8, "layers": 1, "heads": 2, "radial": 8}
    potential = Potential({"encoder": encoder}, levels=["PBE/def2-SVP", "other"])
    alone, both = evaluate(potential, MemoryData([first])), evaluate(potential, MemoryData([first, second]))
    print(f"energy MAE {alone['energy_mae']:.6f} alone, {both['energy_mae']:.6f} meV with the second level")
    assert both["energy_mae"] == pytest.approx(alone["energy_mae"], rel=1e-6)
    assert both["energy_conformations"] == 40


def test_it_says_how_many_have_labels_and_what_is_validated_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = open_data(ethanol(tmp_path / "rmd17_ethanol.npz"))
    frames = [data[k].to_atoms() for k in range(20)]
    for atoms in frames[:5]:
        atoms.calc = None
    ase.io.write(tmp_path / "some.xyz", frames, format="extxyz")
    ase.io.write(tmp_path / "own.xyz", frames[15:], format="extxyz")
    for own in (None, str(tmp_path / "own.xyz")):
        tree = settings(str(tmp_path / "some.xyz"), objectives="et-ore", validation={"fraction": 0.1, "by": "random", "path": own})
        gather(load_config(str(write_yaml(tmp_path / "c.yaml", tree))), tmp_path / "data", "none")
    held_out, own_data, validation = (" ".join(line.split()) for line in capsys.readouterr().out.splitlines())
    assert "some: 18 conformations to train on (" in held_out and "of 18 with forces" in held_out and "2 to validate on" in held_out
    assert "some: 20 conformations to train on (15 of 20 with forces, 15 of 20 with energy); " in own_data
    assert validation.endswith("own.xyz: 5 conformations to validate on, 5 of them in the training data")


def test_data_without_forces_are_refused_with_a_way_on(tmp_path: Path) -> None:
    """Energies alone can be learned; keys that nobody reads are named, and how to import them."""
    atoms = ase.build.molecule("CH3OCH3")
    path = tmp_path / "mine.xyz"
    for labels, said in (
        ({"energy": 1.0}, "it has energies, which --set objectives=joint learns"),
        ({"my_e": 1.0}, f"unread keys: my_e; name them by --map my_e=energy in forcewell data import extxyz {path}"),
    ):
        atoms.info = dict(labels)
        ase.io.write(path, [atoms] * 20, format="extxyz")
        config = settings(str(path), objectives="et-ore", exclude="none")
        with pytest.raises(InputError) as caught:
            gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)
        assert "mine: nothing to learn here with forces" in str(caught.value) and said in str(caught.value)
    atoms.info = {"energy": 1.0}
    ase.io.write(path, [atoms] * 20, format="extxyz")
    config = settings(str(path), objectives="joint", exclude="none", validation={"fraction": 0.2, "by": "random"})
    assert len(gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none", quiet=True)[1][0].rows) == 16


def test_wrong_units_of_a_file_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients as forces, and kcal/mol as eV; a file that is right is not warned of, and a run takes place all the same."""
    raw = npz("rmd17_ethanol_test_01.npz")
    arrays = {"z": raw["nuclear_charges"], "pos": raw["coords"], "energy": raw["energies"] * KCAL_PER_MOL}
    arrays["forces"] = raw["forces"] * KCAL_PER_MOL
    said = {}
    for name, changed in (("right", {}), ("sign", {"forces": -arrays["forces"]}), ("unit", {"forces": raw["forces"]})):
        np.savez(tmp_path / f"{name}.npz", **arrays | changed)
        config = settings(str(tmp_path / f"{name}.npz"), objectives="et-ore", exclude="none")
        gather(load_config(str(write_yaml(tmp_path / "c.yaml", config))), tmp_path / "data", "none")
        said[name] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("warning")]
    assert said["right"] == []
    assert any("wrong sign" in line and f"forcewell data check {tmp_path / 'sign.npz'} says more" in line for line in said["sign"])
    assert any("kcal/mol" in line for line in said["unit"])


def water_store(path: Path, minima: int, others: int = 0, labels: tuple[str, ...] = ("energy",), cell: float = 0.0) -> str:
    """Waters, some of them minima, with energies or forces; periodic minima where a cell is given."""
    block = block_of([System.from_atoms(ase.build.molecule("H2O")) for _ in range(minima + others)])
    block.arrays["positions"] += np.random.default_rng(0).normal(0, 0.02, block.arrays["positions"].shape)
    block.arrays["equilibrium"] = np.array([1] * minima + [0] * others, dtype=np.int8)
    known = {"energy": np.linspace(-2081, -2080, len(block)), "forces": np.zeros((3 * len(block), 3), dtype=np.float32)}
    block.arrays |= {name: known[name] for name in labels}
    if cell:
        block.arrays["cell"] = np.tile(cell * np.eye(3), (len(block), 1, 1))
        block.arrays["pbc"] = np.repeat(block.arrays["equilibrium"][:, None] == 1, 3, axis=1)
    writer = StoreWriter(path)
    writer.append(block)
    writer.finish()
    return str(path)


def gathered(tmp_path: Path, *data: dict[str, Any] | str, **changes: object) -> list[np.ndarray]:
    """The training rows of each source."""
    tree = settings(*data, exclude="none", **{"validation": {"fraction": 0.2, "by": "random"}, **changes})
    run = load_config(str(write_yaml(tmp_path / "c.yaml", tree)))
    return [source.rows for source in gather(run, tmp_path / "data", "none", quiet=True)[1]]


def test_minima_displaced_in_place_must_leave_labels(tmp_path: Path) -> None:
    """Their own labels are cleared: an objective that has no others would learn nothing, and its loss would be zero."""
    only = water_store(tmp_path / "minima.fw", 32, labels=("energy", "forces"))
    mixed = water_store(tmp_path / "mixed.fw", 16, 16)
    both = {"energy": {}, "force-denoising": {"place": "instead"}}
    forces = {"forces": {}, "force-denoising": {"place": "instead"}}
    for data, objectives, name in (([only], both, "energy"), ([only], forces, "forces"), ([only, mixed], forces, "forces")):
        with pytest.raises(InputError, match=f"place 'instead' leaves nothing for {name}: .* use 'copies'"):
            gathered(tmp_path, *data, objectives=objectives)
    assert len(gathered(tmp_path, only, mixed, objectives=both)) == 2
    assert len(gathered(tmp_path, only, objectives={"energy": {}, "force-denoising": {"place": "copies"}})) == 1


def test_an_auxiliary_objective_does_not_make_data_useful(tmp_path: Path) -> None:
    """Denoising beside labels needs labels; what is missing is named, by the objectives that would read it."""
    bare, forces = water_store(tmp_path / "bare.fw", 0, 20, labels=()), water_store(tmp_path / "forces.fw", 0, 20, labels=("forces",))
    beside = {"coordinate-denoising": {"place": "with-labels"}}
    for data, objectives, missing in (
        (bare, {"energy": {}, **beside}, "energies"),
        (forces, {"energy": {}, **beside}, "energies"),
        (bare, {"forces": {}, "zero-force": {}}, "forces or minima"),
        (bare, {"energy": {}, "dens": {}}, "energies or forces"),
        (bare, {"energy": {}, "property": {"names": ["homo"]}}, "energies or property homo \\(its own: none\\)"),
    ):
        with pytest.raises(InputError, match=f"nothing to learn here with [a-z, -]*: it has no {missing}$"):
            gathered(tmp_path, data, objectives=objectives)
    with pytest.raises(InputError, match=r"nothing to learn here with no objective: data\.\*\.objectives names none"):
        gathered(tmp_path, {"path": forces, "objectives": []}, objectives={"forces": {}})
    assert len(gathered(tmp_path, forces, objectives={"forces": {}, **beside})) == 1
    assert len(gathered(tmp_path, bare, objectives="wang")) == 1


def test_a_model_hessian_of_periodic_minima_is_refused_before_training(tmp_path: Path) -> None:
    """Not in the step that draws the first of them."""
    periodic = water_store(tmp_path / "periodic.fw", 10, 20, labels=("forces",), cell=8.0)
    free = water_store(tmp_path / "free.fw", 10, 20, labels=("forces",))
    for setting in ({"target": "harmonic"}, {"temperature": 300.0}):
        objectives = {"forces": {}, "force-denoising": setting}
        with pytest.raises(InputError, match=r"periodic: \d+ minima are periodic \(the first is conformation \d\).*use target isotropic"):
            gathered(tmp_path, free, periodic, objectives=objectives)
        assert len(gathered(tmp_path, free, {"path": periodic, "objectives": ["forces"]}, objectives=objectives)) == 2
    assert len(gathered(tmp_path, periodic, objectives={"forces": {}, "force-denoising": {}})) == 1
