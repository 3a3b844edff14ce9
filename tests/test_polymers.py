"""Sampling of polymers: which, from which starts, at what cost; one small campaign of γ-butyrolactone with GFN2-xTB, and its enthalpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import command, refuse

from forcewell.bonds import bonds, graph_hash
from forcewell.engines import engine
from forcewell.engines.base import mover_of
from forcewell.generate.campaign import engine_settings
from forcewell.generate.families import choose_families
from forcewell.generate.polymer_cost import LABEL, LAWS, RELAXATION, costs, law_of
from forcewell.generate.polymers import POLY24, PolymerSampling, polymer, polymer_jobs, polymers_of
from forcewell.generate.ring_opening import loop, open_ring
from forcewell.generate.species import intact, read_species, without_stereo
from forcewell.store import Store

GBL = "O=C1CCCO1"
SMALL = ("--family", "gamma-butyrolactone", "--loops", "1,2", "--starts", 2, "--dynamics", "400:4", "--spacing", 5, "--equilibration", 20)


def test_poly24_is_24_families_six_sizes_ten_starts() -> None:
    sampling = PolymerSampling()
    openings = [open_ring(one.smiles) for one in choose_families("all")]
    found = polymers_of(openings, sampling)
    jobs = polymer_jobs(found, sampling, 0)
    shared = {loop(opening, repeats) for opening in openings for repeats in POLY24}
    assert (len(openings), sampling.starts, tuple(sampling.loops)) == (24, 10, (1, 3, 4, 5, 6, 15))
    assert len(found) == len(shared) == 137  # 24 x 6 = 144, of which cycloalkanes share 7
    assert len(jobs) == 1370 and len({(job["smiles"], job["seed"]) for job in jobs}) == 1370
    assert sum(job["minima"] for job in jobs if job["of"] == "monomer") == 24
    # A start does not depend on what else is sampled.
    alone = polymer_jobs(polymers_of([open_ring(GBL)], sampling), sampling, 0)
    assert all(job in jobs for job in alone)
    assert polymer_jobs(polymers_of([open_ring(GBL)], sampling), sampling, 1)[0]["seed"] != alone[0]["seed"]


def test_size_limit_and_chains() -> None:
    sampling = PolymerSampling(loops=[1, 3, 5, 6], chains=[2], largest=64)
    found = polymers_of([open_ring(GBL)], sampling)
    assert [(one.repeats, one.cyclic, one.atoms) for one in found] == [(1, True, 12), (2, False, 27), (3, True, 36), (5, True, 60)]
    assert {job["of"] for job in polymer_jobs(found, sampling, 0)} == {"monomer", "chain", "loop"}


def test_the_cost_follows_the_measurements() -> None:
    # CPU time in s of one evaluation with GFN2-xTB, by atoms (docs/generate.md); DFT by (electrons, s).
    for atoms, seconds in {9: 0.0011, 16: 0.0038, 60: 0.075, 120: 0.4, 180: 1.3, 360: 5.1}.items():
        ratio = LAWS["gfn2"](atoms, 0) / seconds
        print(f"{atoms} atoms: law / measured {ratio:.2f}")
        assert 0.7 < ratio < 1.3
    for electrons, seconds in {26: 2.8, 94: 54.0}.items():
        assert LAWS["pyscf"](0, electrons) == pytest.approx(seconds, rel=0.05)
    sampling = PolymerSampling(loops=[1, 3], starts=2, dynamics={300: 10, 500: 10}, spacing=10, timestep=2, equilibration=100)
    one, three = costs(polymers_of([open_ring(GBL)], sampling), sampling)
    assert (one.jobs, one.frames, three.frames, three.atoms) == (2, 41, 42, (36, 36))  # of the monomer one minimum, of the loop two
    assert three.evaluations == 2 * (2 * 100 + RELAXATION * 36)
    assert 3600 * three.hours("gfn2") == pytest.approx((three.evaluations + LABEL * 42) * LAWS["gfn2"](36, 0))
    labels = 42 * LAWS["pyscf"](36, 138)
    assert 3600 * three.hours("pyscf", "gfn2") == pytest.approx(three.evaluations * LAWS["gfn2"](36, 0) + labels)
    assert [law_of(name) for name in ("gfn1", "pyscf:PBE/def2-SVP", "ase:ase.calculators.orca.ORCA", "m.safetensors")] == [
        "gfn1", "pyscf", None, "forcewell-small",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def campaign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two starts each of γ-butyrolactone and its loop of two, sampled by GFN2-xTB."""
    pytest.importorskip("tblite")
    out = tmp_path_factory.mktemp("polymers") / "gbl.fw"
    done = command("generate", "polymers", *SMALL, "--out", out, "--workers", 1)
    assert done.code == 0, done.err
    assert "the acyl C-O bond opens; repeat unit *OCCCC(*)=O, 12 atoms" in done.out
    assert "4 done, 0 failed, 0 left; 19 frames" in done.out
    return out


def test_frames_say_what_they_are(campaign: Path) -> None:
    store = Store(campaign)
    assert sorted(set(store.counts.tolist())) == [12, 24]
    assert store.levels == ["GFN2-xTB"]
    minima = [row for row in range(len(store)) if int(store[row].get("equilibrium")) == 1]
    assert sorted(len(store[row]) for row in minima) == [12, 24, 24]  # the monomer's only once
    for row in range(len(store)):
        frame = store[row]
        species = read_species(frame.smiles)
        assert frame.molecule == without_stereo(frame.smiles)
        assert intact(species.bonds, frame.numbers, frame.positions)
        known = json.loads(frame.engine)
        assert (known["engine"], known["settings"]["accuracy"]) == ("gfn2", 0.1)
        if row in minima:
            assert np.abs(frame.arrays["forces"]).max() < 0.02
            seen = bonds(store.block([row]))
            assert graph_hash(frame.numbers, seen) == species.graph  # the bonds found by distance are those of the SMILES
        else:
            assert frame.properties["temperature"] == 400.0 and frame.properties["time"] in (5.0, 10.0, 15.0, 20.0)
    assert len(set(store.column("property:trajectory")[store.column("equilibrium") == 0].tolist())) == 4


def test_the_same_command_does_nothing_more_and_another_is_refused(campaign: Path) -> None:
    before = Store(campaign).fingerprint
    again = command("generate", "polymers", *SMALL, "--out", campaign, "--workers", 1)
    assert again.code == 0 and "4 done, 0 failed, 0 left; 19 frames" in again.out
    assert "another campaign" in refuse("generate", "polymers", *SMALL, "--seed", "1", "--out", campaign)
    assert Store(campaign).fingerprint == before


def test_enthalpy_of_the_campaign(campaign: Path, tmp_path: Path) -> None:
    done = command("generate", "enthalpy", campaign, "--json", tmp_path / "gbl.json")
    assert done.code == 0, done.err
    assert "ring-opening enthalpy, GFN2-xTB, molecular dynamics at 400 K, kJ/mol per repeat unit" in done.out
    (found,) = json.loads((tmp_path / "gbl.json").read_text(encoding="utf-8"))
    store = Store(campaign)
    moving, energy = store.column("equilibrium") == 0, store.column("energy")
    exact = energy[moving & (store.counts == 24)].mean() / 2 - energy[moving & (store.counts == 12)].mean()
    assert found["units"][0]["value"] == pytest.approx(exact, abs=1e-9)
    assert found["units"][0]["error"] > 0
    energies = command("generate", "enthalpy", campaign, "--minima")
    assert "ring-opening energy, GFN2-xTB, lowest minima" in energies.out and "enthalpy" not in energies.out
    harmonic = command("generate", "enthalpy", campaign, "--minima", "--temperature", "298.15")
    print(done.out, energies.out, harmonic.out)
    assert harmonic.code == 0, harmonic.err
    assert "ring-opening enthalpy, GFN2-xTB, lowest minima, harmonic at 298.15 K" in harmonic.out


def test_enthalpy_of_what_another_level_moved(campaign: Path, tmp_path: Path) -> None:
    """Labels of another level on the trajectories and minima of this one, by a later campaign: refused. By the same level: kept."""
    store = Store(campaign)
    assert {mover_of(engine)["level"] for engine in store.engines if engine} == {"GFN2-xTB"}  # type: ignore[index]
    for data, engine_name, out in ((campaign, "gfn1", "one.fw"), (tmp_path / "one.fw", "gfn2", "two.fw"), (campaign, "gfn2", "same.fw")):
        done = command("generate", "label", data, "--engine", engine_name, "--out", tmp_path / out, "--workers", 1)
        assert done.code == 0, done.err
    moved = "GFN2-xTB moved these molecules and GFN1-xTB labelled them"
    assert moved in refuse("generate", "enthalpy", tmp_path / "one.fw")
    assert moved in refuse("generate", "enthalpy", tmp_path / "one.fw", "--minima")
    first, second, same = (command("generate", "enthalpy", path).out for path in (campaign, tmp_path / "two.fw", tmp_path / "same.fw"))
    print(first, second)
    assert first == second == same  # by the same level again, with what moved them told all the way
    assert "none of its minima is flagged" in refuse("generate", "enthalpy", tmp_path / "two.fw", "--minima")


def test_enthalpy_with_another_sampler(tmp_path: Path) -> None:
    pytest.importorskip("tblite")
    done = command("generate", "polymers", *SMALL, "--sampler", "gfn1", "--out", tmp_path / "out.fw", "--workers", 1)
    assert done.code == 0, done.err
    for words in ((), ("--minima",)):
        assert "GFN1-xTB moved these molecules and GFN2-xTB labelled" in refuse("generate", "enthalpy", tmp_path / "out.fw", *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--monomer", "C1CO1", "--ends", "*C", "--loops", "none", "--chains", 2), "there are 1 end groups; expected two"),
        (("--monomer", "C1CO1", "--no-minima", "--dynamics", "none"), "no frame is asked for"),
        (("--monomer", "C1CO1", "--spacing", "inf"), "spacing: input should be a finite number"),
        (
            (
                "--monomer",
                "C1[CH]O1",
            ),
            "expected a closed shell",
        ),
    ],
)
def test_mistakes(tmp_path: Path, words: tuple, said: str) -> None:
    assert said in refuse("generate", "polymers", *words, "--out", tmp_path / "never.fw") and not list(tmp_path.iterdir())


def test_a_ring_that_metathesis_would_open(tmp_path: Path) -> None:
    done = command("generate", "polymers", "--monomer", "C1=CC2CC1CC2", "--loops", 2, "--starts", 1, "--dry-run")
    print(done.out)
    assert done.code == 0 and "has a double bond, which metathesis would open" in done.out and "1 polymer, 1 start\n" in done.out


@pytest.mark.parametrize("name", ["dioxolane", "thietane", "methylaziridine"])
def test_relaxed_loops_keep_the_bonds_of_their_smiles(name: str) -> None:
    pytest.importorskip("tblite")
    sampling = PolymerSampling(loops=[2], starts=1, dynamics={})
    (job,) = polymer_jobs(polymers_of([open_ring(choose_families(name)[0].smiles)], sampling), sampling, 0)
    ((frame,), left_out) = polymer({**job, **engine_settings(engine("gfn2")), "sampler": None})
    assert frame.source == "loop minimum" and not left_out
    species = read_species(frame.smiles)
    assert intact(species.bonds, frame.numbers, frame.positions)


def test_a_dry_run_writes_nothing(tmp_path: Path) -> None:
    done = command("generate", "poly24", "--dry-run", "--out", tmp_path / "poly24.fw")
    assert done.code == 0, done.err
    assert "137 polymers, 1370 starts" in done.out and "GFN2-xTB: 402 CPU hours" in done.out
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--monomer", "CCO"), "no ring that can be opened"),
        (("--monomer", "C1CC"), "not a SMILES"),
        (("--monomer", GBL, "--family", "all"), "either --monomer SMILES or --family NAME"),
        (("--family", "gamma-butyrolacton"), "gamma-butyrolactone"),
        (("--monomer", GBL, "--loops", "1,x"), "--loops '1,x'"),
        (("--monomer", GBL, "--loops", "0"), "greater than or equal to 1"),
        (("--monomer", GBL, "--loops", "none"), "no polymer to sample"),
        (("--monomer", GBL, "--chains", "2", "--ends", "*O"), "end"),
        (("--monomer", GBL, "--dynamics", "hot"), "--dynamics 'hot'"),
        (("--monomer", GBL, "--engine", "gfn3"), "unknown engine"),
        (("--monomer", GBL, "--loops", "1"), "give --out STORE"),
    ],
)
def test_mistakes_are_one_line(words: tuple[str, ...], said: str) -> None:
    assert said in refuse("generate", "polymers", *words)


def test_stores_without_polymers_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refuse("generate", "enthalpy", tmp_path / "none.fw")
    assert "temperature above 0" in refuse("generate", "enthalpy", tmp_path / "none.fw", "--temperature", "-1")
