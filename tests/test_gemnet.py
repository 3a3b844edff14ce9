"""GemNet-T: equal to both published forms, exact bases at any distance, fitted scale factors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_model import DATA, copy_of
from tiny_runs import ethanol, files, refuse, settings, succeed, weights, write_yaml

from forcewell.batch import Batch
from forcewell.checkpoint import load
from forcewell.errors import InputError
from forcewell.nn import GemNetT, encoder, gemnet
from forcewell.nn.gemnet_basis import (
    BesselBasis,
    GaussianRadialBasis,
    SphericalBesselBasis,
    chebyshev,
    polynomial_envelope,
    spherical_bessel_roots,
    zonal_harmonics,
)
from forcewell.potential import Potential
from forcewell.system import Block
from forcewell.testing import batch_of, main


def published(variant: str) -> dict[str, torch.Tensor]:
    with np.load(DATA / f"gemnet_t_{variant}.npz") as file:
        return {name.removeprefix("param/"): torch.from_numpy(file[name]) for name in file.files if name.startswith("param/")}


@pytest.mark.parametrize("variant", ["tum", "mdsim"])
def test_equal_to_the_published_implementation(variant: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["golden", str(DATA / f"gemnet_t_{variant}.npz"), "--tolerance", "1e-12"])  # the largest error is 5e-14
    print(out := capsys.readouterr().out)
    assert code == 0
    outputs = {line.split()[1] for line in out.splitlines() if line.startswith("ok")}
    assert outputs == {"energy", "forces", "encoder_x", "atomic_energy", "out0_E", "out1_E", "out2_E", "int0_h", "int1_h"}


@pytest.mark.parametrize(
    "parameter",
    [
        "param/rbf_basis.frequencies",
        "param/mlp_cbf3.weight",
        "param/int_blocks.0.trip_interaction.mlp_cbf.weight",
        "param/int_blocks.1.trip_interaction.up_projection_ac.linear.weight",
        "param/int_blocks.1.trip_interaction.scale_cbf_sum.scale_factor",
        "param/int_blocks.1.residual_m.0.dense_mlp.1.linear.weight",
        "param/out_blocks.2.out_energy.linear.weight",
    ],
)
def test_golden_comparison_can_fail(parameter: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(DATA / "gemnet_t_tum.npz") as archive:
        value = archive[parameter].copy()
    value.reshape(-1)[0] += 1e-3
    assert main(["golden", str(copy_of("gemnet_t_tum", tmp_path, **{parameter: value})), "--tolerance", "1e-10"]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize(("variant", "own", "count"), [("tum", {}, 1_892_294), ("mdsim", {"basis": "gaussian", "elements": 84}, 1_891_008)])
def test_published_number_of_parameters(variant: str, own: dict[str, Any], count: int) -> None:
    model = encoder("gemnet-t", **own)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    assert isinstance(model, GemNetT) and len(model.scales()) == 17 and not model.scales_fitted


def test_published_file_with_every_tensor_twice() -> None:
    """TUM's checkpoints name a map's matrix twice, and an output block's layers."""
    state = published("tum")
    twice = dict(state)
    for name, tensor in state.items():
        twice[name.replace(".linear.weight", ".weight")] = tensor
        twice[name.replace(".layers.", ".seq_energy.")] = tensor
    assert len(twice) > 1.5 * len(state)
    renamed = gemnet.from_published(twice)
    model = GemNetT(16, 2, basis_channels=4)
    model.load_state_dict(renamed)  # strict: every tensor of ours, and no other
    assert len(renamed) == len(gemnet.from_published(state))


def test_bases_equal_the_published_ones() -> None:
    with np.load(DATA / "gemnet_components.npz") as file:
        stored = {name: torch.from_numpy(file[name]) for name in file.files}
    d, cosines = stored["d"], torch.cos(stored["angle"])
    bessel, spherical, harmonics = BesselBasis(6, 5.0).double(), SphericalBesselBasis(7, 6, 5.0), zonal_harmonics(cosines, 7, 1)
    with torch.no_grad():
        bessel.frequencies.copy_(torch.pi * torch.arange(1, 7, dtype=torch.float64))  # not those rounded to float32
        found = {
            "gemnet_envelope/p5": polynomial_envelope(d / 5.0, 5),
            "gemnet_envelope/p6": polynomial_envelope(d / 5.0, 6),
            "gemnet_bessel_rbf/R6_cut5_p5": bessel(d),
            "gemnet_cbf_radial_scipy/[7,50,6]": spherical(d).transpose(0, 1),
            "gemnet_Yl0/[50,7]": harmonics,
            "spherical_bessel_zeros_float64/[7,6]": torch.from_numpy(spherical_bessel_roots(7, 6)),
            "mdsim_radial_gaussian/R6_cut5_p5": GaussianRadialBasis(6, 5.0)(d),
            "mdsim_circular/[50,42]": (GaussianRadialBasis(6, 5.0)(d)[:, None] * harmonics[:, :, None]).flatten(1),
        }
    for name, value in found.items():
        error = float((value - stored[name]).abs().max())
        print(f"{name}: {error:.1e}")
        assert error < 2e-13, name
    # The published closed forms, which cancel at short distance, agree where they can.
    closed = (spherical(d).transpose(0, 1) - stored["gemnet_cbf_radial_float64_zeros/[7,50,6]"]).abs()
    print(f"published closed forms: {float(closed.max()):.1e}, from 0.8 Å on {float(closed[:, d > 0.8].max()):.1e}")
    assert float(closed[:, d > 0.8].max()) < 5e-12 and float(closed.max()) > 1e-5


@pytest.mark.parametrize(("dtype", "bounds"), [(torch.float64, (5e-14, 1e-11, 5e-10)), (torch.float32, (1.5e-5, 1.5e-5, 1e-4))])
def test_spherical_bessel_functions_at_any_distance(dtype: torch.dtype, bounds: tuple[float, ...]) -> None:
    """Values and first two derivatives against SciPy and Bessel's equation, from 0.005 Å to the cutoff, no envelope."""
    from scipy.special import spherical_jn

    cutoff, x = 5.0, np.linspace(0.001, 1.0, 400)
    basis = SphericalBesselBasis(7, 6, cutoff)
    roots, errors = spherical_bessel_roots(7, 6), np.zeros(3)
    scaled = torch.from_numpy(x).to(dtype).requires_grad_()
    exact_x = scaled.detach().double().numpy()
    values = (chebyshev(scaled, len(basis.coefficients)) @ basis.coefficients.to(dtype) * cutoff**1.5).unflatten(1, (7, 6))
    for degree in range(7):
        for n, root in enumerate(roots[degree]):
            norm, z = np.sqrt(2) / abs(spherical_jn(degree + 1, root)), root * exact_x
            j, slope = spherical_jn(degree, z), spherical_jn(degree, z, derivative=True)
            curvature = -2 / z * slope - (1 - degree * (degree + 1) / z**2) * j
            (first,) = torch.autograd.grad(values[:, degree, n].sum(), scaled, create_graph=True)
            (second,) = torch.autograd.grad(first.sum(), scaled, retain_graph=True)
            exact = norm * np.stack([j, root * slope, root**2 * curvature])
            mine = torch.stack([values[:, degree, n], first, second]).detach().double().numpy()
            errors = np.maximum(errors, np.abs(mine - exact).max(1) / np.abs(exact).max(1))
    print(f"{dtype}: value, first and second derivative, relative to the largest: {errors}")
    assert (errors < bounds).all()


def frames(which: slice) -> Batch:
    """Some of the 20 frames each of aspirin, naphthalene and salicylic acid."""
    with np.load(DATA / "rmd17_benchmark_frames.npz") as file:
        block = Block(file["natoms"], {"numbers": file["z"], "positions": file["pos"]})
    return Batch.from_block(block.take(np.concatenate([np.arange(20)[which] + 20 * k for k in range(3)])))


@pytest.mark.parametrize("basis", ["bessel", "gaussian"])
def test_fitted_scales_give_the_variance_of_their_reference(basis: str) -> None:
    torch.manual_seed(0)
    model = GemNetT(32, 4, basis=basis)  # type: ignore[arg-type]
    before = model.scale_ratios(frames(slice(0, 10)))
    factors = model.fit_scales(frames(slice(0, 10)))
    same, others = model.scale_ratios(frames(slice(0, 10))), model.scale_ratios(frames(slice(10, 20)))
    for name, factor in factors.items():
        print(f"{name:40s} {factor:7.3f}  variance {before[name]:.3f} -> {same[name]:.6f}, other frames {others[name]:.3f}")
    assert len(factors) == 17 and model.scales_fitted
    assert max(abs(ratio - 1) for ratio in same.values()) < 1e-5
    assert max(abs(ratio - 1) for ratio in others.values()) < 0.1
    assert max(abs(np.log(ratio)) for ratio in before.values()) > 1.0  # or nothing had to be fitted


def test_scales_that_cannot_be_fitted_stay() -> None:
    model = GemNetT(16, 1)
    diatomic = Batch.from_block(Block.shared([7, 7], np.array([[[0.0, 0.0, 0.0], [1.1, 0.0, 0.0]]])))
    with pytest.raises(InputError, match="three and more atoms"):
        model.fit_scales(diatomic)
    assert not model.scales_fitted and not any(scale.fitting for scale in model.scales().values())
    with pytest.raises(InputError, match="three and more atoms"):
        model.fit_scales(batch_of("one atom").to(dtype=torch.float32))


def factors_of(path: Path) -> dict[str, float]:
    return {name: float(value) for name, value in weights(path).items() if name.endswith(".factor")}


def test_command_and_training_fit_scales(tmp_path: Path) -> None:
    """The same factors by both; stored in the model file; kept by fine-tuning."""
    data = ethanol(tmp_path / "ethanol.npz")
    network = {"name": "gemnet-t", "channels": 16, "layers": 1, "cutoff": 4.0}
    tree = settings(str(data), model={"encoder": network}, exclude="none", training={"steps": 2, "validate_every": 2, "save_every": 1})
    tree["model"] = {"encoder": network}
    config = write_yaml(tmp_path / "gemnet.yaml", tree)
    out = succeed("fit-scales", config, "--out", tmp_path / "fitted.safetensors")
    print(out)
    fitted = factors_of(tmp_path / "fitted.safetensors")
    assert len(fitted) == 5 and all(value != 1.0 for value in fitted.values())
    assert "5 scale factors fitted" in out and sum("update.scale" in line for line in out.splitlines()) == 3
    model = load(tmp_path / "fitted.safetensors")
    assert isinstance(model, Potential) and isinstance(model.encoder, GemNetT) and model.encoder.scales_fitted

    told = succeed("pretrain", config, "--out", tmp_path / "run")
    assert told.count("scale factors fitted") == 1
    assert factors_of(tmp_path / "run" / "model.safetensors") == fitted
    told = succeed("finetune", config, "--from", tmp_path / "fitted.safetensors", "--out", tmp_path / "tuned")
    assert "scale factors fitted" not in told
    assert factors_of(tmp_path / "tuned" / "model.safetensors") == fitted

    tree["training"]["steps"] = 4
    longer, state = write_yaml(tmp_path / "longer.yaml", tree), tmp_path / "run" / "config.yaml"
    state.write_text(state.read_text().replace("steps: 2\n", "steps: 4\n", 1))
    assert "scale factors fitted" not in succeed("pretrain", longer, "--out", tmp_path / "run", "--resume")
    assert factors_of(tmp_path / "run" / "model.safetensors") == fitted


def test_command_refuses(tmp_path: Path) -> None:
    data = ethanol(tmp_path / "ethanol.npz")
    config = write_yaml(tmp_path / "other.yaml", settings(str(data), exclude="none"))
    before = files(tmp_path)
    assert "only gemnet-t has scale factors" in refuse("fit-scales", config, "--out", tmp_path / "new.safetensors")
    assert "use another --out" in refuse("fit-scales", config, "--out", data)
    assert files(tmp_path) == before
    with pytest.raises(InputError, match="did you mean 'gaussian'"):
        encoder("gemnet-t", basis="gausian")
    with pytest.raises(InputError, match="triplet_channels is 0"):
        encoder("gemnet-t", triplet_channels=0)


def test_lone_ions_have_energies_of_their_own() -> None:
    """As published, an atom without neighbours has energy 0; neutral singlets still have."""
    torch.manual_seed(0)
    model = Potential({"encoder": {"name": "gemnet-t", "channels": 16, "layers": 1, "electronic": True}})
    torch.nn.init.normal_(model.encoder.electronic.values)  # type: ignore[union-attr, arg-type]
    batch = Batch.from_block(Block(np.array([1, 1, 1, 1]), {"numbers": np.array([3, 11, 17, 17]), "positions": np.zeros((4, 3))}))
    neutral = model(batch)
    batch.charge = torch.tensor([1, 1, -1, 0])
    charged = model(batch)
    print("Li+, Na+, Cl- and Cl:", charged.energy.tolist())
    assert not neutral.energy.any() and not charged.forces.any() and float(charged.energy[3]) == 0.0  # type: ignore[union-attr]
    assert len({round(energy, 4) for energy in charged.energy.tolist()}) == 4
