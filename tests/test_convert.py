"""Published checkpoints become model files with the published energies and forces, and nothing in them is ever run."""

from __future__ import annotations

import argparse
import io
import json
import lzma
import pickle
import re
import sys
import types
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import forcewell as fw
from forcewell.batch import Batch
from forcewell.checkpoint import load_model
from forcewell.convert import convert, convert_file
from forcewell.errors import InputError
from forcewell.nn.embedding import WANG_CLASSES
from forcewell.potential import Potential
from forcewell.system import Block
from forcewell.torch_file import read_torch_file
from forcewell.units import KCAL_PER_MOL

DATA = Path(__file__).parent / "data"
# The gated heads soften |v| by 1e-8 (published: not at all): largest error 2e-11, of energies of 3-14.
SOFTENED = 1e-10
# Golden file -> settings that its state dict does not tell and that are not those published at full size.
FLAT: dict[str, dict[str, Any]] = {
    "schnet_wang": {},
    "egnn_wang_plain": {"tanh": False, "normalize": False},
    "egnn_wang_att_norm": {"tanh": False},
    "egnn_wang_att_norm_tanh": {},
    "et_wang": {"num_heads": 4},
}


def golden(name: str) -> tuple[dict[str, torch.Tensor], dict[str, Any], dict[str, np.ndarray]]:
    """Parameters as a state dict, hyperparameters, and all arrays of a golden file."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    state = OrderedDict((key.removeprefix("param/"), torch.from_numpy(value)) for key, value in arrays.items() if key.startswith("param/"))
    return state, json.loads((DATA / f"{name}.json").read_text())["hyperparameters"], arrays


def lightning(state: dict[str, torch.Tensor], settings: Any) -> dict[str, Any]:
    """What Lightning wraps around a state dict."""
    return {
        "epoch": 3,
        "global_step": 1000,
        "pytorch-lightning_version": "1.3.8",
        "state_dict": OrderedDict((f"model.{name}", value) for name, value in state.items()),
        "hparams_name": "hparams",
        "hyper_parameters": settings,
        "optimizer_states": [{"state": {0: {"step": torch.tensor(7.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]}],
    }


def saved(tree: Any, folder: Path, name: str = "published.ckpt", **options: Any) -> Path:
    torch.save(tree, folder / name, **options)
    return folder / name


def largest_error(potential: Potential, arrays: dict[str, np.ndarray], noise: str | None = None) -> float:
    """Of total energies, forces and noise over all systems of a golden file."""
    worst = 0.0
    for system in {key.split("/")[0] for key in arrays if key.endswith("/pos")}:
        of = {key.split("/")[1]: value for key, value in arrays.items() if key.startswith(f"{system}/")}
        batch = Batch.from_block(Block(np.bincount(of["batch"]), {"numbers": of["z"], "positions": of["pos"]}), dtype=potential.dtype)
        out = potential(batch, noise=noise is not None)
        pairs = [(potential.total_energy(out, batch), of["energy"][:, 0]), (out.forces, of["forces"])]
        pairs += [(out.noise, of[noise])] if noise else []
        worst = max([worst, *(float(np.abs(mine.detach().double().numpy() - theirs).max()) for mine, theirs in pairs)])
    return worst


@pytest.mark.parametrize("wrapping", ["lightning, new names", "lightning, old names", "namespace", "state dict alone"])
@pytest.mark.parametrize("name", ["et_tmd", "et_tmd_vector_cutoff", "et_tmd_lower_cutoff"])
def test_torchmd_net(name: str, wrapping: str, tmp_path: Path) -> None:
    """std e_i summed plus mean once per molecule, through the model file."""
    state, settings, arrays = golden(name)
    options: dict[str, Any] = {}
    if wrapping != "lightning, new names":
        state = OrderedDict((key.replace("update_net.layers.", "update_net."), value) for key, value in state.items())
    if wrapping == "state dict alone":
        tree: Any = state
        keys = ("num_heads", "cutoff_upper", "cutoff_lower", "vector_cutoff")
        options["settings"] = {key: settings[key] for key in keys}
    else:
        tree = lightning(state, argparse.Namespace(**settings) if wrapping == "namespace" else settings)
    convert_file(saved(tree, tmp_path), tmp_path / "m.safetensors", **options)
    potential = fw.load(tmp_path / "m.safetensors")
    print(f"{name}, {wrapping}: {(error := largest_error(potential, arrays)):.1e}")
    assert error < SOFTENED
    assert potential.references["converted"][0] == pytest.approx(float(state["mean"]), abs=0) and potential.dtype == torch.float64


@pytest.mark.parametrize(("name", "bound"), [("et_noisynode", SOFTENED), ("et_noisynode_whitened", 2e-9)])
def test_noisynode(name: str, bound: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Energy and noise heads; settings as Lightning's own dictionary class, whose module exists only while saving."""
    module = types.ModuleType("pytorch_lightning.utilities.parsing")
    kind = type("AttributeDict", (dict,), {"__module__": module.__name__})
    module.AttributeDict = kind  # type: ignore[attr-defined]
    state, settings, arrays = golden(name)
    state["pos_normalizer.acc_sum"] = torch.tensor([2.0, 4.0, -2.0])
    state["pos_normalizer.acc_squared_sum"] = torch.tensor([6.0, 8.0, 4.0])
    state["pos_normalizer.acc_count"] = torch.tensor([2.0])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.utilities", types.ModuleType("pytorch_lightning.utilities"))
        patch.setitem(sys.modules, module.__name__, module)
        path = saved(lightning(state, kind(settings)), tmp_path)
    convert_file(path, tmp_path / "m.safetensors")
    potential, description = load_model(tmp_path / "m.safetensors")
    print(f"{name}: {(error := largest_error(potential, arrays, noise='noise_pred')):.1e}")
    assert error < bound
    assert description["converted"]["noise_mean"] == [1.0, 2.0, -1.0]
    assert description["converted"]["noise_std"] == pytest.approx([2**0.5, 1e-8, 1.0])
    assert description["converted"]["layout"].startswith("TorchMD-Net")


@pytest.mark.parametrize("prefix", ["prior_model.", "prior_model.0."])
def test_atomic_reference_energies(prefix: str, tmp_path: Path) -> None:
    state, settings, arrays = golden("et_tmd")
    atomref = torch.randn(20, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 100
    plain = convert(saved(lightning(state, settings), tmp_path)).potential
    state |= {f"{prefix}initial_atomref": atomref.clone(), f"{prefix}atomref.weight": atomref}
    potential = convert(saved(lightning(state, {**settings, "prior_model": "Atomref"}), tmp_path), energy_unit="kcal/mol").potential
    z = arrays["ethanol/z"]
    batch = Batch.from_block(Block.shared(z, arrays["ethanol/pos"][None]), dtype=torch.float64)
    mine, theirs = potential.total_energy(out := potential(batch), batch), plain.total_energy(before := plain(batch), batch)
    expected = (theirs + atomref[z].sum()) * KCAL_PER_MOL
    print(f"{float(expected):.6f} eV, differs by {float((mine - expected).abs().max()):.1e}")
    assert (mine - expected).abs().max() < 1e-11
    assert (out.forces - before.forces * KCAL_PER_MOL).abs().max() < 1e-13


@pytest.mark.parametrize("name", FLAT)
def test_models_of_wang(name: str, tmp_path: Path) -> None:
    """State dicts with flat names, dead and duplicate tensors included."""
    state, _, arrays = golden(name)
    converted = convert_file(saved(state, tmp_path, "model.pth"), tmp_path / "m.safetensors", settings=FLAT[name])
    potential = fw.load(tmp_path / "m.safetensors")
    assert ("water/noise_pred" in arrays) == (potential.noise_head is not None)  # SchNet's noise is its force
    error = largest_error(potential, arrays, noise="noise_pred" if potential.noise_head is not None else None)
    print(f"{name}: {error:.1e}; {converted.notes}")
    assert error < 5e-14
    assert any("predict coordinate noise" in note for note in converted.notes)
    assert any("cutoff" in note and "taken as published" in note for note in converted.notes)
    with pytest.raises(InputError, match="no class for atomic number 14"):
        potential.predict([fw.System({"numbers": np.array([14]), "positions": np.zeros((1, 3))})])
    assert WANG_CLASSES[10] == (1, 0)


@pytest.mark.parametrize("name", ["gemnet_t_tum", "gemnet_t_mdsim"])
def test_gemnet(name: str, tmp_path: Path) -> None:
    """Each dense weight under one name (TUM) or two, alone or from data-parallel training; in another unit; what is refused."""
    state, settings, arrays = golden(name)
    if name == "gemnet_t_tum":
        tree: Any = state | {key.replace(".linear.weight", ".weight"): value for key, value in state.items()}
        assert settings["cutoff"] == 5.0 and settings["envelope_exponent"] == 5  # what is taken as published
    else:
        tree = {"epoch": 3, "state_dict": {f"module.module.{key}": value for key, value in state.items()}, "normalizers": {}}
    path = saved(tree, tmp_path, "checkpoint.pt")
    convert_file(path, tmp_path / "m.safetensors")
    potential = fw.load(tmp_path / "m.safetensors")
    print(f"{name}: {(error := largest_error(potential, arrays)):.1e}")
    assert error < 5e-12
    system = fw.System({"numbers": arrays["ethanol/z"], "positions": arrays["ethanol/pos"]})
    other = convert(path, energy_unit="kcal/mol").potential.predict([system])
    assert other["energy"][0] == pytest.approx(KCAL_PER_MOL * potential.predict([system])["energy"][0], rel=1e-12)
    more = saved(state | {"int_blocks.0.quad_interaction.dense_db.linear.weight": torch.ones(2, 2)}, tmp_path, "quadruplets.pt")
    with pytest.raises(InputError, match="not those of one GemNet-T"):
        convert(more)
    with pytest.raises(InputError, match="energies are normalised"):
        convert(saved({"state_dict": state, "normalizers": {"target": {"mean": torch.ones(1)}}}, tmp_path, "normalised.pt"))


@pytest.mark.parametrize("stored_basis", [True, False])
def test_the_real_published_checkpoint(stored_basis: bool, tmp_path: Path) -> None:
    """Wang et al.'s SE(3)-Transformer, in float32 as published, with its matrices from a file or those kept here."""
    path = tmp_path / "model.pth"
    path.write_bytes(lzma.decompress((DATA / "se3t_wang_model.pth.xz").read_bytes()))
    with np.load(DATA / "se3t_wang_pretrained.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    convert_file(path, tmp_path / "m.safetensors", basis=DATA / "se3t_wang_pretrained.npz" if stored_basis else None)
    potential = fw.load(tmp_path / "m.safetensors")
    assert potential.dtype == torch.float32 and sum(p.numel() for p in potential.parameters()) == 239_057
    rough, exact = largest_error(potential, arrays), largest_error(potential.double(), arrays)
    print(f"float32: {rough:.1e}; float64: {exact:.1e}")
    assert rough < 1e-4 and exact < 5e-14


class Bomb:
    """Runs a command when unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"import pathlib; pathlib.Path({str(self.marker)!r}).touch()",)


def rewritten(path: Path, program: bytes) -> Path:
    """The same archive with another pickle."""
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, program if name.endswith("data.pkl") else data)
    return path


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("place", ["beside the tensors", "as a tensor", "as settings"])
def test_nothing_in_a_file_is_run(place: str, protocol: int, tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    state, settings, _ = golden("et_tmd")
    tree = lightning(state, settings)
    if place == "beside the tensors":
        tree["callbacks"] = {"x": Bomb(marker)}
    elif place == "as a tensor":
        tree["state_dict"]["model.mean"] = Bomb(marker)
    else:
        tree["hyper_parameters"] = Bomb(marker)
    path = saved(tree, tmp_path, pickle_protocol=protocol)
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))

    class Loader(pickle.Unpickler):
        def persistent_load(self, pid: Any) -> Any:
            return torch.storage.TypedStorage(int(pid[4]), dtype=torch.float64, _internal=True)

    Loader(io.BytesIO(program)).load()
    assert marker.exists()  # the control: it is a bomb
    marker.unlink()
    with pytest.raises(InputError, match=r"asks for (builtins|__builtin__).exec, which is no data; nothing in it was run"):
        convert(path)
    assert not marker.exists()


@pytest.mark.parametrize(
    "program",
    [
        b"cposix\nsystem\n(S'true'\ntR.",  # a plain call
        b"(S'true'\niposix\nsystem\n.",  # the old instruction for an instance
        b"ctorch\nload\n(S'/tmp/x'\ntR.",  # a known package: kept as data, never called, and no state dict
        b"\x82\x01.",  # the extension registry
        b"Pstorage\n.",  # a persistent reference in text
        b"ctorch._utils\n_rebuild_tensor_v2\n(I1\nI0\n(I4\nt(I1\nttR.",  # a tensor without data
        b"(dI0\nbR.",
        b"garbage",
    ],
)
def test_odd_programs_are_refused(program: bytes, tmp_path: Path) -> None:
    path = rewritten(saved({"a": torch.zeros(2)}, tmp_path), program)
    with pytest.raises(InputError) as refused:
        convert(path)
    print(refused.value)


def test_tensors_beyond_their_data_are_refused(tmp_path: Path) -> None:
    path = saved({"a": torch.zeros(4)}, tmp_path, pickle_protocol=2)
    with zipfile.ZipFile(path) as archive:
        program = archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))
    assert program.count(b"K\x04\x85") == 1  # the shape (4,)
    with pytest.raises(InputError, match="reaches beyond its data"):
        read_torch_file(rewritten(path, program.replace(b"K\x04\x85", b"K\x40\x85")))


@pytest.mark.parametrize(
    ("tensor", "said"),
    [
        (torch.zeros(1).expand(3), r"a tensor of shape \(3,\) that stores 1 numbers only \(made by expand\?\); save it again"),
        (torch.zeros(2, dtype=torch.complex64), "a tensor of type ComplexFloat, which cannot be read"),
        (torch.zeros(2).to(torch.float8_e4m3fn), r"a tensor of type float8_e4m3fn, which cannot be read \(possible: float64, float32,"),
        (torch.zeros(2, dtype=torch.uint16), "a tensor of type uint16, which cannot be read"),
    ],
)
def test_tensors_that_cannot_be_read_are_no_damage(tensor: torch.Tensor, said: str, tmp_path: Path) -> None:
    for protocol in (2, 4):
        with pytest.raises(InputError, match=said) as refused:
            read_torch_file(saved({"a": tensor}, tmp_path, pickle_protocol=protocol))
        assert "damaged" not in str(refused.value)


def test_what_is_read_equals_what_was_saved(tmp_path: Path) -> None:
    shared = torch.arange(12.0).reshape(3, 4)
    tree = {
        "views": [shared.T, shared[1:, ::2], shared[0, 0], torch.empty(0, 3)],
        "types": [torch.ones(2, dtype=kind) for kind in (torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool)],
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "plain": [1, -5, 2**70, 2.5, None, True, "å", (1, 2, 3, 4), {"x": set()}],
    }
    for protocol in (2, 3, 4):
        read = read_torch_file(saved(tree, tmp_path, pickle_protocol=protocol))
        for kind in ("views", "types"):
            assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(read[kind], tree[kind], strict=True))
        assert torch.equal(read["parameter"], torch.ones(3)) and read["plain"] == tree["plain"]


def refusal(tree: Any, folder: Path, **options: Any) -> str:
    with pytest.raises(InputError) as refused:
        convert(saved(tree, folder), **options)
    print(refused.value)
    assert not re.search(r"Traceback|\n", str(refused.value))
    return str(refused.value)


def test_mistakes_are_one_clear_line(tmp_path: Path) -> None:
    state, settings, _ = golden("et_tmd")
    plain = {"num_heads": 4, "cutoff_upper": 5.0}
    assert "does not store num_heads; give it with --set" in refusal(state, tmp_path)
    assert "cutoff_upper is 0; expected a length in Å" in refusal(state, tmp_path, settings={**plain, "cutoff_upper": 0})
    assert "num_heads is 2.5; expected a whole number" in refusal(state, tmp_path, settings={**plain, "num_heads": 2.5})
    assert "lower_cutoff (5.0 Å) must be below cutoff (5.0 Å)" in refusal(state, tmp_path, settings={**plain, "cutoff_lower": 5.0})
    assert "lower_cutoff (9.0 Å) must be below cutoff (5.0 Å)" in refusal(state, tmp_path, settings={**plain, "cutoff_lower": 9.0})
    assert "must be a multiple of heads (3)" in refusal(state, tmp_path, settings={**plain, "num_heads": 3})
    assert "did you mean 'num_heads'?" in refusal(state, tmp_path, settings={"num_head": 4})
    assert "model is 'tensornet'" in refusal(lightning(state, {**settings, "model": "tensornet"}), tmp_path)
    assert "prior_model ZBL cannot be converted" in refusal(lightning(state, {**settings, "prior_model": [{"ZBL": {}}]}), tmp_path)
    assert "unknown energy unit 'kcal'" in refusal(state, tmp_path, settings=plain, energy_unit="kcal")
    assert "no known model has these tensors (a" in refusal({"a": torch.zeros(3)}, tmp_path)
    assert "has no state dict" in refusal([1, 2], tmp_path)
    more = lightning(OrderedDict(state, **{"output_model.extra": torch.zeros(7, dtype=torch.float64)}), settings)
    assert re.search(r"are not those of one|another model", refusal(more, tmp_path))
    fewer = OrderedDict((key, value) for key, value in state.items() if "o_proj" not in key)
    assert "are not those of one TorchMD-Net" in refusal(lightning(fewer, settings), tmp_path)
    broken = OrderedDict(state, mean=torch.tensor(float("nan")))
    assert "mean has values that are not finite" in refusal(lightning(broken, settings), tmp_path)
    with pytest.raises(InputError, match="does not exist; expected a checkpoint"):
        convert(tmp_path / "nowhere.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(InputError, match="not a checkpoint of PyTorch"):
        convert(tmp_path / "old.pt")
    (tmp_path / "cut.pt").write_bytes(saved(state, tmp_path).read_bytes()[:5000])
    with pytest.raises(InputError):
        convert(tmp_path / "cut.pt")


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from forcewell.cli import main

    state, settings, arrays = golden("et_tmd_vector_cutoff")
    path = saved(state, tmp_path)
    words = ["convert", str(path), "--out", str(tmp_path / "m.safetensors")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and "does not store num_heads" in capsys.readouterr().err
    assert not (tmp_path / "m.safetensors").exists()
    main([*words, "--set", "num_heads=4", "--set", "cutoff_upper=5.0", "--set", "vector_cutoff=true", "--level", "B3LYP"])
    out = capsys.readouterr().out
    print(out)
    potential = fw.load(tmp_path / "m.safetensors")
    assert potential.levels == ("B3LYP",) and "TorchMD-Net Equivariant Transformer" in out and "m.safetensors" in out
    assert largest_error(potential, arrays) < SOFTENED and settings["vector_cutoff"]
    with pytest.raises(SystemExit) as ended:
        main([*words, "--set", "num_heads=4", "--set", "cutoff_upper=5.0"])
    assert ended.value.code == 2 and "m.safetensors already exists" in capsys.readouterr().err
    assert fw.load(tmp_path / "m.safetensors").levels == ("B3LYP",)
