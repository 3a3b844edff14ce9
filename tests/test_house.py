"""The house rules that a machine can check: sizes, import layers, a cheap import, no trace of anyone's machine."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
FILE_LINES, FUNCTION_LINES = 400, 60
HEAVY = {"ase", "matplotlib", "lightning_fabric", "pyarrow", "rdkit", "pydantic", "scipy", "tblite", "pyscf", "h5py", "lmdb"}


def too_long_functions(text: str) -> list[tuple[str, int]]:
    """Functions of more than FUNCTION_LINES lines, decorators apart, docstring included."""
    functions = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    sizes = [(node.name, (node.end_lineno or node.lineno) - node.lineno + 1) for node in functions]
    return [(name, size) for name, size in sizes if size > FUNCTION_LINES]


def test_files_are_short_enough_to_read() -> None:
    assert SOURCES
    lines = {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES + TESTS}
    print(f"longest: {max(lines, key=lambda name: lines[name])}, {max(lines.values())} lines")
    assert {name: count for name, count in lines.items() if count > FILE_LINES} == {}


def test_functions_are_short_enough_to_read() -> None:
    found = {path.relative_to(ROOT).as_posix(): too_long_functions(path.read_text(encoding="utf-8")) for path in SOURCES}
    assert {name: functions for name, functions in found.items() if functions} == {}
    # The control: one line too many is seen.
    assert too_long_functions("def f():\n" + "    pass\n" * FUNCTION_LINES) == [("f", FUNCTION_LINES + 1)]
    assert too_long_functions("def f():\n" + "    pass\n" * (FUNCTION_LINES - 1)) == []


def test_no_path_of_anyones_machine() -> None:
    """Absolute home and scratch folders in code or documents are wrong on every other machine."""
    pattern = re.compile(r"(?<![\w.])/(?:home|Users|root|work|mnt|scratch)/[\w.-]+")
    assert pattern.search("open('/home/ada/data')")  # the control
    files = SOURCES + TESTS + sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in ("README.md", "Makefile", "pyproject.toml")]
    found = {}
    for path in files:
        if path != Path(__file__).resolve() and (hits := pattern.findall(path.read_text(encoding="utf-8"))):
            found[path.relative_to(ROOT).as_posix()] = hits
    assert found == {}


def test_import_stays_cheap() -> None:
    """`import forcewell` loads none of the heavy libraries; they come with the functions that need them."""
    program = "import forcewell, sys; print('\\n'.join(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "forcewell" in loaded
    assert loaded & HEAVY == set()


def test_nothing_executable_is_ever_loaded() -> None:
    """No pickle, torch.load or full YAML loader anywhere in the package: a model file from a stranger must be safe to open."""
    unsafe = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    found = []
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names = {(node.module or "").partition(".")[0]}
            elif isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                names = {"pickle"} if called in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "eval", "exec") else set()
                names |= {"pickle"} if any(k.arg == "allow_pickle" and ast.unparse(k.value) != "False" for k in node.keywords) else set()
            else:
                continue
            found += [f"{path.relative_to(ROOT)}:{node.lineno}"] if names & unsafe else []
    assert found == []


def test_imports_point_down() -> None:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 kept, 0 broken" in done.stdout


def test_every_requirement_is_pinned() -> None:
    """Whatever pyproject.toml asks for has one exact version in constraints.txt, or the tested environment is not the stated one."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(name for extra in project["optional-dependencies"].values() for name in extra)]
    # torch-sim needs Python 3.12 and is not part of the tested environment.
    names = {re.split(r"[\[<>=; ]", requirement)[0].lower() for requirement in asked} - {"torch-sim-atomistic"}
    lines = [line for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "one exact version per line, without local build tags"
    assert names - {line.partition("==")[0].lower() for line in lines} == set()


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE", "CITATION.cff", "CHANGELOG.md", "CONTRIBUTING.md"])
def test_the_papers_are_in_order(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert {"LICENSE": "Apache License", "NOTICE": "3Dmol.js", "CITATION.cff": "2308.14759"}.get(name, "") in text
    version = re.search(r'__version__ = "([^"]+)"', (ROOT / "src/forcewell/__init__.py").read_text(encoding="utf-8"))
    assert version
    if name in ("CITATION.cff", "CHANGELOG.md"):
        assert version.group(1) in text
