"""Horizons beyond one window: the same as a forecast where one window is enough, and stable, leak-free trajectories where not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from raytraffic import registry
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.rollout import rollout
from raytraffic.types import Forecast, TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

SAMPLER = Sampler("dpm++", 3)
WINDOW, HISTORY = 64, 32
PRESENT = [i for i in range(16) if i != ABSENT]


#: Of the models that hold many cells by many slots, minutes in all.
_SLOW = {"lec_diff", "stouter"}


@pytest.fixture(
    scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name in _SLOW else ()) for name in sorted(registry.MODELS)]
)
def model(request: pytest.FixtureRequest) -> Forecaster:
    """A tiny model whose every parameter is off its initial value, so that it looks at all it may."""
    torch.manual_seed(0)
    built = registry.build(request.param, "tiny").eval()
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return built


def to_forecast(t: int, windows: int = 3, history: int = HISTORY) -> TrafficBatch:
    """Windows of t slots of which only the first `history` are known."""
    batch = seasonal_batch(windows, t=t)
    known = batch.known.clone()
    known[:, :, history:] = False
    return replace(batch, known=known)


@pytest.mark.parametrize("t", [48, WINDOW])
def test_within_one_window_it_is_the_forecast(model: Forecaster, t: int) -> None:
    batch = to_forecast(t)
    ours = rollout(model, batch, WINDOW, SAMPLER, draws=2, seed=3)
    theirs = model.forecast(batch, SAMPLER, draws=2, seed=3)
    assert torch.equal(ours.draws.nan_to_num(-1), theirs.draws.nan_to_num(-1)) and torch.equal(ours.known, theirs.known)


@pytest.mark.parametrize("t", [65, 96, 150])
def test_longer_horizons_are_whole_and_keep_what_is_known(model: Forecaster, t: int) -> None:
    batch = to_forecast(t)
    forecast = rollout(model, batch, WINDOW, SAMPLER, draws=2)
    assert forecast.draws.shape == (3, 2, 1, t, 16) and torch.equal(forecast.known, batch.known)
    assert bool(forecast.draws[..., PRESENT].isfinite().all()) and bool((forecast.draws[..., PRESENT] >= 0).all())
    known = batch.known[:, None].expand_as(forecast.draws)
    assert torch.equal(forecast.draws[known], batch.traffic[:, None].expand_as(forecast.draws)[known])
    assert not bool(forecast.draws[..., HISTORY:, DEAD].any())
    first = model.forecast(_first(batch), SAMPLER, draws=2).draws
    assert torch.equal(forecast.draws[:, :, :, :WINDOW].nan_to_num(-1), first.nan_to_num(-1))
    later = forecast.draws[..., WINDOW:, :][..., [i for i in PRESENT if i != DEAD]]
    assert bool((later[:, 0] != later[:, 1]).float().mean() > 0.9)


def _first(batch: TrafficBatch) -> TrafficBatch:
    """The first window of a longer batch."""
    timed = {name: batch.context[name][:, :WINDOW] for name in ("users", "profile", "modes")}
    return replace(
        batch,
        traffic=batch.traffic[:, :, :WINDOW],
        known=batch.known[:, :, :WINDOW],
        clock=batch.clock[:, :WINDOW],
        context={**batch.context, **timed},
    )


def test_a_draw_depends_on_neither_its_batch_nor_the_number_of_draws(model: Forecaster) -> None:
    batch = to_forecast(112, windows=4)
    together = rollout(model, batch, WINDOW, SAMPLER, draws=3, seed=5).draws
    assert torch.equal(together.nan_to_num(-1), rollout(model, batch, WINDOW, SAMPLER, draws=3, seed=5).draws.nan_to_num(-1))
    alone = rollout(model, batch.select(torch.tensor([3, 1])), WINDOW, SAMPLER, draws=2, seed=5).draws
    # Matrix kernels may order sums by batch size, and a trajectory carries that rounding from window to window.
    torch.testing.assert_close(alone, together[[3, 1]][:, :2], rtol=1e-2, atol=1e-2, equal_nan=True)
    other = rollout(model, batch, WINDOW, SAMPLER, draws=3, seed=6).draws
    assert not torch.equal(together.nan_to_num(-1), other.nan_to_num(-1))


def test_the_future_cannot_leak(model: Forecaster) -> None:
    batch = to_forecast(112)
    traffic, users = batch.traffic.clone(), batch.context["users"].clone()
    traffic[:, :, HISTORY:] = traffic[:, :, HISTORY:] * 3 + 100
    users[:, HISTORY:] = 1e6
    changed = replace(batch, traffic=traffic, context={**batch.context, "users": users})
    ours, theirs = (rollout(model, each, WINDOW, SAMPLER, draws=2).draws[..., PRESENT] for each in (batch, changed))
    assert torch.equal(ours, theirs)
    unmeasured = replace(batch, traffic=torch.where(batch.known, batch.traffic, torch.nan))
    assert torch.equal(ours, rollout(model, unmeasured, WINDOW, SAMPLER, draws=2).draws[..., PRESENT])


def test_draws_part_after_a_history_that_is_all_known(model: Forecaster) -> None:
    batch = to_forecast(96, history=WINDOW)
    draws = rollout(model, batch, WINDOW, SAMPLER, draws=2).draws[..., WINDOW:, :][..., [i for i in PRESENT if i != DEAD]]
    assert bool((draws[:, 0] != draws[:, 1]).float().mean() > 0.9)


def watched(monkeypatch: pytest.MonkeyPatch) -> list[TrafficBatch]:
    """The batches that are forecast from now on."""
    seen: list[TrafficBatch] = []
    forecast = Forecaster.forecast

    def watch(self: Forecaster, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int) -> Forecast:
        seen.append(replace(batch, known=batch.known.clone()))
        return forecast(self, batch, sampler, draws, seed)

    monkeypatch.setattr(Forecaster, "forecast", watch)
    return seen


def test_later_windows_know_the_draws_of_cells_with_history_only(model: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    draws = rollout(model, to_forecast(112), WINDOW, SAMPLER, draws=2).draws.flatten(0, 1)
    assert [each.shape[0] for each in seen] == [3, 6, 6]
    for piece, start, overlap in zip(seen[1:], (32, 48), (32, 48), strict=True):
        assert bool(piece.known[:, :, :overlap, PRESENT].all()) and not bool(piece.known[:, :, overlap:].any())
        assert not bool(piece.known[..., ABSENT].any())
        assert torch.equal(piece.traffic[:, :, :overlap, PRESENT], draws[:, :, start : start + overlap, PRESENT])
        assert bool(piece.context["users"].isnan().all())


def test_a_place_without_any_history_is_continued_too(model: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(monkeypatch)
    assert bool(rollout(model, to_forecast(96, history=0), WINDOW, SAMPLER, draws=1).draws.isfinite().all())
    known = seen[1].known
    assert bool(known[:, :, :32].all()) and not bool(known[:, :, 32:].any())


def test_known_entries_after_the_first_window_are_kept_and_used(model: Forecaster) -> None:
    batch = to_forecast(112)
    known = batch.known.clone()
    known[:, :, 80:84] = batch.measured[:, :, 80:84]
    told = replace(batch, known=known)
    draws = rollout(model, told, WINDOW, SAMPLER, draws=2).draws
    where = known[:, None].expand_as(draws)
    assert torch.equal(draws[where], batch.traffic[:, None].expand_as(draws)[where])
    untold = rollout(model, batch, WINDOW, SAMPLER, draws=2).draws
    assert not torch.equal(draws[..., 84:, 0], untold[..., 84:, 0])


def test_a_very_long_rollout_does_not_explode(model: Forecaster) -> None:
    batch = to_forecast(WINDOW + 12 * 32, windows=2)
    forecast = rollout(model, batch, WINDOW, SAMPLER, draws=4).draws[..., PRESENT]
    assert bool(forecast.isfinite().all())
    seen = batch.traffic[:, :, :HISTORY].nan_to_num().amax(dim=(2, 3))[:, None, :]
    # A scale's ceiling is five times the largest value a window knows; without an anchor it could grow fivefold every half window.
    assert bool((forecast[..., -32:, :].mean(dim=(3, 4)) <= 5 * seen).all())


def test_a_window_of_one_slot_is_refused(model: Forecaster) -> None:
    with pytest.raises(ValueError, match="window: 1, expected at least 2 slots"):
        rollout(model, to_forecast(48), 1)


def test_half_a_window_is_the_default_hop(model: Forecaster) -> None:
    batch = to_forecast(112, windows=1)
    ours, theirs = (rollout(model, batch, WINDOW, SAMPLER, draws=1, hop=hop).draws for hop in (None, WINDOW // 2))
    assert torch.equal(ours.nan_to_num(-1), theirs.nan_to_num(-1))


def test_a_hop_of_one_slot_feeds_every_draw_back_before_the_next(model: Forecaster, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step ahead: every window hides its last slot alone, and knows all earlier ones as this very draw has them."""
    window, steps = 20, 3
    seen = watched(monkeypatch)
    batch = to_forecast(window - 1 + steps, windows=2, history=window - 1)
    draws = rollout(model, batch, window, SAMPLER, draws=2, hop=1).draws.flatten(0, 1)
    assert [tuple(each.shape) for each in seen] == [(2, 1, window, 16), *[(4, 1, window, 16)] * (steps - 1)]
    for start, piece in enumerate(seen):
        assert bool(piece.known[:, :, :-1, PRESENT].all()) and not bool(piece.known[:, :, -1].any())
        assert torch.equal(piece.clock, batch.clock[:, start : start + window].repeat_interleave(len(piece.key) // 2, dim=0))
        if start:
            assert torch.equal(piece.traffic[:, :, :-1, PRESENT], draws[:, :, start : start + window - 1, PRESENT])


@pytest.mark.parametrize("hop", [0, -1, WINDOW])
def test_a_hop_that_goes_nowhere_or_too_far_is_refused(model: Forecaster, hop: int) -> None:
    with pytest.raises(ValueError, match=f"hop: {hop}, expected at least 1 slot and less than the window's 64"):
        rollout(model, to_forecast(48), WINDOW, hop=hop)
