"""Context-aware fine-tuning: what is exchanged, what the negative pairs may do to the loss, what learns, and that it aligns."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from raytraffic.diffusion.samplers import Sampler
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster, ForecasterConfig
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, Task, mask, mixture
from raytraffic.models.uomo import AlignedForecaster, Alignment, UomoConfig, add_contexts, align, build, freeze, preset
from raytraffic.models.uomo.alignment import exchanged
from raytraffic.types import Space, TrafficBatch
from tests.batches import seasonal_batch

TASKS = [SHORT, LONG, GENERATION, RANDOM]
BARE = replace(preset("tiny"), contexts=(), poi_categories=())
POI = preset("tiny").poi_categories


def moved(config: UomoConfig) -> Forecaster:
    """A model whose every parameter is off its initial value."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


class Stub(nn.Module):
    """Errors given by two parameters: (b,) of the windows with their own users, and of those with others'."""

    def __init__(self, positive: Tensor, negative: Tensor, batch: TrafficBatch) -> None:
        super().__init__()
        self.positive, self.negative = nn.Parameter(positive.clone()), nn.Parameter(negative.clone())
        self.users = batch.context["users"]
        self.asked = 0

    def objective(self, batch: TrafficBatch, seeds: Tensor) -> Tensor:
        self.asked += 1
        own = torch.equal(batch.context["users"].nan_to_num(-1), self.users.nan_to_num(-1))
        return self.positive if own else self.negative


def aligned(positive: list[float], negative: list[float], alignment: Alignment) -> tuple[Stub, dict[str, Tensor]]:
    """A stub and the figures of its step."""
    batch = seasonal_batch(len(positive), t=8)
    stub = Stub(torch.tensor(positive), torch.tensor(negative), batch)
    return stub, AlignedForecaster(stub, alignment)(batch, batch.key)  # type: ignore[arg-type]


@pytest.mark.parametrize("shift", [1, 2])
def test_a_negative_pair_has_another_window_s_users_and_poi_and_nothing_else(shift: int) -> None:
    batch = mask(seasonal_batch(5), SHORT)
    batch = replace(batch, context={**batch.context, "env": torch.rand(5, 1, 16, 8)})
    other = exchanged(batch, shift)
    for i in range(5):
        for name in ("users", "poi", "env"):
            assert torch.equal(other.context[name][i].nan_to_num(-1), batch.context[name][(i - shift) % 5].nan_to_num(-1))
        for name in ("profile", "reference"):
            assert torch.equal(other.context[name][i], batch.context[name][i])
    for name in ("traffic", "known", "clock", "step_minutes", "key", "space"):
        assert getattr(other, name) is getattr(batch, name)


def test_a_ruined_negative_pair_earns_nothing() -> None:
    """Over the cap (twice the positive error) more error of a negative pair changes neither the loss nor a gradient."""
    alignment = Alignment(contrast=0.1, negatives=1, margin=2.0)
    stub, figures = aligned([1.0, 3.0], [1e6, 5.0], alignment)
    weight = 0.1 * math.log(2)
    assert figures["loss"].item() == pytest.approx(2.0 - weight * (2.0 + 5.0) / 2)
    assert figures["negative"].tolist() == [2.0, 5.0] and figures["each"].tolist() == [1.0, 3.0]
    figures["loss"].backward()
    assert stub.negative.grad is not None and stub.positive.grad is not None
    assert stub.negative.grad.tolist() == pytest.approx([0.0, -weight / 2])
    # Nor does a worse positive pair, though it lifts the cap.
    assert stub.positive.grad.tolist() == [0.5, 0.5]


@given(
    pairs=st.lists(st.tuples(st.floats(0, 1e3), st.floats(0, 1e6)), min_size=2, max_size=6),
    contrast=st.floats(0, 2),
    negatives=st.integers(1, 7),
    margin=st.floats(1.01, 5),
)
def test_the_loss_is_bounded_by_the_positive_pairs(
    pairs: list[tuple[float, float]], contrast: float, negatives: int, margin: float
) -> None:
    """Each of n negatives counts at most margin p, so L = mean(p) - contrast log(n + 1) mean(negative), with negative in [0, margin p],
    lies in [mean(p) (1 - contrast margin log(n + 1)), mean(p)]; a batch of b windows has no more than b - 1 negatives."""
    positive, negative = (list(values) for values in zip(*pairs, strict=True))
    stub, figures = aligned(positive, negative, Alignment(contrast, negatives, margin))
    n = min(negatives, len(pairs) - 1)
    mean, slack = sum(positive) / len(positive), 1e-4 * (1 + sum(positive))
    assert mean * (1 - contrast * margin * math.log(n + 1)) - slack <= figures["loss"].item() <= mean + slack
    assert stub.asked == (1 + n if contrast else 1)


def test_without_contrast_it_is_the_plain_objective() -> None:
    forecaster = moved(preset("tiny"))
    batch, seeds = mixture(seasonal_batch(6), TASKS, [1.0] * 4), torch.arange(6)
    plain, ours = forecaster(batch, seeds), align(forecaster, 0.0, 1)(batch, seeds)
    assert torch.equal(plain["loss"], ours["loss"]) and torch.equal(plain["each"], ours["each"])
    assert not bool(ours["negative"].any())
    assert not torch.equal(align(forecaster, 0.1, 1)(batch, seeds)["loss"], plain["loss"])


def test_where_nothing_can_be_exchanged_it_is_the_plain_objective() -> None:
    forecaster = moved(preset("tiny"))
    batch, seeds = mask(seasonal_batch(3), SHORT), torch.arange(3)
    alone = batch.select(torch.tensor([1]))
    without = replace(batch, context={name: batch.context[name] for name in ("profile", "reference")})
    for some, some_seeds in ((alone, seeds[1:2]), (without, seeds)):
        assert torch.equal(align(forecaster, 0.5, 2)(some, some_seeds)["loss"], forecaster(some, some_seeds)["loss"])


def test_validation_has_no_negative_pairs() -> None:
    objective = align(moved(preset("tiny")), 0.5, 2).eval()
    batch, seeds = mask(seasonal_batch(3), SHORT), torch.arange(3)
    assert torch.equal(objective(batch, seeds)["loss"], objective.forecaster(batch, seeds)["loss"])


@pytest.mark.parametrize("wrong", [{"contrast": -0.1}, {"negatives": 0}, {"margin": 1.0}])
def test_wrong_alignments_are_named(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"alignment: .*, expected contrast >= 0, negatives >= 1, margin > 1"):
        Alignment(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_added_contexts_change_no_bit_of_a_forecast(task: Task) -> None:
    before = moved(BARE)
    after, config = add_contexts(before, BARE, ("users", "poi"), POI)
    assert set(config.contexts) == {"users", "poi"} and config.poi_categories == POI
    batch, sampler = mask(seasonal_batch(), task), Sampler("dpm++", 3)
    ours, theirs = (model.eval().forecast(batch, sampler, draws=2, seed=3).draws.nan_to_num(-1) for model in (before, after))
    assert torch.equal(ours, theirs)
    new = set(after.state_dict()) - set(before.state_dict())
    assert all(torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items())
    with torch.no_grad():
        for name, parameter in after.named_parameters():
            if name in new:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    for context in ("users", "poi"):
        other = replace(batch, context={**batch.context, context: 2 * batch.context[context].flip(-1)})
        here, there = (after.forecast(b, sampler, draws=1).draws.nan_to_num(-1) for b in (batch, other))
        assert not torch.equal(here, there), f"once trained, {context} matter"


def test_contexts_it_has_are_not_added_again() -> None:
    model, config = moved(preset("tiny")), preset("tiny")
    assert add_contexts(model, config, ("users",), ("a", "b")) == (model, config)
    some = replace(BARE, contexts=("poi",), poi_categories=("a", "b", "c"))
    wider = add_contexts(moved(some), some, ("users", "poi"), ("other",))[1]
    assert wider.contexts == ("poi", "users") and wider.poi_categories == ("a", "b", "c"), "a model's POI are its own"


def learning(model: Forecaster) -> set[str]:
    """Names of the trainable parameters."""
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def is_conditioning(name: str) -> bool:
    """Whether a parameter belongs to adaptive conditioning, an output layer or a context layer, by its name in UoMo."""
    layers = ("adaln", "output.out", "entries.layers.5", "entries.poi", "users_token", "poi_token", "poi_static", "poi_dynamic")
    return any(f".{layer}." in name for layer in layers)


@pytest.mark.parametrize("config", [preset("tiny"), replace(preset("tiny"), entries=0), BARE], ids=["tiny", "no entries", "no contexts"])
def test_frozen_is_everything_but_conditioning_output_and_context(config: UomoConfig) -> None:
    model = moved(config)
    names = {name for name, _ in model.named_parameters()}
    freeze(model)
    assert learning(model) == {name for name in names if is_conditioning(name)}
    assert sum(".adaln." in name for name in learning(model)) == 2 * (config.depth + 1)
    frozen = names - learning(model)
    assert {"attention", "mlp", "field_token", "clock"} <= {part for name in frozen for part in name.split(".")}


def test_a_fine_tuning_step_moves_what_is_not_frozen_and_nothing_else() -> None:
    model = moved(preset("tiny")).train()
    freeze(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settings = Optimisation(learning_rate=1e-2, warmup=0, steps=10)
    adam = optimiser(model, settings)
    step(align(model, 0.05, 2), mixture(seasonal_batch(12), TASKS, [1.0] * 4), torch.arange(12), adam, 0, settings)
    still = {name for name, value in model.state_dict().items() if torch.equal(value, before[name])}
    assert still == set(before) - learning(model)


SLOTS, KNOWN = 4, 2


def told_by_users(windows: int, seed: int) -> tuple[TrafficBatch, Tensor]:
    """Level traffic of which each cell's hidden half lies 35 % higher or lower by the toss of a coin; its known users say which."""
    generator = torch.Generator().manual_seed(seed)
    sign = 2.0 * torch.randint(0, 2, (windows, 1, 16), generator=generator) - 1
    later = (torch.arange(SLOTS) >= KNOWN)[:, None]
    noise = torch.exp(0.02 * torch.randn(windows, SLOTS, 16, generator=generator))
    traffic = (50 * noise * torch.exp(0.3 * sign * later))[:, None]
    users = torch.where(later, torch.nan, 10 * 2 ** (sign * torch.arange(SLOTS)[:, None]))
    batch = TrafficBatch(
        traffic=traffic,
        known=~later.expand(traffic.shape),
        clock=torch.zeros(windows, SLOTS, 2, dtype=torch.int64),
        step_minutes=torch.full((windows,), 60),
        key=torch.arange(windows) + 1000 * seed,
        space=Space(grid=(4, 4)),
        context={"users": users},
    )
    return batch, batch.key


def test_alignment_learns_that_users_tell_the_traffic() -> None:
    """With a window's own users only noise is unknown; with another's half of the cells are expected on the wrong side. Without looking
    at users both errors would be the same."""
    torch.manual_seed(0)
    settings = Optimisation(learning_rate=5e-3, warmup=5, steps=400)
    model = build(UomoConfig(depth=1, hidden=64, heads=2, contexts=("users",), forecaster=ForecasterConfig(prediction="sample")))
    objective, adam = align(model, 0.05, 1), optimiser(model, settings)
    for done in range(settings.steps):
        step(objective, *told_by_users(32, seed=done), adam, done, settings)
    fresh, seeds = told_by_users(64, seed=settings.steps)
    with torch.no_grad():
        positive, negative = (float(model.objective(batch, seeds).mean()) for batch in (fresh, exchanged(fresh, 1)))
    assert positive < 0.5 * negative
