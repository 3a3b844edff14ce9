"""Stability, h(r) and energy conservation against the published code's figures on a real trajectory."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from forcewell.evaluate.conservation import conservation
from forcewell.evaluate.distances import density, distance_error, histogram, mean_absolute_error
from forcewell.evaluate.stability import bond_lengths, bonds, stability

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(DATA / "metrics_mdsim.npz") as file:
        return dict(file)


@pytest.fixture(scope="module")
def aspirin() -> dict[str, np.ndarray]:
    with np.load(DATA / "aspirin_dimenet.npz") as file:
        return dict(file)


def test_distribution_of_distances(golden: dict[str, np.ndarray], aspirin: dict[str, np.ndarray]) -> None:
    frames = aspirin["positions"]
    for name, part in (("hr_all", frames), ("hr_first_half", frames[:377]), ("hr_second_half", frames[377:])):
        worst = np.abs(density(histogram(part)) - golden[name]).max()
        print(name, "differs by", worst)  # 0.0
        assert worst < 1e-12
    error = distance_error(histogram(frames), frames)
    assert error.mae == 0.0
    assert error.floor == pytest.approx(float(golden["mae_halves"]), abs=1e-12)
    assert error.floor > 0.08


def test_bond_lengths(golden: dict[str, np.ndarray], aspirin: dict[str, np.ndarray]) -> None:
    found, shifts = bonds(aspirin["numbers"], aspirin["positions"][0], aspirin["cell"])
    assert {tuple(sorted(pair)) for pair in golden["bonds"].T.tolist()} == {tuple(pair) for pair in found.tolist()}
    assert not shifts.any()
    lengths = bond_lengths(aspirin["positions"], golden["bonds"].T, aspirin["cell"])
    print("bond lengths differ by", np.abs(lengths - golden["bond_lengths"]).max())
    assert np.abs(lengths - golden["bond_lengths"]).max() < 1e-12


def test_a_run_that_stays_whole(golden: dict[str, np.ndarray], aspirin: dict[str, np.ndarray]) -> None:
    judged = stability(aspirin["positions"], golden["bonds"].T, golden["mean_bond_lengths"], 0.05, aspirin["cell"])
    assert judged.first_broken is None
    assert judged.collapse == int(golden["collapse_pt"]) == 754
    assert judged.picoseconds == pytest.approx(37.65)
    assert np.abs(judged.deviation - golden["max_dev_per_frame"]).max() < 1e-12
    assert judged.deviation.argmax() == golden["max_dev_overall_index"][0] == 118


def test_a_run_that_breaks(golden: dict[str, np.ndarray]) -> None:
    frames = golden["synthetic/positions"]
    judged = stability(frames, golden["bonds"].T, golden["synthetic/reference_mean_bond_lengths"], 0.05)
    assert judged.first_broken == int(golden["synthetic/first_broken_frame"])
    assert judged.collapse == int(golden["synthetic/mdsim_collapse_pt"])
    assert judged.bond == int(golden["synthetic/broken_bond_index"])
    assert judged.picoseconds == pytest.approx(float(golden["synthetic/stability_ps_mdsim"]))
    assert np.abs(judged.deviation - golden["synthetic/max_dev_per_frame"]).max() < 1e-12
    h = density(histogram(frames[: judged.collapse]))
    assert np.abs(h - golden["synthetic/hr_mdsim"]).max() < 1e-12
    assert np.abs(h - golden["synthetic/hr_before_break_only"]).max() > 1e-4  # the first broken frame counts
    error = mean_absolute_error(h, golden["synthetic/reference_hr"])
    assert error == pytest.approx(float(golden["synthetic/hr_error_mdsim"]), abs=1e-12)


def test_the_last_frame_and_nan_count_as_broken() -> None:
    frames = np.array([[[0.0, 0, 0], [1.0, 0, 0]], [[0.0, 0, 0], [1.6, 0, 0]]])
    judged = stability(frames, np.array([[0, 1]]), np.array([1.0]), 0.05)
    assert (judged.first_broken, judged.picoseconds) == (1, 0.05)
    frames[0, 1, 0] = np.nan
    assert stability(frames, np.array([[0, 1]]), np.array([1.0]), 0.05).first_broken == 0
    assert histogram(frames).sum() == 1


def test_self_pairs_are_left_out_of_large_molecules() -> None:
    points = np.random.default_rng(0).uniform(0, 8, (3, 40, 3))
    counts, brute = histogram(points), np.zeros(500, dtype=np.int64)
    edges = np.linspace(1e-6, 10, 501)
    for frame in points:
        for i in range(40):
            for j in range(i):
                distance = np.sqrt(((frame[i] - frame[j]) ** 2).sum())
                brute += (edges[:-1] <= distance) & (distance < edges[1:])
    assert counts.sum() > 2000
    assert np.array_equal(counts, brute)


def test_hydrogen_bond_is_no_bond() -> None:
    # H...O at 1.5 Å, within the covalent cutoffs (1.57 Å), beside the O-H bond of 1.0 Å.
    numbers, positions = np.array([8, 1, 8]), np.array([[0.0, 0, 0], [1.0, 0, 0], [2.5, 0, 0]])
    assert bonds(numbers, positions)[0].tolist() == [[0, 1]]


def test_bond_through_the_cell_wall() -> None:
    cell = np.diag([10.0, 10.0, 0.0])
    pairs, shifts = bonds(np.array([6, 1]), np.array([[9.8, 0, 0], [0.9, 0, 0]]), cell)
    assert pairs.tolist() == [[0, 1]]
    assert shifts.tolist() == [[10.0, 0.0, 0.0]]
    frames = np.array([[[9.8, 0, 0], [0.9, 0, 0]]])
    assert bond_lengths(frames, pairs, cell)[0, 0] == pytest.approx(1.1)


def test_conservation() -> None:
    time = np.linspace(0, 2, 41)
    wave = np.sin(2 * np.pi * time)
    kept = conservation(time, -100 + 0.009 * time + 1e-3 * wave, atoms=9)
    straight = np.polyfit(time, 0.009 * time + 1e-3 * wave, 1)[0] * 1000 / 9
    print("drift", kept.drift, "meV/atom/ps")
    assert kept.drift == pytest.approx(straight, rel=1e-9)
    assert kept.deviation == pytest.approx(np.abs(0.009 * time + 1e-3 * wave).max() * 1000 / 9)
    broken = np.where(time > 1, np.nan, -100 + 0.009 * time)
    assert conservation(time, broken, atoms=9).drift == pytest.approx(1.0)
    assert np.isnan(conservation(time[:1], broken[:1], atoms=9).drift)
