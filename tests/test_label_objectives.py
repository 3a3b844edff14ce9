"""Objectives on labels: energies by level, force norm, forms of an error, properties, weights that end; in whole runs, too."""

from __future__ import annotations

import dataclasses
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from learning import learn, model_for
from tiny_runs import command, ethanol, log, refuse, settings, small_store, succeed, weights, write_yaml

import forcewell as fw
from forcewell import train
from forcewell.batch import Batch
from forcewell.evaluate.errors import EnergyErrors, evaluate, roc_auc
from forcewell.nn.heads import MeanPooledProperties
from forcewell.objectives import build, share
from forcewell.potential import Potential, Prediction
from forcewell.store import MemoryData
from forcewell.system import Block, System

# E = Σ_pairs ½ k (d - d₀)²: chemistry enough for what energies and forces should teach, with exact labels.
SPRING, REST = 4.0, 1.2


def spring(rows: int, seed: int = 0) -> Block:
    """Bent triatomics around their minimum with the spring energies and forces; the first is the minimum."""
    rng = np.random.default_rng(seed)
    rest = REST * np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.5, 3**0.5 / 2, 0.0]])
    positions = rest + 0.15 * rng.standard_normal((rows, 3, 3))
    positions[0] = rest
    vectors = positions[:, :, None] - positions[:, None]
    distances = np.linalg.norm(vectors, axis=3) + np.eye(3)
    stretch = (distances - REST) * (1 - np.eye(3))
    energy = 0.25 * SPRING * (stretch**2).sum((1, 2))
    forces = -(SPRING * stretch / distances)[..., None] * vectors
    equilibrium = np.zeros(rows)
    equilibrium[0] = 1
    return Block.shared([8, 8, 8], positions, energy=energy, forces=forces.sum(2), equilibrium=equilibrium)


def test_forms_of_an_error_against_numpy(labelled: Block) -> None:
    batch = Batch.from_block(labelled.take([0, 1]), dtype=torch.float64)
    rng = np.random.default_rng(1)
    found = batch.targets.forces + torch.from_numpy(0.02 * rng.standard_normal(batch.targets.forces.shape))
    batch.targets.forces[2] = torch.nan
    error = np.delete((found - batch.targets.forces).numpy(), 2, axis=0)
    huber = np.where(np.abs(error) < 0.01, 0.5 * error**2, 0.01 * (np.abs(error) - 0.005))
    wanted = {
        "mse": ((error**2).sum(), error.size),
        "mae": (np.abs(error).sum(), error.size),
        "huber": (huber.sum(), error.size),
        "l2": (np.linalg.norm(error, axis=1).sum(), len(error)),
    }
    for form, (total, count) in wanted.items():
        term = build({"forces": {"form": form}})[0].loss(Prediction(torch.zeros(2), found), batch)
        print(f"{form}: {float(term.total):.6f}, NumPy {total:.6f}")
        assert float(term.total) == pytest.approx(total, rel=1e-4) and int(term.count) == count
    exact = batch.targets.forces.clone().requires_grad_(True)
    build({"forces": {"form": "l2"}})[0].loss(Prediction(torch.zeros(2), exact), batch).total.backward()
    assert exact.grad is not None and not exact.grad.any()  # no NaN where the error is zero


def test_energies_of_two_levels_are_learned_without_their_zeros() -> None:
    """The same springs at two levels 1,000 eV apart: relative to references one model learns both; forces follow from energies."""
    block = spring(24)
    batch = Batch.from_block(block, dtype=torch.float64, level=np.arange(24) % 2)
    # what the training loop makes of labels of either level
    model, _ = learn({"energy": {"form": "mae"}}, batch, 150)
    model.references["two"][8] = -1000 / 3
    fresh = Batch.from_block(spring(40, seed=1), dtype=torch.float64)
    out = model(fresh)
    energy, forces = out.energy.detach() - fresh.targets.energy, out.forces - fresh.targets.forces
    spread = float(fresh.targets.energy.abs().mean())
    size = float(fresh.targets.forces.abs().mean())
    print(f"energy MAE {float(energy.abs().mean()):.3f} of {spread:.3f} eV; forces {float(forces.abs().mean()):.2f} of {size:.2f} eV/Å")
    assert float(energy.abs().mean()) < 0.4 * spread and float(forces.abs().mean()) < 0.6 * size
    upper, lower = (model.total_energy(out, dataclasses.replace(fresh, level=torch.full_like(fresh.level, k))) for k in (0, 1))
    assert float((upper - lower).mean()) == pytest.approx(1000)


def test_force_norm_is_the_length_of_the_whole_gradient(minima: Block) -> None:
    """Not squared, one number per minimum; alone (α = 1 by the equation) it teaches a constant, so α = 1 of the text is α = 0."""
    batch = Batch.from_block(minima.take([0, 1, 2]), dtype=torch.float64)
    batch.targets.equilibrium[1] = 0
    model = model_for(build("gao"))
    out = model(batch)
    norms = [float(part.norm()) for part in out.forces.split(batch.counts.tolist())]
    term = build({"force-norm": {}})[0].loss(out, batch)
    assert float(term.total) == pytest.approx(norms[0] + norms[2], abs=1e-5) and int(term.count) == 2
    energy, norm = build("gao")
    assert energy.weight + norm.weight == pytest.approx(1) and [o.name for o in build("gao-energy")] == ["energy"]
    atom = Batch.from_systems([System({"numbers": np.array([8]), "positions": np.zeros((1, 3))})], dtype=torch.float64)
    atom.targets.equilibrium[:] = 1
    build({"force-norm": {}})[0].loss(model(atom, create_graph=True), atom).total.backward()
    assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())
    block = spring(12)
    block.arrays["forces"][:] = np.nan
    batch = Batch.from_block(block, dtype=torch.float64)
    slopes = {}
    for name, description in {"with": {"energy": {"weight": 0.5}, "force-norm": {"weight": 0.5}}, "without": {"energy": {}}}.items():
        model, _ = learn(description, batch, 80)
        slopes[name] = float(model(batch).forces[:3].norm())
    print(f"force at the minimum: {slopes['with']:.3f} with the norm, {slopes['without']:.3f} eV/Å without")
    assert slopes["with"] < 0.5 * slopes["without"]


def test_joint_matching_beats_either_label_alone() -> None:
    """(1 - γ) energies + γ forces on few conformations: the test error of energies falls with forces beside them."""
    few, fresh = spring(6), Batch.from_block(spring(40, seed=1), dtype=torch.float64)
    batch = Batch.from_block(few, dtype=torch.float64)
    errors = {}
    for name, description in {"joint": "joint", "energies": {"energy": {}}}.items():
        model, _ = learn(description, batch, 80)
        errors[name] = float((model(fresh, forces=False).energy.detach() - fresh.targets.energy).abs().mean())
    print(f"energy MAE: {errors}")
    assert errors["joint"] < 0.8 * errors["energies"]


def test_per_atom_and_summed_errors(labelled: Block) -> None:
    batch = Batch.from_block(labelled.take([0, 15]), dtype=torch.float64)
    out = Prediction(batch.targets.energy + torch.tensor([1.3, 4.6], dtype=torch.float64))
    term = build({"energy": {"per_atom": True, "form": "mae"}})[0].loss(out, batch)
    assert float(term.total) == pytest.approx(1.3 / 13 + 4.6 / 23)
    assert (build("wang")[0].reduction, build("noisynode")[0].reduction) == ("sum", "mean")


def test_standardised_energies(tmp_path: Path) -> None:
    """The model's factor is the spread of the labels around their references, stays in the file, and leaves forces the gradient."""
    block = fw.Store(small_store(tmp_path, "qm7x", 60)).block(range(60))
    energies, numbers = block.arrays["energy"], np.split(block.arrays["numbers"], block.offsets[1:-1])
    elements = np.unique(block.arrays["numbers"])
    counts = np.array([[np.sum(of == z) for z in elements] for of in numbers], dtype=float)
    left = energies - counts @ np.linalg.pinv(counts) @ energies
    config = settings(objectives={"energy": {"standardised": True}}, data=[{"path": str(tmp_path / "qm7x.fw")}])
    config["validation"] = {"path": str(tmp_path / "qm7x.fw"), "maximum": 4}
    succeed("pretrain", write_yaml(tmp_path / "run.yaml", config), "--out", tmp_path / "run")
    model = fw.load(tmp_path / "run" / "model.safetensors")
    print(f"spread {model.energy_spread:.4f} eV, by pseudo-inverse {left.std():.4f}")
    assert model.energy_spread == pytest.approx(float(np.sqrt((left**2).mean())), rel=1e-6) and model.energy_spread > 0.1
    plain = Potential({**model.config, "head": {**model.config["head"], "energy_spread": None}}, levels=model.levels)
    plain.load_state_dict(model.state_dict())
    batch = Batch.from_block(block.take([0, 7]))
    scaled, unscaled = model(batch), plain(batch)
    for ours, theirs in ((scaled.energy, unscaled.energy), (scaled.forces, unscaled.forces)):
        assert torch.allclose(ours, model.energy_spread * theirs, rtol=1e-5, atol=1e-6)


def test_levels_with_forces_of_different_size_are_pooled(labelled: Block) -> None:
    """One level's forces are 0.8 of the other's: the learned scales find the ratio, and energies follow."""
    block = spring(16)
    batch = Batch.from_block(block, dtype=torch.float64, level=np.arange(16) % 2)
    factor = torch.where(batch.level == 1, 0.8, 1.0).double()
    batch.targets.forces *= factor[batch.molecule, None]
    torch.manual_seed(1)
    encoder = {"name": "equivariant-transformer", "channels": 16, "layers": 1, "heads": 2, "radial": 16, "elements": 20}
    model = Potential({"encoder": encoder, "head": {"level_scale": True}}, levels=["one", "two"]).double()
    plain = Potential({"encoder": encoder}, levels=["one", "two"]).double()
    plain.load_state_dict({k: v for k, v in model.state_dict().items() if k != "level_scale"})
    assert torch.equal(model(batch).forces, plain(batch).forces)  # at first 1
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(120):
        loss = ((model(batch, create_graph=True).forces - batch.targets.forces) ** 2).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    ratio = float(torch.exp(model.level_scale[1] - model.level_scale[0]))  # type: ignore[index]
    energies = model(batch).energy.detach()
    other = model(dataclasses.replace(batch, level=1 - batch.level)).energy.detach()
    found = other[0] / energies[0]
    print(f"ratio of the levels {ratio:.3f} (true 0.8)")
    assert ratio == pytest.approx(0.8, abs=0.06) and float(found) == pytest.approx(ratio, rel=1e-6)


def test_weights_that_end() -> None:
    objective = build({"forces": {}, "force-denoising": {"weight": 2.0, "until": 0.5}})[1]
    assert [share(objective, progress) for progress in (0.0, 0.25, 0.5, 1.0)] == [2.0, 1.0, 0.0, 0.0]
    assert share(build("et-ore")[0], 0.9) == 1.0


# --- properties


def counted(rows: int, seed: int = 0) -> Block:
    """Random small molecules whose properties are known functions of their composition; a third of the labels missing."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(2, 6, rows)
    numbers = rng.choice([1, 6, 8], counts.sum()).astype(np.uint8)
    grid = np.array([[i, j, k] for i in range(2) for j in range(2) for k in range(2)]) * 1.3
    positions = np.concatenate([grid[:n] for n in counts]) + 0.05 * rng.standard_normal((counts.sum(), 3))
    oxygens = np.add.reduceat(numbers == 8, np.concatenate([[0], np.cumsum(counts)[:-1]])).astype(float)
    size = 100 + 3.0 * oxygens
    size[rng.random(rows) < 0.3] = np.nan
    polar = (oxygens > 0).astype(float)
    polar[rng.random(rows) < 0.3] = np.nan
    properties = {"size": size, "polar": polar}
    return Block(counts, {"numbers": numbers, "positions": positions}, level="made up", properties=properties)


@pytest.mark.parametrize(("form", "name"), [("mse", "size"), ("mae", "size"), ("bce", "polar")])
def test_properties_are_learned(form: str, name: str) -> None:
    """Values in their own units, classes with missing labels; the pooled head on every encoder."""
    from forcewell.loader import Source, batch_of
    from forcewell.model_building import with_heads

    data = MemoryData([counted(40)])
    objective = build({"property": {"names": [name], "form": form}})[0]
    column = data.column(f"property:{name}")[:, None]
    source = Source("made up", data, np.arange(40), 1.0, np.zeros(40, dtype=np.int64), np.zeros(1, dtype=np.int64), column)
    head = with_heads({}, [objective], [source])
    torch.manual_seed(0)
    model = Potential(
        {"encoder": {"name": "schnet", "channels": 16, "layers": 1, "radial": 16, "elements": 20}, "head": head}, levels=["made up"]
    ).double()
    assert model.config["head"]["properties"]["pool"] == "pooled"
    batch = batch_of(source, 0, np.arange(40), torch.float64)
    described = model.config["head"]["properties"]
    batch.targets.properties = (batch.targets.properties - described["mean"][0]) / described["spread"][0]
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        out = model(batch, forces=False, properties=True)
        term = objective.loss(out, batch)
        assert int(term.count) == int(np.isfinite(column).sum()) < 40 and out.forces is None
        optimiser.zero_grad()
        (term.total / term.count).backward()
        optimiser.step()
    result = evaluate(model, MemoryData([counted(80, seed=1)]))["properties"][name]
    print(f"{form} {name}: {result}")
    if form == "bce":
        assert result["roc_auc"] > 0.95
    else:
        assert result["mae"] < 1.0 and described["mean"][0] > 100  # of a spread of about 3
    predicted = model.predict([data[0], data[1]])["properties"][name]
    assert predicted.shape == (2,) and (predicted > 0).all()


def test_pooling_by_the_mean(minima: Block) -> None:
    """Two molecules far apart have the same mean-pooled properties as one, and twice the sum."""
    from forcewell.nn.features import Features

    batch = Batch.from_block(minima.take([0, 1]), dtype=torch.float64)
    head = MeanPooledProperties(4, 2).double()
    scalars = torch.ones(len(batch.numbers), 4, dtype=torch.float64)
    values = head(Features(scalars), batch)
    assert torch.allclose(values[0], values[1])


def test_roc_auc_against_counting_pairs() -> None:
    rng = np.random.default_rng(0)
    scores, positive = np.round(rng.random(60), 1), rng.random(60) < 0.3  # ties
    pairs = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    assert roc_auc(positive, scores) == pytest.approx(np.mean(pairs))
    assert roc_auc(np.ones(3, dtype=bool), scores[:3]) is None


def test_energy_errors_of_a_validation(labelled: Block) -> None:
    batch = Batch.from_block(labelled.take([0, 1, 2, 10, 11]), level=[0, 0, 0, 0, 1])
    errors = EnergyErrors()
    errors.add(batch, torch.tensor([1.0, 3.0, torch.nan, 7.0, 9.0], dtype=torch.float64))
    assert errors.summary(trained=True)["energy_mae"] == pytest.approx(5000)
    assert errors.summary(trained=False)["energy_mae"] == pytest.approx(1000)  # 1 and 3, their mean taken off
    both = EnergyErrors.of([errors, errors])
    assert both.summary(trained=False)["energy_mae"] == pytest.approx(1000 * (4 * 1.0) / 8)
    assert EnergyErrors().summary(True) == {}


# --- whole runs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("objectives")
    small_store(place, "qm9", 30)
    small_store(place, "qm7x", 40)
    ethanol(place / "ethanol.npz", 24)
    return place


@pytest.fixture(scope="module")
def denoised(folder: Path) -> Path:
    """The run folder of a pre-training by normalised denoising; its configuration is denoise.yaml beside it."""
    config = write_yaml(folder / "denoise.yaml", settings(str(folder / "qm9.fw"), objectives="noisynode-faithful"))
    succeed("pretrain", config, "--out", folder / "denoise")
    return folder / "denoise"


def test_a_run_on_energies_uses_references_from_the_start(folder: Path) -> None:
    """QM7-X total energies of -10,000 eV: fitted references make step 0 a matter of eV, and validation says so."""
    config = write_yaml(folder / "energy.yaml", settings(str(folder / "qm7x.fw"), objectives="joint"))
    out = succeed("pretrain", config, "--out", folder / "energy")
    lines = [line for line in log(folder / "energy") if line["kind"] == "validation"]
    assert "reference energies of PBE0+MBD" in out
    print(f"energy MAE {[round(line['energy_mae']) for line in lines]} meV")
    assert lines[0]["energy_mae"] < 20_000 and all("force_mae" in line for line in lines)
    assert (fw.load(folder / "energy" / "model.safetensors").references["PBE0+MBD"][[1, 6]] < -5).all()


def test_denoising_alone_needs_no_forces_and_resumes(folder: Path, denoised: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The running normalisation is part of the state: a run in two parts equals one in one."""
    config, lines = folder / "denoise.yaml", log(denoised)
    assert all("force_mae" not in line for line in lines) and lines[-1]["terms"]["coordinate-denoising"] < 3
    model = fw.load(denoised / "model.safetensors")
    assert model.noise_normaliser is not None and int(model.noise_normaliser.count) > 100
    assert float(model.noise_normaliser.square.mean()) == pytest.approx(0.04**2, rel=0.2)
    calls, update = [], train._update

    def interrupted(*given: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return update(*given)

    monkeypatch.setattr(train, "_update", interrupted)
    assert command("pretrain", config, "--out", folder / "parts").code == 130
    monkeypatch.undo()
    succeed("pretrain", config, "--resume", "--out", folder / "parts")
    whole, parts = (weights(run / "model.safetensors") for run in (denoised, folder / "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)


def test_forces_after_denoising(folder: Path, denoised: Path) -> None:
    """A model pre-trained by normalised denoising is fine-tuned on forces; its noise head is kept and unused."""
    config = write_yaml(folder / "after.yaml", settings(str(folder / "ethanol.npz"), objectives="et-ore"))
    before = denoised / "model.safetensors"
    out = succeed("finetune", config, "--set", "new_elements=true", "--from", before, "--out", folder / "after")
    assert "dropped: none" in out and "force_mae" in log(folder / "after")[0]
    old, new = weights(before), weights(folder / "after" / "model.safetensors")
    name = "model.noise_head.blocks.0.mix.weight"
    assert torch.equal(old["model.noise_normaliser.count"], new["model.noise_normaliser.count"]) and torch.allclose(old[name], new[name])


def test_errors_summed_over_the_batch_and_a_report(folder: Path) -> None:
    """Wang et al.'s loss is the sum, the logged term the mean: their ratio counts coordinates. A run without forces has a report."""
    config = write_yaml(folder / "wang.yaml", settings(str(folder / "qm7x.fw"), objectives="wang", optimiser={"gradient_clip": None}))
    succeed("pretrain", config, "--set", "model.encoder=egnn", "--set", "model.encoder.channels=8", "--out", folder / "wang")
    for line in log(folder / "wang"):
        if line["kind"] == "train":
            count = line["loss"] / line["terms"]["coordinate-denoising"]
            assert count / 3 == pytest.approx(round(count / 3), rel=1e-6) and 4 * 4 <= round(count / 3) <= 4 * 23
        else:
            assert line["loss"] == line["terms"]["coordinate-denoising"]
    assert "report.html" in succeed("report", folder / "wang")


def test_an_annealed_objective_and_dens_in_a_run(folder: Path) -> None:
    objectives = {
        "forces": {}, "energy": {"per_atom": True}, "dens": {"probability": 0.9}, "zero-force": {"until": 0.5}
    }  # fmt: skip
    stores = [str(folder / "qm9.fw"), str(folder / "qm7x.fw")]
    config = write_yaml(folder / "dens.yaml", settings(*stores, objectives=objectives))
    succeed("pretrain", config, "--out", folder / "dens")
    lines = log(folder / "dens")
    train = [line for line in lines if line["kind"] == "train"]
    assert max(line["terms"]["dens"] for line in train) > 0
    late = next(line for line in train if line["step"] == 10)
    weighted = sum(late["terms"][name] for name in ("forces", "energy", "dens"))
    assert late["loss"] == pytest.approx(weighted, rel=1e-9)  # the zero-force weight has ended
    model = fw.load(folder / "dens" / "model.safetensors")
    assert model.encoder.force_embedding is not None and model.noise_head is not None
    line = refuse("pretrain", config, "--set", "model.encoder=schnet", "--out", folder / "refused")
    assert "SchNet has no vector features" in line and not (folder / "refused").exists()


def test_a_property_run_and_its_evaluation(folder: Path, denoised: Path) -> None:
    """HOMO energies of QM9 molecules: pre-trained, fine-tuned with auxiliary denoising, evaluated; a force field's head is new."""
    first = np.load(str(files("forcewell") / "bundled" / "qm9_minima_4002.npz"))["ids"][:30]
    csv = folder / "labels.csv"
    csv.write_text("idx,smiles,homo\n" + "".join(f"{i},,{-0.2 - 0.001 * k}\n" for k, i in enumerate(first)))
    succeed("data", "import", "qm9", folder / "qm9.npz", "--out", folder / "labels.fw", "--option", f"labels={csv}")
    plain = settings(str(folder / "qm9.fw"), objectives={"property": {"names": ["homo"]}})
    line = refuse("pretrain", write_yaml(folder / "p.yaml", plain), "--out", folder / "none")
    assert "it has no property homo (its own: none)" in line
    noise = {"place": "with-labels", "sigma": 0.005, "weight": 0.1, "normalise": "isotropic"}
    both = {"property": {"names": ["homo"], "form": "mae"}, "coordinate-denoising": noise}
    config = write_yaml(folder / "p.yaml", settings(str(folder / "labels.fw"), objectives=both))
    out = succeed("finetune", config, "--from", denoised / "model.safetensors", "--out", folder / "homo")
    report = next(text for text in out.splitlines() if text.startswith("tensors loaded"))
    assert "property_head.blocks.0.gate.bias" in report and "noise_head" not in report and "noise_normaliser.square" in report
    lines = log(folder / "homo")
    assert max(line["terms"]["coordinate-denoising"] for line in lines if line["kind"] == "train") > 0
    assert all(line["terms"]["coordinate-denoising"] == 0 for line in lines if line["kind"] == "validation")
    shown = succeed("evaluate", folder / "homo" / "model.safetensors", folder / "labels.fw", "--json", folder / "homo.json")
    print(next(text for text in shown.splitlines() if "homo" in text))
    result = json.loads((folder / "homo.json").read_text())["properties"]["homo"]
    assert 0 < result["mae"] <= result["rmse"] < 2.0
