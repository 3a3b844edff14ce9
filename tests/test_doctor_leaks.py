"""Leaks between the parts of a split and between data sets; reference energies and levels of theory of several sources."""

from __future__ import annotations

import json
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from forcewell import split
from forcewell.doctor import Finding, check, check_path, check_paths
from forcewell.doctor.levels import compare, entries, plan
from forcewell.doctor.scan import scan
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES
from forcewell.store import MemoryData, PerAtom, Store, StoreWriter, reference_fits
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"
DATA = Path(__file__).parent / "data"


def ethanol(part: str, rows: int = 1000, **options: str) -> Block:
    return next(iter(SOURCES["rmd17"].read([BUNDLED / f"rmd17_ethanol_{part}_01.npz"], **options))).take(np.arange(rows))


def qm7x() -> Block:
    return next(iter(SOURCES["qm7x"].read([BUNDLED / "qm7x_hand.npz"])))


def stored(folder: Path, *blocks: Block) -> Store:
    writer = StoreWriter(folder / "data.fw")
    for block in blocks:
        writer.append(block)
    return writer.finish()


def leaks(store: Store, made: split.Split | dict[str, np.ndarray], method: str = "molecule") -> list[Finding]:
    if isinstance(made, dict):
        made = split.Split(made, method, 0, {}, store.fingerprint)
    made.save(store.path / "split-test.json")
    return [finding for finding in check_path(store.path).findings if finding.question == "leakage"]


def test_a_good_split_has_no_leak(tmp_path: Path) -> None:
    store = stored(tmp_path, qm7x())
    (finding,) = leaks(store, split.by_molecule(store, [0.8, 0.1, 0.1], 0))
    assert finding.severity == "note" and "no molecule" in finding.what and finding.evidence["train"] == 1600


def test_a_promised_gap_that_is_not_there(tmp_path: Path) -> None:
    """One border of a time split whose file promises a gap: too few neighbours to measure, but the promise is broken."""
    store = stored(tmp_path, ethanol("train", 400))
    order = np.argsort(store.column("property:frame"), kind="stable")
    parts = {"train": np.sort(order[:200]), "test": np.sort(order[200:])}
    for gap, severities in ((3, ["error"]), (0, [])):
        split.Split(parts, "time", 0, {"gap": gap}, store.fingerprint).save(store.path / "split-test.json")
        found = [one for one in check_path(store.path).findings if "time" in one.what]
        assert [one.severity for one in found] == severities, found
    parts["train"] = np.sort(order[:197])
    split.Split(parts, "time", 0, {"gap": 3}, store.fingerprint).save(store.path / "split-test.json")
    assert check_path(store.path).ok  # with the gap in place


def test_the_same_geometry_in_two_parts(tmp_path: Path) -> None:
    """Copies of 12 conformations, rounded to float32, under other identifiers and in another part."""
    block = qm7x()
    copy = block.take(np.arange(12) * 10)
    copy.arrays["positions"] = copy.arrays["positions"].astype(np.float32).astype(np.float64)
    copy.molecule = np.array([f"copy/{k}" for k in range(12)], dtype=object)
    store = stored(tmp_path, block, copy)
    findings = leaks(store, {"train": np.arange(2000), "test": np.arange(2000, 2012)})
    same = next(finding for finding in findings if "the same geometry" in finding.what)
    print(same)
    assert same.severity == "error" and same.evidence["conformations"] == 12 == same.evidence["of"]
    assert same.evidence["first"] == "2000 = 0" and sorted(same.conformations) == list(range(2000, 2010))
    # The identifiers differ, so that it is the bond graph that gives the molecules away.
    (molecule,) = [finding for finding in findings if "molecules in both" in finding.what]
    assert molecule.severity == "error" and "bond graph" in molecule.what
    assert not check_path(store.path).ok


def test_the_same_molecule_by_identifier(tmp_path: Path) -> None:
    store = stored(tmp_path, qm7x())
    (finding,) = [
        finding for finding in leaks(store, {"train": np.arange(1005), "test": np.arange(1005, 2000)}) if finding.severity == "error"
    ]
    assert "molecules with conformations in both" in finding.what and finding.evidence["number"] == 1
    # A random split divides molecules on purpose: worth a note, no more.
    findings = leaks(store, split.random(store, [0.9, 0.1], 0))
    assert {finding.severity for finding in findings if "molecule" in finding.what} == {"note"}


def test_the_same_molecule_by_canonical_smiles(tmp_path: Path) -> None:
    """Two spellings of butane's SMILES with a broken geometry in one, whose bond graph is therefore another."""
    pytest.importorskip("rdkit")
    from rdkit import Chem
    from rdkit.Chem import AllChem

    molecule = Chem.AddHs(Chem.MolFromSmiles("CCCC"))
    AllChem.EmbedMolecule(molecule, randomSeed=1)
    numbers, positions = [atom.GetAtomicNum() for atom in molecule.GetAtoms()], molecule.GetConformer().GetPositions()
    torn = positions.copy()
    torn[-1] += 3.0
    blocks = [
        Block.shared(numbers, [place], molecule=np.array([name], dtype=object), smiles=np.array([smiles], dtype=object))
        for place, name, smiles in ((positions, "a", "CCCC"), (torn, "b", "[CH3:1][CH2:2]C[CH3]"))
    ]
    (finding,) = [
        item for item in leaks(stored(tmp_path, *blocks), {"train": np.array([0]), "test": np.array([1])}) if item.severity == "error"
    ]
    assert "canonical SMILES" in finding.what


def trajectory(frames: int) -> Block:
    """A smooth path: real frames of ethanol and 9 steps of interpolation between each and the next."""
    block = ethanol("train", frames)
    centres = block.arrays["positions"].reshape(frames, 9, 3)
    share = np.linspace(0, 1, 10, endpoint=False)[:, None, None]
    positions = np.concatenate([a + share * 0.2 * (b - a) for a, b in pairwise(centres)])
    number = len(positions)
    names = np.full(number, "ethanol", dtype=object)
    return Block.shared(block.arrays["numbers"][:9], positions, molecule=names, properties={"frame": np.arange(float(number))})


def test_the_same_stretch_of_a_trajectory(tmp_path: Path) -> None:
    block = trajectory(100)
    shuffled = block.take(np.random.default_rng(0).permutation(len(block)))  # the property "frame" gives the order
    store = stored(tmp_path, shuffled)
    by_chance = [finding for finding in leaks(store, split.random(store, [0.8, 0.2], 0)) if "trajectory" in finding.what]
    print(by_chance[0])
    assert by_chance[0].severity == "warning" and float(by_chance[0].evidence["share"]) > 0.2
    blocks = [finding for finding in leaks(store, split.by_time_block(store, [0.8, 0.2], seed=0)) if "trajectory" in finding.what]
    assert all(finding.severity == "note" and "gap" in finding.what for finding in blocks)
    # Frames of rMD17 are hundreds of steps apart: a random split of them is none of neighbours.
    apart = stored(tmp_path / "apart", ethanol("train"))
    assert not [finding for finding in leaks(apart, split.random(apart, [0.8, 0.2], 0)) if "trajectory" in finding.what]


def test_split_files_that_do_not_fit(tmp_path: Path) -> None:
    store = stored(tmp_path, qm7x())
    file = tmp_path / "mine.json"
    split.Split({"train": np.arange(10), "test": np.arange(5, 20)}, "random", 0, {}, store.fingerprint).save(file)
    report = check_path(store.path, [file])
    assert any("conformations in both" in finding.what and finding.evidence["number"] == 5 for finding in report.findings)
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "fingerprint": "other"}))
    assert "made for other data" in check_path(store.path, [file]).findings[0].what
    with pytest.raises(InputError, match="does not exist"):
        check_path(store.path, [tmp_path / "none.json"])


def test_data_sets_that_share_geometries(tmp_path: Path) -> None:
    """The official train and test parts of rMD17 share nothing; a file that mixes them is found out."""
    train, test = (BUNDLED / f"rmd17_ethanol_{part}_01.npz" for part in ("train", "test"))
    reports = check_paths([train, test])
    assert not [finding for report in reports.values() for finding in report.findings if finding.question in ("leakage", "levels")]
    mixed = MemoryData([ethanol("train", 30), ethanol("test", 50)]).block(np.arange(80))
    np.savez(
        tmp_path / "mixed.npz", z=mixed.arrays["numbers"][:9], pos=mixed.arrays["positions"].reshape(-1, 9, 3).astype(np.float32),
        energy=mixed.arrays["energy"], forces=mixed.arrays["forces"].reshape(-1, 9, 3),
    )  # fmt: skip
    mixed_report = check_paths([train, tmp_path / "mixed.npz"])[str(tmp_path / "mixed.npz")]
    (finding,) = [finding for finding in mixed_report.findings if finding.question == "leakage"]
    assert finding.severity == "warning" and finding.evidence["conformations"] == 30 and finding.evidence["of"] == 80


def compared(*blocks: Block) -> list[Finding]:
    found = []
    for number, block in enumerate(blocks):
        data = MemoryData([block])
        found += entries(f"source {number}", data, scan(data, np.arange(len(data))))
    return list(compare(found))


def test_sources_of_one_declared_level_that_are_at_two() -> None:
    """The frames of rMD17 also carry their old labels, PBE+vdW-TS instead of PBE/def2-SVP."""
    new = ethanol("train")
    assert compared(new, ethanol("test")) == []
    old = ethanol("test", old_labels="yes")
    assert compared(new, old) == []  # declared as two levels: as it should be
    old.level = new.level
    (finding,) = compared(new, old)
    print(finding)
    assert finding.severity == "warning" and "different zeros" in finding.what
    assert abs(float(finding.evidence["offset_eV_per_atom"])) == pytest.approx(0.578, abs=0.03)
    assert finding.evidence["molecules_in_common"] == 1


def test_other_molecules_at_another_level() -> None:
    """No molecule in common: what QM7-X's references predict for ethanol and for S66x8 gives them away."""
    s66x8 = next(iter(SOURCES["s66x8"].read([BUNDLED / "s66x8.npz"])))
    for other, level in ((ethanol("train"), "PBE/def2-SVP"), (s66x8, "wB97X/6-31G*")):
        assert compared(qm7x(), other) == []  # declared as two: as it should be
        other.level = "PBE0+MBD"
        (finding,) = compared(qm7x(), other)
        print(level, dict(finding.evidence))
        assert finding.severity == "warning" and abs(float(finding.evidence["offset_eV_per_atom"])) > 0.4
    # The control: one half of QM7-X's molecules against the other, and S66x8 against 3BPA, at ωB97X/6-31G(d) both.
    block = qm7x()
    halves = (block.take(np.arange(1000)), block.take(np.arange(1000, 2000)))
    assert compared(*halves) == []
    bpa = next(iter(SOURCES["extxyz"].read([DATA / "bpa_mixedT_50.xyz"], level="ωB97X/6-31G(d)")))
    s66x8.level = "wB97X/6-31G*"
    (finding,) = compared(s66x8, bpa)
    assert finding.severity == "note" and "one level of theory under two names" in finding.what


def test_equal_energies_under_two_names() -> None:
    one, two = ethanol("train"), ethanol("test")
    two.level = "my DFT"
    (finding,) = compared(one, two)
    assert finding.severity == "note" and "energies agree" in finding.what and abs(float(finding.evidence["offset_eV_per_atom"])) < 0.02


def test_levels_within_one_store() -> None:
    one, two = ethanol("train"), qm7x()
    two.level = one.level
    findings = [finding for finding in check(MemoryData([one, two])).findings if finding.question == "levels"]
    print([str(finding) for finding in findings])
    assert [finding.severity for finding in findings] == ["warning"] and "rmd17" in findings[0].where and "qm7x" in findings[0].where


def test_references_before_and_after(tmp_path: Path) -> None:
    """The manifest holds what plain least squares gives, summed over chunks or not."""
    block = qm7x()
    store = stored(tmp_path, block, ethanol("train", 100))
    counts = np.zeros((2000, 119))
    np.add.at(counts, (np.repeat(np.arange(2000), block.counts), block.arrays["numbers"]), 1)
    solution, _, rank, _ = np.linalg.lstsq(counts, block.arrays["energy"], rcond=None)
    before, after = block.arrays["energy"] / block.counts, (block.arrays["energy"] - counts @ solution) / block.counts
    fit = store.manifest["references"]["PBE0+MBD"]
    print(fit["per_atom"])
    assert fit["rank"] == rank == 6
    expected = {"before": PerAtom(before.mean(), before.std()), "after": PerAtom(after.mean(), after.std())}
    for when, values in expected.items():
        assert fit["per_atom"][when]["mean"] == pytest.approx(values.mean, abs=1e-9)
        assert fit["per_atom"][when]["spread"] == pytest.approx(values.spread, rel=1e-9)
    single = reference_fits(store)["PBE/def2-SVP"]
    assert single.rank == 1 and len(single.elements) == 3 and abs(single.after.mean) < 1e-9
    assert single.after.spread == pytest.approx(single.before.spread, rel=1e-6) and single.before.spread < 0.05
    norm = np.array([6, 1, 2])  # hydrogens, oxygen, carbons: the minimum norm shares energies out by composition
    assert np.allclose(single.values[[1, 8, 6]] / norm, single.values[1] / 6)


def test_what_fine_tuning_will_do_is_said() -> None:
    one, two = MemoryData([ethanol("train")]), MemoryData([qm7x()])
    unlabelled = ethanol("test", 10)
    del unlabelled.arrays["energy"]
    unlabelled.level = "other"
    sources = [("a", one, np.arange(950)), ("b", two, np.arange(2000)), ("c", MemoryData([unlabelled]), np.arange(10))]
    lines = plan(sources, {"PBE0+MBD": np.ones(119)}, energies=False)
    print("\n".join(lines))
    assert "950 energies" in lines[0] and "rank 1 for 3 elements" in lines[0] and "new to the model" in lines[0]
    assert "known to the model" in lines[1] and "rank 6 for 6 elements" in lines[1]
    assert lines[2].startswith("other: no energies") and "learns no energies" in lines[3] and len(lines) == 4
    same = qm7x()
    same.level = "PBE/def2-SVP"
    assert any("different zeros" in line for line in plan([sources[0], ("b", MemoryData([same]), np.arange(2000))], {}, energies=True))


def test_info_shows_references(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from forcewell.data_commands import info_command

    import_source("rmd17", [BUNDLED / "rmd17_ethanol_train_01.npz"], tmp_path / "a.fw", exclude="none")
    info_command(tmp_path / "a.fw")
    shown = " ".join(capsys.readouterr().out.split())
    print(shown)
    assert (
        "(rank 1 of 3, minimum norm; 1000 energies)" in shown
        and "before them" in shown
        and "after them" in shown
        and "eV per atom" in shown
    )
