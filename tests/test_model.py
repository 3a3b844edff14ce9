"""The Equivariant Transformer: equal to the published code, smooth at the cutoff, no neighbour left out, tokens inert."""

from __future__ import annotations

import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import ase
import numpy as np
import pytest
import torch

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.graph import neighbours
from forcewell.nn import EquivariantScalar, encoder
from forcewell.nn.activation import silu
from forcewell.potential import Potential
from forcewell.system import Block
from forcewell.testing import batch_of, main, small_potential

DATA = Path(__file__).parent / "data"
GOLDEN = ("et_tmd", "et_tmd_vector_cutoff", "et_tmd_lower_cutoff", "et_noisynode")
SMALL = {"name": "equivariant-transformer", "channels": 32, "layers": 2, "heads": 4, "radial": 16, "elements": 20}


def potential(seed: int = 0, **settings: Any) -> Potential:
    """A small random float64 model; ``settings`` of its encoder. Biases, zero in a fresh model, are drawn too: with zero
    biases the filters vanish at the cutoff, and a forgotten bias would not show."""
    torch.manual_seed(seed)
    model = Potential({"encoder": {**SMALL, **settings}}).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    return model


def single(numbers: list[int], positions: np.ndarray) -> Batch:
    return Batch.from_block(Block.shared(numbers, positions[None]), dtype=torch.float64)


def copy_of(name: str, folder: Path, **changes: np.ndarray | None) -> Path:
    """A golden file with some arrays replaced, or removed (None)."""
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays = {key: value for key, value in (arrays | changes).items() if value is not None}
    np.savez(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    shutil.copy(DATA / f"{name}.json", folder)
    return folder / f"{name}.npz"


@pytest.mark.parametrize("name", GOLDEN)
def test_equal_to_the_published_implementation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["golden", str(DATA / f"{name}.npz"), "--tolerance", "1e-10"])  # the largest error is 9e-15
    print(out := capsys.readouterr().out)
    assert code == 0
    outputs = {line.split()[1] for line in out.splitlines() if line.startswith("ok")}
    assert outputs == {"energy", "forces", "encoder_x", "encoder_v"} | ({"noise_pred"} if name == "et_noisynode" else set())


@pytest.mark.parametrize(
    "parameter",
    [
        "param/representation_model.attention_layers.1.v_proj.bias",
        "param/representation_model.distance_expansion.betas",
        "param/output_model.output_network.1.update_net.layers.2.weight",
        "param/std",
    ],
)
def test_golden_comparison_can_fail(parameter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(DATA / "et_tmd.npz", allow_pickle=False) as archive:
        value = archive[parameter].copy()
    value.reshape(-1)[0] += 1e-6
    assert main(["golden", str(copy_of("et_tmd", tmp_path, **{parameter: value})), "--tolerance", "1e-10"]) == 1
    print(out := capsys.readouterr().out)
    assert "FAIL" in out


def test_a_nan_of_ours_is_a_failure(tmp_path: Path) -> None:
    with np.load(DATA / "et_tmd.npz", allow_pickle=False) as archive:
        value = np.full_like(archive["param/representation_model.out_norm.bias"], np.nan)
    assert main(["golden", str(copy_of("et_tmd", tmp_path, **{"param/representation_model.out_norm.bias": value}))]) == 1


def unusable(kind: str, folder: Path) -> Path:
    path = folder / "et_tmd.npz"
    if kind == "another model":
        path = copy_of("et_tmd", folder)
        description = json.loads(path.with_suffix(".json").read_text())
        description["reference"] = "torchmd/tensornet"
        path.with_suffix(".json").write_text(json.dumps(description))
    elif kind == "whitened":
        path = copy_of("et_noisynode", folder)
        description = json.loads(path.with_suffix(".json").read_text())
        description["hyperparameters"]["layernorm_on_vec"] = "whitened"
        path.with_suffix(".json").write_text(json.dumps(description))
    elif kind == "no description":
        shutil.copy(DATA / "et_tmd.npz", folder)
    elif kind == "cut short":
        shutil.copy(DATA / "et_tmd.json", folder)
        path.write_bytes((DATA / "et_tmd.npz").read_bytes()[:5000])
    elif kind == "foreign":
        np.savez(path, z=np.ones(3))
        shutil.copy(DATA / "et_tmd.json", folder)
    elif kind == "a parameter less":
        path = copy_of("et_tmd", folder, **{"param/representation_model.out_norm.bias": None})
    elif kind == "a parameter too short":
        path = copy_of("et_tmd", folder, **{"param/representation_model.out_norm.bias": np.zeros(31)})
    elif kind == "no atomic numbers":
        path = copy_of("et_tmd", folder, **{"water/z": None})
    elif kind == "fewer positions":
        path = copy_of("et_tmd", folder, **{"water/pos": np.zeros((1, 3))})
    elif kind == "more energies":
        path = copy_of("et_tmd", folder, **{"water/energy": np.zeros(77)})
    elif kind == "settings without names":
        path = copy_of("et_tmd", folder)
        path.with_suffix(".json").write_text('{"reference": "torchmd/torchmd-net", "hyperparameters": []}')
    elif kind == "NaN everywhere":
        with np.load(DATA / "et_tmd.npz", allow_pickle=False) as archive:
            outputs = [key for key in archive.files if key.split("/")[-1] in ("energy", "forces", "encoder_x", "encoder_v")]
            path = copy_of("et_tmd", folder, **{key: np.full_like(archive[key], np.nan) for key in outputs})
    return path


UNUSABLE = ("missing", "another model", "whitened", "no description", "cut short", "foreign", "a parameter less", "a parameter too short")
UNUSABLE += ("no atomic numbers", "fewer positions", "more energies", "settings without names")


@pytest.mark.parametrize("kind", [*UNUSABLE, "NaN everywhere"])
def test_unusable_golden_file(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["golden", str(unusable(kind, tmp_path))]) == 2
    error = capsys.readouterr().err
    print(error)
    assert error.startswith("error: ") and error.count("\n") == 1 and str(tmp_path) in error


@pytest.mark.parametrize(
    ("settings", "total", "of_encoder"),
    [
        ({}, 6_864_898, 6_519_808),
        ({"trainable_radial": True}, 6_865_026, 6_519_936),
        ({"channels": 128, "layers": 6, "radial": 32}, 1_339_906, 1_253_376),
        ({"conditions": 1}, 6_864_898 + 256, 6_519_808 + 256),
    ],
)
def test_parameter_counts(settings: dict[str, int], total: int, of_encoder: int) -> None:
    network = encoder("equivariant-transformer", **settings)
    head = EquivariantScalar(network.channels)  # type: ignore[arg-type]
    count = sum(p.numel() for p in network.parameters())
    assert count == of_encoder
    assert count + sum(p.numel() for p in head.parameters()) == total


def jump(model: Potential) -> tuple[float, float]:
    """Change of energy and forces as the O-N pair of a water and a nitrogen atom crosses the cutoff by 2e-7 Å."""
    water = np.array([[0.0, 0.0, 0.0], [-0.76, 0.59, 0.0], [-0.76, -0.59, 0.0]])
    outputs = [model(single([8, 1, 1, 7], np.concatenate([water, [[model.cutoff + d, 0.0, 0.0]]]))) for d in (-1e-7, 1e-7)]
    return (
        float((outputs[0].energy - outputs[1].energy).abs().max()),
        float((outputs[0].forces - outputs[1].forces).abs().max()),  # type: ignore[operator]
    )


def test_smooth_at_the_cutoff_by_default() -> None:
    energy, force = jump(potential())
    original_energy, original_force = jump(potential(smooth_cutoff=False))
    print(f"smooth: {energy:.1e} eV, {force:.1e} eV/Å; original form: {original_energy:.1e} eV, {original_force:.1e} eV/Å")
    assert energy < 1e-12 and force < 1e-7
    assert original_energy > 1e-4  # the control: TorchMD-Net's form jumps, and this measurement sees it
    assert encoder("equivariant-transformer").layers[0].smooth_cutoff is True  # type: ignore[index, union-attr]


def test_any_number_of_neighbours() -> None:
    """A ball of 81 atoms, the middle one with 80 neighbours: all of them count, the farthest too."""
    rng = np.random.default_rng(2)
    grid = np.stack(np.meshgrid(*[np.arange(-3, 4)] * 3), axis=-1).reshape(-1, 3) * 1.5
    ball = grid[np.argsort(np.linalg.norm(grid, axis=1), kind="stable")][:81]
    positions = ball + rng.uniform(-0.1, 0.1, ball.shape)
    numbers = rng.choice([1, 6, 8], len(ball)).tolist()
    model = potential()
    gaps = np.linalg.norm(positions[:, None] - positions, axis=-1)
    assert (gaps[0] < model.cutoff).sum() - 1 == 80
    whole = model(single(numbers, positions))
    farthest = int(np.argmax(gaps[0]))
    rest = [k for k in range(81) if k != farthest]
    features = [
        model.encoder(single([numbers[k] for k in kept], positions[kept])).scalars[0]
        for kept in (list(range(81)), rest)  # atom 0 is the first of both
    ]
    change = float((features[0] - features[1]).detach().abs().max())
    order = rng.permutation(81)
    shuffled = model(single([numbers[k] for k in order], positions[order]))
    error = float((whole.energy - shuffled.energy).abs().max())
    print(f"without the farthest neighbour ({gaps[0, farthest]:.2f} Å): {change:.1e}; another order: {error:.1e} eV")
    assert change > 1e-4  # seen: 1e-2
    assert error < 1e-10  # a list cut at some length would depend on the order


def test_dense_cluster_against_plain_loops() -> None:
    """The energy of 70 crowded atoms from a second implementation: explicit sums over atoms, written from the equations."""
    rng = np.random.default_rng(3)
    grid = np.stack(np.meshgrid(*[np.arange(-2, 3)] * 3), axis=-1).reshape(-1, 3) * 1.5
    positions = grid[np.argsort(np.linalg.norm(grid, axis=1), kind="stable")][:70] + rng.uniform(-0.1, 0.1, (70, 3))
    numbers = rng.choice([1, 6, 7, 8], 70).tolist()
    model = potential(seed=4)
    batch = single(numbers, positions)
    with torch.no_grad():
        energy, expected = model(batch, forces=False).energy.item(), plain_energy(model, batch)
    degree = (np.linalg.norm(positions[:, None] - positions, axis=-1) < model.cutoff).sum(1).max() - 1
    print(f"up to {degree} neighbours: {energy:.6f} eV, differs by {abs(energy - expected):.1e} eV")
    assert degree > 60
    assert abs(energy - expected) < 1e-10 * max(1.0, abs(expected))


def plain_energy(model: Potential, batch: Batch) -> float:
    """TorchMD-NET eq. 1-10 with a dense (N, N) matrix of pairs, self pairs included, in the smooth form."""
    network, cutoff = model.encoder, model.cutoff
    C, h, N = network.channels, 4, len(batch.numbers)
    vectors = batch.positions[None] - batch.positions[:, None]  # [i, j]: from i to j
    r = vectors.norm(dim=2)
    unit = vectors / r.clamp(min=1e-9)[:, :, None]
    phi = torch.where(r < cutoff, 0.5 * (torch.cos(torch.pi * r / cutoff) + 1), torch.zeros_like(r))
    basis = torch.exp(-network.basis.betas * (torch.exp(-5 / cutoff * r)[:, :, None] - network.basis.means) ** 2) * phi[:, :, None]
    others = 1 - torch.eye(N, dtype=r.dtype)
    filters = (network.neighbour_filter(basis) * phi[:, :, None]) * others[:, :, None]
    nearby = torch.einsum("ijc,jc->ic", filters, network.neighbour_embedding(batch.numbers))
    x = network.combine(torch.cat([network.embedding(batch.numbers), nearby], 1))
    v = x.new_zeros(N, 3, C)
    act = torch.nn.functional.silu
    for layer in network.layers:
        q, k, value = layer.query_key_value(layer.norm(x)).split([C, C, 3 * C], 1)
        d = act(layer.filters(basis))
        logits = (q[:, None] * k[None] * d[:, :, :C]).reshape(N, N, h, C // h).sum(3)
        s1, s2, s3 = (value[None] * d[:, :, C:] * phi[:, :, None]).chunk(3, 2)
        y = (act(logits)[..., None] * s1.reshape(N, N, h, C // h)).sum(1).reshape(N, C)
        w = torch.einsum("ijc,jxc->ixc", s2, v) + torch.einsum("ijc,ijx->ixc", s3, unit)
        o1, o2, o3 = layer.output(y).chunk(3, 1)
        v1, v2, v3 = layer.vector_maps(v).chunk(3, 2)
        x, v = x + (v1 * v2).sum(1) * o2 + o3, v + v3 * o1[:, None] + w
    x = network.norm(x)
    for block in model.head.blocks:
        norms = torch.sqrt((block.norm_map(v) ** 2).sum(1) + 1e-8)
        x, gate = block.gate(act(block.mix(torch.cat([x, norms], 1)))).chunk(2, 1)
        x, v = (act(x) if block.activate else x), block.vector_map(v) * gate[:, None]
    return float(x.sum())


def images(positions: np.ndarray, cell: np.ndarray, pbc: np.ndarray, cutoff: float) -> set[tuple[int, int, int, int, int]]:
    """Every (receiver, sender, shift) within the cutoff, by trying all shifts up to 6 cells away."""
    found = set()
    reach = [range(-6, 7) if periodic else range(1) for periodic in pbc]
    for shift in itertools.product(*reach):
        gaps = positions[None] + np.asarray(shift) @ cell - positions[:, None]
        near = np.linalg.norm(gaps, axis=2) < cutoff
        if shift == (0, 0, 0):
            near[np.diag_indices(len(positions))] = False
        found |= {(int(i), int(j), *shift) for i, j in np.argwhere(near)}
    return found


CELLS = {
    "cubic, smaller than the cutoff": (np.eye(3) * 3.1, [True, True, True]),
    "triclinic": (np.array([[4.1, 0.0, 0.0], [1.7, 4.4, 0.0], [-1.5, 0.6, 3.9]]), [True, True, True]),
    "left-handed": (np.array([[0.0, 4.1, 0.0], [4.4, 0.0, 0.0], [0.2, 0.6, 4.9]]), [True, True, True]),
    "slab": (np.array([[4.1, 0.0, 0.0], [0.7, 4.4, 0.0], [0.0, 0.0, 0.0]]), [True, True, False]),
    "wire": (np.array([[0.0, 0.0, 0.0], [0.0, 4.4, 0.1], [0.0, 0.0, 9.0]]), [False, True, False]),
}


@pytest.mark.parametrize("name", CELLS)
def test_neighbours_of_periodic_atoms(name: str) -> None:
    """Against a brute-force search over images, with atoms outside the cell."""
    cell, pbc = CELLS[name]
    positions = np.array([[0.0, 0.02, 0.0], [0.97, 0.0, 0.03], [-0.24, 0.93, 0.0], [13.3, -9.2, 1.9]])
    block = Block.shared([8, 1, 1, 6], positions[None], cell=cell[None], pbc=np.array([pbc]))
    near = neighbours(Batch.from_block(block, dtype=torch.float64), 5.0)
    pairs = images(positions, cell, np.array(pbc), 5.0)
    expected = sorted((i, j, float(np.linalg.norm(positions[j] + np.array(shift) @ cell - positions[i]))) for i, j, *shift in pairs)
    found = sorted(
        (i, int(near.sender[i, k]), float(near.distances[i, k])) for i in range(4) for k in range(near.mask.shape[1]) if near.mask[i, k] > 0
    )
    assert [(i, j) for i, j, _ in found] == [(i, j) for i, j, _ in expected] and len(found) > 20
    error = max(abs(a[2] - b[2]) for a, b in zip(found, expected, strict=True))
    print(f"{name}: {len(found)} pairs, distances differ by {error:.1e} Å")
    assert error < 1e-12


@pytest.mark.parametrize("name", CELLS)
def test_periodic_energy_is_that_of_a_cluster_of_images(name: str) -> None:
    """Energies of the atoms of one cell, in an explicit cluster of images that covers all they can feel."""
    model = potential(cutoff=3.6)
    cell, pbc = CELLS[name]
    numbers, positions = [8, 1, 1], np.array([[0.0, 0.02, 0.0], [0.97, 0.0, 0.03], [-0.24, 0.93, 0.0]])
    reach = 3 * model.cutoff + 2.0  # one for the neighbours' embedding and each of the two layers, and the molecule's size
    steps = [range(-9, 10) if periodic else range(1) for periodic in pbc]
    shifts = np.array(sorted(itertools.product(*steps), key=lambda s: float(np.abs(s).sum())))
    cluster = (positions[None] + (shifts @ cell)[:, None]).reshape(-1, 3)
    kept = np.linalg.norm(cluster - positions.mean(0), axis=1) < reach
    kept[:3] = True
    with torch.no_grad():
        features = model.encoder(
            Batch.from_block(Block.shared(np.tile(numbers, len(shifts))[kept], cluster[kept][None]), dtype=torch.float64)
        )
        expected = float(model.head(features)[:3].sum())
    out = model.predict([ase.Atoms("OH2", positions, cell=cell, pbc=pbc)])
    alone = model.predict([ase.Atoms("OH2", positions)])["energy"][0]
    print(f"{name}: {kept.sum()} images, differs by {abs(out['energy'][0] - expected):.1e} eV; the images add {expected - alone:.1e} eV")
    assert abs(out["energy"][0] - expected) < 1e-10
    assert abs(expected - alone) > 1e-6


def test_no_condition_no_token() -> None:
    assert "encoder.tokens" not in potential().state_dict()
    assert potential(conditions=2).state_dict()["encoder.tokens"].shape == (2, 32)


def test_token_acts_on_conditioned_molecules_only() -> None:
    model = potential(conditions=2)
    plain = potential()
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if name != "encoder.tokens"})
    batch = batch_of("water", "methanol", "water")
    batch.condition = torch.tensor([0, 1, 2])
    before = model(batch)
    torch.nn.init.normal_(model.encoder.tokens, generator=torch.Generator().manual_seed(0))  # type: ignore[arg-type]
    after = model(batch)
    expected = plain(batch)
    assert torch.equal(before.energy, expected.energy)  # tokens start at zero
    same = float((after.energy[0] - expected.energy[0]).abs()), float((after.forces[:3] - expected.forces[:3]).abs().max())
    moved = (after.energy - expected.energy).abs()[1:]
    print(f"no condition: changed by {same[0]:.1e} eV, {same[1]:.1e} eV/Å; conditions 1 and 2: {moved.tolist()} eV")
    assert max(same) < 1e-13
    assert (moved > 1e-3).all()
    assert (after.energy[0] - after.energy[2]).abs() > 1e-3  # the same molecule with and without a token
    model.zero_grad()
    (model(batch_of("water"), create_graph=True).forces ** 2).sum().backward()
    assert float(model.encoder.tokens.grad.abs().max()) == 0.0  # type: ignore[union-attr]


def test_silu_equals_torch_to_second_order() -> None:
    generator = torch.Generator().manual_seed(5)
    x = torch.cat([torch.randn(20, generator=generator, dtype=torch.float64) * 3, torch.tensor([0.0, -40.0, 40.0, 1e-8])])
    x.requires_grad_(True)
    weight = torch.randn(24, generator=generator, dtype=torch.float64)
    found = []
    for function in (silu, torch.nn.functional.silu):
        value = function(x)
        (first,) = torch.autograd.grad((value * weight).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((first**2).sum(), x)
        found.append((value.detach(), first.detach(), second))
    errors = [float((a - b).abs().max()) for a, b in zip(*found, strict=True)]
    print("silu, its first and second derivative against torch's:", errors)
    assert max(errors) < 1e-14
    assert torch.autograd.gradcheck(silu, x)
    assert torch.autograd.gradgradcheck(silu, x)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("equivariant-transfomer", {}, "did you mean 'equivariant-transformer'"),
        ("equivariant-transformer", {"chanels": 32}, "did you mean 'channels'"),
        ("equivariant-transformer", {"channels": 30, "heads": 8}, r"channels \(30\) must be a multiple of heads \(8\)"),
        ("equivariant-transformer", {"channels": 1, "heads": 1}, "channels is 1; it must be 2 or more"),
        ("equivariant-transformer", {"heads": 0}, "heads is 0; expected a number above 0"),
        ("equivariant-transformer", {"lower_cutoff": 5.0}, r"lower_cutoff \(5.0 Å\) must be below cutoff \(5.0 Å\)"),
        ("equivariant-transformer", {"lower_cutoff": 6, "cutoff": 5}, r"lower_cutoff \(6 Å\) must be below cutoff \(5 Å\)"),
        ("equivariant-transformer", {"lower_cutoff": -0.5}, "lower_cutoff is -0.5; expected 0 or more"),
        ("schnet", {"cutoff": -1.0}, "cutoff is -1.0; expected a number above 0"),
        ("schnet", {"radial": 1}, "radial is 1; it must be 2 or more"),
        ("egnn", {"layers": -1}, "layers is -1; expected a number above 0"),
        ("gemnet-t", {"cutoff": float("nan")}, "cutoff is nan; expected a number above 0"),
        ("se3-transformer", {"channels": 4, "degrees": 4, "divisor": 1, "heads": 1}, "must be 2 or more for each of the degrees"),
    ],
)
def test_mistaken_encoder(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        encoder(name, **settings)


def test_potential_command_passes_and_fails(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["potential", "nonsense"]) == 2
    assert "unknown encoder" in capsys.readouterr().err
    broken = small_potential("equivariant-transformer")
    for layer in broken.encoder.layers:  # type: ignore[union-attr]
        layer.smooth_cutoff = False  # type: ignore[union-attr]
    monkeypatch.setattr("forcewell.testing.small_potential", lambda name: broken)
    assert main(["potential", "equivariant-transformer"]) == 1
    assert "FAIL  at the cutoff: energy continuous" in capsys.readouterr().out
