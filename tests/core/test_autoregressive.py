"""The autoregressive forecaster: what a slot may know, teacher forcing and sampling against loops by hand, and what draws share."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from raytraffic.autoregressive import AutoregressiveForecaster, asked, first_asked, heard
from raytraffic.diffusion.noise import Noise
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import LEVEL_STREAM, NOISE_STREAM, ForecasterConfig
from raytraffic.masks import GENERATION, HORIZON, RANDOM, SHORT, mask
from raytraffic.models.lec_diff import build, preset
from raytraffic.models.lec_diff.recurrence import lagged
from raytraffic.randomness import derive, normal, uniform
from raytraffic.types import TrafficBatch
from tests.batches import ABSENT, DEAD, seasonal_batch

SAMPLER = Sampler("dpm++", 3, rows=8)


@pytest.fixture(scope="module", params=["gru", "lstm"])
def model(request: pytest.FixtureRequest) -> AutoregressiveForecaster:
    """A small model of two layers with every parameter off its initial value."""
    torch.manual_seed(0)
    built = build(replace(preset("tiny"), hidden=8, blocks=1, layers=2, cell=request.param)).eval()
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return built


def windows(count: int = 2) -> TrafficBatch:
    """Windows of an hour a slot, so that yesterday lies within, and of 15 minutes; ABSENT has no place, so histories are remembered."""
    batch = everywhere(count)
    xy = batch.space.xy.clone()
    xy[:, ABSENT] = math.nan
    return replace(batch, space=replace(batch.space, xy=xy))


def everywhere(count: int = 2) -> TrafficBatch:
    """The same with a place for ABSENT, which then is drawn from the first slot on."""
    return seasonal_batch(count, steps=(60, 15), t=48)


def told(model: AutoregressiveForecaster, batch: TrafficBatch, values: Tensor, present: Tensor) -> Tensor:
    """(b, d, t, s): what the denoiser is told at every slot when values were as given."""
    visible = model.embed(batch.visible())
    carried = model.conditioner.begin(visible, model.conditioner(visible, model.scaling.fit(batch)))
    return model.conditioner.teach(carried, values, present).field.unflatten(0, batch.traffic.shape[::2]).squeeze(3).movedim(1, 2)


@torch.no_grad()
@pytest.mark.parametrize("slot", [0, 1, 25, 47])
def test_a_slot_hears_nothing_of_itself_and_what_comes_after(model: AutoregressiveForecaster, slot: int) -> None:
    batch = mask(windows(), SHORT)
    values, present = heard(batch, batch.measured, model.scaling.fit(batch))
    other, there = values.clone(), present.clone()
    other[:, :, slot:] = 3 - other[:, :, slot:]
    there[:, :, slot:] = ~there[:, :, slot:]
    ours, theirs = told(model, batch, values, present), told(model, batch, other, there)
    assert torch.equal(ours[:, :, : slot + 1], theirs[:, :, : slot + 1])
    assert slot == 47 or not torch.equal(ours[:, :, slot + 1], theirs[:, :, slot + 1])


@torch.no_grad()
def test_a_slot_hears_the_slot_before_yesterday_and_last_week() -> None:
    t = 9 * 24
    values, present = torch.zeros(1, 1, t, 1), torch.ones(1, 1, t, 1, dtype=torch.bool)
    values[0, 0, 5] = 2.0
    found = lagged(values, present, torch.tensor([60]), torch.arange(t))[0, :, 0]
    assert [(int(slot), int(lag)) for slot, lag in (found[:, ::2] == 2).nonzero()] == [(6, 0), (29, 1), (173, 2)]
    assert [int(found[:, 2 * lag + 1].sum()) for lag in range(3)] == [t - 1, t - 24, t - 168]


@torch.no_grad()
def test_stepping_tells_what_teaching_tells(model: AutoregressiveForecaster) -> None:
    batch = mask(windows(), SHORT)
    scale = model.scaling.fit(batch)
    values, present = heard(batch, batch.measured, scale)
    visible = model.embed(batch.visible())
    carried = model.conditioner.begin(visible, model.conditioner(visible, scale))
    expected = told(model, batch, values, present)
    for slot in range(batch.shape[2]):
        found, state = model.conditioner.step(carried, values, present, slot)
        assert torch.allclose(found.field[:, :, 0], expected[:, :, slot], atol=1e-5)
        carried = replace(carried, state=state)


@torch.no_grad()
@pytest.mark.parametrize("task", [SHORT, RANDOM, GENERATION], ids=lambda task: task.name)
def test_a_forecast_is_the_loop_written_out(model: AutoregressiveForecaster, task: object) -> None:
    """Slot by slot: teach the whole window anew with all that was drawn so far, run the sampler by hand, write the draw into the window."""
    batch = mask(windows(2), task)  # type: ignore[arg-type]
    draws = model.forecast(batch, SAMPLER, draws=1, seed=4).draws[:, 0]
    scale = model.scaling.fit(batch)
    seeds = derive(derive(batch.key, 4), 0)
    traffic, there, wanted = batch.visible().traffic, batch.known.clone(), asked(batch, scale)
    schedule = model.process.schedule
    for slot in range(batch.shape[2]):
        values, present = heard(replace(batch, traffic=traffic), there, scale)
        condition = told(model, batch, values, present)[:, :, slot : slot + 1]
        visible = model.embed(batch.visible())
        full = replace(model.conditioner(visible, scale), field=condition)

        def estimate(x: Tensor, k: int, full: object = full) -> Tensor:
            level = torch.full((2,), (k + 1) / schedule.steps)
            return model.process.to_sample(model.denoiser(x, level, full), x, torch.full((2,), k))

        z = SAMPLER.run(estimate, lambda i, slot=slot: normal(derive(seeds, slot), NOISE_STREAM + i, (1, 1, 16)), schedule)
        drawn = replace(scale, prior=scale.prior[:, :, slot : slot + 1]).invert(z)
        at = wanted[:, :, slot : slot + 1]
        traffic[:, :, slot : slot + 1] = torch.where(at, drawn, traffic[:, :, slot : slot + 1])
        there[:, :, slot : slot + 1] |= at
    torch.testing.assert_close(draws[wanted], traffic[wanted], rtol=2e-3, atol=1e-3)


@torch.no_grad()
def test_the_objective_written_out(model: AutoregressiveForecaster) -> None:
    """Mean over scored entries, each slot at its own level; dead cells and entries that nobody measured are not scored."""
    batch = mask(windows(2), RANDOM)
    seeds = torch.tensor([5, 6])
    scale = model.scaling.fit(batch)
    values, present = heard(batch, batch.measured, scale)
    rows = told(model, batch, values, present)
    eps = normal(seeds, NOISE_STREAM, batch.shape[1:])
    k = (uniform(seeds, LEVEL_STREAM, (batch.shape[2],)) * 1000).long()
    assert len(k.unique()) > 50
    x = scale.apply(batch.traffic)
    for i in range(2):
        errors = []
        for slot in range(batch.shape[2]):
            level = k[i, slot : slot + 1]
            noisy, target = (
                f(x[i, :, slot][None, :, None], eps[i, :, slot][None, :, None], level) for f in (model.process.noised, model.process.target)
            )
            condition = replace(model.conditioner(model.embed(batch.visible()), scale), field=rows[i, :, slot][None, :, None])
            square = (model.denoiser(noisy, model.process.schedule.level(level), condition) - target) ** 2
            errors += square[0, 0, 0, [s for s in range(16) if s not in (DEAD, ABSENT) and not batch.known[i, 0, slot, s]]].tolist()
        assert float(model.objective(batch, seeds)[i]) == pytest.approx(sum(errors) / len(errors), rel=1e-4)


def test_windows_that_begin_at_different_slots_are_the_same_alone(model: AutoregressiveForecaster) -> None:
    batch = mask(windows(6), HORIZON)
    assert len(first_asked(batch, model.scaling.fit(batch)).unique()) > 2
    together = model.forecast(batch, SAMPLER, draws=3, seed=2).draws.nan_to_num()
    for i in range(6):
        assert torch.equal(model.forecast(batch.select(torch.tensor([i])), SAMPLER, draws=2, seed=2).draws.nan_to_num()[0], together[i, :2])


def test_draws_begin_where_something_is_asked_for() -> None:
    """A place that is NaN beside others fills up a group: it is not drawn, and does not send the draw back to the first slot."""
    batch = mask(everywhere(), SHORT)
    scale = preset("tiny").forecaster.scaling.fit(batch)
    t = batch.shape[2]
    assert first_asked(batch, scale).tolist() == [0, 0]  # ABSENT is never known, and might be a station to answer for
    xy = batch.space.xy.clone()
    xy[:, ABSENT] = math.nan
    filled = replace(batch, space=replace(batch.space, xy=xy))
    assert first_asked(filled, scale).tolist() == [t - t // 4] * 2
    assert not asked(filled, scale)[..., [DEAD, ABSENT]].any() and asked(filled, scale)[..., -t // 4 :, 0].all()
    nowhere = replace(batch, space=replace(batch.space, xy=torch.full_like(xy, math.nan)))
    assert torch.equal(asked(nowhere, scale), asked(batch, scale))
    everything = replace(batch, known=torch.ones_like(batch.known))
    assert first_asked(everything, scale).tolist() == [t, t]


def test_draws_hear_their_own_past(model: AutoregressiveForecaster) -> None:
    """With a first slot that is drawn elsewhere, what follows differs; slots before it do not."""

    @dataclass(frozen=True)
    class Pushed(Noise):
        """White noise with one slot, the first that is drawn, pushed up."""

        def draw(self, batch: TrafficBatch, seeds: Tensor, stream: int) -> Tensor:
            pushed = batch.clock[:, 0, 0] == first
            return super().draw(batch, seeds, stream) + 3.0 * pushed[:, None, None, None]

    batch = mask(windows(1), SHORT)
    t = batch.shape[2]
    first = int(batch.clock[0, t - t // 4, 0])
    plain = model.forecast(batch, SAMPLER, draws=2).draws
    config = model.config
    try:
        model.config = replace(config, noise=Pushed())
        pushed = model.forecast(batch, SAMPLER, draws=2).draws
    finally:
        model.config = config
    differs = (plain != pushed)[:, :, :, :, 0].any(dim=(0, 1, 2)).tolist()
    # Later on what is left of the push may round to nothing.
    assert differs[: t - t // 4 + 4] == [False] * (t - t // 4) + [True] * 4


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (ForecasterConfig(noise=Noise(hours=2.0)), r"noise: Noise\(hours=2.0, share=0.0\), expected white noise"),
        (ForecasterConfig(noise=Noise(share=0.5)), r"noise: Noise\(hours=0.0, share=0.5\), expected white noise"),
        (ForecasterConfig(cosine_weight=0.1), r"cosine_weight: 0.1, expected 0"),
    ],
)
def test_what_slots_cannot_have_together_is_refused(config: ForecasterConfig, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(replace(preset("tiny"), forecaster=config))
