"""The data doctor on everything but units: duplicates, geometries, electrons, minima, outliers, net forces, mixed levels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.resources import files
from pathlib import Path

import ase
import ase.db
import ase.io
import h5py
import numpy as np
import pytest
from rich.console import Console

from forcewell.doctor import Finding, check, check_path
from forcewell.doctor.duplicates import groups
from forcewell.doctor.energies import residuals
from forcewell.doctor.scan import STRETCH, joined, rows_to_examine, scan
from forcewell.doctor.terminal import show
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES
from forcewell.store import MemoryData, StoreWriter
from forcewell.system import Block, System, block_of

BUNDLED = Path(str(files("forcewell"))) / "bundled"
DATA = Path(__file__).parent / "data"


def frames(part: str, rows: int, **options: str) -> Block:
    return next(iter(SOURCES["rmd17"].read([BUNDLED / f"rmd17_ethanol_{part}_01.npz"], **options))).take(np.arange(rows))


@pytest.fixture
def ethanol() -> Block:
    return frames("train", 1000)


def found(*blocks: Block, severity: str | None = None) -> list[Finding]:
    findings = check(MemoryData(blocks)).findings
    return [finding for finding in findings if severity is None or finding.severity == severity]


def the(what: str, *blocks: Block) -> Finding:
    """The only finding whose text contains ``what``."""
    (one,) = [finding for finding in found(*blocks) if what in finding.what]
    return one


@pytest.mark.parametrize("written", ["as they are", "float32", "four decimals", "turned", "reordered", "mirrored"])
def test_seventy_duplicates_among_1200(written: str) -> None:
    """1130 different frames of rMD17 and copies of 70 of them, at random places; all and only these are found."""
    rng = np.random.default_rng(3)
    real = MemoryData([frames("train", 1000), frames("test", 1000)]).block(np.arange(1130))
    chosen = rng.choice(1130, 70, replace=False)
    copies = [real.system(int(k)) for k in chosen]
    for copy in copies:
        positions = copy.arrays["positions"]
        if written == "float32":
            positions = positions.astype(np.float32).astype(np.float64)
        elif written == "four decimals":
            positions = np.round(positions, 4)
        elif written == "turned":
            positions = positions @ np.linalg.qr(rng.standard_normal((3, 3)))[0] + rng.uniform(-9, 9, 3)
        elif written == "mirrored":
            positions = positions * [1, 1, -1]
        copy.arrays["positions"] = positions
        if written == "reordered":
            order = rng.permutation(9)
            for name in ("numbers", "positions", "forces"):
                copy.arrays[name] = copy.arrays[name][order]
    systems = [*(real.system(k) for k in range(1130)), *copies]
    order = rng.permutation(1200)
    block = block_of(systems[k] for k in order)
    finding = the("more than once", block)
    print(written, dict(finding.evidence))
    assert finding.severity == "warning"
    assert finding.evidence["duplicates"] == 70 and finding.evidence["conformations_that_have_copies"] == 70
    data = MemoryData([block])
    facts = scan(data, np.arange(1200))
    group = groups(facts, data.block)
    original = np.where(order < 1130, order, chosen[np.maximum(order, 1130) - 1130])
    same = group[:, None] == group[None]
    assert np.array_equal(same, original[:, None] == original[None])


def test_no_duplicates_where_there_are_none(ethanol: Block) -> None:
    """Neighbours of an MD run of 0.5 fs, hydrogens 0.005 Å on, are no copies; many copies of one frame are counted once each."""
    moved = ethanol.take(np.arange(1000))
    moved.arrays["positions"] = moved.arrays["positions"] + 0.002 * np.random.default_rng(0).standard_normal(
        moved.arrays["positions"].shape
    )
    assert not [finding for finding in found(ethanol, moved) if finding.question == "duplicates"]
    other = ethanol.take(np.arange(1000))
    other.level = "another level"  # of the same frames: no copies
    assert not [finding for finding in found(ethanol, other) if finding.question == "duplicates"]
    many = ethanol.take(np.append(np.arange(100), np.full(5000, 3)))
    assert the("more than once", many).evidence["duplicates"] == 5000


def test_copies_with_other_energies(ethanol: Block) -> None:
    copy = ethanol.take(np.arange(20, 40))
    copy.arrays["energy"] = copy.arrays["energy"] + np.where(np.arange(20) == 7, 0.5, 0.0)
    finding = the("different energies at one level", ethanol, copy)
    assert finding.evidence["conformations"] == 1 and finding.conformations == (1007,)
    assert float(finding.evidence["largest_difference_eV"]) == pytest.approx(0.5)


def test_every_broken_geometry_is_named(ethanol: Block) -> None:
    positions, numbers = ethanol.arrays["positions"].copy(), ethanol.arrays["numbers"].copy()
    positions[9 * 40 + 8] = positions[9 * 40] + 0.01  # a hydrogen, so that no other is left alone
    positions[9 * 41 + 8] = positions[9 * 41]
    positions[9 * 77, 0] = np.nan
    numbers[9 * 500 + 2] = 0
    bond = positions[9 * 5 + 8] - positions[9 * 5 : 9 * 5 + 8]
    positions[9 * 5 + 8] += 4.0 * bond[np.argmin(np.linalg.norm(bond, axis=1))]
    positions[9 * 6 + 3] = positions[9 * 6] + 0.6 * (positions[9 * 6 + 3] - positions[9 * 6])
    ethanol.arrays.update(positions=positions, numbers=numbers)
    by = {finding.what.split(";")[0].split(":")[0]: finding for finding in found(ethanol) if finding.question == "geometry"}
    print({what: (finding.severity, finding.conformations) for what, finding in by.items()})
    assert set(by["atoms on top of each other"].conformations) == {40, 41}
    assert by["coordinates that are NaN or infinite"].conformations == (77,)
    assert by["unknown atomic numbers"].conformations == (500,)
    assert by["in more pieces than their molecule usually is"].conformations == (5,)
    severities = {what: finding.severity for what, finding in by.items()}
    assert severities["in more pieces than their molecule usually is"] == "warning"
    assert severities["atoms on top of each other"] == severities["unknown atomic numbers"] == "error"


def test_short_contacts_and_lonely_atoms() -> None:
    water = [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]]
    pressed, pulled = np.array(water), np.array(water)
    pressed[1, 0], pulled[1, 0] = 0.55, 3.0
    blocks = [Block.shared([8, 1, 1], [water, pressed]), Block.shared([8, 1, 1], [pulled], molecule=np.array(["other"], dtype=object))]
    assert the("closer than any bond", *blocks).conformations == (1,)
    assert the("bonded to nothing", *blocks).conformations == (2,)


def test_a_cell_that_is_none() -> None:
    atoms = {"numbers": np.array([14, 14]), "positions": np.array([[0.0, 0, 0], [1.35, 1.35, 1.35]]), "pbc": np.ones(3, dtype=bool)}
    good, flat = {**atoms, "cell": 5.4 * np.eye(3)}, {**atoms, "cell": np.diag([5.4, 5.4, 0.0])}
    (finding,) = found(block_of([System(good), System(flat)]), severity="error")
    assert finding.conformations == (1,) and "lattice vectors" in finding.what


def test_electrons_against_charge_and_spin() -> None:
    def methyl(**stated: int) -> Block:
        positions = np.array([[0.0, 0, 0], [1.08, 0, 0], [-0.54, 0.935, 0], [-0.54, -0.935, 0]])
        return block_of(
            [System({"numbers": np.array([6, 1, 1, 1]), "positions": positions, **{k: np.array(v) for k, v in stated.items()}})]
        )

    assert the("odd number of electrons", methyl()).severity == "warning"
    assert "spin is not stated" in the("odd number of electrons", methyl(charge=0)).what
    assert the("does not fit", methyl(charge=0, spin=1)).severity == "error"
    for right in ({"charge": 0, "spin": 2}, {"charge": 1, "spin": 1}, {"charge": -1}):
        assert not [finding for finding in found(methyl(**right)) if finding.question == "electrons"]
    assert the("larger than the number of protons", methyl(charge=10, spin=1)).severity == "error"
    block = next(iter(SOURCES["npz"].read([DATA / "spice_170.npz"])))
    assert not [finding for finding in found(block) if finding.question == "electrons"]


def test_minima_with_forces(ethanol: Block) -> None:
    ethanol.arrays["equilibrium"] = (np.arange(1000) < 30).astype(np.int8)
    finding = the("minima whose forces are not zero", ethanol)
    assert finding.severity == "error" and max(finding.conformations) < 30
    assert finding.evidence["conformations"] == finding.evidence["of_minima"] == 30
    ethanol.arrays["forces"] = np.where(np.repeat(np.arange(1000) < 30, 9)[:, None], np.float32(0.01), ethanol.arrays["forces"])
    assert not [finding for finding in found(ethanol) if finding.question == "minima"]


def test_net_force_and_torque(ethanol: Block) -> None:
    few = ethanol.take(np.arange(100))
    assert not [finding for finding in found(few) if finding.question in ("net force", "torque")]
    few.arrays["forces"] = few.arrays["forces"] + np.where(np.repeat(np.arange(100) == 17, 9), np.float32(0.003), 0)[:, None]
    finding = the("do not add up to zero", few)
    assert finding.severity == "note" and finding.conformations == (17,)
    assert float(finding.evidence["largest_eV_per_A"]) == pytest.approx(9 * 0.003 * np.sqrt(3), rel=0.01)
    lost = ethanol.take(np.arange(100))
    forces = lost.arrays["forces"].copy()
    forces[9 * 33 + 1] = 0  # one atom's force is missing
    lost.arrays["forces"] = forces
    assert the("do not add up to zero", lost).severity == "warning"
    turning = ethanol.take(np.arange(100))
    middle = turning.arrays["positions"].reshape(100, 9, 3)
    turn = np.cross([0.0, 0.0, 0.1], middle - middle.mean(axis=1, keepdims=True))  # no net force, only a torque
    turning.arrays["forces"] = turning.arrays["forces"] + turn.reshape(-1, 3).astype(np.float32)
    finding = the("net torque", turning)
    assert finding.severity == "warning" and not [item for item in found(turning) if item.question == "net force"]


def test_spice_net_forces_are_no_error() -> None:
    findings = check_path(DATA / "spice_170.npz").findings
    (net,) = [finding for finding in findings if finding.question == "net force"]
    print(dict(net.evidence))  # 0.012 eV/Å
    assert net.severity == "note" and 0.005 < float(net.evidence["largest_eV_per_A"]) < 0.03


def test_zeros_in_place_of_missing_forces(ethanol: Block) -> None:
    forces = ethanol.arrays["forces"].copy()
    forces[: 9 * 5] = 0
    ethanol.arrays["forces"] = forces
    assert the("exactly zero in some", ethanol).conformations == (0, 1, 2, 3, 4)
    ethanol.arrays["forces"] = np.zeros_like(forces)
    assert the("all forces are exactly zero", ethanol).severity == "error"


def test_outliers_by_force_and_by_energy(ethanol: Block) -> None:
    assert not [finding for finding in found(ethanol) if finding.question == "outliers"]
    forces, energy = ethanol.arrays["forces"].copy(), ethanol.arrays["energy"].copy()
    forces[9 * 100 : 9 * 101] *= 20
    energy[[200, 300]] += [9.0, -4.0]
    ethanol.arrays.update(forces=forces, energy=energy)
    assert the("forces far larger", ethanol).conformations == (100,)
    assert the("energies far from those of the same molecule", ethanol).conformations == (200, 300)


def test_energy_outliers_after_reference_fit() -> None:
    """One conformation each of many molecules, whose totals differ by 10,000 eV: only references make 40 eV visible."""
    block = next(iter(SOURCES["qm7x"].read([BUNDLED / "qm7x_hand.npz"]))).take(np.arange(0, 2000, 10))
    assert not [finding for finding in found(block) if finding.question == "outliers"]
    block.arrays["energy"][57] += 40.0
    finding = the("what their elements explain", block)
    print(dict(finding.evidence))
    assert finding.conformations == (57,)


def test_a_rare_element_keeps_its_reference() -> None:
    """Two of 900 conformations hold chlorine and differ by 1 eV per atom: without both nothing would fix chlorine's energy."""
    compositions = np.zeros((3, 119), dtype=np.int64)
    compositions[:, [1, 6]] = [[4, 1], [6, 2], [3, 1]]
    compositions[2, 17] = 1
    index = np.repeat([0, 1, 2], [500, 398, 2])
    size, noise = compositions.sum(axis=1)[index], np.random.default_rng(0).normal(0, 1e-3, 900)
    noise[-2:] = 0.5, -0.5
    left = residuals(compositions, index, compositions[index] @ np.linspace(0, -80_000, 119) + noise * size)
    print(np.abs(left - noise).max())
    assert np.abs(left - noise).max() < 2e-4  # 3e-5 seen; minimum norm without the two leaves 2000


def test_two_levels_under_one_name(ethanol: Block) -> None:
    """The same trajectory's old labels (PBE+vdW-TS) for some frames and the new ones (PBE/def2-SVP) for the others."""
    new = frames("train", 300)
    old = frames("test", 200, old_labels="yes")
    assert not [finding for finding in found(new, frames("test", 200)) if finding.question == "levels"]
    old.level = new.level
    finding = the("two groups", new, old)
    print(dict(finding.evidence))
    assert finding.severity == "warning" and float(finding.evidence["gap_eV"]) > 3
    assert sorted(row < 300 for row in finding.conformations) == [False, True]


def test_large_data_are_sampled_in_stretches(monkeypatch: pytest.MonkeyPatch, ethanol: Block) -> None:
    assert np.array_equal(rows_to_examine(1000, 1000), np.arange(1000))
    rows = rows_to_examine(16_000_000, 500_000)
    print(len(rows), "of 16,000,000")
    assert 490_000 < len(rows) <= 500_000 and rows[0] == 0 and rows[-1] == 15_999_999
    assert (np.diff(rows) == 1).mean() > 1 - 2 / STRETCH
    monkeypatch.setattr("forcewell.doctor.examination.EXAMINED", 600)
    report = check(MemoryData([ethanol, frames("test", 1000)]))
    (note,) = [finding for finding in report.findings if finding.question == "sample"]
    assert report.ok and report.examined == note.evidence["examined"] == 512 and report.conformations == 2000


def test_joined_facts_keep_their_compositions(ethanol: Block) -> None:
    other = next(iter(SOURCES["qm7x"].read([BUNDLED / "qm7x_hand.npz"])))
    facts = [scan(MemoryData([block]), np.arange(50)) for block in (ethanol, other)]
    together = joined(facts)
    expected = np.concatenate([one.compositions[one.composition] for one in facts])
    assert np.array_equal(together.compositions[together.composition], expected) and len(together) == 100


def run(*words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "200"}
    return subprocess.run([sys.executable, "-m", "forcewell.cli", *words], capture_output=True, text=True, env=environment)


def test_the_command_reports_in_the_terminal_and_as_json(tmp_path: Path) -> None:
    good, bad = DATA / "acac_300K_100.xyz", DATA / "water_mp2_200.npz"
    done = run("data", "check", str(good), str(bad), "--json", str(tmp_path / "found.json"))
    print(done.stdout, done.stderr)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert f"{good}: ok, 100 conformations" in done.stdout and f"{bad}: NOT OK" in done.stdout
    assert "1 of 2 not fit for training" in done.stderr
    content = json.loads((tmp_path / "found.json").read_text())
    assert content[str(good)]["ok"] and not content[str(bad)]["ok"]
    first = content[str(bad)]["findings"][0]
    assert first["severity"] == "error" and first["evidence"]["ratio_to_atoms_total_energy_in_eV"] > 20
    assert run("data", "check", str(good)).returncode == 0
    assert run("data", "check", str(bad), "--unit", "energy=kcal/mol").returncode == 0
    StoreWriter(tmp_path / "begun.fw", settings={}).close()
    begun = run("data", "check", str(tmp_path / "begun.fw"))
    assert begun.returncode == 2 and "begun.fw holds no conformation" in begun.stderr and "Traceback" not in begun.stderr
    refused = run("data", "check", str(good), str(bad), "--split", str(good))
    assert refused.returncode == 2 and "belongs to one data set" in refused.stderr


def test_an_unfinished_import_is_said(tmp_path: Path) -> None:
    writer = StoreWriter(tmp_path / "begun.fw")
    writer.append(frames("train", 30))
    writer.flush()
    writer.close()
    assert [one.severity for one in check_path(tmp_path / "begun.fw").findings if "not finished" in one.what] == ["warning"]


def test_brackets_in_a_report_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    ethanol = frames("train", 30)
    ethanol.level = "[bold]PBE[/nonsense]"
    show({"[x].xyz": check(MemoryData([ethanol]), "[x].xyz")}, Console(width=200))
    assert "[bold]PBE[/nonsense]" in capsys.readouterr().out


def test_import_warns_and_refuses(tmp_path: Path) -> None:
    ethanol = frames("train", 300)
    arrays = {"z": ethanol.arrays["numbers"][:9], "pos": ethanol.arrays["positions"].reshape(-1, 9, 3), "energy": ethanol.arrays["energy"]}
    forces = ethanol.arrays["forces"].reshape(-1, 9, 3)
    np.savez(tmp_path / "gradients.npz", forces=-forces, **arrays)
    with pytest.raises(InputError, match=r"wrong sign.*--unchecked"):
        import_source("npz", [tmp_path / "gradients.npz"], tmp_path / "a.fw", exclude="none")
    assert not (tmp_path / "a.fw").exists()
    done = import_source("npz", [tmp_path / "gradients.npz"], tmp_path / "a.fw", exclude="none", unchecked=True)
    assert done.kept == 300 and done.warnings == ()
    forces[5, 0] += 3.0
    np.savez(tmp_path / "net.npz", forces=forces, **arrays)
    done = import_source("npz", [tmp_path / "net.npz"], tmp_path / "b.fw", exclude="none")
    assert any("do not add up to zero" in warning and "indices 5" in warning for warning in done.warnings)


def write_xyz(path: Path, block: Block, energy: str, forces: str) -> Path:
    """A block as extended XYZ with these keys, "" for none."""
    images = []
    for k in range(len(block)):
        one = block.take([k])
        images.append(ase.Atoms(one.arrays["numbers"], one.arrays["positions"]))
        images[-1].info |= {energy: float(one.arrays["energy"][0])} if energy else {}
        if forces:
            images[-1].arrays[forces] = one.arrays["forces"]
    ase.io.write(path, images, format="extxyz")
    return path


KEYS = [
    ("my_e", "my_f", "no energies and no forces were found; unread keys: my_e, my_f; name them by --map my_e=energy --map my_f=forces"),
    ("E", "F", "no energies and no forces were found; unread keys: E, F; name them by --map E=energy --map F=forces"),
    ("energy", "my_gradient", "no forces were found; unread keys: my_gradient; name them by --map my_gradient=-forces"),
    ("", "", "no energies and no forces were found"),
    ("Energy", "Forces", ""),
    ("DFT_energy", "DFT_Forces", ""),
]


@pytest.mark.parametrize(("energy", "forces", "said"), KEYS, ids=[f"{e}-{f}" for e, f, _ in KEYS])
def test_labels_by_other_names(tmp_path: Path, energy: str, forces: str, said: str) -> None:
    """Keys that nobody reads are named, by the check and by the import; capitals do not matter."""
    path = write_xyz(tmp_path / "a.xyz", frames("train", 20), energy, forces)
    found = [finding for finding in check_path(path).findings if finding.question == "labels"]
    assert [(finding.severity, finding.what) for finding in found] == ([("warning", said)] if said else [])
    done = import_source("extxyz", [path], tmp_path / "a.fw", exclude="none")
    assert [warning for warning in done.warnings if "were found" in warning] == [str(finding) for finding in found]
    if not said:
        assert {"energy", "forces"} <= set(done.store.fields)


def test_labels_of_arrays_by_other_names(tmp_path: Path) -> None:
    block = frames("train", 20)
    arrays = {"numbers": block.arrays["numbers"][:9], "positions": block.arrays["positions"].reshape(-1, 9, 3)}
    labels = {"ener": block.arrays["energy"], "Forces": block.arrays["forces"].reshape(-1, 9, 3)}
    np.savez(tmp_path / "a.npz", **arrays, **labels)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        for name, values in (arrays | labels).items():
            file[f"ethanol/{name}"] = values
    connection = ase.db.connect(tmp_path / "a.db")
    for k in range(20):
        atoms = ase.Atoms(arrays["numbers"], arrays["positions"][k])
        connection.write(atoms, ener=float(labels["ener"][k]), data={"Forces": labels["Forces"][k]})
    for end in ("npz", "h5", "db"):
        found = [finding.what for finding in check_path(tmp_path / f"a.{end}").findings if finding.question == "labels"]
        assert found == ["no energies were found; unread keys: ener; name them by --map ener=energy"], end
