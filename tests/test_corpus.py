"""Recipes, the commands that make data from them, data cards and samples."""

from __future__ import annotations

import hashlib
import json
import re
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tiny_runs import refuse, succeed

from forcewell.bonds import BENCHMARK, excluded
from forcewell.doctor import check
from forcewell.errors import InputError
from forcewell.generate.card import _cost, data_card
from forcewell.generate.corpus import Recipe, load_recipe, recipe_jobs
from forcewell.generate.sample import sample_rows, write_sample
from forcewell.generate.species import read_species
from forcewell.sources import SOURCES
from forcewell.store import MemoryData, Store
from forcewell.training_data import _import_left_out, bundled

pytest.importorskip("tblite")

MINI = {
    "title": "Mini",
    "parts": [
        {
            "kind": "molecules",
            "smiles": ["C=O", "CO"],
            "sampling": {
                "conformers": 1, "modes": {300: 4, 1000: 4}, "dynamics": {500: 3}, "equilibration": 10, "timestep": 1, "spacing": 5,
                "dimers": 4, "partners": ["O"],
            },
        },
        {
            "kind": "loops",
            "families": "cyclopropane",
            "loops": [1, 2],
            "sampling": {"conformers": 1, "vibrations": False, "modes": {}, "dynamics": {500: 2}, "equilibration": 5, "timestep": 1},
        },
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "mini.yaml").write_text(yaml.safe_dump(MINI), encoding="utf-8")
    out = succeed("generate", "corpus", folder / "mini.yaml", "--out", folder / "mini.fw", "--workers", 1)
    print(out)
    assert "4 done, 0 failed, 0 left; 38 frames" in out
    again = succeed("generate", "corpus", folder / "mini.yaml", "--out", folder / "mini.fw", "--workers", 1)
    assert "4 done, 0 failed, 0 left; 38 frames" in again
    return folder / "mini.fw"


def test_the_corpus_passes_the_doctor(corpus: Path) -> None:
    store = Store(corpus)
    kinds = dict(zip(*np.unique(np.array(store.sources)[store.column("source")], return_counts=True), strict=True))
    assert kinds == {
        "minimum": 2, "normal modes": 16, "molecular dynamics": 6, "dimer": 8, "loop minimum": 2, "loop molecular dynamics": 4,
    }  # fmt: skip
    report = check(store, "mini")
    print(*report.findings, sep="\n")
    assert report.ok and not excluded(store.block(np.arange(len(store))), list(BENCHMARK), each=True).any()
    assert (np.array(store.sources)[store.column("source")[store.column("equilibrium") == 1]] == "minimum").sum() == 2


def test_the_shipped_recipes(tmp_path: Path) -> None:
    jobs = recipe_jobs(load_recipe("corpus"))
    assert len({job["smiles"] for _, job in jobs}) == len(jobs)
    frames = [
        sum(job["modes"].values()) + sum(job["dynamics"].values()) + job["dimers"] + job["conformers"] + job["torsion_points"]
        for _, job in jobs
    ]
    kinds = [kind for kind, _ in jobs]
    print(f"{len(jobs)} jobs, at most {sum(frames)} frames; {kinds.count('loop')} loops")
    assert 85_000 < sum(frames) < 130_000 and kinds.count("loop") > 40
    assert max(len(read_species(job["smiles"]).numbers) for kind, job in jobs if kind == "loop") <= 64
    names = {smiles for smiles, _, _ in BENCHMARK.values()}
    assert not names & {job["smiles"] for _, job in jobs}
    dft = load_recipe("corpus-dft")
    planned = sum(sum(job["modes"].values()) + sum(job["dynamics"].values()) for _, job in recipe_jobs(dft))
    assert dft.engine == "pyscf:wB97X/6-31G*" and dft.sampler == "gfn2" and planned >= 550


def test_the_card_counts_what_was_dropped(tmp_path: Path) -> None:
    line = {"kind": "molecule", "status": "done", "frames": 3, "cpu_seconds": 1.0}
    lines = [line | {"left_out": {"forces above 30 eV/Å": ["dimer", "dimer"]}}, line | {"left_out": {"forces above 30 eV/Å": ["dimer"]}}]
    (tmp_path / "journal.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    assert _cost(tmp_path)[-1] == "- 3 frames dropped: forces above 30 eV/Å"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parts": [{"kind": "molecules", "smiles": ["CCO"]}]}, "1 of the SMILES listed are of benchmark molecules"),
        ({"parts": [{"kind": "molecules", "smiles": ["CC("]}]}, "is not a SMILES"),
        ({"parts": [{"kind": "molecules", "smiles": ["[U]"]}]}, "GFN2-xTB has no parameters for U"),
        ({"parts": [{"kind": "crystals"}]}, "parts.0"),
        ({"parts": []}, "parts"),
        ({"enginee": "gfn2"}, "enginee"),
        ({"parts": [{"kind": "molecules", "smiles": ["C"], "sampling": {"vibrations": False}}]}, "need vibrations"),
    ],
)
def test_bad_recipes(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(yaml.safe_dump(MINI | change), encoding="utf-8")
    line = refuse("generate", "corpus", file, "--out", tmp_path / "never.fw")
    print(line)
    assert message in line and not (tmp_path / "never.fw").exists()


def test_no_recipe(tmp_path: Path) -> None:
    assert "did you mean 'corpus'" in refuse("generate", "corpus", "corpse", "--out", tmp_path / "never.fw")
    (tmp_path / "text.yaml").write_text("just words", encoding="utf-8")
    with pytest.raises(InputError, match="expected a mapping"):
        load_recipe(str(tmp_path / "text.yaml"))
    assert Recipe.model_validate(MINI).engine == "gfn2"


def test_card(corpus: Path, tmp_path: Path) -> None:
    succeed("generate", "card", corpus, "--out", tmp_path / "card.md", "--title", "Mini")
    text = (tmp_path / "card.md").read_text(encoding="utf-8")
    assert text == data_card(Store(corpus), "Mini") and text.startswith("# Mini\n")
    store = Store(corpus)
    # Numbers counted another way.
    hydrogens = sum(int((store[k].numbers == 1).sum()) for k in range(len(store)))
    largest = max(float(np.linalg.norm(store[k].arrays["forces"], axis=1).max()) for k in range(len(store)))
    assert f"| H | {len(store)} | {hydrogens} |" in text and f"{largest:.3g} |" in text
    assert "| normal modes | 1000 | 8 |" in text and "fit for training; 0 errors" in text
    assert store.fingerprint in text
    for digest in re.findall(r"shard.*`([0-9a-f]{64})`", text):
        assert digest in {hashlib.sha256(file.read_bytes()).hexdigest() for file in corpus.glob("*.arrow")}


def test_samples_are_stratified_and_come_back(corpus: Path, tmp_path: Path) -> None:
    store, file = Store(corpus), tmp_path / "part.npz"
    rows = sample_rows(store, 19)
    kinds = np.array(store.sources)[store.column("source")]
    for kind in store.sources:  # half of each, give or take one
        assert abs((kinds[rows] == kind).sum() - (kinds == kind).sum() / 2) <= 1, kind
    assert write_sample(store, file, 1_000_000) == 38
    data = MemoryData(SOURCES["generated"].read([file]))
    assert data.levels == store.levels and sorted(data.sources) == sorted(store.sources)
    order = [np.lexsort((one.column("energy"),)) for one in (data, store)]
    for a, b in zip(*order, strict=True):
        one, two = data[int(a)], store[int(b)]
        assert (one.source, one.smiles, one.molecule, one.engine) == (two.source, two.smiles, two.molecule, two.engine)
        assert np.array_equal(one.arrays["forces"], two.arrays["forces"]) and one.arrays["energy"] == two.arrays["energy"]
        assert np.abs(one.positions - two.positions).max() < 1e-6
        assert np.array_equal([one.properties[key] for key in two.properties], list(two.properties.values()), equal_nan=True)
    small = tmp_path / "small.npz"
    assert write_sample(store, small, 9_000) < 38 and small.stat().st_size <= 9_000
    with pytest.raises(InputError, match="already exists"):
        write_sample(store, small, 9_000)
    with pytest.raises(InputError, match="not one conformation fits"):
        write_sample(store, tmp_path / "tiny.npz", 100)
    np.savez(tmp_path / "other.npz", pos=np.zeros(3))
    with pytest.raises(InputError, match="is no sample"):
        list(SOURCES["generated"].read([tmp_path / "other.npz"]))


def test_the_bundled_sample(tmp_path: Path) -> None:
    store = Store(bundled("corpus", tmp_path))
    file = resources.files("forcewell.bundled") / "corpus.npz"
    assert len(file.read_bytes()) <= 5_000_000
    assert {"minimum", "normal modes", "molecular dynamics", "dimer"} <= set(store.sources) and store.levels == ["GFN2-xTB"]
    assert check(store, "bundled:corpus").ok
    assert not excluded(store.block(np.arange(len(store))), list(BENCHMARK)).any()


def test_the_bundled_dft_frames(tmp_path: Path) -> None:
    """Forces are minus the slope of the energies along trajectories and modes, judged by the doctor; none is of a minimum."""
    store = Store(bundled("corpus-dft", tmp_path))
    assert len(store) >= 500 and store.levels == ["wB97X/6-31G*"] and set(store.sources) == {"normal modes", "molecular dynamics"}
    assert check(store, "bundled:corpus-dft").ok
    block = store.block(np.arange(len(store)))
    assert not excluded(block, list(BENCHMARK)).any() and not block.arrays["equilibrium"].any()


def test_training_does_not_search_a_campaign_for_benchmark_molecules_again(corpus: Path) -> None:
    data = Store(corpus)
    assert _import_left_out(data, BENCHMARK) and not _import_left_out(data, ["toluene"])
