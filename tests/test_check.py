"""The check: unaltered data pass, and every planted mistake is named."""

import json
import re
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest

from forcewell.check import check, check_path, kabsch
from forcewell.errors import InputError
from forcewell.sources import SOURCES
from forcewell.store import MemoryData
from forcewell.system import Block

BUNDLED = Path(str(files("forcewell"))) / "bundled"
DATA = Path(__file__).parent / "data"
KCAL = 23.06054783


@pytest.fixture
def ethanol() -> Block:
    return next(iter(SOURCES["rmd17"].read([BUNDLED / "rmd17_ethanol_train_01.npz"])))


def verdict(block: Block) -> list[str]:
    return [str(finding) for finding in check(MemoryData([block])).findings if finding.severity == "error"]


@pytest.mark.parametrize("file", [*sorted(BUNDLED.glob("*.npz")), DATA / "acac_300K_100.xyz"], ids=lambda file: file.stem)
def test_unaltered_files_pass(file):
    report = check_path(file)
    assert report.ok and not any(finding.severity == "warning" for finding in report.findings), [str(item) for item in report.findings]
    json.dumps(report.as_json())
    agreeing = [finding for finding in report.findings if finding.what == "forces and energies agree in sign and unit"]
    if "qm9" not in file.stem and "acac" not in file.stem:
        print(file.stem, dict(agreeing[0].evidence))  # slopes 0.967 to 1.002
        assert abs(agreeing[0].evidence["slope"] - 1) < 0.08


@pytest.mark.parametrize(
    ("field", "factor", "said"),
    [
        ("forces", -1, "wrong sign"),
        ("energy", KCAL, "energies are in kcal/mol"),
        ("forces", KCAL, "forces are in kcal/mol"),
        ("forces", -KCAL, "wrong sign.*forces are in kcal/mol"),
        ("energy", 1 / 27.211386, "energies are in Hartree"),
        ("forces", 1 / 27.211386, "forces are in Hartree/Å"),
        ("forces", 1 / 51.422067, "forces are in Hartree/bohr"),
        ("forces", 0.529177, "forces are per bohr"),
        ("forces", 3.0, "do not fit together"),
    ],
)
def test_sign_and_unit(ethanol, field, factor, said):
    ethanol.arrays[field] = ethanol.arrays[field] * factor
    errors = " | ".join(verdict(ethanol))
    assert re.search(said, errors), errors


def test_shared_mistake_is_found_by_size():
    report = check_path(DATA / "water_mp2_200.npz")  # kcal/mol taken for eV, energies and forces alike
    assert not report.ok
    assert [finding.what for finding in report.findings][:1] == ["total energies have the size they have in kcal/mol, not in eV"]
    assert "very large" in report.findings[1].what
    assert check_path(DATA / "water_mp2_200.npz", energy_unit="kcal/mol").ok


def test_unrelated_labels_are_inconclusive(ethanol):
    ethanol.arrays["energy"] = np.random.default_rng(0).permutation(ethanol.arrays["energy"])
    report = check(MemoryData([ethanol]))
    assert report.ok and any("inconclusive" in finding.what for finding in report.findings)


def test_one_bad_source_among_good_ones(ethanol):
    bad = ethanol.take(np.arange(500))
    bad.arrays["forces"] = -bad.arrays["forces"]
    bad.level = "other"
    errors = [finding for finding in check(MemoryData([ethanol, bad])).findings if finding.severity == "error"]
    assert len(errors) == 1 and "other" in errors[0].where


def test_coordinates_in_bohr(ethanol):
    ethanol.arrays["positions"] = ethanol.arrays["positions"] / 0.529177
    assert any("bohr" in error for error in verdict(ethanol))


def test_minima_with_forces(ethanol):
    ethanol.arrays["equilibrium"] = np.ones(1000, dtype=np.int8)
    assert any("minima whose forces are not zero" in error for error in verdict(ethanol))


def test_net_force_duplicates_and_zeros(ethanol):
    def found(block: Block) -> dict[str, str]:
        return {finding.what: finding.severity for finding in check(MemoryData([block])).findings}

    assert found(ethanol.take(np.append(np.arange(100), 3)))["conformations that are there more than once"] == "warning"
    shifted = ethanol.take(np.arange(100))
    shifted.arrays["forces"] = shifted.arrays["forces"] + np.float32(0.01)  # 9 atoms: 0.156 eV/Å
    assert found(shifted)["forces do not add up to zero"] == "note"
    shifted.arrays["forces"] = shifted.arrays["forces"] + np.float32(0.1)
    assert found(shifted)["forces do not add up to zero"] == "warning"
    shifted.arrays["forces"] = np.zeros_like(shifted.arrays["forces"])
    assert found(shifted)["all forces are exactly zero"] == "error"


def test_nan_and_overlap_are_findings(ethanol, tmp_path):
    ethanol.arrays["positions"] = ethanol.arrays["positions"].copy()
    ethanol.arrays["positions"][9 * 40 + 1] = ethanol.arrays["positions"][9 * 40]
    errors = verdict(ethanol)
    assert len(errors) == 1 and "conformation 40" in errors[0] and "on top of each other" in errors[0]
    (tmp_path / "broken.npz").write_bytes(b"PK")
    report = check_path(tmp_path / "broken.npz")
    assert not report.ok and "broken.npz" in report.findings[0].what
    with pytest.raises(InputError, match="does not exist"):
        check_path(tmp_path / "missing.npz")


def test_alignment_undoes_a_rotation():
    generator = np.random.default_rng(0)
    target = generator.normal(size=(50, 7, 3))
    target -= target.mean(axis=1, keepdims=True)
    turn = np.linalg.qr(generator.normal(size=(50, 3, 3)))[0]
    turn *= np.sign(np.linalg.det(turn))[:, None, None]
    rotation = kabsch(target, target @ turn)
    error = np.abs(target @ turn @ rotation - target).max()
    print(f"largest {error:.1e} Å")  # 3e-15
    assert error < 3e-14 and np.allclose(np.linalg.det(rotation), 1)
    flat = np.stack([np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 0]])])  # a linear molecule
    assert np.isfinite(kabsch(flat, flat)).all()
