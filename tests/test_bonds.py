"""Bond graphs: benchmark molecules are found in any conformation and order, their isomers are not."""

from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule

from forcewell.bonds import (
    BENCHMARK,
    FINE_TUNED,
    _component_hashes,
    benchmark_hash,
    bonds,
    component_hashes,
    excluded,
    graph_hashes,
    identify,
    resolve,
)
from forcewell.errors import InputError
from forcewell.importing import import_source
from forcewell.sources import SOURCES
from forcewell.store import open_data
from forcewell.system import Block, System, block_of

BUNDLED = Path(str(files("forcewell"))) / "bundled"
DATA = Path(__file__).parent / "data"
ETHANOL = BUNDLED / "rmd17_ethanol_train_01.npz"


def of(*names: str) -> Block:
    return block_of([System.from_atoms(molecule(name)) for name in names])


def test_every_frame_of_a_benchmark_trajectory_is_found():
    frames = next(iter(SOURCES["npz"].read([DATA / "rmd17_benchmark_frames.npz"])))
    names = {"aspirin": "aspirin", "naphthalene": "naphthalene", "salicylic": "salicylic acid"}
    by_frame = frames.take(np.arange(60))
    by_frame.molecule = np.full(60, "", dtype=object)  # so that each frame is looked at
    for label, name in names.items():
        assert np.array_equal(excluded(by_frame, [name]), frames.molecule == label)
    ethanol = open_data(ETHANOL).block(np.arange(1000))
    ethanol.molecule = np.full(1000, "", dtype=object)
    assert excluded(ethanol, ["ethanol"]).all() and not excluded(ethanol, ["aspirin"]).any()


def test_ethanol_is_found_in_qm9_and_its_isomer_is_not(tmp_path):
    store = import_source("qm9", [BUNDLED / "qm9_minima_4002.npz"], tmp_path / "q.fw").store
    names = set(store.column("molecule"))
    assert store.manifest["left_out"] == 1 and "qm9/14" not in names and "qm9/15" in names  # 14 ethanol, 15 dimethyl ether


def test_hash_does_not_depend_on_order_or_place():
    block = of("CH3CH2OH", "CH3OCH3", "C6H6", "H2O")
    generator = np.random.default_rng(0)
    systems = []
    for k in range(4):
        system = block.system(k)
        order = generator.permutation(len(system))
        turn = np.linalg.qr(generator.normal(size=(3, 3)))[0]
        systems.append(System({"numbers": system.numbers[order], "positions": system.positions[order] @ turn + 7}))
    hashes = graph_hashes(block)
    assert np.array_equal(hashes, graph_hashes(block_of(systems))) and len(set(hashes.tolist())) == 4
    assert excluded(block, ["ethanol"]).tolist() == [True, False, False, False]
    assert identify(block)[0].startswith("C2H6O-")


def test_components_tell_what_refinement_alone_cannot():
    hexagon = np.array([(k, (k + 1) % 6) for k in range(6)])
    triangles = np.array([(0, 1), (1, 2), (2, 0), (3, 4), (4, 5), (5, 3)])
    carbon = np.full(6, 6)
    one, two = _component_hashes(carbon, hexagon)[0], _component_hashes(carbon, triangles)[0]
    assert len(one) == 1 and len(two) == 2 and two[0] == two[1] != one[0]


def test_dimer_that_contains_ethanol_is_found():
    ethanol, water = of("CH3CH2OH").system(0), of("H2O").system(0)
    numbers, positions = np.concatenate([ethanol.numbers, water.numbers]), np.concatenate([ethanol.positions, water.positions + 5])
    dimer = block_of([System({"numbers": numbers, "positions": positions})])
    assert excluded(dimer, ["ethanol"]).all() and len(component_hashes(dimer)[0]) == 2


def test_bonds_against_the_known_number():
    block = of("CH3CH2OH", "C6H6", "CH4", "H2O")
    pairs = bonds(block)
    owner = np.searchsorted(block.offsets, pairs[:, 0], side="right") - 1
    assert np.bincount(owner).tolist() == [8, 12, 4, 2]


def test_benchmark_graphs_against_rdkit():
    chem = pytest.importorskip("rdkit.Chem")
    for name, (smiles, _, _) in BENCHMARK.items():
        graph = chem.AddHs(chem.MolFromSmiles(smiles))
        numbers = np.array([atom.GetAtomicNum() for atom in graph.GetAtoms()])
        edges = np.array([(bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()) for bond in graph.GetBonds()])
        assert int(_component_hashes(numbers, edges)[0][0]) == benchmark_hash(name), name


def test_importing_a_benchmark_is_said_aloud(tmp_path):
    with pytest.raises(InputError, match=r"nothing is left.*--exclude none"):
        import_source("rmd17", [ETHANOL], tmp_path / "e.fw")
    assert not (tmp_path / "e.fw").exists()
    assert import_source("rmd17", [ETHANOL], tmp_path / "e.fw", exclude="none").kept == 1000


def test_names_to_exclude():
    assert resolve("none") == [] and resolve("benchmark") == list(FINE_TUNED) and resolve("all") == list(BENCHMARK)
    assert resolve("aspirin, salicylic") == ["aspirin", "salicylic acid"]
    with pytest.raises(InputError, match="did you mean 'ethanol'"):
        resolve("etanol")
