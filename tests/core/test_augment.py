"""Augmentation: every symmetry occurs, traffic and its contexts move together, and nothing else changes."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch

from raytraffic.augment import augment, drop_contexts, expect_users, forget_cities, jitter_levels, shift_rhythm, silence_cells, turn_tiles
from raytraffic.types import Space, TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

LIVE = [i for i in range(16) if i not in (DEAD, ABSENT)]


@dataclass(frozen=True)
class Settings:
    """How much of each augmentation, as a training configuration says it; none by default."""

    turn_tiles: bool = False
    silence_cells: float = 0.0
    jitter_levels: float = 0.0
    shift_rhythm: float = 0.0
    forget_cities: float = 0.0
    drop_contexts: float = 0.0
    expect_users: float = 0.0


def same(one: TrafficBatch, other: TrafficBatch) -> bool:
    """Whether two batches are equal bit for bit."""
    pairs = [(one.traffic, other.traffic), (one.known, other.known), (one.clock, other.clock), (one.space.xy, other.space.xy)]
    pairs += [(one.context[name], other.context[name]) for name in one.context]
    return one.context.keys() == other.context.keys() and all(torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)) for a, b in pairs)


def with_environment(batch: TrafficBatch) -> TrafficBatch:
    """The batch with an environment of three features a cell."""
    env = torch.rand(len(batch.key), 1, 16, 3, generator=torch.Generator().manual_seed(1))
    return replace(batch, context={**batch.context, "env": env})


def test_cells_move_together_and_by_every_symmetry() -> None:
    batch = with_environment(seasonal_batch(200))
    turned = turn_tiles(batch, torch.arange(200))
    label = torch.arange(16.0)
    seen = set()
    for i in range(200):
        # Which cell went where is read off the coordinates, then demanded of everything else.
        order = torch.cdist(turned.space.xy[i], batch.space.xy[i]).argmin(dim=1)
        seen.add(tuple(order.tolist()))
        assert torch.equal(turned.traffic[i].nan_to_num(), batch.traffic[i][..., order].nan_to_num())
        assert torch.equal(turned.known[i], batch.known[i][..., order])
        assert torch.equal(turned.context["users"][i].nan_to_num(), batch.context["users"][i][..., order].nan_to_num())
        assert torch.equal(turned.context["poi"][i], batch.context["poi"][i][..., order])
        assert torch.equal(turned.context["env"][i], batch.context["env"][i][:, order])
        # Neighbours stay neighbours.
        grid = label[order].reshape(4, 4)
        step = (grid[:, 1:] - grid[:, :-1]).abs()
        assert set(step.flatten().tolist()) in ({1.0}, {4.0})
    assert len(seen) == 8
    assert torch.equal(turned.context["profile"], batch.context["profile"])


def test_contexts_are_dropped_by_share_and_independently() -> None:
    batch = with_environment(seasonal_batch(400))
    dropped = drop_contexts(batch, torch.arange(400), 0.5)
    no_users = dropped.context["users"].isnan().all(dim=2).all(dim=1)
    no_poi = (dropped.context["poi"] == 0).all(dim=2).all(dim=1)
    assert 0.4 < float(no_users.float().mean()) < 0.6
    assert 0.4 < float(no_poi.float().mean()) < 0.6
    assert 0.15 < float((no_users & no_poi).float().mean()) < 0.35
    no_env = dropped.context["env"].isnan().flatten(1).all(dim=1)
    assert torch.equal(no_env, dropped.context["env"].isnan().flatten(1).any(dim=1))
    assert 0.4 < float(no_env.float().mean()) < 0.6 and 0.15 < float((no_env & no_poi).float().mean()) < 0.35
    assert torch.equal(drop_contexts(batch, torch.arange(400), 0.0).context["poi"], batch.context["poi"])


def test_levels_are_jittered_cell_by_cell_and_nothing_else() -> None:
    batch = seasonal_batch(400)
    jittered = jitter_levels(batch, torch.arange(400), 0.5)
    ratio = (jittered.traffic / batch.traffic)[:, 0, :, :3]
    torch.testing.assert_close(ratio, ratio[:, :1].expand_as(ratio))
    log = ratio[:, 0].log()
    touched = (log.abs() > 1e-6).any(dim=1)
    assert 0.6 < float(touched.float().mean()) < 0.8
    assert 0.45 < float(log[touched].std()) < 0.55
    # Cells 0, 1 and 2 lie in a row: near ones are as alike as 0.9 exp(-d / 2) of 1.15 says.
    alike = torch.corrcoef(log[touched].T)
    assert float(alike[0, 1]) == pytest.approx(0.9 / 1.15 * math.exp(-0.5), abs=0.12)
    assert float(alike[0, 2]) == pytest.approx(0.9 / 1.15 * math.exp(-1), abs=0.12)
    stations = replace(batch, space=Space())
    apart = (jitter_levels(stations, torch.arange(400), 0.5).traffic / batch.traffic)[:, 0, 0, :3].log()
    assert abs(float(torch.corrcoef(apart.T)[0, 1])) < 0.2, "stations of unknown position are not near each other"
    assert torch.equal(jittered.context["users"].nan_to_num(), batch.context["users"].nan_to_num())


def test_cells_are_silenced_wholly_up_to_the_share() -> None:
    batch = seasonal_batch(400)
    silenced = silence_cells(batch, torch.arange(400), 0.4)
    quiet = (silenced.traffic[:, 0][..., LIVE] == 0).all(dim=1)
    assert bool((quiet | (silenced.traffic == batch.traffic)[:, 0][..., LIVE].all(dim=1)).all()), (
        "a cell is silenced at every slot or at none"
    )
    assert 0.17 < float(quiet.float().mean()) < 0.23, "shares are even in [0, 0.4]"
    assert float((quiet.float().mean(dim=1) == 0).float().mean()) > 0.1 and float(quiet.float().mean(dim=1).max()) > 0.4
    together = torch.corrcoef(quiet[:, :2].float().T)[0, 1]
    assert float(together) > 0.3, "dead cells lie together"
    assert bool(silenced.traffic[..., ABSENT].isnan().all())
    users = silenced.context["users"][..., LIVE]
    assert bool((users == 0).all(dim=1)[quiet].all()) and torch.equal((users == 0).all(dim=1), quiet)
    assert same(silence_cells(batch, torch.arange(400), 0.0), batch)


def test_rhythm_is_shifted_by_one_factor_for_all_cells_and_users_go_along() -> None:
    batch = seasonal_batch(40)
    shifted = shift_rhythm(batch, torch.arange(40), 0.12)
    ratio = (shifted.traffic / batch.traffic)[:, 0][..., LIVE]
    torch.testing.assert_close(ratio, ratio[..., :1].expand_as(ratio))
    users = (shifted.context["users"] / batch.context["users"])[..., LIVE]
    torch.testing.assert_close(users, ratio)
    assert not bool(shifted.traffic[..., DEAD].any()) and bool(shifted.traffic[..., ABSENT].isnan().all())
    for name in ("poi", "profile", "reference"):
        assert torch.equal(shifted.context[name], batch.context[name])
    without = shift_rhythm(TrafficBatch(**{**vars(batch), "context": {}}), torch.arange(40), 0.12)
    assert torch.equal(without.traffic.nan_to_num(-1), shifted.traffic.nan_to_num(-1))


def test_rhythm_is_shifted_about_as_much_as_said_and_smoothly() -> None:
    """Sizes are even in [0, 2 spread], of mean square 4/3 spread^2; lines between normal knots keep 2/3 of their variance on average:
    in all 0.94 of the spread."""
    spread = 0.12
    batch = seasonal_batch(3000)
    log = (shift_rhythm(batch, torch.arange(3000), spread).traffic / batch.traffic)[:, 0, :, 0].log()
    assert abs(float((log**2).mean().sqrt()) / spread - (4 / 3 * 2 / 3) ** 0.5) < 0.04
    assert abs(float(log.mean())) < 0.01
    own = (log**2).mean(dim=1).sqrt()
    assert float(own.quantile(0.05)) < 0.25 * spread and float(own.quantile(0.95)) > 1.4 * spread, "windows differ in size"
    hourly = log[batch.step_minutes == 60]
    beside, far = (torch.corrcoef(hourly[:, [20, 20 + lag]].T)[0, 1] for lag in (1, 17))
    assert float(beside) > 0.4, "neighbouring hours move together"
    assert abs(float(far)) < 0.1
    # Half of the variance comes back every day, where it lies on the same places between the same knots.
    assert 0.3 < float(torch.corrcoef(hourly[:, [20, 44]].T)[0, 1]) < 0.7


def test_cities_are_forgotten_by_share_and_wholly() -> None:
    batch = seasonal_batch(400)
    forgotten = forget_cities(batch, torch.arange(400), 0.3)
    lost = forgotten.context["reference"].isnan().all(dim=1)
    assert 0.23 < float(lost.float().mean()) < 0.37
    assert bool((forgotten.context["profile"][lost] == 1).all())
    assert torch.equal(forgotten.context["profile"][~lost], batch.context["profile"][~lost])
    assert torch.equal(forgotten.context["reference"][~lost], batch.context["reference"][~lost])
    for name in ("modes", "persistence"):
        assert bool(forgotten.context[name][lost].isnan().all())
        assert torch.equal(forgotten.context[name][~lost], batch.context[name][~lost])
    for name in ("users", "poi"):
        assert torch.equal(forgotten.context[name].nan_to_num(-1), batch.context[name].nan_to_num(-1))
    assert torch.equal(forgotten.traffic.nan_to_num(-1), batch.traffic.nan_to_num(-1))
    assert bool(forget_cities(batch, torch.arange(400), 1.0).context["reference"].isnan().all())


def test_nothing_of_an_augmentation_leaves_every_bit() -> None:
    batch, seeds = seasonal_batch(50), torch.arange(50)
    assert same(shift_rhythm(batch, seeds, 0.0), batch)
    assert same(forget_cities(batch, seeds, 0.0), batch)
    assert same(drop_contexts(batch, seeds, 0.0), batch)
    assert same(jitter_levels(batch, seeds, 0.0), batch)
    assert same(augment(batch, seeds, Settings()), batch)


def test_tiles_are_turned_only_if_wanted() -> None:
    batch, seeds = seasonal_batch(50), torch.arange(50)
    assert same(augment(batch, seeds, Settings(turn_tiles=True)), turn_tiles(batch, seeds))
    assert not same(augment(batch, seeds, Settings(turn_tiles=True)), batch)
    everything_else = Settings(silence_cells=0.3, jitter_levels=0.5, shift_rhythm=0.12, forget_cities=0.3, drop_contexts=0.5)
    left = augment(batch, seeds, everything_else)
    assert torch.equal(left.space.xy, batch.space.xy) and torch.equal(left.known, batch.known)
    assert not same(left, batch)


def test_augmentation_hangs_on_a_window_s_own_seed() -> None:
    how = Settings(turn_tiles=True, silence_cells=0.3, jitter_levels=0.5, shift_rhythm=0.12, forget_cities=0.3, drop_contexts=0.5)
    batch, seeds = seasonal_batch(30), torch.arange(30) * 977
    together = augment(batch, seeds, how)
    some = torch.tensor([17, 3, 4])
    assert same(augment(batch.select(some), seeds[some], how), together.select(some))
    assert not same(augment(batch, seeds + 1, how), together)


def test_expected_users_are_near_the_true_ones_in_their_share_of_windows() -> None:
    batch = seasonal_batch(400)
    expected = expect_users(batch, torch.arange(400), 0.3).context["expected_users"]
    given = torch.isfinite(expected).any(dim=2).any(dim=1)
    assert float(given.float().mean()) == pytest.approx(0.3, abs=0.07)
    ratio = (expected / batch.context["users"])[given][..., LIVE].log()
    assert float(ratio.std()) == pytest.approx(0.1, abs=0.02)
    # One smooth course for all cells of a window: a forecast is wrong for hours, not from slot to slot.
    assert float((ratio - ratio[..., :1]).abs().max()) < 1e-4
    assert float(ratio.diff(dim=1).abs().mean()) < 0.06


def test_expected_users_go_with_the_users_through_every_other_augmentation() -> None:
    batch = seasonal_batch(64)
    both = replace(batch, context={**batch.context, "expected_users": batch.context["users"]})
    settings = Settings(turn_tiles=True, silence_cells=0.5, jitter_levels=0.5, shift_rhythm=0.1, drop_contexts=0.5)
    after = augment(both, torch.arange(64), settings)
    assert torch.equal(after.context["expected_users"].nan_to_num(-1), after.context["users"].nan_to_num(-1))
