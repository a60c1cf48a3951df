"""LEC-Diff: its size and cost, its ablations, graphs of stations in any order and in parts, and environment vectors."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raytraffic.autoregressive import heard
from raytraffic.diffusion.noise import Noise
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.graph import Neighbourhood, partition, station_edges, with_halo
from raytraffic.masks import LONG, SHORT, mask
from raytraffic.models.lec_diff import PRESETS, LecDiffConfig, add_contexts, build, cost, freeze, preset
from raytraffic.models.lec_diff.cost import parts
from raytraffic.models.lec_diff.fusion import GraphConvolution, propagation
from raytraffic.nn.transformer import ZeroLinear
from raytraffic.randomness import normal
from raytraffic.types import Space, TrafficBatch
from tests.batches import seasonal_batch

SAMPLER = Sampler("dpm++", 3, rows=8)
NEAR = Neighbourhood(neighbours=4, radius_metres=600.0, kernel_metres=300.0)


def moved(config: LecDiffConfig) -> Forecaster:
    """A model with every parameter off its initial value."""
    torch.manual_seed(0)
    model = build(config).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model


def stations(count: int, windows: int = 1, t: int = 32, seed: int = 0) -> TrafficBatch:
    """Windows of `count` live stations in 2 x 2 km, the same ones in each, the last quarter to be answered."""
    generator = torch.Generator().manual_seed(seed)
    base = seasonal_batch(windows, steps=(60,), t=t)
    level = torch.exp(torch.randn(windows, 1, 1, count, generator=generator) + 4)
    traffic = level * base.context["profile"][:, None, :, None] * torch.exp(0.3 * torch.randn(windows, 1, t, count, generator=generator))
    xy = (torch.rand(1, count, 2, generator=generator) * 2000).expand(windows, -1, -1)
    poi = torch.poisson(torch.full((windows, 15, count), 3.0), generator=generator)
    context = {"profile": base.context["profile"], "poi": poi}
    known = torch.ones_like(traffic, dtype=torch.bool)
    return mask(replace(base, traffic=traffic, known=known, space=Space(xy=xy), context=context), SHORT)


def of(batch: TrafficBatch, chosen: np.ndarray) -> TrafficBatch:
    """Some stations of a batch."""
    at = torch.from_numpy(chosen)
    return replace(
        batch,
        traffic=batch.traffic[..., at],
        known=batch.known[..., at],
        space=Space(xy=batch.space.xy[:, at]),
        context={**batch.context, "poi": batch.context["poi"][..., at]},
    )


@dataclass(frozen=True)
class NoiseOfPlaces(Noise):
    """White noise that belongs to a station and not to where it stands in a batch: by its place."""

    def draw(self, batch: TrafficBatch, seeds: Tensor, stream: int) -> Tensor:
        _, c, t, s = batch.shape
        places = (batch.space.xy * 1000).round().long()
        keys = (seeds[:, None] * 31 + places[..., 0]) * 1_000_003 + places[..., 1]
        return normal(keys.flatten(), stream, (c, t)).unflatten(0, (-1, s)).movedim(1, 3)


@pytest.mark.parametrize("name", ["paper", "faithful"])
def test_the_papers_size(name: str) -> None:
    with torch.device("meta"):
        count = sum(p.numel() for p in build(preset(name)).parameters())
    assert count == pytest.approx(21.8e6, rel=0.02)


VARIANTS = {
    "tiny": preset("tiny"),
    "lstm-env": replace(preset("tiny"), cell="lstm", layers=2, contexts=("env",), env_features=5, hops=1, window=20),
    "drop-gei": replace(preset("tiny"), environment=False, services=1),
    "drop-sgf": replace(preset("tiny"), graph=False, blocks=1),
    "small": preset("small"),
}


@pytest.mark.parametrize("name", [*PRESETS, *VARIANTS])
def test_parameters_by_formula(name: str) -> None:
    base = (PRESETS | VARIANTS)[name]
    for config in (base, replace(base, services=3), replace(base, cell="lstm")):
        with torch.device("meta"):
            model = build(config)
        count = {key: value.numel() for key, value in model.named_parameters()}
        priced = cost(config)
        assert priced.parameters == sum(count.values())
        embedding = ("clock.", "station_input.", "poi_static.", "env_input.", "env_node.")
        assert priced.embedding_parameters == sum(n for key, n in count.items() if key.removeprefix("conditioner.").startswith(embedding))


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_by_formula(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The walk over the graph, sums over edges, is left out by the formula; torch would count it as if it were dense.
    monkeypatch.setattr(GraphConvolution, "forward", lambda self, x, walk: self.linear(x))
    config = VARIANTS[name]
    model, batch = build(config).train(), mask(seasonal_batch(8, t=config.window), LONG)
    batch = replace(batch, context={key: value for key, value in batch.context.items() if key not in ("modes", "persistence")})
    if config.env_features:
        batch = replace(batch, context={**batch.context, "env": torch.rand(8, 1, 16, config.env_features)})
    priced = cost(config, (4, 4), 0.75)

    def counted(work: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            work()
        return int(counter.get_total_flops())

    beside = counted(lambda: model.scaling.fit(batch))
    assert counted(lambda: model(batch, torch.arange(8))) - beside == round(8 * priced.forward_flops)
    assert counted(lambda: model(batch, torch.arange(8))["loss"].backward()) - beside == round(8 * priced.training_flops)


def test_only_the_denoiser_depends_on_what_is_asked() -> None:
    none, all_ = (parts(preset("small"), (4, 4), share) for share in (0.0, 1.0))
    assert none["denoiser"].forward_flops == 0 < all_["denoiser"].forward_flops
    assert all(none[part] == all_[part] for part in none if part != "denoiser")
    with pytest.raises(ValueError, match=r"asked: 1.5, expected a share of the window's slots in \[0, 1\]"):
        cost(preset("small"), (4, 4), 1.5)


@torch.no_grad()
def test_stations_in_another_order_are_answered_alike() -> None:
    """Told conditions of a permuted batch are the permuted ones, and so are draws whose noise belongs to the station."""
    config = replace(preset("tiny"), neighbourhood=NEAR)
    model = moved(replace(config, forecaster=replace(config.forecaster, noise=NoiseOfPlaces())))
    batch = stations(40, windows=2)
    order = np.random.default_rng(1).permutation(40)
    whole, permuted = (model.forecast(one, SAMPLER, draws=2).draws for one in (batch, of(batch, order)))
    torch.testing.assert_close(permuted, whole[..., torch.from_numpy(order)], rtol=1e-4, atol=1e-3)


@torch.no_grad()
def test_parts_with_halos_are_told_what_the_whole_city_is() -> None:
    """Halos of as many hops as the fusion has: the same conditions at every slot, to rounding; with a smaller halo they are not."""
    config = replace(preset("tiny"), neighbourhood=NEAR, hops=2)
    model, batch = moved(config), stations(60)
    edges = station_edges(batch.space.xy[0].numpy().astype(np.float64), NEAR)
    whole = conditions(model, batch)
    for hops, equal in ((2, True), (1, False)):
        worst = 0.0
        for members in partition(batch.space.xy[0].numpy(), 12):
            found = conditions(model, of(batch, with_halo(members, edges, hops)))[..., : len(members)]
            worst = max(worst, float((found - whole[..., torch.from_numpy(members)]).abs().max()))
        assert (worst < 1e-5) == equal


def conditions(model: Any, batch: TrafficBatch) -> Tensor:
    """(t, d, 1, s) what the denoiser is told at each slot, from what was measured."""
    scale = model.scaling.fit(batch)
    visible = model.embed(batch.visible())
    carried = model.conditioner.begin(visible, model.conditioner(visible, scale))
    return model.conditioner.teach(carried, *heard(batch, batch.measured, scale)).field


@torch.no_grad()
def test_parts_draw_what_the_whole_city_draws_where_the_halo_covers_all_steps() -> None:
    """A draw of L slots hears stations over L times the hops; up to there parts and whole agree to a thousandth of a station's level."""
    config = replace(preset("tiny"), neighbourhood=NEAR, hops=1)
    model = moved(replace(config, forecaster=replace(config.forecaster, noise=NoiseOfPlaces())))
    batch = stations(60)
    slots = 3
    known = torch.ones_like(batch.known)
    known[:, :, -slots:] = False
    batch = replace(batch, known=known)
    whole = model.forecast(batch, SAMPLER, draws=2).draws
    level = batch.traffic.mean(dim=2, keepdim=True)[:, None]
    edges = station_edges(batch.space.xy[0].numpy().astype(np.float64), NEAR)
    for members in partition(batch.space.xy[0].numpy(), 12):
        part = model.forecast(of(batch, with_halo(members, edges, slots)), SAMPLER, draws=2).draws[..., : len(members)]
        at = torch.from_numpy(members)
        assert float(((part - whole[..., at]) / level[..., at]).abs().max()) < 1e-3


@torch.no_grad()
def test_edges_that_are_given_are_those_that_are_found() -> None:
    """A whole city's edges from the k-d tree, shared by its windows, and the graph of each window by its places."""
    batch = stations(30, windows=3)
    edges = torch.from_numpy(station_edges(batch.space.xy[0].numpy().astype(np.float64), NEAR))
    given = propagation(Space(xy=batch.space.xy, edges=edges), 3, 30, NEAR)
    found = propagation(batch.space, 3, 30, NEAR)
    assert torch.equal(given.to_dense(), found.to_dense())
    assert torch.equal(propagation(Space(), 2, 4, NEAR).to_dense(), torch.eye(8))
    one = found.to_dense()[:30, :30]
    assert torch.equal(found.to_dense(), torch.block_diag(one, one, one))


@torch.no_grad()
def test_dropping_the_graph_drops_the_others_and_dropping_the_environment_its_vectors() -> None:
    batch = stations(20)
    louder = batch.traffic.clone()
    louder[:, :, 20:24, 7] *= 3
    elsewhere = replace(batch, traffic=louder)
    surrounded = replace(batch, context={**batch.context, "poi": batch.context["poi"].flip(-1)})
    for graph, environment in ((True, True), (False, True), (True, False)):
        model = moved(replace(preset("tiny"), graph=graph, environment=environment, neighbourhood=NEAR))
        plain, other, poi = (model.forecast(one, SAMPLER, draws=1).draws for one in (batch, elsewhere, surrounded))
        others = [i for i in range(20) if i != 7]
        assert torch.equal(plain[..., others], other[..., others]) != graph
        assert torch.equal(plain, poi) != environment


@torch.no_grad()
def test_environment_vectors_stand_for_poi_and_their_width_is_checked() -> None:
    config = replace(preset("tiny"), contexts=("env", "poi"), env_features=6)
    model, batch = moved(config), stations(10)
    vectors = torch.rand(1, 1, 10, 6)
    with_both = replace(batch, context={**batch.context, "env": vectors})
    assert torch.equal(model.embed(with_both).context["env"], vectors)
    alone = replace(batch, context={"profile": batch.context["profile"], "env": vectors})
    assert torch.equal(model.forecast(with_both, SAMPLER, draws=1).draws, model.forecast(alone, SAMPLER, draws=1).draws)
    unknown = vectors.clone()
    unknown[..., 3, :] = torch.nan
    assert torch.isfinite(model.forecast(replace(alone, context={"env": unknown}), SAMPLER, draws=1).draws).all()
    with pytest.raises(ValueError, match=r"context env: 4 features, expected 6"):
        model.forecast(replace(batch, context={"env": torch.rand(1, 1, 10, 4)}), SAMPLER, draws=1)


def test_a_context_that_is_added_changes_nothing_before_it_is_trained() -> None:
    config = replace(preset("tiny"), contexts=())
    model, batch = moved(config), stations(10)
    wider, found = add_contexts(model, config, ("poi",), config.poi_categories)
    assert found.contexts == ("poi",)
    assert torch.equal(model.forecast(batch, SAMPLER, draws=1).draws, wider.eval().forecast(batch, SAMPLER, draws=1).draws)
    assert add_contexts(model, found, ("poi",), ()) == (model, found)
    with pytest.raises(ValueError, match=r"contexts: \('env',\) for a LEC-Diff that looks at \('poi',\), expected one without contexts"):
        add_contexts(wider, found, ("env",), ())
    freeze(wider)
    learning = {name.rsplit(".", 1)[0] for name, parameter in wider.named_parameters() if parameter.requires_grad}
    zero = {name for name, module in wider.named_modules() if isinstance(module, ZeroLinear)}
    assert learning == zero | {"conditioner.poi_static", "conditioner.fusion.out"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("hops", 0, "hops: 0, expected at least 1"),
        ("cell", "rnn", "cell: 'rnn', expected 'gru' or 'lstm'"),
        ("contexts", ("users",), r"contexts: \['users'\], expected some of \['env', 'poi'\]"),
        ("contexts", ("env",), "env_features: 0, expected the width of the environment vectors where contexts have env"),
    ],
)
def test_mistakes_of_a_configuration_are_named(field: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(preset("tiny"), **{field: value})
    with pytest.raises(ValueError, match=r"preset: 'huge', expected one of \['faithful', 'paper', 'small', 'tiny'\]"):
        preset("huge")


@torch.no_grad()
def test_the_papers_letter_answers_on_the_global_scale() -> None:
    """Epsilon, 100 linear levels, ancestral sampling: within [0, reference], and known entries as they are."""
    letter = replace(preset("faithful"), hidden=8, layers=1, blocks=1, contexts=("poi",), env_features=0)
    model, batch = moved(letter), mask(seasonal_batch(2), SHORT)
    assert (model.process.prediction, model.process.schedule.steps, model.config.sampler.method) == ("epsilon", 100, "ddpm")
    draws = model.forecast(batch, replace(model.config.sampler, steps=5, rows=8), draws=2).draws
    hidden = draws.movedim(1, -1)[batch.hidden]
    assert bool((hidden >= 0).all()) and bool((hidden <= batch.context["reference"].max()).all())
