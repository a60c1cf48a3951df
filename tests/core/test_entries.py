"""The entry network's features: what each of them promises, on windows made by hand, and nothing of a hidden entry among them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raytraffic.kriging import krige, variation
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, Task, mask
from raytraffic.models.uomo.entries import EntryNetwork, entry_features
from raytraffic.scaling import Scaling
from raytraffic.types import Scale, Space, TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

PRIOR = 2.0
# Where the features stand in the last axis.
LATEST, SEASONAL, FOUND, LEAD, LIVE_SHARE, HISTORY = slice(0, 4), 5, 6, 10, 13, 14
SILENT = 18
PAST, PAST_WEIGHT, FUTURE, FUTURE_WEIGHT = slice(19, 22), slice(22, 25), slice(25, 28), slice(28, 31)
KRIGED = slice(37, 42)
HALF_LIVES = (0.5, 3.0, 12.0)


def window(traffic: Tensor, known: Tensor, step: int = 60) -> TrafficBatch:
    """Windows of traffic (b, t, 16) on a 4 x 4 grid."""
    b, t, _ = traffic.shape
    slot = torch.arange(t)
    clock = torch.stack((slot % (1440 // step), slot // (1440 // step) % 7), dim=-1).expand(b, t, 2)
    return TrafficBatch(
        traffic=traffic[:, None],
        known=known[:, None],
        clock=clock,
        step_minutes=torch.full((b,), step),
        key=torch.arange(b),
        space=Space(grid=(4, 4)),
    )


def plain_scale(batch: TrafficBatch) -> Scale:
    """A scale under which the residual of traffic x is x - 2."""
    cells = torch.ones_like(batch.traffic[:, :, :1])
    seen = batch.visible().traffic.sum(2, keepdim=True)
    return Scale(
        level=cells,
        prior=PRIOR * torch.ones_like(batch.traffic),
        spread=cells,
        ceiling=1e6 * cells[..., :1],
        dead=batch.known.any(2, keepdim=True) & (seen == 0),
        silent=torch.where(batch.known.any(2, keepdim=True), 0.0, 0.25),
        asinh=False,
    )


def example(step: int = 60, t: int = 16) -> TrafficBatch:
    """Random traffic in [0.5, 5] of which a random half is known."""
    generator = torch.Generator().manual_seed(step)
    traffic = 0.5 + 4.5 * torch.rand(2, t, 16, generator=generator)
    return window(traffic, torch.rand(2, t, 16, generator=generator) < 0.5, step)


def test_the_latest_known_residuals_come_newest_first() -> None:
    batch = example()
    found = entry_features(batch, plain_scale(batch))[..., LATEST]
    for b in range(2):
        for cell in range(16):
            before: list[float] = []
            for slot in range(batch.shape[2]):
                expected = [*reversed(before[-4:]), *[0.0] * (4 - len(before[-4:]))]
                assert found[b, 0, slot, cell].tolist() == pytest.approx(expected, abs=1e-6), (b, slot, cell)
                if batch.known[b, 0, slot, cell]:
                    before.append(float(batch.traffic[b, 0, slot, cell]) - PRIOR)


@pytest.mark.parametrize("step", [15, 60])
def test_moving_averages_are_those_of_a_plain_loop(step: int) -> None:
    """Weights halve in 0.5, 3 and 12 hours, the slot itself has weight 1, and 0.3 of a value at 0 is added."""
    batch = example(step)
    features = entry_features(batch, plain_scale(batch))
    slots = range(batch.shape[2])
    for values, weights, reaches in (
        (features[..., PAST], features[..., PAST_WEIGHT], lambda slot, other: other <= slot),
        (features[..., FUTURE], features[..., FUTURE_WEIGHT], lambda slot, other: other >= slot),
    ):
        for cell in (0, 9, 15):
            for slot in slots:
                seen = [other for other in slots if reaches(slot, other) and bool(batch.known[1, 0, other, cell])]
                for i, half_life in enumerate(HALF_LIVES):
                    weight = [0.5 ** (abs(slot - other) * step / 60 / half_life) for other in seen]
                    total = sum(w * (float(batch.traffic[1, 0, other, cell]) - PRIOR) for w, other in zip(weight, seen, strict=True))
                    assert float(values[1, 0, slot, cell, i]) == pytest.approx(total / (sum(weight) + 0.3), abs=1e-5)
                    assert float(weights[1, 0, slot, cell, i]) == pytest.approx(math.log1p(sum(weight)), abs=1e-5)


def test_residuals_are_bounded() -> None:
    batch = example()
    loud = replace(batch, traffic=1000 * batch.traffic)
    features = entry_features(loud, plain_scale(loud))
    assert float(features[..., LATEST].abs().max()) == 6.0
    assert float(features[..., PAST].abs().max()) <= 6.0


def test_the_other_day_the_lead_and_the_history() -> None:
    traffic = torch.arange(48.0)[None, :, None].expand(1, 48, 16) / 48 + 1
    known = torch.zeros(1, 48, 16, dtype=torch.bool)
    known[:, :20, :8] = True
    batch = window(traffic, known)
    features = entry_features(batch, plain_scale(batch))[0, 0]
    # 24 slots of 60 minutes are a day: slots 24..43 have a known slot a day before, slots 0..23 and 44..47 none.
    assert features[:, 0, FOUND].tolist() == [0.0] * 24 + [1.0] * 20 + [0.0] * 4
    expected = [float(traffic[0, slot - 24, 0]) - PRIOR if 24 <= slot < 44 else 0.0 for slot in range(48)]
    assert features[:, 0, SEASONAL].tolist() == pytest.approx(expected, abs=1e-6)
    leads = [math.log1p(max(0, slot - 19)) for slot in range(48)]
    assert features[:, 0, LEAD].tolist() == pytest.approx(leads, abs=1e-5)
    assert features[0, :, HISTORY].tolist() == [1.0] * 8 + [0.0] * 8
    assert features[0, :, LIVE_SHARE].tolist() == pytest.approx([20 / 48] * 8 + [0.0] * 8)


def test_only_a_cell_without_history_is_told_how_likely_it_is_dead() -> None:
    """What tells the size or the place of a cell with history lets a model recognise it (docs/decisions/0010)."""
    batch = example()
    batch = replace(batch, known=batch.known & (torch.arange(16) != 5))
    features = entry_features(batch, plain_scale(batch))
    assert features[0, 0, 0, :, SILENT].tolist() == [0.25 if cell == 5 else 0.0 for cell in range(16)]
    scale = Scaling().fit(batch)
    larger = replace(batch, traffic=batch.traffic * torch.where(torch.arange(16) == 3, 50.0, 1.0))
    torch.testing.assert_close(
        entry_features(larger, Scaling().fit(larger))[..., 3, :], entry_features(batch, scale)[..., 3, :], rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("task", [SHORT, LONG, GENERATION, RANDOM], ids=lambda task: task.name)
@pytest.mark.parametrize("hidden", [1e6, torch.nan], ids=["other traffic", "not measured"])
def test_nothing_of_a_hidden_entry_enters(task: Task, hidden: float) -> None:
    """Asked on the whole batch: it must not take `visible()` to keep a hidden entry out."""
    batch = mask(seasonal_batch(6), task)
    scale = Scaling().fit(batch)
    features = entry_features(batch, scale)
    assert bool(torch.isfinite(features).all())
    other = replace(batch, traffic=torch.where(batch.known, batch.traffic, hidden))
    assert torch.equal(features, entry_features(other, scale))
    seen = replace(batch, traffic=torch.where(batch.known, 1.5 * batch.traffic, batch.traffic))
    assert not torch.equal(features, entry_features(seen, scale))


def test_a_new_network_answers_with_nothing_and_a_moved_one_only_where_asked() -> None:
    torch.manual_seed(0)
    batch = mask(seasonal_batch(), SHORT)
    scale = Scaling().fit(batch)
    env = torch.rand(4, 1, 16, 3)
    network = EntryNetwork(8, 3)
    for layer in (network.layers[-1], network.poi):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert not bool(network(batch.visible(), scale, env).any())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    answers = network(batch.visible(), scale, env)
    asked = ~batch.known & ~scale.dead
    assert not bool(answers[~asked].any()) and bool((answers[asked] != 0).any(dim=-1).all())
    assert not bool(asked[..., DEAD].any()) and bool(asked[..., ABSENT].all())


def test_the_network_is_told_the_hour_and_not_the_day() -> None:
    torch.manual_seed(0)
    batch = mask(seasonal_batch(), SHORT).visible()
    scale = Scaling().fit(batch)
    network = EntryNetwork(8, 0)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    clock = batch.clock.clone()
    clock[..., 1] = (clock[..., 1] + 1) % 7
    answers = network(batch, scale, None)
    assert torch.equal(network(replace(batch, clock=clock), scale, None), answers)
    clock[..., 0] = (clock[..., 0] + 12) % 48
    assert not torch.equal(network(replace(batch, clock=clock), scale, None), answers)


def test_the_last_features_are_what_kriging_says() -> None:
    batch = mask(seasonal_batch(), SHORT)
    scale = Scaling().fit(batch)
    features = entry_features(batch.visible(), scale)[..., KRIGED]
    cells = (batch.visible().traffic > 0).any(2, keepdim=True)
    known = batch.known & cells
    residual = torch.asinh(batch.traffic.nan_to_num() / scale.level) - scale.prior
    mean, deviation = krige(residual, known, *variation(batch), batch.step_minutes)
    live = cells.expand_as(batch.known)
    torch.testing.assert_close(features[..., 0][live], (mean / scale.spread).clamp(-6, 6)[live], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[..., 1][live], (deviation / scale.spread).clamp(1e-3, 6)[live], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(features[..., 3][live], torch.sinh(scale.prior + mean).clamp(max=20)[live], rtol=1e-4, atol=1e-4)
    shared = (mean * cells).sum(3, keepdim=True) / (cells.sum(3, keepdim=True) + 1)
    torch.testing.assert_close(features[..., 4], (shared / scale.spread).clamp(-6, 6), rtol=1e-4, atol=1e-4)
