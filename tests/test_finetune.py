"""Fine-tuning from a model file: what is loaded, what is corrected, what is refused, what is said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_runs import MODEL, ethanol, files, log, npz, refuse, settings, small_store, succeed, weights, write_yaml

import forcewell as fw
from forcewell.checkpoint import load_model, read_tensors, training_hashes, write_tensors
from forcewell.overlap import KEPT
from forcewell.potential import ELEMENTS
from forcewell.references import correct, minimum_norm
from forcewell.store import MemoryData, Store, open_data
from forcewell.system import System


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("finetune")
    small_store(place, "qm7x", 60)
    ethanol(place / "ethanol.npz")
    return place


def configuration(folder: Path, name: str, *data: Path, **changes: object) -> Path:
    return write_yaml(folder / f"{name}.yaml", settings(*map(str, data), objectives="et-ore", **changes))


@pytest.fixture(scope="module")
def tuned(folder: Path) -> tuple[Path, str]:
    """A fine-tuning run on ethanol and what it printed."""
    config = configuration(folder, "tuned", folder / "ethanol.npz")
    return folder / "tuned", succeed("finetune", config, "--from", MODEL, "--out", folder / "tuned")


def test_it_says_what_it_loaded_and_corrected(tuned: tuple[Path, str]) -> None:
    run, out = tuned
    count = len(load_model(MODEL)[0].state_dict())
    assert f"tensors loaded: {count} of {count}; new: none; dropped: none" in out
    assert "ethanol: 0.0 % of the conformations were in the model's training data" in out
    planned = out.index("eV per atom as they are")  # what will be done with the energies, said before it is
    line = next(line for line in out.splitlines() if "eV per atom as they are" in line)
    print(line)
    assert line.startswith("PBE/def2-SVP: ") and "(rank 1 for 3 elements, minimum norm); new to the model" in line
    assert planned < out.index("the run learns no energies") < out.index("reference energies of PBE/def2-SVP") < out.index("validation")
    assert out.count("reference energies of PBE/def2-SVP: 1 of 3 element energies are fixed by the data") >= 1
    before, after = map(float, re.search(r"mean \|E error\| (\S+) eV before, (\S+) eV after", out).groups())  # type: ignore[union-attr]
    print(f"mean energy error {before:.1f} eV before the correction, {after:.3f} eV after")
    assert before > 1000 and after < 1
    first = log(run)[0]
    assert first["step"] == 0 and first["kind"] == "validation" and first["force_mae"] > 0


def test_its_own_frames_are_recognised_beside_millions_of_the_parents(folder: Path) -> None:
    """A parent of a large set has a truncated sketch, in which few hashes can be looked up; those of a fine-tuning lie apart."""
    tensors, description = read_tensors(MODEL, "model file")
    tensors["geometry_hashes"] = torch.arange(KEPT)  # the smallest of very many
    write_tensors(folder / "large.safetensors", tensors, description)
    config, parent = configuration(folder, "large", folder / "ethanol.npz"), folder / "large.safetensors"
    told = succeed("finetune", config, "--from", parent, "--out", folder / "large")
    assert "ethanol: cannot tell whether the conformations were in the model's training data\n" in told
    model = folder / "large" / "model.safetensors"
    out = succeed("evaluate", model, folder / "ethanol.npz", "--json", folder / "errors.json")
    assert "cannot tell whether the conformations were in the model's training data (training 1 of 2)" in out
    assert "90.0 % of the conformations were in the model's training data (training 2 of 2)" in out  # a tenth was for validation
    found = json.loads((folder / "errors.json").read_text(encoding="utf-8"))
    assert (found["training_overlap"], found["training_overlap_each"]) == (0.9, [None, 0.9])
    again = succeed("finetune", config, "--from", model, "--out", folder / "again")
    assert "ethanol: 100.0 % of the conformations were in the model's training data (training 2 of 2)" in again
    assert [len(hashes) for hashes in training_hashes(folder / "again" / "model.safetensors")] == [KEPT, 36, 36]


def test_step_zero_is_the_model_that_was_loaded(tuned: tuple[Path, str], folder: Path) -> None:
    """The force error of the log's first line, once more from the parent's own predictions on the held-out frames."""
    run, _ = tuned
    data = open_data(folder / "ethanol.npz")
    from forcewell.split import random

    held = random(data, {"train": 0.9, "validation": 0.1}, 3).parts["validation"]
    systems = [data[int(row)] for row in held]
    predicted = fw.load(MODEL).predict(systems)["forces"]
    mae = 1000 * float(np.mean([np.abs(p - s.arrays["forces"]) for p, s in zip(predicted, systems, strict=True)]))
    print(f"step 0: {log(run)[0]['force_mae']:.5f} meV/Å in the log, {mae:.5f} meV/Å by hand")
    assert log(run)[0]["force_mae"] == pytest.approx(mae, rel=1e-4)


def test_ancestry_levels_and_configuration(tuned: tuple[Path, str]) -> None:
    potential, description = load_model(tuned[0] / "model.safetensors")
    parent, origin = load_model(MODEL)
    assert potential.levels == (*parent.levels, "PBE/def2-SVP") and potential.levels[-1] == "PBE/def2-SVP"
    assert potential.config == parent.config  # not the configuration's encoder
    assert potential.elements == parent.elements
    assert [entry["data"] for entry in description["ancestry"]] == [origin["data"]]
    for level in parent.levels:
        assert (potential.references[level] == parent.references[level]).all()


def test_predictions_do_not_depend_on_the_token(tuned: tuple[Path, str], tmp_path: Path) -> None:
    """Another token in the file: not a bit of the predictions changes. The control changes the embedding instead."""
    data = npz("rmd17_ethanol_test_01.npz")
    systems = [
        System({"numbers": data["nuclear_charges"].astype(np.uint8), "positions": x.astype(np.float64)}) for x in data["coords"][50:53]
    ]
    for path in (MODEL, tuned[0] / "model.safetensors"):
        tensors, description = read_tensors(path, "model file")
        expected, changed = fw.load(path).predict(systems), {}
        for name in ("tokens", "embedding.weight"):
            write_tensors(
                tmp_path / "m.safetensors", {**tensors, f"model.encoder.{name}": tensors[f"model.encoder.{name}"] + 1.0}, description
            )
            out = fw.load(tmp_path / "m.safetensors").predict(systems)
            changed[name] = max(float(np.abs(a - b).max()) for a, b in zip(out["forces"], expected["forces"], strict=True))
            changed[name] = max(changed[name], float(np.abs(out["energy"] - expected["energy"]).max()))
        print(
            f"{path.name}: predictions change by {changed['tokens']} with the token, {changed['embedding.weight']:.2f} with the embedding"
        )
        assert changed["tokens"] == 0.0 < changed["embedding.weight"]


def test_new_and_dropped_tensors_are_named(folder: Path) -> None:
    """A parent without a token, fine-tuned with an objective that wants one; and a parent with a part that is unknown here."""
    tensors, description = read_tensors(MODEL, "model file")
    plain = {**description, "config": {**description["config"], "encoder": {**description["config"]["encoder"], "conditions": 0}}}
    tokenless = {name: value for name, value in tensors.items() if name != "model.encoder.tokens"}
    write_tensors(folder / "plain.safetensors", tokenless, plain)
    small_store(folder, "qm9", 30)
    config = write_yaml(folder / "new.yaml", settings(str(folder / "qm9.fw"), training={"steps": 2}))
    out = succeed("finetune", config, "--from", folder / "plain.safetensors", "--out", folder / "new")
    count = len(tokenless) - 1  # the hashes are no weights
    assert f"tensors loaded: {count} of {count + 1}; new: encoder.tokens; dropped: none" in out
    assert float(weights(folder / "new" / "model.safetensors")["model.encoder.tokens"].abs().max()) > 0  # it was trained


def test_another_network_is_refused(folder: Path) -> None:
    config = configuration(folder, "network", _path("rmd17_ethanol_train_01.npz"))
    said = refuse("finetune", config, "--from", MODEL, "--out", folder / "never", "--set", "model.encoder.channels=128")
    assert "--set model.encoder.channels=128: fine-tuning keeps the network of --from" in said and not (folder / "never").exists()


def test_unseen_elements_are_refused_unless_asked_for(folder: Path) -> None:
    numbers = npz("rmd17_ethanol_test_01.npz")["nuclear_charges"].copy()
    numbers[2] = 9
    fluorine = ethanol(folder / "fluorine.npz", nuclear_charges=numbers)
    config, before = configuration(folder, "fluorine", fluorine, training={"steps": 2}), files(folder)
    line = refuse("finetune", config, "--from", MODEL, "--out", folder / "fluorine")
    assert "the model never saw F; it was trained on H, C, N, O, S, Cl; set new_elements=true" in line
    assert files(folder) == before
    succeed("finetune", config, "--from", MODEL, "--out", folder / "fluorine", "--set", "new_elements=true")
    assert 9 in load_model(folder / "fluorine" / "model.safetensors")[0].elements


def test_minimum_norm_against_numpy() -> None:
    """The pseudo-inverse of the full composition matrix: one molecule (rank 1 of 3), and many (full rank)."""
    one = open_data(_path("rmd17_ethanol_test_01.npz")).block(range(20))
    many = open_data(_path("qm7x_hand.npz")).block(range(0, 2000, 7))
    for block, rank in ((one, 1), (many, len(np.unique(many.arrays["numbers"])))):
        composition = np.array([np.bincount(block.system(i).numbers, minlength=ELEMENTS) for i in range(len(block))], dtype=float)
        energies = np.random.default_rng(0).normal(-50, 3, len(block)) + composition @ np.arange(ELEMENTS)
        found, found_rank = minimum_norm(block, energies)
        expected = np.linalg.pinv(composition) @ energies
        error = np.abs(found - expected).max()
        print(
            f"{len(block)} conformations, rank {found_rank}: within {error:.1e} eV of numpy's pinv, largest {np.abs(expected).max():.1f} eV"
        )
        assert found_rank == rank
        assert error < 1e-9
    assert np.flatnonzero(minimum_norm(one, np.full(20, -9.0))[0]).tolist() == [1, 6, 8]


def _path(name: str) -> Path:
    import forcewell.bundled

    return Path(next(iter(forcewell.bundled.__path__))) / name


def test_full_rank_for_many_molecules(folder: Path) -> None:
    store = Store(folder / "qm7x.fw")
    out = succeed(
        "finetune", configuration(folder, "many", folder / "qm7x.fw", training={"steps": 2}), "--from", MODEL, "--out", folder / "many"
    )
    count = len(store.elements)
    assert f"reference energies of PBE0+MBD: {count} of {count} element energies are fixed by the data" in out
    overlap = float(re.search(r"qm7x: ([\d.]+) % of the conformations were", out).group(1))  # type: ignore[union-attr]
    print(f"{count} elements; {overlap} % of the conformations were in pre-training")
    assert overlap > 80  # the museum's model was trained on them, less what it held out


def test_one_fit_for_two_sources_of_one_level() -> None:
    """Halves of a data set as two sources give the fit of the whole; fitted one after another they would not."""
    data = open_data(_path("qm7x_hand.npz"))
    halves = [MemoryData([data.block(range(start, start + 60))]) for start in (0, 60)]
    whole, parts = fw.load(MODEL), fw.load(MODEL)
    level = data.levels[0]
    for potential in (whole, parts):
        potential.levels, potential.references = (level,), {level: np.zeros(ELEMENTS)}
    correct(whole, [(data, np.arange(120))], level)
    correction = correct(parts, [(half, np.arange(60)) for half in halves], level)
    error = np.abs(whole.references[level] - parts.references[level]).max()
    print(f"two sources against one: {error:.1e} eV of {np.abs(whole.references[level]).max():.0f} eV; {correction}")
    assert error < 1e-6
    assert correction is not None and correction.conformations == 120


def test_weights_move_from_the_parents(tuned: tuple[Path, str]) -> None:
    parent, child = weights(MODEL), weights(tuned[0] / "model.safetensors")
    name = "model.head.blocks.0.mix.weight"
    moved = float((parent[name] - child[name]).abs().max())
    fresh = float((parent[name] - torch.nn.init.xavier_uniform_(torch.empty_like(parent[name]))).abs().max())
    print(f"weights moved by {moved:.3f} in 12 steps; random ones are {fresh:.2f} away")
    assert 0 < moved < 0.2 * fresh
