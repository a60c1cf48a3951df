"""What every model must pass in every mode (DESIGN: "What every model must pass"): its `tiny` preset, and the paper's letter as small.

The faithful mode has one scale a city, no prior and no learned marginals, so some promises differ there; each test says which.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from raytraffic import registry
from raytraffic.diffusion.samplers import Sampler
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, Task, mask, mixture
from raytraffic.models import lec_diff, lsdm, stouter, uomo
from raytraffic.nn.transformer import AdaLNBlock, AdaLNOutput, ZeroLinear
from tests.batches import ABSENT, DEAD, seasonal_batch

TASKS = [SHORT, LONG, GENERATION, RANDOM]
#: Model and configuration of every mode: each model's own way, and its paper's: one global scale, a linear schedule.
MODES: dict[str, tuple[str, Any]] = {
    **{f"{name}-tiny": (name, registry.model(name).preset("tiny")) for name in sorted(registry.MODELS)},
    "uomo-faithful": ("uomo", replace(registry.model("uomo").preset("faithful"), depth=2, hidden=32, heads=2, token=(4, 4, 4))),
    "lsdm-faithful": ("lsdm", replace(lsdm.preset("tiny"), intermittent=False, forecaster=lsdm.preset("faithful").forecaster)),
    "stouter-paper": ("stouter", replace(stouter.preset("paper"), channels=(16, 32), embedding=8, hidden=32, blocks=1)),
    "lec_diff-faithful": ("lec_diff", replace(lec_diff.preset("tiny"), forecaster=lec_diff.preset("faithful").forecaster)),
}


#: The papers' letter of the other models: minutes in all, for `make test-all`.
SLOW = {"lsdm-faithful", "stouter-paper", "lec_diff-faithful"}


@pytest.fixture(params=[pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in MODES])
def built(request: pytest.FixtureRequest) -> Forecaster:
    """A model as constructed."""
    name, config = MODES[request.param]
    torch.manual_seed(0)
    return registry.model(name).build(config).eval()


def is_global(model: Forecaster) -> bool:
    """Whether the model scales by its city's reference alone (the faithful mode)."""
    return model.scaling.kind == "global"


def sampler_of(model: Forecaster, steps: int = 4) -> Sampler:
    """The model's own sampler in a few steps."""
    return replace(model.config.sampler, steps=steps)


@pytest.fixture
def model(built: Forecaster) -> Forecaster:
    """The model with every parameter moved off its initial value, so that nothing is hidden behind a zero output."""
    with torch.no_grad():
        for i, parameter in enumerate(built.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return built


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_shapes_dtypes_and_finite_gradients(built: Forecaster, task: Task) -> None:
    batch = mask(seasonal_batch(), task)
    losses = built(batch, torch.arange(4))
    assert losses["loss"].shape == () and losses["loss"].dtype == torch.float32
    forecast = built.forecast(batch, sampler_of(built), draws=3)
    assert forecast.draws.shape == (4, 3, *batch.shape[1:]) and forecast.draws.dtype == torch.float32


def test_every_parameter_gets_a_finite_gradient(model: Forecaster) -> None:
    batch = mixture(seasonal_batch(12), TASKS, [1.0] * 4)
    model(batch, torch.arange(12))["loss"].backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None or not bool(gradient.any())] == []
    assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values() if gradient is not None)


def test_adaln_and_output_are_zero_at_construction(built: Forecaster) -> None:
    layers = [module for module in built.modules() if isinstance(module, ZeroLinear)]
    assert layers, "no layer that begins as nothing found"
    assert not any(isinstance(module, AdaLNBlock | AdaLNOutput) and not isinstance(module.adaln, ZeroLinear) for module in built.modules())
    assert all(not bool(layer.weight.any()) and not bool(layer.bias.any()) for layer in layers)


def test_untrained_forecast_is_prior_plus_noise(built: Forecaster) -> None:
    """On the known scale. The global scale has no prior: there an untrained forecast lies anywhere in [0, reference], and is noise that
    nothing but the reference moves."""
    batch = mask(seasonal_batch(), SHORT)
    scale = built.scaling.fit(batch)
    draws = built.forecast(batch, sampler_of(built, 10), draws=64).draws
    live = batch.hidden & ~scale.dead
    if is_global(built):
        hidden = draws.movedim(1, -1)[batch.hidden]
        reference = batch.context["reference"][:, :, None, None].expand_as(batch.traffic)[batch.hidden]
        assert bool((hidden >= 0).all()) and bool((hidden <= reference[:, None]).all())
        # Noise is symmetric about the middle; 64 draws of thousands of entries tell its mean to a thousandth.
        assert abs(float((hidden / reference[:, None]).mean()) - 0.5) < 0.01
        other = replace(batch, traffic=batch.traffic / 2)
        assert torch.equal(built.forecast(other, sampler_of(built, 10), draws=64).draws.movedim(1, -1)[batch.hidden], hidden)
        return
    z = scale.apply(draws.median(dim=1).values)
    assert float(z[live].abs().mean()) < 0.3
    assert float(z[live].abs().max()) < 1.5


def test_known_entries_come_back_bit_for_bit(model: Forecaster) -> None:
    batch = mask(seasonal_batch(), RANDOM)
    draws = model.forecast(batch, sampler_of(model), draws=3).draws
    known = batch.known[:, None].expand_as(draws)
    assert torch.equal(draws[known], batch.traffic[:, None].expand_as(draws)[known])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_hidden_values_cannot_leak(model: Forecaster, task: Task) -> None:
    batch = mask(seasonal_batch(), task)
    other = torch.where(batch.known, batch.traffic, batch.traffic * 3 + 100)
    users = torch.where(batch.known.any(dim=1), batch.context["users"], torch.full_like(batch.context["users"], 1e6))
    changed = replace(batch, traffic=other, context={**batch.context, "users": users})
    ours, theirs = (model.forecast(b, sampler_of(model), draws=2).draws for b in (batch, changed))
    measured = batch.measured[:, None].expand_as(ours)
    assert torch.equal(ours[measured], theirs[measured])


def test_dead_cells_are_exactly_zero_and_unlearned(model: Forecaster) -> None:
    """On the known scale. The global scale knows no dead cells: they are drawn in [0, reference] and learned from like all others."""
    batch = mask(seasonal_batch(), SHORT)
    draws = model.forecast(batch, sampler_of(model), draws=2).draws
    louder = batch.traffic.clone()
    louder[:, :, -16:, DEAD] = 1e6
    seeds = torch.arange(4)
    same = torch.equal(model(batch, seeds)["loss"], model(replace(batch, traffic=louder), seeds)["loss"])
    if is_global(model):
        drawn = draws[:, :, :, -16:, DEAD]
        assert bool(drawn.any()) and bool((drawn >= 0).all()) and not same
        assert bool((drawn <= batch.context["reference"][:, None, :, None]).all())
        return
    assert not bool(draws[:, :, :, -16:, DEAD].any())
    assert same


def test_absent_cells_are_never_known_or_scored(model: Forecaster) -> None:
    batch = mask(seasonal_batch(), LONG)
    assert not bool(batch.known[..., ABSENT].any()) and not bool(batch.hidden[..., ABSENT].any())
    draws = model.forecast(batch, sampler_of(model), draws=2).draws
    assert bool(torch.isfinite(draws[..., [i for i in range(16) if i != ABSENT]]).all())


@pytest.mark.parametrize("name", ["users", "poi", "env", "reference"])
def test_declared_contexts_matter_and_undeclared_do_not(model: Forecaster, name: str) -> None:
    """A model declares what its conditioner looks at; every scale looks at the reference, that of known entries for absent cells."""
    batch = mask(seasonal_batch(), SHORT)
    if name == "env":
        width = model.conditioner.env_features
        declared = width > 0
        changed = replace(batch, context={**batch.context, "env": torch.rand(4, 1, 16, width or 4)})
    else:
        declared = name in model.conditioner.contexts or name == "reference"
        changed = replace(batch, context={**batch.context, name: batch.context[name].flip(-1) * 2})
    ours, theirs = (model.forecast(b, sampler_of(model), draws=1).draws.nan_to_num() for b in (batch, changed))
    assert torch.equal(ours, theirs) != declared


def test_cities_without_context_are_answered(model: Forecaster) -> None:
    """The global scale wants to be told at least that the city's reference is unknown."""
    batch = replace(mask(seasonal_batch(), SHORT), context={})
    if is_global(model):
        with pytest.raises(ValueError, match=r"context: no 'reference', expected the city's upper reference level"):
            model.forecast(batch, sampler_of(model), draws=2)
        batch = replace(batch, context={"reference": torch.full((4, 1), torch.nan)})
    draws = model.forecast(batch, sampler_of(model), draws=2).draws
    assert bool(torch.isfinite(draws[..., 0]).all())


def test_a_single_station_without_a_grid(model: Forecaster) -> None:
    whole = mask(seasonal_batch(), SHORT)
    space = replace(whole.space, grid=None, xy=None)
    context = {"users": whole.context["users"][..., :1], "poi": whole.context["poi"][..., :1]}
    context |= {"reference": torch.full((4, 1), torch.nan)} if is_global(model) else {}
    station = replace(whole, traffic=whole.traffic[..., :1], known=whole.known[..., :1], space=space, context=context)
    draws = model.forecast(station, sampler_of(model), draws=2).draws
    assert draws.shape == (4, 2, 1, 64, 1) and bool(torch.isfinite(draws).all())


def test_same_seed_same_result_alone_or_in_any_batch(model: Forecaster) -> None:
    batch = mask(seasonal_batch(6), LONG)
    together = model.forecast(batch, sampler_of(model), draws=3, seed=5).draws
    assert torch.equal(together.nan_to_num(), model.forecast(batch, sampler_of(model), draws=3, seed=5).draws.nan_to_num())
    assert not torch.equal(together.nan_to_num(), model.forecast(batch, sampler_of(model), draws=3, seed=6).draws.nan_to_num())
    alone = model.forecast(batch.select(torch.tensor([4, 1])), sampler_of(model), draws=2, seed=5).draws
    assert torch.equal(alone.nan_to_num(-1), together[[4, 1]][:, :2].nan_to_num(-1))


def test_staged_equals_whole(model: Forecaster) -> None:
    batch = mask(seasonal_batch(), GENERATION)
    embedded = model.embed(batch)
    staged = model.draw(embedded, model.condition(embedded), sampler_of(model), 3, 7).draws
    assert torch.equal(staged.nan_to_num(), model.forecast(batch, sampler_of(model), draws=3, seed=7).draws.nan_to_num())


def test_guidance_weighs_context_against_its_absence(model: Forecaster) -> None:
    """Classifier-free guidance: 1 is the plain forecast, 0 that of a city without context, and what lies between is between."""
    batch = mask(seasonal_batch(), SHORT)
    plain = sampler_of(model)
    weighed = {w: model.draw(batch, model.condition(batch, guided=True), replace(plain, guidance=w), 2, 3).draws for w in (0.0, 1.0, 2.0)}
    assert torch.equal(weighed[1.0].nan_to_num(), model.forecast(batch, plain, draws=2, seed=3).draws.nan_to_num())
    assert not torch.equal(weighed[0.0].nan_to_num(), weighed[1.0].nan_to_num())
    assert not torch.equal(weighed[2.0].nan_to_num(), weighed[1.0].nan_to_num())
    assert torch.equal(
        model.forecast(batch, replace(plain, guidance=2.0), draws=2, seed=3).draws.nan_to_num(), weighed[2.0].nan_to_num()
    ), "forecast asks for the condition that guidance needs"
    with pytest.raises(ValueError, match=r"sampler.guidance: 2.0, expected 1 or a condition made with guided=True"):
        model.draw(batch, model.condition(batch), replace(plain, guidance=2.0), 1, 0)


def test_a_stopped_draw_ends_between_steps(model: Forecaster) -> None:
    batch = mask(seasonal_batch(), SHORT)
    asked: list[int] = []

    def stop() -> bool:
        asked.append(len(asked))
        return len(asked) > 2

    with pytest.raises(InterruptedError, match="between sampler steps"):
        model.draw(batch, model.condition(batch), sampler_of(model), 1, 0, stop)
    assert len(asked) == 3


@pytest.mark.parametrize(
    "built", [pytest.param(name, marks=pytest.mark.slow if name in {*SLOW, "lec_diff-tiny"} else ()) for name in MODES], indirect=True
)
def test_overfits_one_batch(built: Forecaster) -> None:
    batch = mixture(seasonal_batch(8), TASKS, [1.0] * 4)
    settings = Optimisation(learning_rate=3e-3, warmup=5, steps=150)
    adam = optimiser(built.train(), settings)
    seeds = torch.arange(8)  # the same noise every step: the batch must be learnt by heart
    losses = [step(built, batch, seeds, adam, done, settings)["loss"] for done in range(150)]
    assert losses[-1] < 0.35 * losses[0]


def test_expected_users_enter_where_they_are_declared_and_measured_ones_stay_hidden() -> None:
    """The caller's forecast of users (3.3.1): it moves the answer of a model that declares it, and no other's."""
    batch = mask(seasonal_batch(), SHORT)
    expected = replace(batch, context={**batch.context, "expected_users": 3 * batch.context["users"]})
    for contexts, told in ((("users",), False), (("users", "expected_users"), True)):
        model = uomo.build(replace(uomo.preset("tiny"), contexts=contexts))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
        model.eval()
        plain, with_them = (model.forecast(one, sampler_of(model), draws=2).draws.nan_to_num() for one in (batch, expected))
        assert torch.equal(plain, with_them) != told
    with pytest.raises(ValueError, match=r"contexts: \('expected_users',\), expected users where there are expected_users"):
        replace(uomo.preset("tiny"), contexts=("expected_users",))
