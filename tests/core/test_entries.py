"""The entry network's features: what each of them promises, on windows made by hand, and nothing of a hidden entry among them."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, Task, mask
from raytraffic.models.uomo.entries import EntryNetwork, entry_features
from raytraffic.scaling import Scaling
from raytraffic.types import Scale, Space, TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

PRIOR = 2.0
# Where the features stand in the last axis.
LATEST, SEASONAL, FOUND, LEAD, LIVE_SHARE, HISTORY = slice(0, 4), 5, 6, 10, 13, 14
DEAD_SHARE, NEAR_DEAD, HIGHER, NEAR_ALIVE = 18, 19, 20, 21
PAST, PAST_WEIGHT, FUTURE, FUTURE_WEIGHT = slice(22, 25), slice(25, 28), slice(28, 31), slice(31, 34)
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


def test_surroundings_of_a_cell_without_history() -> None:
    """Cell 5 of the 4 x 4 grid is asked for; of its neighbours 0, 1, 2, 4, 6, 8, 9, 10 three are dead and 8 is not measured."""
    dead, alive = (0, 1, 2), (4, 6, 9, 10)
    traffic = torch.full((1, 12, 16), 3.0)
    traffic[:, :, list(dead)] = 0.0
    traffic[:, :, 8] = torch.nan
    known = torch.isfinite(traffic)
    known[:, :, 5] = False
    batch = window(traffic, known)
    level = torch.ones(16)
    level[4], level[6], level[12] = 8.0, 4.0, 2.0
    scale = replace(plain_scale(batch), level=level.expand(1, 1, 1, 16))
    features = entry_features(batch, scale)[0, 0, 0]
    # 14 cells are seen, of which 11 are alive; the geometric mean of their levels is (8 * 4 * 2) ** (1 / 11).
    centre = math.log(64) / 11
    assert float(features[5, DEAD_SHARE]) == pytest.approx(3 / 14)
    assert float(features[5, NEAR_DEAD]) == pytest.approx(len(dead) / (len(dead) + len(alive)))
    assert float(features[5, NEAR_ALIVE]) == pytest.approx(len(alive) / 8)
    higher = sum(math.log(float(level[cell])) - centre for cell in alive)
    assert float(features[5, HIGHER]) == pytest.approx(higher / (len(alive) + 1), abs=1e-5)
    assert float(features[8, NEAR_ALIVE]) == pytest.approx(4 / 8)  # 4, 9, 12 and 13; nothing is known of 5
    told = [cell for cell in range(16) if float(features[cell, [DEAD_SHARE, NEAR_DEAD, HIGHER, NEAR_ALIVE]].abs().sum()) > 0]
    assert set(told) <= {0, 1, 2, 5, 8}, "cells with a history of their own are told nothing of their surroundings"


def test_without_a_grid_there_is_nothing_next_to_a_cell() -> None:
    batch = replace(example(), space=Space())
    batch = replace(batch, known=batch.known & (torch.arange(16) != 5))
    features = entry_features(batch, plain_scale(batch))
    assert not bool(features[..., [NEAR_DEAD, HIGHER, NEAR_ALIVE]].any())


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
    tau = torch.randn(4, 64, 5)
    poi = torch.rand(4, 64, 16, 3)
    network = EntryNetwork(8, 5, 3, 0.0)
    for layer in (network.layers[-1], network.poi):
        torch.nn.init.zeros_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    assert not bool(network(batch.visible(), scale, tau, poi).any())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    answers = network(batch.visible(), scale, tau, poi)
    asked = ~batch.known & ~scale.dead
    assert not bool(answers[~asked].any()) and bool((answers[asked] != 0).any(dim=-1).all())
    assert not bool(asked[..., DEAD].any()) and bool(asked[..., ABSENT].all())
