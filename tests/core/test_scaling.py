"""Scaling: `invert` undoes `apply`, only known entries decide, and no magnitude, dead or empty window breaks it."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from raytraffic.kriging import ALIVE, LOG_LEVEL, REACH
from raytraffic.marginals import NODES, quantile_scores
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, mask
from raytraffic.scaling import Scaling
from raytraffic.types import Scale, Space, TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

GLOBAL = Scaling(kind="global", prior="none")
KINDS = [Scaling(), Scaling(prior="none"), Scaling(prior="fourier"), GLOBAL]
LIVE = [i for i in range(16) if i not in (DEAD, ABSENT)]


def batch_of(traffic: Tensor, known: Tensor, context: dict[str, Tensor] | None = None, step: int = 60) -> TrafficBatch:
    """A batch of stations without a place, from a Monday's first slot on."""
    b, _, t, _ = traffic.shape
    slot = torch.arange(t)
    clock = torch.stack((slot % (1440 // step), slot // (1440 // step) % 7), dim=-1).expand(b, t, 2)
    return TrafficBatch(
        traffic=traffic, known=known, clock=clock, step_minutes=torch.full((b,), step), key=torch.arange(b), context=context or {}
    )


def same(one: Scale, other: Scale) -> bool:
    """Whether two scales are equal bit for bit."""
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in ("level", "prior", "spread", "ceiling", "dead"))


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(KINDS),
    exponent=st.integers(-9, 12),
    share=st.floats(0, 1),
    with_profile=st.booleans(),
)
def test_invert_undoes_apply(seed: int, kind: Scaling, exponent: int, share: float, with_profile: bool) -> None:
    random = np.random.default_rng(seed)
    traffic = torch.from_numpy((random.gamma(1.0, 10.0**exponent, (2, 2, 48, 4))).astype(np.float32))
    context = {"reference": traffic.amax(dim=(2, 3))}
    if with_profile:
        context["profile"] = torch.from_numpy(random.gamma(4.0, 0.25, (2, 48)).astype(np.float32))
    scale = kind.fit(batch_of(traffic, torch.from_numpy(random.random((2, 2, 48, 4)) < share), context))
    wanted = torch.where(scale.dead, torch.zeros_like(traffic), torch.minimum(traffic, scale.ceiling))
    back = scale.invert(scale.apply(traffic))
    # float32 rounds the scaled value to about 1e-7 of itself plus its prior; seen from traffic that is a share of the cell's level.
    # Where a cell may be dead its score lies beside an atom, and tells small traffic as exactly as a float32 tells the probability.
    exact = torch.where(scale.silent > 0, 2e-2, 1e-5) * scale.level
    assert bool(((back - wanted).abs() <= 1e-4 * wanted + exact).all())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}-{kind.prior}")
@pytest.mark.parametrize("task", [SHORT, LONG, GENERATION, RANDOM], ids=lambda task: task.name)
def test_the_scale_depends_on_known_entries_only(kind: Scaling, task) -> None:
    batch = mask(seasonal_batch(), task)
    louder = replace(batch, traffic=torch.where(batch.known, batch.traffic, batch.traffic * 7 + 1e5))
    unmeasured = replace(batch, traffic=torch.where(batch.known, batch.traffic, torch.nan))
    scale = kind.fit(batch)
    assert same(scale, kind.fit(louder)) and same(scale, kind.fit(unmeasured))
    if kind.kind == "known" and bool(batch.known.any()):
        seen = replace(batch, traffic=torch.where(batch.known, batch.traffic * 7 + 1e5, batch.traffic))
        assert not same(scale, kind.fit(seen))


@pytest.mark.parametrize("unit", [1e-9, 1e12])
def test_the_known_scale_does_not_care_for_the_unit(unit: float) -> None:
    batch = mask(seasonal_batch(), SHORT)
    context = {**batch.context, "reference": batch.context["reference"] * unit}
    other = replace(batch, traffic=batch.traffic * unit, context=context)
    ours, theirs = Scaling().fit(batch), Scaling().fit(other)
    z = ours.apply(batch.traffic)
    torch.testing.assert_close(z[..., LIVE], theirs.apply(other.traffic)[..., LIVE], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(theirs.invert(z)[..., LIVE] / unit, ours.invert(z)[..., LIVE], rtol=1e-4, atol=1e-4)


def test_cells_are_standardised_by_their_own_known_entries() -> None:
    batch = mask(seasonal_batch(6, steps=(30,)), SHORT)
    scale = Scaling().fit(batch)
    z = torch.where(batch.known, scale.apply(batch.traffic), torch.nan)[..., LIVE]
    assert float(z.nanmean().abs()) < 0.25
    assert 0.6 < float((z.nan_to_num() ** 2).sum().sqrt() / z.isfinite().sum().sqrt()) < 1.2


def test_dead_constant_and_new_cells() -> None:
    traffic = torch.zeros(1, 1, 48, 4)
    traffic[..., 0] = 5.0  # constant
    traffic[..., 1] = 0.0  # dead: 32 known zeros
    traffic[..., 2] = 50.0  # a new cell: nothing known
    traffic[..., 3] = 0.0  # too few known zeros to be called dead
    known = torch.zeros(1, 1, 48, 4, dtype=torch.bool)
    known[:, :, :32, :2] = True
    known[:, :, :7, 3] = True
    scale = Scaling(prior="none").fit(batch_of(traffic, known))
    assert scale.dead[0, 0, 0].tolist() == [False, True, False, False]
    torch.testing.assert_close(scale.level[0, 0, 0], torch.full((4,), 5.0))  # cells without history borrow the live cells' level
    assert bool((scale.spread > 0).all()) and bool(scale.apply(traffic).isfinite().all())
    anything = torch.randn(1, 1, 48, 4) * 10
    drawn = scale.invert(anything)
    assert not bool(drawn[..., 1].any()) and bool(drawn[..., 0].any()) and bool(drawn[..., 3].any())


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: f"{kind.kind}-{kind.prior}")
@pytest.mark.parametrize("level", [0.0, 1e-9, 1.0, 1e12])
@pytest.mark.parametrize("seen", ["nothing", "one entry", "most"])
@pytest.mark.parametrize("reference", ["none", "unknown", "zero", "measured"])
def test_every_window_scales_finitely(kind: Scaling, level: float, seen: str, reference: str) -> None:
    traffic = level * (1 + torch.rand(2, 1, 48, 4, generator=torch.Generator().manual_seed(0)))
    known = torch.zeros_like(traffic, dtype=torch.bool)
    known[:, :, : {"nothing": 0, "one entry": 1, "most": 40}[seen]] = True
    values = {"unknown": torch.nan, "zero": 0.0, "measured": 3.0 * level}
    if reference == "none" and kind.kind == "global":
        with pytest.raises(ValueError, match=r"no 'reference', expected the city's upper reference level"):
            kind.fit(batch_of(traffic, known))
        return
    context = {} if reference == "none" else {"reference": torch.full((2, 1), values[reference])}
    scale = kind.fit(batch_of(traffic, known, context))
    assert bool((scale.level > 0).all()) and bool((scale.spread > 0).all()) and bool((scale.ceiling > 0).all())
    assert bool(scale.apply(traffic).isfinite().all())
    for z in (-50.0, 0.0, 1.0, 50.0):
        drawn = scale.invert(torch.full_like(traffic, z))
        assert bool(drawn.isfinite().all()) and bool((drawn >= 0).all()) and bool((drawn <= scale.ceiling).all())


def test_the_global_scale_is_the_release_s() -> None:
    traffic = torch.tensor([0.0, 25.0, 50.0, 100.0]).reshape(1, 1, 4, 1)
    scale = GLOBAL.fit(batch_of(traffic, torch.zeros_like(traffic, dtype=torch.bool), {"reference": torch.tensor([[100.0]])}))
    assert scale.apply(traffic).flatten().tolist() == [-1.0, -0.5, 0.0, 1.0]
    assert scale.invert(torch.tensor([-3.0, -1.0, 0.0, 1.0]).reshape(1, 1, 4, 1)).flatten().tolist() == [0.0, 0.0, 50.0, 100.0]
    assert scale.invert(torch.full_like(traffic, 1.7)).flatten().tolist() == [100.0] * 4


def test_without_training_statistics_the_global_scale_takes_the_largest_known_entry() -> None:
    traffic = torch.tensor([[2.0, 8.0, 4.0, 900.0], [0.0, 0.0, 0.0, 900.0], [1.0, 1.0, 1.0, 1.0]]).reshape(3, 1, 4, 1)
    known = torch.tensor([[True] * 3 + [False], [True] * 3 + [False], [False] * 4]).reshape(3, 1, 4, 1)
    scale = GLOBAL.fit(batch_of(traffic, known, {"reference": torch.full((3, 1), torch.nan)}))
    assert scale.ceiling.flatten().tolist() == [8.0, 1.0, 1.0]
    assert scale.apply(traffic)[0].flatten()[:3].tolist() == [-0.5, 1.0, 0.0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"kind": "standard"}, r"scaling\.kind: 'standard', expected"), ({"prior": "weekly"}, r"scaling\.prior: 'weekly', expected"),
     ({"kind": "global"}, r"scaling\.prior: 'seasonal' with scaling\.kind 'global'")],
)  # fmt: skip
def test_wrong_settings_are_named(wrong: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Scaling(**wrong)  # type: ignore[arg-type]


def test_the_global_scale_clips_what_lies_above_the_reference() -> None:
    batch = seasonal_batch(2)
    scale = Scaling(kind="global", prior="none").fit(batch)
    q = batch.context["reference"][:, :, None, None].expand_as(batch.traffic)
    torch.testing.assert_close(scale.apply(1.5 * q), torch.ones_like(q))
    torch.testing.assert_close(scale.apply(q / 2), torch.zeros_like(q), atol=1e-6, rtol=0)


def test_a_cell_without_history_borrows_its_level_from_near_cells_first() -> None:
    batch = seasonal_batch(1)
    known = batch.known.clone()
    known[..., 0] = False
    batch = replace(batch, known=known, context={})
    scale = Scaling().fit(batch)
    live = [i for i in range(1, 16) if i not in (DEAD, ABSENT)]
    levels = torch.stack([batch.traffic[0, 0, :, i].mean() for i in live]).log().double().numpy()
    place = np.array([(i // 4, i % 4) for i in [0, *live]], dtype=float)
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    covariance = LOG_LEVEL.tile + LOG_LEVEL.near * np.exp(-distance / REACH)
    gain = np.linalg.solve(covariance[1:, 1:] + LOG_LEVEL.own * np.eye(len(live)), covariance[1:, 0])
    centre = levels.mean()
    assert float(scale.level[0, 0, 0, 0]) == pytest.approx(np.exp(centre + gain @ (levels - centre)), rel=1e-4)
    variance = LOG_LEVEL.of_a_cell - gain @ covariance[1:, 0]
    varies = (((levels - centre) ** 2).sum() / (LOG_LEVEL.near + LOG_LEVEL.own) + 20) / (len(live) - 1 + 20)
    assert float(scale.spread[0, 0, 0, 0]) == pytest.approx(np.sqrt(variance * varies), rel=1e-4)


def test_where_nothing_is_known_of_a_tile_its_level_is_typical_of_its_city() -> None:
    batch = replace(seasonal_batch(1), known=torch.zeros(1, 1, 64, 16, dtype=torch.bool))
    scale = Scaling().fit(batch)
    torch.testing.assert_close(scale.level, (0.05 * batch.context["reference"])[:, :, None, None].expand_as(scale.level))
    torch.testing.assert_close(scale.spread, torch.full_like(scale.spread, LOG_LEVEL.of_a_cell**0.5))


def silent_tile(dead: int, grid: bool = False) -> TrafficBatch:
    """One window of 16 stations: `dead` known ones are zero, the last has no history."""
    traffic = torch.exp(torch.randn(1, 1, 24, 16, generator=torch.Generator().manual_seed(1)))
    traffic[..., :dead] = 0
    known = torch.ones_like(traffic, dtype=torch.bool)
    known[..., 15] = False
    return replace(batch_of(traffic, known), space=Space(grid=(4, 4) if grid else None))


def test_dead_neighbours_make_a_cell_more_likely_dead_than_dead_cells_far_off() -> None:
    def silent(dead: list[int]) -> float:
        batch = silent_tile(0, grid=True)
        traffic = batch.traffic.clone()
        traffic[..., dead] = 0
        return float(Scaling().fit(replace(batch, traffic=traffic)).silent[0, 0, 0, 15])

    none, far, near = silent([]), silent([0, 1]), silent([11, 14])
    assert 0.02 <= none <= far < near - 0.1


@pytest.mark.parametrize("dead", [0, 3, 15])
def test_a_cell_without_history_is_dead_as_often_as_its_tile_says(dead: int) -> None:
    """Without positions cells count alike: the share of dead ones among 15, shrunk to one in four."""
    scale = Scaling().fit(silent_tile(dead))
    weight = 15 * ALIVE.tile / (15 * ALIVE.tile + ALIVE.near + ALIVE.own)
    share = 0.25 + weight * (dead / 15 - 0.25)
    assert scale.silent[0, 0, 0].tolist() == pytest.approx([0.0] * 15 + [share])
    z = torch.randn(1, 1, 20000, 1, generator=torch.Generator().manual_seed(0))
    one = Scale(
        level=scale.level[..., 15:],
        prior=torch.zeros_like(z),
        spread=scale.spread[..., 15:],
        ceiling=scale.ceiling,
        dead=scale.dead[..., 15:],
        silent=scale.silent[..., 15:],
        asinh=True,
    )
    drawn = one.invert(z)
    assert float((drawn == 0).float().mean()) >= share - 0.02
    # Of the live ones half lie over the level's residual 0, that is traffic over 0: these are (1 - share) / 2 of all.
    assert float((drawn > 0).float().mean()) == pytest.approx((1 - share) / 2, abs=0.02)
    quantiles = one.quantiles(torch.tensor(NODES).expand(*z.shape, -1))[0, 0, 0, 0]
    # Prior 0: a residual under 0 would be negative traffic.
    below = torch.special.ndtr(quantile_scores()) <= (1 + share) / 2
    assert quantiles[below].tolist() == [0.0] * int(below.sum()) and bool((quantiles[~below].diff() > 0).all())


def test_zero_traffic_of_a_cell_that_may_be_dead_lies_amid_its_atom() -> None:
    batch = silent_tile(3)
    scale = Scaling().fit(batch)
    z = scale.apply(torch.zeros_like(batch.traffic))[..., 15]
    torch.testing.assert_close(torch.special.ndtr(z), (scale.silent[..., 15] / 2).expand_as(z))
    assert not bool(scale.invert(scale.apply(torch.zeros_like(batch.traffic)))[..., 15].any())


def test_one_faulty_measurement_moves_level_and_spread_a_little() -> None:
    traffic = 100 * torch.exp(0.2 * torch.randn(1, 1, 24, 4, generator=torch.Generator().manual_seed(2)))
    known = torch.ones_like(traffic, dtype=torch.bool)
    plain = Scaling().fit(batch_of(traffic, known))
    faulty = traffic.clone()
    faulty[0, 0, 7, 0] = 1e6
    spiked = Scaling().fit(batch_of(faulty, known))
    # The spike counts as 30 medians: (23 + 30) / 24 = 2.2 times the level.
    assert float(spiked.level[0, 0, 0, 0] / plain.level[0, 0, 0, 0]) == pytest.approx(2.2, abs=0.15)
    assert float(spiked.spread[0, 0, 0, 0]) < 1.0
    assert torch.equal(spiked.level[..., 1:], plain.level[..., 1:]) and torch.equal(spiked.spread[..., 1:], plain.spread[..., 1:])
    rare = torch.zeros_like(traffic)
    rare[0, 0, ::8] = traffic[0, 0, ::8]
    assert torch.equal(Scaling().fit(batch_of(rare, known)).level, rare.sum(2, keepdim=True) / 24), "bursts of a quiet cell are its traffic"


def test_a_fourier_prior_continues_the_daily_rhythm_of_the_known_entries() -> None:
    day = 2 * math.pi * torch.arange(96) / 24
    course = 100 * (1 + 0.5 * torch.cos(day - 1.0) + 0.2 * torch.sin(2 * day))
    traffic = course[None, None, :, None].expand(1, 1, 96, 2).clone()
    known = torch.zeros(1, 1, 96, 2, dtype=torch.bool)
    known[:, :, :48, 0] = True
    batch = batch_of(traffic, known)
    scale = Scaling(prior="fourier").fit(batch)
    continued = torch.sinh(scale.prior[0, 0, 48:, 0]) * scale.level[0, 0, :, 0]
    # Two entries' worth of doubt against 24 of evidence in each harmonic leave 8 % of the swing.
    assert bool(((continued - course[48:]).abs() <= 0.1 * 70).all())
    assert bool((continued - course[48:]).abs().max() < (course[48:] - 100).abs().max() / 4)
    # A cell of which nothing is known has no rhythm: its prior is its level.
    torch.testing.assert_close(torch.sinh(scale.prior[0, 0, :, 1]), torch.ones(96))


def test_the_size_of_an_entry_is_its_share_of_the_city_s_reference() -> None:
    """A busy place weighs more than a quiet one, whatever the rest of its window carries."""
    traffic = torch.full((2, 1, 24, 2), 10.0)
    traffic[1] *= 8
    known = torch.ones_like(traffic, dtype=torch.bool)
    known[:, :, 12:] = False
    with_reference = batch_of(traffic, known, {"reference": torch.full((2, 1), 400.0)})
    size = Scaling().fit(with_reference).size(with_reference)
    torch.testing.assert_close(size[1] / size[0], torch.full_like(size[0], 8.0))
    without = batch_of(traffic, known, {"reference": torch.full((2, 1), torch.nan)})
    alone = Scaling().fit(without).size(without)
    torch.testing.assert_close(alone[1], alone[0])
    torch.testing.assert_close(alone[0] * 10 / 20, size[0])  # a twentieth of the reference is 20, the window's mean 10
