"""LSDM: users are independent, services meet in the second attention alone, the environment acts where it is, zeros are exactly zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raytraffic.config.conversion import from_json, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import LONG, NEXT, SHORT, mask
from raytraffic.models.lsdm import (
    PRESETS,
    IntermittentScaling,
    LsdmConfig,
    add_contexts,
    build,
    cost,
    freeze,
    preset,
)
from raytraffic.models.lsdm.patching import in_patches
from raytraffic.nn.transformer import AdaLNBlock
from raytraffic.nn.two_way import TwoWayBlock
from raytraffic.scaling import Scaling
from raytraffic.types import TrafficBatch

SAMPLER = Sampler("dpm++", 4, rows=8)
SMALL = replace(preset("tiny"), services=3, contexts=("env",), poi_categories=(), env_features=4, window=25, patch=1)


def usage(windows: int = 6, t: int = 25, users: int = 1, services: int = 3, seed: int = 0, active: float = 0.3) -> TrafficBatch:
    """Hours of some services of users who move between places, most of them exactly zero."""
    generator = torch.Generator().manual_seed(seed)
    shape = (windows, services, t, users)
    amount = torch.exp(2 * torch.randn(shape, generator=generator) + 12)
    traffic = amount * (torch.rand(shape, generator=generator) < active)
    hour = torch.arange(t) + torch.randint(0, 24, (windows, 1), generator=generator)
    return TrafficBatch(
        traffic=traffic,
        known=torch.ones(shape, dtype=torch.bool),
        clock=torch.stack((hour % 24, hour // 24 % 7), dim=-1),
        step_minutes=torch.full((windows,), 60),
        key=torch.arange(windows) * 104_729 + 3,
        context={
            "env": torch.randn(windows, t, users, 4, generator=generator),
            "reference": torch.full((windows, services), 1e7),
        },
    )


def awake(config: LsdmConfig) -> Forecaster:
    """A model with every parameter off its initial value, so that nothing is hidden behind a zero output."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def forecast(model: Forecaster, batch: TrafficBatch, draws: int = 2) -> torch.Tensor:
    return model.forecast(batch, SAMPLER, draws=draws).draws


# Users.


def test_permuting_users_permutes_their_forecasts() -> None:
    model, batch = awake(SMALL), mask(usage(), NEXT)
    order = torch.tensor([4, 0, 5, 2, 1, 3])
    assert torch.equal(forecast(model, batch.select(order)), forecast(model, batch)[order])


def test_users_of_one_window_are_independent_of_each_other() -> None:
    """The denoiser and its condition; the scale may lend a user without history the level of others."""
    model, batch = awake(SMALL), mask(usage(2, users=5), NEXT)
    x = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
    order = torch.tensor([3, 1, 4, 0, 2])

    def answer(batch: TrafficBatch, x: torch.Tensor) -> torch.Tensor:
        return model.denoiser(x, torch.full((2,), 0.5), model.condition(batch))

    env = batch.context["env"][:, :, order]
    permuted = replace(batch, traffic=batch.traffic[..., order], known=batch.known[..., order], context={**batch.context, "env": env})
    torch.testing.assert_close(answer(permuted, x[..., order]), answer(batch, x)[..., order], rtol=1e-4, atol=1e-5)
    louder = batch.traffic.clone()
    louder[..., 0] *= 7
    changed = answer(replace(batch, traffic=louder), x)
    torch.testing.assert_close(changed[..., 1:], answer(batch, x)[..., 1:], rtol=1e-5, atol=1e-6)


# Services.


@pytest.mark.parametrize(("attention", "reaches"), [("2d", True), ("time", False)])
def test_services_reach_each_other_only_through_2d_attention(attention: Any, reaches: bool) -> None:
    model, batch = awake(replace(SMALL, attention=attention)), mask(usage(active=0.6), NEXT)
    louder = batch.traffic.clone()
    louder[:, 0, ::2] = louder[:, 0, ::2] * 5 + 1e5
    ours, theirs = (forecast(model, each) for each in (batch, replace(batch, traffic=louder)))
    assert not torch.equal(ours[:, :, 0, -1], theirs[:, :, 0, -1])
    assert torch.equal(ours[:, :, 1:, -1], theirs[:, :, 1:, -1]) != reaches


def test_both_attentions_have_as_many_weights() -> None:
    assert cost(SMALL).parameters == cost(replace(SMALL, attention="time")).parameters


def test_the_second_layer_works_on_what_the_first_answers() -> None:
    """Algorithm 1 as printed drops both layers' answers (docs/decisions/0022)."""
    torch.manual_seed(0)
    block = TwoWayBlock(8, 2)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.normal_(std=0.3)
    x, vector = torch.randn(3, 5, 4, 8), torch.randn(3, 5, 8)
    time = AdaLNBlock(8, 2)
    time.load_state_dict(block.time.state_dict())
    service = AdaLNBlock(8, 2)
    service.load_state_dict(block.service.state_dict())
    # One vector a window: each service's course as a row of the plain block, then each slot's services as one.
    same = vector[:, :1]
    rows = time(x.transpose(1, 2).flatten(0, 1), same[:, 0].repeat_interleave(4, dim=0)).unflatten(0, (3, 4)).transpose(1, 2)
    by_hand = service(rows.flatten(0, 1), same[:, 0].repeat_interleave(5, dim=0)).unflatten(0, (3, 5))
    torch.testing.assert_close(block(x, same), by_hand)
    # A vector of each slot: the service layer's rows are slots.
    both = service(block.time(x.transpose(1, 2), vector[:, None]).transpose(1, 2).flatten(0, 1), vector.flatten(0, 1)).unflatten(0, (3, 5))
    torch.testing.assert_close(block(x, vector), both)


def test_a_block_begins_as_the_identity() -> None:
    block = build(SMALL).denoiser.blocks[0]  # type: ignore[index]
    x = torch.randn(2, 5, 3, 16)
    assert torch.equal(block(x, torch.randn(2, 1, 16)), x)


# Environment.


@pytest.mark.parametrize("conditioning", ["adaln", "added"])
def test_the_environment_moves_the_answer_of_a_model_that_looks_at_it(conditioning: Any) -> None:
    batch = mask(usage(), NEXT)
    moved = replace(batch, context={**batch.context, "env": batch.context["env"].flip(1)})
    static = replace(batch, context={**batch.context, "env": batch.context["env"][:, -1:]})
    expanded = replace(batch, context={**batch.context, "env": batch.context["env"][:, -1:].expand(-1, 25, -1, -1)})
    looks = awake(replace(SMALL, conditioning=conditioning, next_place=True))
    assert not torch.equal(forecast(looks, batch), forecast(looks, moved))
    torch.testing.assert_close(forecast(looks, static), forecast(looks, expanded), rtol=1e-3, atol=1.0)
    blind = awake(replace(SMALL, contexts=()))
    assert torch.equal(forecast(blind, batch), forecast(blind, moved))


def test_where_the_environment_enters() -> None:
    batch = mask(usage(), NEXT)
    adaln, added, none = (
        awake(config).condition(batch) for config in (SMALL, replace(SMALL, conditioning="added"), replace(SMALL, contexts=()))
    )
    assert (
        adaln.vector is not None
        and adaln.vector.shape == (6, 25, 1, 16)
        and adaln.tokens is not None
        and adaln.tokens.shape == (6, 25, 1, 16)
    )
    assert added.vector is None and added.tokens is not None and not torch.equal(added.tokens, adaln.tokens)
    assert none.vector is None


def test_an_unknown_place_is_told_apart_from_a_place_of_zeros() -> None:
    batch, model = mask(usage(), NEXT), awake(SMALL)
    zeros, unknown = (replace(batch, context={**batch.context, "env": torch.full_like(batch.context["env"], v)}) for v in (0.0, torch.nan))
    nothing = replace(batch, context={"reference": batch.context["reference"]})
    answer = forecast(model, unknown)
    assert bool(answer.isfinite().all()) and not torch.equal(answer, forecast(model, zeros))
    torch.testing.assert_close(answer, forecast(model, nothing), rtol=1e-3, atol=1.0)


def test_poi_counts_become_the_environment_in_stage_one_and_a_given_one_goes_before() -> None:
    config = replace(SMALL, contexts=("env", "poi"), poi_categories=("a", "b"))
    model, batch = awake(config), mask(usage(), NEXT)
    context = {"reference": batch.context["reference"], "poi": torch.tensor([[3.0], [0.0]]).expand(6, 2, 1)}
    counted = replace(batch, context=context)
    env = model.embed(counted).context["env"]
    assert env.shape == (6, 1, 1, 4)
    given = replace(batch, context={**context, "env": batch.context["env"]})
    assert torch.equal(model.embed(given).context["env"], batch.context["env"])
    more = replace(counted, context={**context, "poi": context["poi"] + 5})
    assert not torch.equal(forecast(model, counted), forecast(model, more))


def test_contexts_added_later_change_nothing_until_they_are_trained() -> None:
    blind, batch = awake(replace(SMALL, contexts=())), mask(usage(), NEXT)
    wider, config = add_contexts(blind, replace(SMALL, contexts=()), ("env",), ())
    assert config == SMALL and torch.equal(forecast(wider.eval(), batch), forecast(blind, batch))
    assert add_contexts(wider, config, ("env",), ()) == (wider, config)
    with pytest.raises(ValueError, match=r"contexts: \('poi',\) for an LSDM that looks at \('env',\), expected one without contexts"):
        add_contexts(wider, config, ("env", "poi"), ("a",))
    with pytest.raises(ValueError, match=r"env_features: 0 with contexts \('env',\)"):
        add_contexts(blind, replace(SMALL, contexts=(), env_features=0), ("env",), ())


def test_freezing_leaves_conditioning_and_output() -> None:
    model = build(SMALL)
    freeze(model)
    learns = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"conditioner.env_in.weight", "conditioner.env_out.weight", "denoiser.output.out.weight"} <= learns
    assert not any("attention" in name or "mlp" in name or "clock" in name for name in learns)


# Zeros.


def test_standard_normal_scores_are_zero_as_often_as_history_is_and_else_of_its_sizes() -> None:
    batch = mask(usage(4, t=49, active=0.2), NEXT)
    scale = IntermittentScaling(prior="none").fit(batch)
    score = torch.randn(4000, 1, 1, 1, 1, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([scale.invert(z.expand(batch.shape)) for z in score])[..., -1, 0]
    history = batch.traffic[:, :, :-1, 0]
    share = ((history == 0).sum(2) + 0.5) / 49
    torch.testing.assert_close((draws == 0).float().mean(0), share, rtol=0, atol=0.02)
    for i, c in torch.cartesian_prod(torch.arange(4), torch.arange(3)).tolist():
        drawn, seen = draws[:, i, c], history[i, c]
        factor = drawn[drawn > 0].log().median() - seen[seen > 0].log().mean()
        assert abs(float(factor)) < 0.2, "the median of what is above zero is the geometric mean of what was"


def test_a_model_learns_that_a_service_has_gone_silent() -> None:
    """Draws of the hour are exactly zero where history says so, in a window of which most is zero anyway."""
    torch.manual_seed(0)
    model, made = build(replace(SMALL, services=1, contexts=())).train(), 300
    made_of = usage(made, services=1, active=0.5)
    on = torch.rand(made, generator=torch.Generator().manual_seed(9)) < 0.5
    traffic = made_of.traffic.clone()
    traffic[:, 0, -3:, 0] = torch.where(on[:, None], 1e5, 0.0)  # used in the last hours, the hidden one among them, or not
    batch = mask(replace(made_of, traffic=traffic), NEXT)
    settings_ = Optimisation(learning_rate=5e-3, warmup=10, steps=150)
    adam = optimiser(model, settings_)
    for done in range(150):
        rows = torch.arange(made)[(done * 50) % made :][:50]
        step(model, batch.select(rows), rows * 7 + done, adam, done, settings_)
    drawn = model.eval().forecast(batch, Sampler("dpm++", 10, rows=64), draws=4).draws[:, :, 0, -1, 0]
    assert float((drawn[~on] == 0).float().mean()) > 0.95
    assert float((drawn[on] > 0).float().mean()) > 0.95


def test_windows_of_nothing_but_zeros_are_answered() -> None:
    batch = usage(4, t=49)
    silent = mask(replace(batch, traffic=torch.zeros_like(batch.traffic)), NEXT)
    model = awake(SMALL)
    assert not bool(forecast(model, silent).any()), "two days without any use: a service that is not used"
    short = silent_for_a_day(silent)
    answer = forecast(model, short, draws=50)
    assert bool(answer.isfinite().all()) and bool((model(short, torch.arange(4))["each"] >= 0).all())
    assert float((build(SMALL).eval().forecast(short, SAMPLER, draws=50).draws == 0).float().mean()) > 0.9
    assert not bool(model.scaling.fit(short).dead.any()), "one day without use is no proof"


def silent_for_a_day(batch: TrafficBatch) -> TrafficBatch:
    """Its last 25 hours."""
    timed = {**batch.context, "env": batch.context["env"][:, -25:]}
    return replace(batch, traffic=batch.traffic[:, :, -25:], known=batch.known[:, :, -25:], clock=batch.clock[:, -25:], context=timed)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), active=st.floats(0.02, 1.0), t=st.integers(3, 60))
def test_the_intermittent_scale_is_undone_exactly(seed: int, active: float, t: int) -> None:
    batch = mask(usage(3, t=t, seed=seed, active=active), SHORT)
    scale = IntermittentScaling(prior="none", dead_after=10**6).fit(batch)
    within = torch.minimum(batch.traffic, scale.ceiling)
    back = scale.invert(scale.apply(within))
    # Scores beyond the last digit of a float32's Phi are cut: five spreads out, and nobody draws there.
    ordinary = scale.residual(within).abs() < 5
    torch.testing.assert_close(back[ordinary], within[ordinary], rtol=2e-3, atol=1.0)
    assert torch.equal(back == 0, within == 0)
    assert bool(((scale.silent > 0) & (scale.silent < 1)).all())


def test_the_share_of_zeros_and_the_level_by_hand() -> None:
    batch = usage(1, t=10, services=1)
    traffic = torch.zeros(1, 1, 10, 1)
    traffic[0, 0, :3, 0] = torch.tensor([1.0, 10.0, 100.0])
    scale = IntermittentScaling(prior="none").fit(mask(replace(batch, traffic=traffic), NEXT))
    assert scale.silent.item() == pytest.approx(6.5 / 10) and scale.level.item() == pytest.approx(10.0 * math.exp(-7))
    assert scale.residual(torch.full((1, 1, 10, 1), 10.0)).abs().max() < 1e-5 and scale.residual(traffic)[0, 0, 2, 0] > 1
    assert scale.apply(torch.zeros(1, 1, 1, 1))[0, 0, 0, 0].item() == pytest.approx(float(torch.special.ndtri(torch.tensor(0.325))))


def test_intermittent_scaling_keeps_the_settings_of_a_plain_one() -> None:
    plain = Scaling(prior="none", dead_after=5)
    assert IntermittentScaling.like(plain).dead_after == 5 and IntermittentScaling.like(plain).prior == "none"


# Windows.


@pytest.mark.parametrize("patch", [1, 4, 7])
@pytest.mark.parametrize("t", [2, 13, 25, 60])
def test_windows_of_any_length(t: int, patch: int) -> None:
    model, batch = awake(replace(SMALL, patch=patch)), mask(usage(2, t=t), LONG)
    draws = forecast(model, batch)
    assert draws.shape == (2, 2, 3, t, 1) and bool(draws.isfinite().all()) and bool((draws >= 0).all())


def test_patches_end_with_the_window() -> None:
    x = torch.arange(1.0, 8.0)[None]
    assert in_patches(x, 3).tolist() == [[[0, 0, 1], [2, 3, 4], [5, 6, 7]]]
    assert in_patches(x, 7).tolist() == [[[1, 2, 3, 4, 5, 6, 7]]]


def test_hours_before_a_padded_patch_are_like_hours_that_are_not_known() -> None:
    """A patch that begins before the window is filled up with what an unknown hour is made of."""
    model, batch = awake(replace(SMALL, patch=5, contexts=())), mask(usage(3, t=24), NEXT)
    x = torch.randn(batch.shape, generator=torch.Generator().manual_seed(1))
    whole = model.denoiser(x, torch.full((3,), 0.5), model.condition(batch))
    assert whole.shape == batch.shape and bool(whole.isfinite().all())
    assert not torch.equal(whole[:, :, 0], whole[:, :, 1])


# Configuration and cost.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depth": 0}, "depth: 0, expected at least 1"),
        ({"patch": 0}, "patch: 0, expected at least 1"),
        ({"window": 1}, "window: 1, expected at least 2"),
        ({"heads": 3}, "hidden: 16, expected a multiple of 2 and of heads"),
        ({"attention": "3d"}, "attention: '3d', expected one of"),
        ({"conditioning": "none"}, "conditioning: 'none', expected one of"),
        ({"dropout": 1.0}, "dropout: 1.0, expected a share"),
        ({"contexts": ("users",)}, "contexts: .'users'., expected some of"),
        ({"env_features": 0}, "env_features: 0 with contexts"),
        ({"contexts": ("poi",)}, "poi_categories: .., expected the names"),
        ({"forecaster": preset("faithful").forecaster}, "intermittent: True with scaling.kind 'global'"),
    ],
)
def test_mistakes_in_a_configuration_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


def test_presets_are_named_and_written_and_read() -> None:
    with pytest.raises(ValueError, match=r"preset: 'huge', expected one of .*'tiny'"):
        preset("huge")
    for name, config in PRESETS.items():
        assert from_json(LsdmConfig, to_json(config), name) == config


def test_the_faithful_preset_is_the_papers_letter() -> None:
    settings_ = preset("faithful").forecaster
    assert (settings_.schedule, settings_.steps, settings_.prediction, settings_.scaling.kind) == ("linear", 1000, "sample", "global")
    assert settings_.cosine_weight > 0 and not preset("faithful").intermittent and preset("faithful").window == 168
    model, batch = awake(replace(SMALL, intermittent=False, forecaster=settings_)), mask(usage(), NEXT)
    draws = model.forecast(batch, Sampler("ddpm", 20, clip=1.0, rows=8), draws=2).draws
    assert bool((draws <= 1e7).logical_or(batch.known[:, None]).all()) and bool(torch.isfinite(model(batch, batch.key)["loss"]))


VARIANTS: dict[str, LsdmConfig] = {
    "tiny": replace(preset("tiny"), poi_categories=("a", "b")),
    "services": SMALL,
    "patches": replace(SMALL, patch=4),
    "patches-added": replace(SMALL, patch=4, conditioning="added"),
    "time": replace(SMALL, attention="time"),
    "blind": replace(SMALL, contexts=()),
    "poi": replace(SMALL, contexts=("poi",), poi_categories=("a", "b")),
    "both": replace(SMALL, contexts=("env", "poi"), poi_categories=("a", "b")),
}


def counted(work: Callable[[], Any]) -> int:
    """What FlopCounterMode counts, attention by its matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


@pytest.mark.parametrize("name", VARIANTS)
def test_cost_is_what_torch_counts(name: str) -> None:
    config = VARIANTS[name]
    batch = mask(usage(8, t=config.window, users=4, services=config.services), NEXT)
    context = {"reference": batch.context["reference"], "poi": torch.ones(8, 2, 4)}
    if "env" in config.contexts:
        context["env"] = batch.context["env"]
    batch = replace(batch, context=context)
    model, seeds = build(config).train(), torch.arange(8)
    priced = cost(config, (2, 2))
    beside = counted(lambda: model.scaling.fit(batch))
    assert counted(lambda: model(batch, seeds)) - beside == round(8 * priced.forward_flops)
    assert counted(lambda: model(batch, seeds)["loss"].backward()) - beside == round(8 * priced.training_flops)
    assert priced.tokens == -(-config.window // config.patch) * config.services * 4


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    for config in (preset(name), replace(preset(name), contexts=(), services=7)):
        with torch.device("meta"):
            count = {key: value.numel() for key, value in build(config).named_parameters()}
        assert cost(config).parameters == sum(count.values())
        embedding = [key for key in count if not key.startswith(("denoiser.blocks.", "denoiser.output."))]
        assert cost(config).embedding_parameters == sum(count[key] for key in embedding)


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match=r"asked: 1.5, expected a share of the window's entries in \[0, 1\]"):
        cost(SMALL, (1, 1), 1.5)


def test_eq_9_weighs_the_halves_of_a_stores_vectors() -> None:
    """[z_I (+) z_T] fused by the model is the vector fused beforehand; a half of weight 0 does not count."""
    both = replace(SMALL, env_features=8, weights=(0.25, 0.75))
    batch = mask(usage(), NEXT)
    images, texts = torch.rand(2, 6, 25, 1, 4, generator=torch.Generator().manual_seed(1))

    def answer(config: LsdmConfig, env: torch.Tensor) -> torch.Tensor:
        return forecast(awake(config), replace(batch, context={**batch.context, "env": env}))

    torch.testing.assert_close(answer(both, torch.cat((images, texts), dim=-1)), answer(SMALL, 0.25 * images + 0.75 * texts))
    alone = replace(both, weights=(1.0, 0.0))
    assert torch.equal(answer(alone, torch.cat((images, texts), dim=-1)), answer(alone, torch.cat((images, 0 * texts), dim=-1)))
    with pytest.raises(ValueError, match=r"weights: \(0\.5, 0\.5\) .*, expected contexts \('env',\) of an even number of features"):
        replace(both, env_features=7, weights=(0.5, 0.5))
    assert from_json(LsdmConfig, to_json(both), "config") == both


@pytest.mark.parametrize("known", [False, True])
def test_where_a_user_will_be_counts_in_the_papers_setting_only(known: bool) -> None:
    model, batch = awake(replace(SMALL, next_place=known)), mask(usage(), NEXT)
    hidden = ~batch.known.any(dim=1)[..., None]
    elsewhere = replace(batch, context={**batch.context, "env": torch.where(hidden, 3.0, batch.context["env"])})
    assert torch.equal(forecast(model, batch), forecast(model, elsewhere)) != known
