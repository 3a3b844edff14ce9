"""Learning-rate schedules against torch's own, and the moving average against a formula."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from forcewell.optim import Flat, MovingAverage, Schedule


def torch_optimiser(rate: float) -> torch.optim.SGD:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)


def test_cosine_is_torchs() -> None:
    schedule = Schedule("cosine", peak=2e-3, warmup=0, steps=500)
    optimiser = torch_optimiser(2e-3)
    reference = lr_scheduler.CosineAnnealingLR(optimiser, T_max=500)
    error = 0.0
    for step in range(501):
        error = max(error, abs(schedule.rate(step) - reference.get_last_lr()[0]))
        optimiser.step()
        reference.step()
    print(f"cosine against torch's: {error:.1e}")
    assert error < 1e-15
    assert schedule.rate(500) == 0.0 == schedule.rate(10**6)


def test_rate_is_held_before_the_cosine() -> None:
    """After the hold the rate is that of a cosine that starts there."""
    held, plain = Schedule("cosine", 1e-3, 10, 200, hold=40), Schedule("cosine", 1e-3, 0, 150)
    assert {held.rate(step) for step in range(9, 51)} == {1e-3} and held.rate(0) == 1e-4
    assert [held.rate(step) for step in range(50, 210)] == [plain.rate(step) for step in range(160)]


def test_warm_up_then_cosine() -> None:
    schedule = Schedule("cosine", peak=1e-3, warmup=50, steps=250)
    optimiser = torch_optimiser(1e-3)
    linear = lr_scheduler.LinearLR(optimiser, start_factor=1 / 50, end_factor=1.0, total_iters=49)
    ramp = []
    for _ in range(50):
        ramp.append(linear.get_last_lr()[0])
        optimiser.step()
        linear.step()
    rates = [schedule.rate(step) for step in range(251)]
    print(f"warm-up against torch's LinearLR: {np.abs(np.array(rates[:50]) - ramp).max():.1e}")
    assert np.abs(np.array(rates[:50]) - ramp).max() < 1e-15
    assert rates[49] == rates[50] == max(rates) == 1e-3  # no step at the seam
    assert rates[150] == pytest.approx(5e-4) and rates[250] == 0.0
    assert np.all(np.diff(rates[50:]) <= 0)


def test_warm_up_starts_at_the_papers_rate() -> None:
    """ET-OREO warms up from 1e-7; a warm-up of 10,000 steps to 1e-4 would start at 1e-8."""
    schedule = Schedule("constant", peak=1e-4, warmup=10_000, steps=100_000)
    assert schedule.rate(0) == schedule.rate(5) == 1e-7
    assert schedule.rate(4999) == pytest.approx(5e-5)
    assert schedule.rate(9999) == schedule.rate(10_000) == schedule.rate(99_999) == 1e-4


@pytest.mark.parametrize(("factor", "patience"), [(0.8, 30), (0.5, 0), (0.5, 2)])
def test_plateau_is_torchs(factor: float, patience: int) -> None:
    rng = np.random.default_rng(0)
    losses = np.concatenate([np.linspace(1, 0.5, 20), 0.5 + 0.2 * rng.random(200), np.linspace(0.4, 0.3, 5), 0.3 * np.ones(100)])
    schedule = Schedule("plateau", peak=1e-3, warmup=0, steps=10**6, factor=factor, patience=patience)
    optimiser = torch_optimiser(1e-3)
    reference = lr_scheduler.ReduceLROnPlateau(optimiser, factor=factor, patience=patience, threshold=0.0, min_lr=0.0, eps=0.0)
    rates = []
    for step, loss in enumerate(losses):
        schedule.observe(float(loss), step)
        reference.step(float(loss))
        rates.append(schedule.rate(step))
        assert rates[-1] == pytest.approx(optimiser.param_groups[0]["lr"], rel=1e-12), step
    print(f"factor {factor}, patience {patience}: {len(set(rates)) - 1} reductions, last rate {rates[-1]:.2e}")
    assert len(set(rates)) > 3


def test_warm_up_does_not_count_as_a_plateau() -> None:
    schedule = Schedule("plateau", peak=1.0, warmup=100, steps=1000, factor=0.5, patience=1)
    for step in range(0, 100, 10):
        schedule.observe(5.0, step)
    assert (schedule.scale, schedule.waited, schedule.best) == (1.0, 0, 5.0)
    schedule.observe(6.0, 100)
    schedule.observe(float("nan"), 110)  # not an improvement
    assert (schedule.scale, schedule.waited, schedule.best) == (0.5, 0, 5.0)
    assert schedule.rate(110) == 0.5


def test_other_schedules_ignore_a_plateau() -> None:
    schedule = Schedule("cosine", peak=1.0, warmup=0, steps=1000, patience=0)
    before = [schedule.rate(step) for step in range(1000)]
    for step in range(50):
        schedule.observe(1.0, step)
    assert [schedule.rate(step) for step in range(1000)] == before and schedule.best == 1.0


def test_schedule_survives_its_state() -> None:
    losses = np.random.default_rng(1).random(60)
    whole = Schedule("plateau", 1e-3, 5, 1000, 0.7, 3)
    first, second = (Schedule("plateau", 1e-3, 5, 1000, 0.7, 3) for _ in range(2))
    for step, loss in enumerate(losses):
        whole.observe(loss, step)
        if step == 25:
            second.restore(json.loads(json.dumps(first.state())))
        (first if step < 25 else second).observe(loss, step)
    assert second == whole and whole.scale < 1


def network(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.LayerNorm(7), torch.nn.Linear(7, 1)).double()


def test_average_is_torchs_once_the_ramp_is_over() -> None:
    """From step 9 / (1 - 0.9) on the decay is 0.9 in both."""
    model = network(0)
    average = copy.deepcopy(model)
    reference = AveragedModel(average, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    reference.n_averaged += 1  # torch would start by copying the weights
    moving = MovingAverage(Flat(average), Flat(model), 0.9)
    generator = torch.Generator().manual_seed(0)
    for step in range(90, 140):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        moving.update(step)
        reference.update_parameters(model)
    error = max(float((a - b).detach().abs().max()) for a, b in zip(average.parameters(), reference.module.parameters(), strict=True))
    print(f"moving average against torch's after 50 steps: {error:.1e}")
    assert error < 1e-13


def test_average_ramps_up() -> None:
    """d = min(decay, (1 + step) / (10 + step)), by hand; the initial weights are soon forgotten."""
    model, average = network(0), network(1)
    moving = MovingAverage(Flat(average), Flat(model), 0.999)
    values = [p.detach().clone() for p in average.parameters()]
    for step in range(30):
        moving.update(step)
        d = (1 + step) / (10 + step)
        values = [d * v + (1 - d) * p.detach() for v, p in zip(values, model.parameters(), strict=True)]
    error = max(float((a.detach() - b).abs().max()) for a, b in zip(average.parameters(), values, strict=True))
    left = float((next(average.parameters()) - next(model.parameters())).detach().norm())
    start = float((next(network(1).parameters()) - next(model.parameters())).detach().norm())
    print(f"average against the formula: {error:.1e}; {left / start:.1e} of the initial weights left after 30 steps")
    assert error < 1e-15
    assert left / start < 1e-6  # without the ramp 0.97 of them would be left
    assert all(p.grad is None and p.requires_grad for p in average.parameters())


def test_flat_parameters_train_as_single_ones() -> None:
    """AdamW with clipping on one tensor against AdamW on each parameter; one of them never gets a gradient."""
    model, single = network(0), network(0)
    for net in (model, single):
        net.register_parameter("unused", torch.nn.Parameter(torch.ones(3, dtype=torch.float64)))
    flat = Flat(model)
    ours = torch.optim.AdamW([flat.values], lr=1e-2, weight_decay=0.1, fused=True)
    theirs = torch.optim.AdamW(single.parameters(), lr=1e-2, weight_decay=0.1, foreach=False)
    x = torch.randn(9, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for _ in range(30):
        (model(x) ** 2).sum().backward()
        flat.gather_gradients()
        flat.clip(0.5)
        ours.step()
        theirs.zero_grad()
        ((single(x) ** 2).sum() + 0.0 * single.get_parameter("unused").sum()).backward()
        torch.nn.utils.clip_grad_norm_(single.parameters(), 0.5)
        theirs.step()
    error = max(float((a - b).detach().abs().max()) for a, b in zip(model.parameters(), single.parameters(), strict=True))
    moved = float((model(x) - network(0)(x)).detach().abs().max())
    decayed = float(model.get_parameter("unused").detach()[0])
    print(f"30 steps on one tensor against each parameter's own: {error:.1e}; outputs moved by {moved:.1e}; unused one at {decayed:.4f}")
    assert error < 1e-14 and moved > 1e-2 and 0.9 < decayed < 0.98
