"""A user's own data: what is wrong is named with its file and frame, what cannot be read with what can."""

from __future__ import annotations

from pathlib import Path

import ase.build
import ase.io
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

from forcewell import split
from forcewell.cli import main
from forcewell.doctor import check_path
from forcewell.errors import InputError
from forcewell.generate.label import label_data
from forcewell.importing import import_source
from forcewell.sources import FORMS, layout_of
from forcewell.sources.mapping import as_options
from forcewell.store import Store, open_data

MOLECULES = ("H2O", "CH4", "NH3", "CH3OH", "C2H6", "CO2")


def frames(names: tuple[str, ...] = MOLECULES, each: int = 4, forces: bool = True) -> list[ase.Atoms]:
    """Rattled molecules with made-up labels."""
    rng, found = np.random.default_rng(0), []
    for name in names:
        for _ in range(each):
            atoms = ase.build.molecule(name)
            atoms.positions += rng.normal(scale=0.02, size=atoms.positions.shape)
            labels = {"energy": float(rng.normal())} | ({"forces": rng.normal(size=(len(atoms), 3))} if forces else {})
            atoms.calc = SinglePointCalculator(atoms, **labels)
            found.append(atoms)
    return found


def write(path: Path, images: list[ase.Atoms]) -> Path:
    ase.io.write(path, images, format="extxyz")
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """The one line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        main([str(word) for word in words])
    line = capsys.readouterr().err.strip()
    assert ended.value.code == 2 and line.startswith("error: ") and "\n" not in line
    return line


def test_trajectories_are_told_the_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.traj"
    ase.io.write(path, frames(each=1))
    said = f"{path} is an ASE trajectory, which is not read; make it extended XYZ: ase convert {path} a.xyz"
    for source in ("asedb", "extxyz"):
        assert said in refused(capsys, "data", "import", source, path, "--out", tmp_path / "a.fw")
    assert said in refused(capsys, "data", "check", path)
    with pytest.raises(InputError, match="make it extended XYZ"):
        open_data(path)
    assert not (tmp_path / "a.fw").exists()


def test_folders_of_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    bare = f"{folder} is a folder; give its files"
    assert refused(capsys, "data", "import", "extxyz", folder, "--out", tmp_path / "a.fw").endswith(bare)
    with pytest.raises(InputError, match=r"many is not a Forcewell store: it has no manifest\.json$"):
        open_data(folder)
    write(folder / "b.xyz", frames(each=1))
    assert f"{bare}, as in {folder}/*.xyz" in refused(capsys, "data", "import", "extxyz", folder, "--out", tmp_path / "a.fw")
    with pytest.raises(
        InputError, match=r"many is a folder, not a Forcewell store: .* give its files, as in .*many/\*\.xyz, or make a store"
    ):
        open_data(folder)


def test_what_is_read_as_it_is_is_said_alike(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In messages and helps; each of the endings named there is one that is read."""
    assert f"a.xyz does not exist; give {FORMS}" in refused(capsys, "data", "check", tmp_path / "a.xyz")
    assert f"a.xyz does not exist; give {FORMS}" in refused(capsys, "data", "split", tmp_path / "a.xyz")
    with pytest.raises(InputError, match="give a store, or a file: extended XYZ"):
        label_data([], tmp_path / "l.fw", engine=None)  # type: ignore[arg-type]
    with pytest.raises(InputError) as caught:
        layout_of("a.csv")
    assert f"a.csv cannot be read as it is; give {FORMS}; data sets of other forms are imported first" in str(caught.value)
    for words in (("data", "split"), ("data", "check"), ("generate", "label")):
        main([*words, "--help"])
        shown = capsys.readouterr().out.replace("│", " ")
        assert FORMS.removeprefix("a store").replace(" ", "") in "".join(shown.split()), words
    for ending in (".xyz", ".extxyz", ".db", ".aselmdb"):
        assert ending in FORMS and layout_of(tmp_path / f"a{ending}")


@pytest.mark.parametrize(
    ("unit", "meant"),
    [("energy=Ha", "Hartree"), ("energy=kcal", "kcal/mol"), ("energy=kJ", "kJ/mol"), ("positions=A", "Å"), ("positions=a0", "bohr")],
)
def test_units_by_other_names(tmp_path: Path, unit: str, meant: str) -> None:
    path = write(tmp_path / "a.xyz", frames(each=1))
    with pytest.raises(InputError, match=f"unknown .* unit '{unit.partition('=')[2]}'; did you mean '{meant}'"):
        open_data(path, **as_options([], [unit]))


def test_few_molecules_are_the_reason_for_an_empty_part(tmp_path: Path) -> None:
    data = open_data(write(tmp_path / "a.xyz", frames(each=15)))
    with pytest.raises(InputError, match=r"with a fraction of 0\.1 of 6 molecules \(90 conformations\), which stay whole; enlarge it"):
        split.by_molecule(data, [0.8, 0.1, 0.1], seed=0)
    with pytest.raises(InputError, match=r"with a fraction of 0\.01 of 5 blocks, which stay whole"):
        split.by_time_block(data, [0.99, 0.01], blocks=5)
    with pytest.raises(InputError, match=r"with a fraction of 0\.0001 of 90 conformations; enlarge it"):
        split.random(data, [0.9, 0.0001], seed=0)


@pytest.mark.parametrize("ending", ["xyz", "npz"])
def test_a_bad_frame_is_named_with_its_file(tmp_path: Path, ending: str) -> None:
    """In the second of two files, counted in that file."""
    files = []
    for name in ("a", "b"):
        images = frames(("H2O",), each=12)
        if name == "b":
            images[7].positions[0, 0] = np.nan
        files.append(tmp_path / f"{name}.{ending}")
        if ending == "xyz":
            write(files[-1], images)
        else:
            np.savez(files[-1], z=[8, 1, 1], pos=[image.positions for image in images])
    with pytest.raises(InputError, match=rf"^{files[1]}: .*conformation 7 has coordinates that are NaN or infinite"):
        import_source({"xyz": "extxyz", "npz": "npz"}[ending], files, tmp_path / "a.fw")
    assert not (tmp_path / "a.fw").exists()


def test_missing_labels_are_counted(tmp_path: Path) -> None:
    """By the check and by the import: NaN among energies, and frames without forces."""
    images = frames(each=4)
    images[3].calc.results["energy"] = np.nan
    for k in (5, 6):
        del images[k].calc.results["forces"]
    path = write(tmp_path / "a.xyz", images)
    found = {finding.what: finding for finding in check_path(path).findings if finding.question == "labels"}
    energies, forces = found["conformations without energy (absent or NaN)"], found["conformations without forces (absent or NaN)"]
    assert len(found) == 2 and (energies.severity, energies.evidence, energies.conformations) == ("note", {"conformations": 1}, (3,))
    assert forces.severity == "note" and set(forces.conformations) == {5, 6}
    done = import_source("extxyz", [path], tmp_path / "a.fw", unchecked=False, exclude="none")
    assert {str(finding) for finding in found.values()} <= set(done.warnings)


def test_energies_alone_are_noted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.xyz", frames(forces=False))
    said = "no forces: these data teach energies alone (objectives=joint)"
    assert [(finding.severity, finding.what) for finding in check_path(path).findings if finding.question == "labels"] == [("note", said)]
    assert f"note: {path}: {said}" in import_source("extxyz", [path], tmp_path / "a.fw", exclude="none").warnings
    # Minima have forces that need no label.
    assert not [finding for finding in check_path(path, equilibrium="yes").findings if finding.question == "labels"]


def test_info_of_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.xyz", frames(each=1))
    said = f"{path} is a file; data info shows what a store holds, and forcewell data check {path} looks into a file"
    assert said in refused(capsys, "data", "info", path)


def test_tables_of_one_s_own(tmp_path: Path) -> None:
    """What is said of a CSV that is no set of MoleculeNet works."""
    pytest.importorskip("rdkit")
    (tmp_path / "p.csv").write_text("smiles,dip\nCO,1.7\n")
    with pytest.raises(
        InputError, match=r"none of the seven sets .*--map KEY=property:NAME .*objectives=\{property: \{names: \[NAME\]\}\}"
    ):
        import_source("moleculenet", [tmp_path / "p.csv"], tmp_path / "p.fw")
    images = frames(each=20)
    for k, atoms in enumerate(images):
        atoms.info["dip"] = 1.0 + 0.01 * k
    path = write(tmp_path / "p.xyz", images)
    main(["data", "import", "extxyz", str(path), "--map", "dip=property:dip", "--out", str(tmp_path / "p.fw")])
    assert Store(tmp_path / "p.fw").properties == ["dip"]
    words = ["--set", f"data={tmp_path / 'p.fw'}", "--set", "objectives={property: {names: [dip]}}", "--set", "training.steps=2"]
    main(["pretrain", "quickstart", *words, "--set", "validation.by=random", "--out", str(tmp_path / "run")])
    assert (tmp_path / "run" / "model.safetensors").is_file()
