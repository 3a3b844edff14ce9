"""What the documents claim is executed: Python blocks run, commands parse, and the data commands run on real files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import ase.build
import pytest
import torch

from forcewell.checkpoint import save_model
from forcewell.cli import app, main
from forcewell.errors import InputError
from forcewell.potential import Potential
from forcewell.sources import SOURCES
from forcewell.training_data import bundled

ROOT = Path(__file__).resolve().parents[1]


def blocks(document: str, language: str) -> list[str]:
    """The fenced blocks of a document in one language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```$", (ROOT / document).read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """Every ``forcewell`` command line of the README, comments removed."""
    lines = "\n".join(blocks("README.md", "")).splitlines()
    return [line.split("#")[0].strip() for line in lines if line.startswith("forcewell ")]


def test_the_tour_runs() -> None:
    namespace: dict[str, object] = {}
    found = blocks("docs/tour.md", "python")
    assert len(found) >= 4
    for block in found:
        exec(block, namespace)


def test_the_python_of_generating_runs() -> None:
    pytest.importorskip("tblite")
    for block in blocks("docs/generate.md", "python"):
        exec(block, {})


@pytest.mark.parametrize(
    "command", [line for line in "".join(blocks("docs/generate.md", "")).splitlines() if line.startswith("forcewell ")]
)
def test_every_command_of_generating_parses(command: str) -> None:
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_the_readme_s_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder laid out as after the quickstart."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tiny = {"name": "equivariant-transformer", "channels": 16, "layers": 1, "heads": 2, "radial": 8}
    potential = Potential({"encoder": tiny}, levels=["demo"])
    save_model(tmp_path / "quickstart" / "et-oreo" / "model.safetensors", potential)
    bundled("qm9", tmp_path / "quickstart" / "data")
    namespace: dict[str, object] = {"atoms": ase.build.molecule("CH3CH2OH")}
    for block in blocks("README.md", "python"):
        exec(block, namespace)
    atoms = namespace["atoms"]
    assert isinstance(atoms, ase.Atoms) and atoms.get_forces().shape == (9, 3)


@pytest.mark.parametrize("command", commands())
def test_every_command_of_the_readme_parses(command: str) -> None:
    words = shlex.split(command)[1:]
    app.parse_args(words, exit_on_error=False, print_error=False)


def test_the_number_of_sources() -> None:
    formats = {"extxyz", "npz", "hdf5", "asedb", "aselmdb"}
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"# {len(SOURCES) - len(formats)} data sets and {len(formats & set(SOURCES))} formats:" in text


def test_help_names_recipes(capsys: pytest.CaptureFixture[str]) -> None:
    """How to fine-tune on forces, and how to see all recipes."""
    app(["finetune", "--help"], result_action="return_none")
    assert "finetune forces --from forcewell-small" in " ".join(capsys.readouterr().out.split())
    app(["pretrain", "--help"], result_action="return_none")
    assert "list" in capsys.readouterr().out
    with pytest.raises(InputError, match=r"there is no recipe 'list'.*frad-qm9.*wang-schnet"):
        app(["pretrain", "list"], exit_on_error=False, print_error=False)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    """The control of the test above."""
    with pytest.raises(Exception, match="--frobnicate"):
        app.parse_args(["pretrain", "et-oreo", "--frobnicate", "1"], exit_on_error=False, print_error=False)


def test_the_data_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the README, on the QM7-X file of the package."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").symlink_to(ROOT / "src")  # as in a clone
    ran = 0
    for command in commands():
        words = shlex.split(command)[1:]
        if words[0] == "data" and "my.xyz" not in words:
            main(words)
            ran += 1
    assert ran >= 4
    assert (tmp_path / "stores" / "qm7x.fw" / "manifest.json").is_file()
