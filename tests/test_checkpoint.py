"""Model files: they come back to the last bit, say where they are from, and never run anything."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from tiny_runs import MODEL, MUSEUM, settings, small_store, succeed, write_yaml

import forcewell as fw
from forcewell.checkpoint import FORMAT, find_model, load_model, read_tensors, save_model, training_hashes, write_tensors
from forcewell.errors import InputError
from forcewell.overlap import geometry_hashes, overlap
from forcewell.potential import Potential
from forcewell.store import Store
from forcewell.system import System

CONFIG = {"encoder": {"name": "equivariant-transformer", "channels": 8, "layers": 1, "heads": 2, "radial": 4, "cutoff": 4.0}}


def water() -> System:
    return System({"numbers": np.array([8, 1, 1]), "positions": np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0.0]])})


def test_round_trip_is_exact(tmp_path: Path) -> None:
    """Weights to the bit, reference energies as float64: -40,000 eV carries 7e-12 eV, which float32 would not."""
    references = {"a": np.random.default_rng(0).normal(-4e4, 1e4, 119), "b": np.full(119, 1 / 3)}
    potential = Potential(CONFIG, levels=("a", "b"), references=references, elements=(8, 1))
    save_model(tmp_path / "m.safetensors", potential, training={"step": 7})
    loaded, description = load_model(tmp_path / "m.safetensors")
    assert (loaded.levels, loaded.elements, loaded.config) == (("a", "b"), (1, 8), potential.config)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in potential.state_dict().items())
    assert all((loaded.references[level] == references[level]).all() for level in references)
    assert description["training"] == {"step": 7}
    for level in references:
        here, there = potential.predict([water()], level), loaded.predict([water()], level)
        assert here["energy"][0] == there["energy"][0] and np.array_equal(here["forces"][0], there["forces"][0])
    assert loaded.predict([water()])["energy"][0] == loaded.predict([water()], "b")["energy"][0]  # the last level by default


def test_double_precision_stays_double(tmp_path: Path) -> None:
    potential = Potential(CONFIG).double()
    save_model(tmp_path / "m.safetensors", potential)
    with safe_open(tmp_path / "m.safetensors", framework="pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.float64}  # noqa: SIM118
    loaded = fw.load(tmp_path / "m.safetensors")
    difference = abs(potential.predict([water()])["energy"][0] - loaded.predict([water()])["energy"][0])
    print(f"a float64 model, loaded: energy differs by {difference:.1e} eV")
    assert difference == 0


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pre-training run on 30 conformations of QM7-X."""
    folder = tmp_path_factory.mktemp("run")
    config = write_yaml(folder / "c.yaml", settings(str(small_store(folder, "qm7x", 30)), objectives="et-ore"))
    succeed("pretrain", config, "--out", folder / "run")
    return folder


def test_header_says_where_a_model_is_from(run: Path) -> None:
    with safe_open(run / "run" / "model.safetensors", framework="pt") as file:
        header = json.loads(file.metadata()["forcewell"])
    store = Store(run / "qm7x.fw")
    assert header["format"] == FORMAT == 1
    assert header["version"] == fw.__version__
    assert header["units"] == {"energy": "eV", "length": "Å", "forces": "eV/Å", "time": "fs", "mass": "amu"}
    assert header["config"]["encoder"]["channels"] == 16
    assert header["levels"] == ["PBE0+MBD"]
    assert header["elements"] == store.elements
    assert [len(values) for values in header["references"].values()] == [119]
    assert header["data"][0]["fingerprint"] == store.fingerprint
    assert header["data"][0]["name"] == "qm7x" and header["data"][0]["levels"] == ["PBE0+MBD"]
    assert header["ancestry"] == []
    assert header["run"]["training"]["steps"] == 12
    assert header["training"]["step"] in (0, 4, 8, 12)
    assert isinstance(header["commit"], str)


def test_a_run_folder_stands_for_its_model(run: Path) -> None:
    folder, file = run / "run", run / "run" / "model.safetensors"
    assert find_model(folder) == file and all(map(np.array_equal, training_hashes(folder), training_hashes(file)))
    assert fw.load(folder).predict([water()])["energy"] == fw.load(file).predict([water()])["energy"]
    short = ("--set", "training.steps=2", "--out", run / "tuned")
    succeed("finetune", run / "c.yaml", "--from", folder, *short)
    assert load_model(run / "tuned")[1]["ancestry"][0]["model"] == str(file)
    succeed("finetune", run / "c.yaml", "--from", file, "--resume", *short)  # the same parent


def test_geometry_hashes_know_the_training_data(run: Path) -> None:
    (known,), store = training_hashes(run / "run" / "model.safetensors"), Store(run / "qm7x.fw")
    share = overlap(geometry_hashes(store.block(np.arange(len(store)))), known)
    trained = load_model(run / "run" / "model.safetensors")[1]["data"][0]["conformations"]
    print(f"{len(known)} hashes of {trained} training conformations; {share:.3f} of the store recognised")
    assert len(known) == trained < len(store)
    assert share == pytest.approx(trained / len(store))


def test_the_museum_keeps_loading() -> None:
    """Prediction of a format-1 file, stored when it was written; float32 on other machines may differ in the sixth digit."""
    for path in sorted(MUSEUM.glob("*.json")):
        stored = json.loads(path.read_text(encoding="utf-8"))
        potential = fw.load(path.with_suffix(".safetensors"))
        system = System({"numbers": np.array(stored["numbers"], dtype=np.uint8), "positions": np.array(stored["positions"])})
        out = potential.predict([system])
        energy = abs(out["energy"][0] - stored["energy"])
        forces = np.abs(out["forces"][0] - np.array(stored["forces"])).max()
        scale = np.abs(np.array(stored["forces"])).max()
        print(f"{path.stem}: energy off by {energy:.1e} eV, forces by {forces:.1e} of {scale:.2f} eV/Å")
        assert energy < 1e-5 and forces < 1e-5 and scale > 0.1
        assert (list(potential.levels), list(potential.elements)) == (stored["levels"], stored["elements"])


def test_newer_format_is_refused(tmp_path: Path) -> None:
    tensors, description = read_tensors(MODEL, "model file")
    write_tensors(tmp_path / "new.safetensors", tensors, {**description, "format": FORMAT + 1})
    with pytest.raises(InputError, match=r"model format 2; this forcewell reads up to 1: update it"):
        fw.load(tmp_path / "new.safetensors")


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    """80 places drawn from the whole file, and the borders of its parts; each one byte changed to another."""
    data, generator = bytearray(MODEL.read_bytes()), np.random.default_rng(0)
    header = 8 + int.from_bytes(data[:8], "little")
    places = sorted({0, 1, 7, 8, 9, header - 1, header, header + 1, len(data) - 1, *generator.integers(0, len(data), 60).tolist(),
                     *generator.integers(8, header, 20).tolist()})  # fmt: skip
    unseen: list[int] = []
    messages: list[str] = []
    for place in places:
        changed = data.copy()
        changed[place] ^= int(generator.choice([1, 2, 4, 8, 16, 32, 64, 128]))
        (tmp_path / "m.safetensors").write_bytes(changed)
        try:
            fw.load(tmp_path / "m.safetensors")
            unseen.append(place)
        except InputError as error:
            messages.append(str(error))
    print(f"{len(places)} bytes flipped in {len(data)}, {len(unseen)} not found")
    assert len(places) > 80 and unseen == []
    assert all("\n" not in message and "m.safetensors" in message for message in messages)
    (tmp_path / "m.safetensors").write_bytes(data)
    fw.load(tmp_path / "m.safetensors")  # the control


@pytest.mark.parametrize("length", [0, 7, 8, 100, 12_000, -1])
def test_truncation_is_found(length: int, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(MODEL.read_bytes()[:length])
    with pytest.raises(InputError, match=r"m\.safetensors"):
        fw.load(tmp_path / "m.safetensors")


class Bomb:
    """Unpickling this writes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.write_text, (self.marker, "executed")


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    marker, path = tmp_path / "marker", tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps(Bomb(marker)))
    pickle.loads(path.read_bytes())
    assert marker.exists()  # the control: the bomb works
    marker.unlink()
    torch.save({"weights": torch.zeros(3), "bomb": Bomb(marker)}, tmp_path / "zipped.safetensors")
    for name in ("model.safetensors", "zipped.safetensors"):
        with pytest.raises(InputError, match="expected an intact safetensors file"):
            fw.load(tmp_path / name)
    assert not marker.exists()


def test_other_safetensors_files_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="not a model file written by forcewell"):
        fw.load(tmp_path / "other.safetensors")
    write_tensors(tmp_path / "state.safetensors", {"a": torch.zeros(2)}, {"kind": "run state"})
    with pytest.raises(InputError, match="is not a model file"):
        fw.load(tmp_path / "state.safetensors")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(MODEL.read_bytes())

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        save_model(path, Potential(CONFIG))
    assert path.read_bytes() == MODEL.read_bytes()
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
