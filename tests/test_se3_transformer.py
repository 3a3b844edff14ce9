"""The SE(3)-Transformer: equal to the published model with its real weights, and sound in its default form."""

from __future__ import annotations

import lzma
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from forcewell.batch import Batch
from forcewell.errors import InputError
from forcewell.nn import encoder
from forcewell.nn.spherical import Couplings, clebsch_gordan, harmonics
from forcewell.system import Block
from forcewell.testing import batch_of, check_potential, main, small_potential

DATA = Path(__file__).parent / "data"
# Along y, the polar axis of the harmonics.
LINEAR = {
    "CO2": ([6, 8, 8], [0.0, 1.16, -1.16]),
    "HCN": ([1, 6, 7], [-1.07, 0.0, 1.16]),
    "C2H2": ([6, 6, 1, 1], [-0.6, 0.6, -1.66, 1.66]),
}


def directions(count: int, seed: int = 0) -> torch.Tensor:
    vectors = torch.randn(count, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return vectors / vectors.norm(dim=1, keepdim=True)


def rotation(seed: int = 1) -> torch.Tensor:
    matrix = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)))[0]
    return matrix * torch.linalg.det(matrix).sign()


def single(numbers: list[int], positions: np.ndarray | torch.Tensor) -> Batch:
    return Batch.from_block(Block.shared(numbers, np.asarray(positions)[None]), dtype=torch.float64)


@pytest.fixture
def published_files(tmp_path: Path) -> Path:
    """The golden file of the real published weights, with the checkpoint unpacked beside it."""
    for name in ("se3t_wang_pretrained.npz", "se3t_wang_pretrained.json"):
        shutil.copy(DATA / name, tmp_path)
    (tmp_path / "se3t_wang_model.pth").write_bytes(lzma.decompress((DATA / "se3t_wang_model.pth.xz").read_bytes()))
    return tmp_path / "se3t_wang_pretrained.npz"


def test_equal_to_the_published_model(published_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Energies, published forces, true forces and features; the largest error is 5e-15."""
    code = main(["golden", str(published_files), "--tolerance", "5e-14"])
    print(out := capsys.readouterr().out)
    assert code == 0
    for name in ("energy", "forces ", "forces_full_gradient", "encoder_x", "block5_deg0"):
        assert name in out


def test_wrong_signs_are_seen(published_files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(published_files) as archive:
        arrays = {name: archive[name] for name in archive.files}
    arrays["Q/J2_in1_out1"] = -arrays["Q/J2_in1_out1"]
    np.savez(published_files, **arrays)  # type: ignore[arg-type]
    assert main(["golden", str(published_files)]) == 1
    arrays["Q/J2_in1_out1"] = arrays["Q/J2_in1_out1"][::-1]
    np.savez(published_files, **arrays)  # type: ignore[arg-type]
    assert main(["golden", str(published_files)]) == 2
    assert "J2_in1_out1 is not the Clebsch-Gordan tensor" in capsys.readouterr().err
    published_files.with_name("se3t_wang_model.pth").unlink()
    assert main(["golden", str(published_files)]) == 2
    assert "no .pth file with the SHA-256" in capsys.readouterr().err


def test_harmonics_obey_the_addition_theorem() -> None:
    """Σ_m Y_lm(u) Y_lm(v) = (2l + 1)/4π P_l(u·v), with NumPy's Legendre polynomials."""
    u, v = directions(50), directions(50, seed=1)
    product = harmonics(u, 6) * harmonics(v, 6)
    cosine = (u * v).sum(1).numpy()
    for degree in range(7):
        ours = product[:, degree**2 : (degree + 1) ** 2].sum(1).numpy()
        exact = (2 * degree + 1) / (4 * math.pi) * np.polynomial.legendre.Legendre.basis(degree)(cosine)
        print(degree, error := np.abs(ours - exact).max())
        assert error < 2e-14


def wigner(matrix: torch.Tensor, degree: int) -> torch.Tensor:
    """How harmonics of a degree turn with the directions: Y(R u) = D Y(u), by least squares."""
    u = directions(60)
    part = slice(degree**2, (degree + 1) ** 2)
    return torch.linalg.lstsq(harmonics(u, degree)[:, part], harmonics(u @ matrix.T, degree)[:, part]).solution.T


def test_couplings_turn_with_the_molecule() -> None:
    turn = rotation()
    D = [wigner(turn, degree).numpy() for degree in range(7)]
    worst = 0.0
    for a in range(4):
        for b in range(4):
            for J in range(abs(a - b), a + b + 1):
                C = clebsch_gordan(a, b, J)
                worst = max(worst, np.abs(np.einsum("abc,ia,jb,kc->ijk", C, D[a], D[b], D[J]) - C).max())
                assert (C**2).sum() == pytest.approx(1.0, abs=1e-12)
    print(worst)
    assert worst < 2e-14


def test_kernels_map_one_degree_to_another() -> None:
    """K(R u) = D_out K(u) D_inᵀ for every path, the default ones also under inversion with parity (-1)^l."""
    u, turn = directions(3), rotation()
    for published, transform in ((False, turn), (False, -turn), (True, turn)):
        couplings = Couplings(3, published)
        D = [wigner(transform, degree) for degree in range(3)]
        before, after = couplings(u), couplings(u @ transform.T)
        for l_in in range(3):
            start = 0
            for l_out in range(3):
                paths = len(couplings.paths[l_in, l_out])
                rows = slice(start, start := start + (2 * l_out + 1) * paths)
                old, new = (part[l_in][:, rows].unflatten(1, (-1, paths)) for part in (before, after))
                assert (new - torch.einsum("ij,ejpk,lk->eipl", D[l_out], old, D[l_in])).abs().max() < 1e-13


def test_physics_with_two_degrees() -> None:
    """The default four are checked with every encoder."""
    checks = check_potential(small_potential("se3-transformer", degrees=2, layers=3), periodic=False)
    for check in checks:
        print(f"{check.name:50s} {check.error:.1e}")
    assert [check.name for check in checks if not check.passed] == []


def test_what_is_unsound_in_the_published_form() -> None:
    """The controls: the same checks find what the default form mends."""
    checks = check_potential(small_potential("se3-transformer", published=True, truncated_gradient=True), periodic=False)
    failed = {check.name for check in checks if not check.passed}
    print(failed)
    assert {"inversion: energy", "forces: finite differences", "at the cutoff: energy continuous"} <= failed
    assert not {"rotation: energy", "permutation: energy", "translation: energy", "net torque"} & failed


@pytest.mark.parametrize("name", LINEAR)
def test_linear_molecules(name: str) -> None:
    """Along the polar axis as along any other, exactly and displaced; finite to second order."""
    numbers, along = LINEAR[name]
    model = small_potential("se3-transformer").double()
    line = np.zeros((len(numbers), 3))
    line[:, 1] = along
    turn = rotation()
    out, turned = model(single(numbers, line)), model(single(numbers, line @ turn.numpy().T))
    print(float((out.forces @ turn.T - turned.forces).abs().max()))
    assert (out.energy - turned.energy).abs().max() < 1e-14
    assert (out.forces @ turn.T - turned.forces).abs().max() < 1e-13
    assert out.forces[:, [0, 2]].abs().max() < 1e-14  # a linear molecule is pulled along its axis only
    forces = model(single(numbers, line), create_graph=True).forces
    (forces**2).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("settings", [{}, {"published": True}])
def test_atoms_without_neighbours(settings: dict[str, bool]) -> None:
    """None of the atoms has a neighbour, and one of several has none: finite, without forces, to second order."""
    model = small_potential("se3-transformer", **settings).double()
    far = single([8, 6, 1], np.array([[0.0, 0, 0], [0, 30, 0], [0, 0, 60]]))
    alone = model(far, create_graph=True)
    assert bool(torch.isfinite(alone.energy).all()) and float(alone.forces.detach().abs().max()) == 0.0
    mixed = model(single([8, 6, 1], np.array([[0.0, 0, 0], [0, 1.2, 0], [0, 0, 60]])), create_graph=True)
    (mixed.forces**2).sum().backward()
    assert all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
    assert float(mixed.forces.detach()[:2].abs().max()) > 1e-6


def test_float64_use_of_a_float32_model_is_exact() -> None:
    """Constants are kept as bits: rounded to float32 they would turn with the molecule only to 1e-8."""
    model = small_potential("se3-transformer").float().double()
    batch = batch_of("methanol")
    turned = Batch.from_block(Block.shared(batch.numbers.numpy(), (batch.positions @ rotation().T).numpy()[None]), dtype=torch.float64)
    assert (model(batch).energy - model(turned).energy).abs().max() < 1e-13


def test_layers_are_returned_where_asked_for() -> None:
    model = encoder("se3-transformer", channels=32, layers=2)
    batch = batch_of("water").to(dtype=torch.float32)
    assert model(batch).layers is None
    layers = model(batch, layers=True).layers
    assert [tuple(layer.shape) for layer in layers] == [(3, 8), (3, 8)]


def test_widths_that_do_not_divide() -> None:
    with pytest.raises(InputError, match=r"channels \(30\) must be a multiple of degrees x divisor x heads \(32\)"):
        encoder("se3-transformer", channels=30)
