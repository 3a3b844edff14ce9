"""Every encoder: equal to its published form, sound in its default form, and what all of them share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from forcewell.nn import ENCODERS
from forcewell.nn.whitening import EPSILON, WhitenedNorm
from forcewell.potential import Potential
from forcewell.testing import check_potential, main, small_potential

DATA = Path(__file__).parent / "data"
PUBLISHED = {  # the largest difference seen is a tenth of the bound or less
    "schnet_wang": (1e-13, {"energy", "forces", "encoder_x", "atomic_energy"}),
    "egnn_wang_plain": (2e-14, {"energy", "forces", "encoder_x", "noise_pred", "layer0_h", "layer1_h", "layer2_h"}),
    "egnn_wang_att_norm": (2e-14, {"energy", "forces", "encoder_x", "noise_pred", "layer0_h", "layer1_h", "layer2_h"}),
    "egnn_wang_att_norm_tanh": (2e-14, {"energy", "forces", "encoder_x", "noise_pred", "layer0_h", "layer1_h", "layer2_h"}),
    "et_wang": (2e-14, {"energy", "forces", "encoder_x", "encoder_v", "noise_pred"}),
    "et_noisynode_whitened": (1e-11, {"energy", "forces", "encoder_x", "encoder_v", "noise_pred"}),  # ill-conditioned as published
}
WANG_TRANSFORMER = {"classes": "wang", "layers": 6, "radial": 32, "trainable_radial": True, "smooth_cutoff": False}


@pytest.mark.parametrize("name", PUBLISHED)
def test_equal_to_the_published_implementation(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    tolerance, outputs = PUBLISHED[name]
    code = main(["golden", str(DATA / f"{name}.npz"), "--tolerance", str(tolerance)])
    print(out := capsys.readouterr().out)
    assert code == 0
    assert {line.split()[1] for line in out.splitlines() if line.startswith("ok")} == outputs


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("schnet_wang", "param/interactions.1.conv.lin2.bias"),
        ("egnn_wang_att_norm_tanh", "param/gcl_1.att_mlp.0.bias"),
        ("et_wang", "param/type_embedding.weight"),
        ("et_noisynode_whitened", "param/representation_model.out_norm_vec.weight"),
    ],
)
def test_golden_comparison_can_fail(name: str, parameter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(DATA / f"{name}.npz", allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    arrays[parameter] = arrays[parameter] * (1 + 1e-6)
    np.savez(tmp_path / f"{name}.npz", **arrays)  # type: ignore[arg-type]
    (tmp_path / f"{name}.json").write_bytes((DATA / f"{name}.json").read_bytes())
    assert main(["golden", str(tmp_path / f"{name}.npz"), "--tolerance", "1e-9"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("name", ENCODERS)
def test_sound_by_default(name: str) -> None:
    """With every optional input and a noise head, in float64, open and periodic, collinear, to second order."""
    model = small_potential(name, head={"noise": True}, electronic=True, conditions=1, levels=2)
    checks = check_potential(model)
    worst = {check.name: f"{check.error:.1e}" for check in sorted(checks, key=lambda check: -check.error)[:5]}
    print(f"{name}: {len(checks)} checks, largest errors {worst}")
    assert [check for check in checks if not check.passed] == []
    assert {"rotation: noise", "separation: energy", "a chain of carbon dioxide: stress by finite strain"} <= {c.name for c in checks}


def test_whitening_is_sound() -> None:
    """All checks but one hold to their bounds: unit covariance makes softened norms bend within 1e-3 Å of a linear geometry."""
    checks = check_potential(small_potential("equivariant-transformer", vector_norm="whitened"))
    failed = {check.name: check.error for check in checks if not check.passed}
    print(f"{len(checks)} checks; above their bounds: {failed}")
    assert set(failed) <= {"forces: finite differences"} and max(failed.values(), default=0.0) < 1e-6


@pytest.mark.parametrize(
    ("name", "settings", "head", "broken"),
    [
        # The second is the detached length in the unit vectors.
        ("egnn", {"published": True}, {}, ("at the cutoff: energy continuous", "forces: finite differences")),
        ("egnn", {}, {"energy": "pooled"}, ("separation: energy",)),
        ("equivariant-transformer", {"vector_norm": "published-whitened"}, {}, ("rotation: energy",)),
        ("equivariant-transformer", {"smooth_cutoff": False}, {}, ("at the cutoff: energy continuous",)),
    ],
)
def test_what_the_published_forms_break(name: str, settings: dict[str, Any], head: dict[str, Any], broken: tuple[str, ...]) -> None:
    """The controls of the test above: each known fault is seen."""
    model = small_potential(name, head=head, **settings)
    failed = {check.name: check.error for check in check_potential(model, periodic=False) if not check.passed}
    print({key: f"{error:.1e}" for key, error in failed.items()})
    assert all(failed.get(key, 0.0) > 1e-6 for key in broken)


@pytest.mark.parametrize(
    ("name", "settings", "head", "count"),
    [
        ("schnet", {}, {}, 1_415_425),
        ("egnn", {"classes": "wang"}, {"energy": "pooled"}, 2_377_222),
        ("se3-transformer", {"published": True, "classes": "wang"}, {"energy": "mean-pooled"}, 239_057),
        ("egnn", {"classes": "wang"}, {}, 2_377_222),
        ("equivariant-transformer", WANG_TRANSFORMER, {"energy": "pooled", "noise": True}, 5_109_315),
        ("equivariant-transformer", {}, {"noise": True}, 7_209_988),
        ("equivariant-transformer", {"vector_norm": "published-whitened"}, {"noise": True}, 7_210_244),
    ],
)
def test_parameter_counts(name: str, settings: dict[str, Any], head: dict[str, Any], count: int) -> None:
    """Wang et al.'s Equivariant Transformer has 3,084 more that nothing reads (5,112,399)."""
    assert sum(p.numel() for p in Potential({"encoder": {"name": name, **settings}, "head": head}).parameters()) == count


def test_whitening() -> None:
    """Against an eigendecomposition, equivariant, and with finite second derivatives where eigenvalues are equal."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(5, 3, 32, generator=generator, dtype=torch.float64)
    vectors[1] = 0.0  # an isolated atom
    vectors[2] = vectors[2, :, :1] * vectors[2, :1]  # collinear
    vectors[3, 2] = 0.0  # planar
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))
    norm = WhitenedNorm(32).double()
    centred = vectors - vectors.mean(2, keepdim=True)
    values, axes = torch.linalg.eigh(centred @ centred.mT / 32 + EPSILON * torch.eye(3, dtype=torch.float64))
    expected = axes @ ((axes.mT @ centred) / values.sqrt()[:, :, None])
    turned = rotation @ vectors
    errors = [float((a - b).detach().abs().max()) for a, b in ((norm(vectors), expected), (norm(turned), rotation @ expected))]
    published = WhitenedNorm(32, published=True).double()
    control = float((published(turned) - rotation @ published(vectors)).detach().abs().max())
    print(f"whitening: differs by {errors[0]:.1e}; rotated by {errors[1]:.1e}, as published by {control:.1e}")
    assert max(errors) < 1e-9 < 1e-6 < control
    vectors.requires_grad_(True)
    (first,) = torch.autograd.grad((norm(vectors) ** 3).sum(), vectors, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), vectors)
    assert bool(torch.isfinite(second).all()) and float(second[2].abs().max()) > 0
