"""The generators: each learns a toy law, says the same for the same seed, and never looks at the traffic it is asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from raytraffic.baselines.generators import Fitting, Generator, fit_diffwave, fit_resampling, fit_tcn_gan, fit_vae
from raytraffic.baselines.generators.rows import Rows, RowScale
from raytraffic.types import TrafficBatch

STATIONS, WEEK = 4, 168


def toy_weeks(weeks: int, seed: int = 0) -> TrafficBatch:
    """Stations of two kinds that their POI tell: by day and large, or by night and small; log-normal about that."""
    generator = torch.Generator().manual_seed(seed)
    slot = torch.arange(WEEK)
    large = torch.arange(STATIONS) % 2 == 0
    rhythm = torch.sin(2 * math.pi * slot / 24)[:, None] * torch.where(large, 1.0, -1.0)
    level = torch.where(large, 100.0, 10.0)
    noise = 0.2 * torch.randn(weeks, WEEK, STATIONS, generator=generator)
    traffic = (level * (1.5 + rhythm) * torch.exp(noise))[:, None]
    return TrafficBatch(
        traffic=traffic,
        known=torch.isfinite(traffic),
        clock=torch.stack((slot % 24, slot // 24), dim=-1).expand(weeks, -1, -1),
        step_minutes=torch.full((weeks,), 60),
        key=torch.arange(weeks) * 31 + seed,
        context={"poi": torch.stack((large * 20.0, ~large * 20.0)).expand(weeks, -1, -1)},
    )


def truth(station: int) -> Tensor:
    """(t,) median traffic of a station."""
    sign, level = (1, 100.0) if station % 2 == 0 else (-1, 10.0)
    return level * (1.5 + sign * torch.sin(2 * math.pi * torch.arange(WEEK) / 24))


TRAIN = toy_weeks(8)
FITTING = Fitting(steps=150, rows=12, hidden=16, learning_rate=5e-3)
FITS: dict[str, Callable[[Sequence[TrafficBatch]], Generator]] = {
    "vae": lambda batches: fit_vae(batches, replace(FITTING, steps=400)),
    "diffwave": lambda batches: fit_diffwave(batches, FITTING),
    "tcn_gan": lambda batches: fit_tcn_gan(batches, replace(FITTING, steps=400, learning_rate=3e-3, seed=1)),
    "resampling": fit_resampling,
}


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow if name == "tcn_gan" else ()) for name in FITS])
def generator(request: pytest.FixtureRequest) -> Generator:
    return FITS[request.param]([TRAIN])


def test_learns_level_rhythm_and_what_poi_say(generator: Generator) -> None:
    made = generator.generate(toy_weeks(2, seed=9), 8, 0)
    assert made.shape == (2, 8, 1, WEEK, STATIONS) and bool((made >= 0).all())
    for station in (0, 1):
        median = made[:, :, 0, :, station].flatten(0, 1).median(dim=0).values
        # The two stations lie 2.3 apart in the logarithm; a GAN of 400 steps is 0.6 off, more or less by the order of its sums.
        assert float(((median + 1).log() - (truth(station) + 1).log()).abs().mean()) < 1.0
        assert float(torch.corrcoef(torch.stack((median, truth(station))))[0, 1]) > 0.9


def test_draws_differ_as_the_law_does(generator: Generator) -> None:
    made = generator.generate(toy_weeks(1, seed=9), 32, 0)[0, :, 0, :, 0]
    spread = made.clamp(min=1e-3).log().std(dim=0).median()
    assert 0.05 < float(spread) < 0.6  # 0.2 of the law


def test_same_seed_same_traffic_whatever_is_beside_it(generator: Generator) -> None:
    batch = toy_weeks(4, seed=5)
    made = generator.generate(batch, 3, 7)
    assert torch.equal(made, generator.generate(batch, 3, 7))
    assert not torch.equal(made, generator.generate(batch, 3, 8))
    alone = generator.generate(batch.select(torch.tensor([2])), 2, 7)
    assert torch.allclose(alone, made[[2]][:, :2], rtol=1e-3, atol=1e-3)


def test_traffic_of_the_windows_asked_for_is_never_looked_at(generator: Generator) -> None:
    batch = toy_weeks(2, seed=5)
    changed = replace(batch, traffic=torch.full_like(batch.traffic, torch.nan), known=torch.zeros_like(batch.known))
    assert torch.equal(generator.generate(batch, 2, 1), generator.generate(changed, 2, 1))


def test_fitting_is_deterministic() -> None:
    short = replace(FITTING, steps=5)
    for fit in (fit_vae, fit_diffwave, fit_tcn_gan):
        first, second = (fit([TRAIN], short).generate(toy_weeks(1), 1, 0) for _ in range(2))
        assert torch.equal(first, second)


def begun_at(batch: TrafficBatch, slots: Sequence[int]) -> TrafficBatch:
    """The same weeks, each begun at a slot of the week of its own."""
    turned = {
        name: torch.stack([x.roll(-slot, dims=dim) for x, slot in zip(value, slots, strict=True)])
        for name, value, dim in (("traffic", batch.traffic, 1), ("known", batch.known, 1), ("clock", batch.clock, 0))
    }
    return replace(batch, **turned)


def test_resampling_gives_whole_real_weeks_of_the_nearest_station_turned_to_the_clock() -> None:
    resampling = fit_resampling([begun_at(TRAIN, [0, 5, 30, 90, 100, 120, 150, 167])])
    batch = toy_weeks(2, seed=3)
    later = begun_at(replace(batch, context={"poi": batch.context["poi"] + 1}), [0, 30])
    made, turned = resampling.generate(batch, 20, 0)[:, :, 0], resampling.generate(later, 20, 0)[:, :, 0]
    for station in range(STATIONS):
        real = TRAIN.traffic[:, 0, :, station % 2 :: 2].transpose(1, 2).flatten(0, 1)
        for course in made[..., station].flatten(0, 1):
            assert bool((real == course).all(dim=1).any())
    assert torch.equal(turned[0], made[0]) and torch.equal(turned[1].roll(30, dims=1), made[1])
    different = {tuple(course.tolist()) for course in made[0, :, :, 0]}
    assert len(different) > 8, "any of the 16 weeks of that kind"


def test_rows_that_were_not_measured_throughout_are_not_learned_from() -> None:
    holes = TRAIN.traffic.clone()
    holes[0, 0, 5, 2] = torch.nan
    holes[..., 3] = torch.nan
    batch = replace(TRAIN, traffic=holes, known=torch.isfinite(holes))
    scale = RowScale.of([batch])
    assert len(Rows.of([batch], scale).z) == 8 * 3 - 1
    with pytest.raises(ValueError, match="no station-window that was measured throughout"):
        Rows.of([replace(batch, traffic=torch.where(torch.arange(WEEK)[:, None] == 3, torch.nan, holes))], scale)
    with pytest.raises(ValueError, match="a service without traffic above zero"):
        RowScale.of([replace(TRAIN, traffic=0 * TRAIN.traffic)])


def test_scale_is_inverted_exactly() -> None:
    scale = RowScale.of([TRAIN])
    traffic = TRAIN.traffic.permute(0, 3, 1, 2)
    assert torch.allclose(scale.invert(scale.apply(traffic)), traffic, rtol=1e-4)
    z = scale.apply(traffic)
    assert float(z.mean()) == pytest.approx(0, abs=1e-3) and float(z.std()) == pytest.approx(1, abs=1e-2)


def test_refuses() -> None:
    short = replace(TRAIN, traffic=TRAIN.traffic[:, :, :24], known=TRAIN.known[:, :, :24], clock=TRAIN.clock[:, :24])
    with pytest.raises(ValueError, match="windows of 24 slots, expected a whole week"):
        fit_resampling([short])
    with pytest.raises(ValueError, match="windows of 24 slots, expected whole weeks of 168"):
        fit_resampling([TRAIN]).generate(short, 1, 0)
    with pytest.raises(ValueError, match="minutes: 0, expected a time > 0"):
        Fitting(minutes=0)
    with pytest.raises(ValueError, match="draws: 0, expected at least 1"):
        fit_vae([TRAIN], replace(FITTING, steps=1)).generate(TRAIN, 0, 0)
