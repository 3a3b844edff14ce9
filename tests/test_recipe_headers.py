"""The commands in the recipes' headers run, one after another, on small files of the layouts and names that they ask for."""

from __future__ import annotations

import functools
import io
import json
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path

import h5py
import numpy as np
import pytest
from ase.build import molecule
from tiny_runs import MODEL, command, npz

from forcewell.config import load_config, recipes
from forcewell.nn import encoder_settings
from forcewell.objectives import PRESETS, build
from forcewell.store import open_data
from forcewell.units import KCAL_PER_MOL

DATA = Path(__file__).parent / "data"
SHORT = ("training.steps=1", "training.batch_size=2", "validation.by=random", "validation.fraction=0.2", "validation.maximum=4")
TINY = {"channels": 16, "layers": 1, "heads": 2, "radial": 8, "degrees": 2, "divisor": 2, "cutoff": 3.0}
FRAMES = 11_000  # more than 9,500 and 500


def header(name: str) -> str:
    text = (resources.files("forcewell.recipes") / f"{name}.yaml").read_text(encoding="utf-8")
    return text[: text.index("\nseed:")]


def commands(name: str) -> list[str]:
    """The lines of a recipe's header that are commands, those of loops once."""
    lines = re.sub(r" \\\n# +", " ", header(name))
    found = re.findall(r"^#   +(forcewell .*)$", lines, flags=re.MULTILINE)
    return [line.replace("$sigma", "0.2").replace("$share", "0.5") for line in found]


WITH_DATA = [name for name in recipes() if any(line.startswith("forcewell data import") for line in commands(name))]


def trajectories(place: Path) -> None:
    """Real frames under the names of others: ethanol's for aspirin's, acetylacetone's (in kcal/mol) for toluene's and MD22's."""
    frames = npz("rmd17_ethanol_train_01.npz")
    rows = np.arange(FRAMES) % len(frames["coords"])
    many = {key: values[rows] if len(values) == len(frames["coords"]) else values for key, values in frames.items()}
    many["coords"] = many["coords"] + np.random.default_rng(0).normal(scale=1e-3, size=many["coords"].shape)
    many["old_indices"] = np.arange(FRAMES)
    np.savez(place / "rmd17_aspirin.npz", **many)  # type: ignore[arg-type]
    for file, part in (("md17_aspirin", slice(0, 40)), ("aspirin_ccsd-train", slice(0, 60)), ("aspirin_ccsd-test", slice(60, 80))):
        r, e, f = (frames[key][part] for key in ("coords", "energies", "forces"))
        np.savez(place / f"{file}.npz", z=frames["nuclear_charges"], R=r, E=e[:, None], F=f)
    data = open_data(DATA / "acac_300K_100.xyz")
    block, atoms = data.block(np.arange(len(data))), int(data.counts[0])
    coordinates, forces = (block.arrays[key].reshape(-1, atoms, 3) for key in ("positions", "forces"))
    energies, numbers = block.arrays["energy"], block.arrays["numbers"][:atoms]
    np.savez(place / "md17_toluene.npz", z=numbers, R=coordinates, E=energies[:, None] / KCAL_PER_MOL, F=forces / KCAL_PER_MOL)
    lines = ""
    for r, e, f in zip(coordinates, energies / KCAL_PER_MOL, forces / KCAL_PER_MOL, strict=True):
        lines += f'{atoms}\nProperties=species:S:1:pos:R:3:forces:R:3 Energy={e:.12f} pbc="F F F"\n'
        symbols = [{1: "H", 6: "C", 8: "O"}[z] for z in numbers.tolist()]
        lines += "".join(f"{s} {' '.join(f'{x:.10f}' for x in (*a, *b))}\n" for s, a, b in zip(symbols, r, f, strict=True))
    (place / "md22_AT-AT.xyz").write_text(lines)
    iso17(place, numbers, coordinates, energies, forces)


def iso17(place: Path, numbers: np.ndarray, coordinates: np.ndarray, energies: np.ndarray, forces: np.ndarray) -> None:
    from ase import Atoms
    from ase.db import connect

    for file, rows in (("reference.db", range(40)), ("test_other.db", range(40, 50))):
        database = connect(place / file)
        for k in rows:
            database.write(Atoms(numbers, coordinates[k]), total_energy=energies[k], data={"atomic_forces": forces[k].tolist()})
    (place / "train_ids.txt").write_text("".join(f"{k}\n" for k in range(1, 33)))
    (place / "validation_ids.txt").write_text("".join(f"{k}\n" for k in range(33, 41)))


def larger_sets(place: Path) -> None:
    """ANI-1, ANI-1x and SPICE from the first rows of their real files; PubChemQC-PM6 and MoleculeNet made up."""
    shutil.copy(DATA / "ani_gdb_s01_150.h5", place / "ani_gdb_s01.h5")
    shutil.copy(DATA / "spice_1.1.4_2.hdf5", place / "SPICE.hdf5")
    with h5py.File(DATA / "ani1x_5.hdf5") as real, h5py.File(place / "ani1x-release.h5", "w") as file:
        for name, group in real.items():
            for key, values in group.items():
                array = values[()]
                tiled = array if key == "atomic_numbers" else np.concatenate([array] * 6)
                if key == "coordinates":
                    tiled = tiled + np.random.default_rng(1).normal(scale=1e-4, size=tiled.shape).astype(tiled.dtype)
                file[f"{name}/{key}"] = tiled
    common = {"state": "S0", "charge": 0, "multiplicity": 1}
    records = []
    for k, (formula, smiles) in enumerate({"H2O": "O", "NH3": "N", "CH4": "C", "CH3OH": "CO", "C2H6": "CC"}.items()):
        atoms = molecule(formula)
        record = {"cid": k, "pubchem-isomeric-smiles": smiles, "atomic-numbers": atoms.numbers.tolist(), "total-energy": -200.0 - k}
        records.append({**common, **record, "coordinates": atoms.positions.reshape(-1).tolist()})
    (place / "pm6").mkdir()
    (place / "pm6" / "000000001-000298189.json").write_text(json.dumps(records))
    with open(DATA / "moleculenet_smiles.csv", encoding="utf-8") as stream:
        smiles = [line.strip().split(",")[1] for line in stream if line.startswith("FreeSolv,")]
    smiles = [word for word in smiles if "I" not in word and "Br" not in word][:60]  # the small model knows elements to argon
    table = io.StringIO("iupac,smiles,expt,calc\n" + "".join(f"m{k},{word},{-0.1 * k},0\n" for k, word in enumerate(smiles)))
    (place / "FreeSolv_SAMPL.csv").write_text(table.getvalue())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("headers")
    trajectories(place)
    larger_sets(place)
    return place


@functools.cache
def once(line: str) -> str:
    """The output of a command that must succeed; several headers name the same import and split."""
    words = shlex.split(line)[1:]
    expanded = [[str(path) for path in sorted(Path().glob(word))] if "*" in word else [word] for word in words]
    done = command(*(word for group in expanded for word in group))
    assert done.code == 0, f"{line}\n{done.err}"
    return done.out


def shortened(line: str, name: str) -> str:
    """A training command with a tiny model and one step; whatever it writes, and what is read of it, is named after the recipe."""
    line = re.sub(r"--out (run|scratch|share|sigma)", rf"--out {name}-\1", line)
    line = re.sub(r" (run|scratch|share-\S+|sigma-\S+)/model", rf" {name}-\1/model", line)
    words = line.split()
    if words[1] not in ("pretrain", "finetune"):
        return line
    assert words[2] == name
    changes = list(SHORT)
    if words[1] == "pretrain":
        other = re.search(r"model\.encoder=(\S+)", line)
        known = encoder_settings(other[1] if other else load_config(name).model.encoder.name)
        changes += [f"model.encoder.{key}={value}" for key, value in TINY.items() if key in known]
    return line.replace(" MODEL ", f" {MODEL} ") + "".join(f" --set {change}" for change in changes)


@pytest.mark.parametrize("name", WITH_DATA)
def test_commands_of_a_header_run(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "moleculenet" in header(name) or "conformers" in header(name):
        pytest.importorskip("rdkit")
    monkeypatch.chdir(folder)
    outputs = {line: once(shortened(line, name)) for line in commands(name)}
    kinds = [line.split()[1] for line in outputs]
    print("\n".join(f"{line}: {output.splitlines()[-1]}" for line, output in outputs.items()))
    assert kinds[0] == "data" and {"pretrain", "finetune"} & set(kinds)
    imported = [output for line, output in outputs.items() if line.startswith("forcewell data import") and "--exclude none" in line]
    assert all("(0 left out" in output for output in imported)


def test_a_broken_header_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control of the test above."""
    monkeypatch.chdir(folder)
    line = commands("et-oreo-md17")[0]
    assert " --exclude none " in line
    with pytest.raises(AssertionError, match="nothing is left: all 11000 conformations are of excluded molecules"):
        once(line.replace(" --exclude none ", " ").replace("aspirin.fw", "never.fw"))


@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "et-oreo-md17": (9500, 500),
        "frad-md17": (9500, 500),
        "joint-md17": (950, 50),
        "dens-md17": (950, 50),
        "gemnet-t-md17": (950, 50),
    }.items(),
)
def test_frames_of_the_publication(name: str, expected: tuple[int, int], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a header's split gives out of a whole file, and that training takes it."""
    monkeypatch.chdir(folder)
    _, split, trained = (once(shortened(line, name)) for line in commands(name) if line.split()[1] != "evaluate")  # after the import
    train, validation = expected
    assert f"train {train}, validation {validation}, test {FRAMES - train - validation}" in split
    assert f"{train} conformations to train on, 4 to validate on" in trained  # as many as SHORT allows
    assert load_config(name).validation.maximum >= validation


def test_names_of_other_recipes_exist() -> None:
    """A twin's header, and others, point at recipes by name."""
    prefixes = "|".join(sorted({name.split("-")[0] for name in recipes()} - {"forces", "quickstart", "et", "joint"}))
    for name in recipes():
        named = set(re.findall(rf"(?<![\w:`.-])((?:{prefixes}|et-oreo|joint)-[a-z0-9-]+\w)", header(name).split("\n", 1)[-1]))
        assert named <= {*recipes(), *PRESETS}, name


def test_ablation_of_the_force_norm() -> None:
    """The same model on the same energies, trained alike, without the norm."""
    for twin in ("", "-small"):
        full, ablated = load_config(f"gao-forcefield{twin}"), load_config(f"gao-forcefield-no-force-norm{twin}")
        assert full.model == ablated.model and full.model.encoder.name == "gemnet-t" and full.data[0] == ablated.data[0]
        assert full.optimiser == ablated.optimiser and full.training == ablated.training and full.validation == ablated.validation
        assert [objective.name for objective in build(full.objectives)] == ["energy", "force-norm"]
        assert build(ablated.objectives) == build("gao-energy")
        properties = load_config(f"gao-properties{twin}")
        assert properties.model.encoder.name == "egnn" and build(properties.objectives) == build("gao-energy")


def test_shares_of_labels_are_those_of_the_whole() -> None:
    """The 100 % of the data-efficiency experiment is the run of wang-finetune-ani1x."""
    for twin in ("", "-small"):
        share, whole = load_config(f"wang-data-efficiency{twin}"), load_config(f"wang-finetune-ani1x{twin}")
        assert build(share.objectives) == build(whole.objectives) == build({"energy": {"form": "mse", "standardised": True}})
        assert share == whole


@pytest.mark.parametrize(
    ("name", "conformations", "epochs", "warm", "hold"),
    [
        *((f"wang-{encoder}", 0.95 * (24_687_809 + 5_496_771), 5, 0.7, 0.3) for encoder in ("schnet", "egnn", "se3-transformer")),
        ("wang-equivariant-transformer", 0.95 * (24_687_809 + 5_496_771), 5, 0.7, 0.3),
        ("wang-noise-scale", 0.95 * 5_496_771, 5, 0.7, 0.3),
        ("wang-finetune-ani1", 0.8 * 24_687_809, 10, 0.3, 0.7),
        ("wang-finetune-ani1x", 0.8 * 5_496_771, 10, 0.3, 0.7),
        ("wang-finetune-spice", 900_000, 50, 0.3, 0.7),
        ("wang-finetune-iso17", 404_000, 50, 0.3, 0.7),
        ("gao-finetune-properties", 0.8 * 642, 30, None, None),
    ],
)
def test_steps_are_epochs(name: str, conformations: float, epochs: int, warm: float | None, hold: float | None) -> None:
    config = load_config(name)
    epoch = conformations / config.training.batch_size
    print(f"{name}: {epoch:.0f} steps an epoch, {epochs} are {epochs * epoch:.0f}, warm-up {warm or 0} {(warm or 0) * epoch:.0f}")
    assert config.training.steps == pytest.approx(epochs * epoch, rel=0.005)
    for share, steps in ((warm, config.optimiser.warmup_steps), (hold, config.optimiser.hold_steps)):
        assert share is None or steps == pytest.approx(share * epoch, rel=0.01)
