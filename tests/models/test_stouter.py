"""STOUTER: graphs edge by edge, the scaled cosine error by its closed form, frozen embeddings, fusion, and the cost."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.cost import Cost
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import GENERATION, SHORT, WHOLE, mask
from raytraffic.models.stouter import PRESETS, StouterConfig, add_contexts, build, cost, freeze, preset, pretrain_graphs
from raytraffic.models.stouter.fusion import FeatureFusion
from raytraffic.models.stouter.station_graph import FrozenStationEncoder, radius_edges
from raytraffic.models.stouter.temporal_graph import at_slots, clock_waves, embed_week, week_edges, week_statistics
from raytraffic.nn.graph_autoencoder import (
    GcnEncoder,
    GinEncoder,
    GraphAutoencoder,
    Pretraining,
    pretrain,
    scaled_cosine_error,
)
from raytraffic.nn.unet import UNet
from raytraffic.types import Space, TrafficBatch
from tests.batches import seasonal_batch

TINY = preset("tiny")
QUICK = Pretraining(steps=40)


def moved(model: Forecaster) -> Forecaster:
    """The model with every parameter off its initial value."""
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    return model.eval()


# --- the scaled cosine error ---


def test_scaled_cosine_error_in_closed_form() -> None:
    """Angles of 0, 60, 90 and 180 degrees: (1 - cos)^gamma is 0, 2^-gamma, 1 and 2^gamma, whatever the lengths."""
    features = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
    restored = torch.tensor([[7.0, 0.0], [0.5, math.sqrt(0.75)], [0.0, 0.1], [-2.0, 0.0]])
    for gamma in (1.5, 2.0, 3.0):
        expected = (0 + 2**-gamma + 1 + 2**gamma) / 4
        assert float(scaled_cosine_error(features, restored, gamma)) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="gamma: 1, expected a scaling factor > 1"):
        scaled_cosine_error(features, restored, 1)


def test_scaled_cosine_error_has_finite_gradients_where_nodes_are_restored_exactly_or_are_zero() -> None:
    features = torch.cat((torch.randn(20, 5), torch.zeros(1, 5)))
    restored = (3 * features).requires_grad_(True)
    loss = scaled_cosine_error(features, restored, 1.5)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1 / 21, abs=1e-6)
    assert restored.grad is not None and bool(torch.isfinite(restored.grad).all())


class Mirror(GraphAutoencoder):
    """Restores nodes that it sees exactly, and masked ones turned round."""

    def forward(self, features: Tensor, edges: Tensor, hidden: Tensor) -> Tensor:
        return torch.where(hidden[:, None], -features, features) * (1 + 0 * self.token)


def test_only_masked_nodes_are_scored_and_all_of_them_where_none_is_masked() -> None:
    features, edges = torch.randn(20, 4), torch.empty(2, 0, dtype=torch.int64)
    for masked, expected in ((0.0, 0.0), (0.25, 2**3), (0.9, 2**3)):
        mirror = Mirror(GcnEncoder(4, 8, 8, own=False), 4, 8)
        losses = pretrain(mirror, lambda _: (features, edges), Pretraining(gamma=3.0, masked=masked, steps=2))
        assert losses == pytest.approx([expected] * 2, abs=1e-5)


def test_masked_nodes_show_the_token() -> None:
    torch.manual_seed(0)
    features, edges = torch.randn(6, 4), torch.tensor([[0, 1], [1, 0]])
    model = GraphAutoencoder(GcnEncoder(4, 8, 8, own=False), 4, 8)
    hidden = torch.tensor([True, False, False, False, False, True])
    changed = torch.where(hidden[:, None], torch.randn(6, 4), features)
    assert torch.equal(model(features, edges, hidden), model(changed, edges, hidden))
    assert not torch.equal(model(features, edges, ~hidden), model(changed, edges, ~hidden))


@pytest.mark.parametrize("masked", [0.0, 0.5])
def test_pretraining_restores_better_and_is_deterministic(masked: float) -> None:
    def losses() -> list[float]:
        torch.manual_seed(3)
        generator = torch.Generator().manual_seed(0)
        xy = 3000 * torch.rand(1, 60, 2, generator=generator)
        # Smooth in space, so that a node's neighbours tell what it is like.
        features = torch.cat([wave(xy[0] / 1000 + shift) for wave in (torch.sin, torch.cos) for shift in (0, 1)], dim=1)
        model = GraphAutoencoder(GcnEncoder(8, 16, 8, own=True), 8, 8)
        return pretrain(model, lambda _: (features, radius_edges(xy)), Pretraining(steps=80, masked=masked))

    first = losses()
    assert sum(first[-10:]) < 0.3 * sum(first[:10])
    assert first == losses()


def test_pretraining_refuses() -> None:
    for name, value, message in (("gamma", 1.0, "gamma: 1.0"), ("masked", 1.0, "masked: 1.0, expected a share"), ("steps", 0, "steps")):
        with pytest.raises(ValueError, match=message):
            replace(Pretraining(), **{name: value})


# --- the temporal graph ---


def test_week_edges_one_by_one() -> None:
    """Two slots a day: 14 nodes, Monday 0 and 1, ..., Sunday 12 and 13."""
    edges = set(map(tuple, week_edges(2).T.tolist()))
    hourly = {(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8), (8, 9), (9, 10), (10, 11), (11, 12), (12, 13), (13, 0)}
    daily = {(0, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7), (6, 8), (7, 9), (8, 10), (9, 11), (10, 12), (11, 13), (12, 0), (13, 1)}
    assert edges == hourly | daily
    assert week_edges(24).shape == (2, 2 * 168) and week_edges(96).shape == (2, 2 * 672)


@pytest.mark.parametrize("step_minutes", [15, 30, 60])
def test_week_statistics_by_brute_force(step_minutes: int) -> None:
    batch = seasonal_batch(6, steps=(step_minutes,), seed=2)
    slots = 1440 // step_minutes
    table = week_statistics([batch.select(slice(0, 2)), batch.select(slice(2, 6))], slots)
    assert table.shape == (7 * slots, 5) and bool(torch.isfinite(table).all())
    values: dict[int, list[Tensor]] = {}
    for window in range(6):
        for station in range(16):
            course = batch.traffic[window, 0, :, station]
            if bool(torch.isfinite(course).all()) and float(course.sum()) > 0:
                for slot in range(64):
                    node = int(batch.clock[window, slot, 1]) * slots + int(batch.clock[window, slot, 0])
                    values.setdefault(node, []).append(course[slot] / course.mean())
    for node, found in list(values.items())[::7]:
        value = torch.stack(found)
        expected = torch.stack((value.mean(), value.std(correction=0), *value.quantile(torch.tensor([0.1, 0.5, 0.9]))))
        assert torch.allclose(table[node], expected, rtol=1e-4)
    unseen = [node for node in range(7 * slots) if node not in values]
    if unseen:
        seen = table[[node for node in range(7 * slots) if node in values]].mean(0)
        assert torch.allclose(table[unseen], seen.expand(len(unseen), -1), rtol=1e-4)


def test_week_statistics_refuse() -> None:
    with pytest.raises(ValueError, match="step_minutes: 60, expected at most the temporal graph's 30"):
        week_statistics([seasonal_batch(3)], 48)
    silent = seasonal_batch(2)
    with pytest.raises(ValueError, match="no measured traffic above zero"):
        week_statistics([replace(silent, traffic=0 * silent.traffic)], 24)


def test_slots_of_the_nodes_length_are_the_nodes_and_others_lie_between() -> None:
    week = torch.arange(168.0)[:, None]
    clock = torch.tensor([[[0, 0], [5, 0], [23, 6]]])
    assert at_slots(week, clock, torch.tensor([60])).flatten().tolist() == [0, 5, 167]
    half = torch.tensor([[[10, 1], [11, 1], [1, 0]]])  # Tuesday 5:00-5:30 and 5:30-6:00, Monday 0:30-1:00
    assert at_slots(week, half, torch.tensor([30])).flatten().tolist() == [28.75, 29.25, 0.25]
    quarters = torch.arange(672.0)[:, None]
    assert at_slots(quarters, torch.tensor([[[1, 0]]]), torch.tensor([60])).flatten().tolist() == [5.5]  # the middle of 4, 5, 6, 7
    wrapped = at_slots(week, torch.tensor([[[0, 0]]]), torch.tensor([30]))
    assert float(wrapped) == pytest.approx(0.25 * 167)  # a quarter of the way back to Sunday's last hour


def test_the_temporal_embedding_tells_hours_and_weekends_apart() -> None:
    hour = torch.arange(168) % 24
    weekend = torch.arange(168) >= 120
    statistics = torch.stack(
        (torch.sin(2 * math.pi * hour / 24), torch.cos(2 * math.pi * hour / 24), weekend.float(), torch.ones(168)), dim=1
    )
    embedded, losses = embed_week(statistics, 24, 8, Pretraining(steps=150))
    assert losses[-1] < 0.1 * losses[0]
    assert torch.allclose(embedded.mean(0), torch.zeros(8), atol=1e-4)
    inside = (embedded[9 + 24] - embedded[9 + 48]).norm()  # nine on Tuesday and on Wednesday
    assert float((embedded[9 + 24] - embedded[21 + 24]).norm()) > 5 * float(inside)
    assert float((embedded[9 + 24] - embedded[9 + 6 * 24]).norm()) > 2 * float(inside)


def test_clock_waves_are_different_at_every_slot() -> None:
    waves = clock_waves(24, 8)
    assert waves.shape == (168, 8)
    assert float((torch.cdist(waves, waves) + 10 * torch.eye(168)).min()) > 0.05


# --- the station graph ---


def test_station_edges_one_by_one() -> None:
    xy = torch.tensor(
        [
            [[0.0, 0.0], [1000.0, 0.0], [1000.0, 1000.0], [torch.nan, torch.nan]],
            [[5e6, 0.0], [5e6 + 600, 800.0], [5e6 + 601, 800.0], [5e6, 0.0]],
        ]
    )
    edges = set(map(tuple, radius_edges(xy).T.tolist()))
    assert edges == {(0, 1), (1, 0), (1, 2), (2, 1), (4, 5), (5, 4), (5, 6), (6, 5), (4, 7), (7, 4), (5, 7), (7, 5)}


def test_a_graph_convolution_cannot_tell_stations_apart_that_are_all_neighbours_and_own_features_can() -> None:
    poi, xy = torch.poisson(torch.full((1, 15, 16), 3.0)), 300 * torch.rand(1, 16, 2)
    for own in (False, True):
        torch.manual_seed(1)
        embedded = FrozenStationEncoder(15, 8, own)(poi, xy)[0, 0]
        apart = (embedded - embedded.mean(0)).abs().max()
        assert (float(apart) > 0.1) == own


def test_far_stations_do_not_matter_and_near_ones_do() -> None:
    encoder = FrozenStationEncoder(3, 8, own=True)
    xy = torch.tensor([[[0.0, 0], [900.0, 0], [1800.0, 0], [2700.0, 0]]])
    poi = torch.ones(1, 3, 4)

    def with_more_at(station: int) -> Tensor:
        changed = poi.clone()
        changed[0, :, station] = 50
        return encoder(changed, xy)[0, 0, 0]

    plain = encoder(poi, xy)[0, 0, 0]
    assert not torch.equal(with_more_at(1), plain) and not torch.equal(with_more_at(2), plain)  # two layers, two hops
    assert torch.equal(with_more_at(3), plain)


def test_windows_of_a_batch_do_not_see_each_other() -> None:
    encoder = FrozenStationEncoder(15, 8, own=True)
    poi, xy = torch.poisson(torch.full((3, 15, 5), 3.0)), 1500 * torch.rand(3, 5, 2)
    together = encoder(poi, xy)
    assert torch.allclose(together[1:2], encoder(poi[1:2], xy[1:2]), atol=1e-5)


def test_absent_places_and_poi_that_are_not_known_are_embedded() -> None:
    encoder = FrozenStationEncoder(15, 8, own=True)
    poi = torch.poisson(torch.full((2, 15, 4), 3.0))
    xy = 500 * torch.rand(2, 4, 2)
    poi[:, :, 3], xy[:, 3] = torch.nan, torch.nan
    assert bool(torch.isfinite(encoder(poi, xy)).all())
    assert torch.allclose(encoder(poi, torch.full_like(xy, torch.nan)), encoder(poi, None), atol=1e-6)


# --- pre-training and what is kept of it ---


def test_pretrained_graphs_are_frozen_buffers_that_are_saved_and_never_trained() -> None:
    torch.manual_seed(0)
    model = build(TINY)
    names = {name for name, _ in model.named_parameters()}
    assert not any("stations" in name or "week" in name for name in names)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = pretrain_graphs(model, [seasonal_batch(8)], QUICK)
    assert losses.keys() == {"temporal_loss", "station_loss"} and all(math.isfinite(loss) for loss in losses.values())
    after = {name: value.clone() for name, value in model.state_dict().items()}
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    assert "conditioner.week" in changed and "conditioner.stations.encoder.first.lin.weight" in changed
    assert all(name.startswith(("conditioner.week", "conditioner.stations.")) for name in changed)
    settings = Optimisation(steps=3, warmup=0)
    adam = optimiser(model.train(), settings)
    for done in range(3):
        step(model, mask(seasonal_batch(4), GENERATION), torch.arange(4), adam, done, settings)
    frozen = {name: value for name, value in model.state_dict().items() if name in changed}
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    copy = build(TINY)
    copy.load_state_dict(model.state_dict())
    batch = mask(seasonal_batch(), GENERATION)
    first, second = (one.eval().forecast(batch, replace(TINY.forecaster.sampler, steps=2), draws=1).draws for one in (model, copy))
    assert torch.equal(first.nan_to_num(), second.nan_to_num())


def test_saved_and_loaded_with_the_projects_own_checkpoint(tmp_path: Path) -> None:
    model = build(TINY)
    pretrain_graphs(model, [seasonal_batch(8)], QUICK)
    save_forecaster(tmp_path / "m", model.state_dict(), "stouter", TINY, {})
    loaded, name, config = load_forecaster(tmp_path / "m")
    assert (name, config) == ("stouter", TINY)
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


def test_pretraining_is_deterministic_and_needs_poi() -> None:
    weeks = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        model = build(TINY)
        pretrain_graphs(model, [seasonal_batch(8)], QUICK)
        weeks.append(model.embed(seasonal_batch(2)).context["env"])
    assert torch.equal(weeks[0], weeks[1])
    batch = seasonal_batch(8)
    with pytest.raises(ValueError, match="expected 'poi' to pre-train the station graph on"):
        pretrain_graphs(build(TINY), [replace(batch, context={})], QUICK)
    assert pretrain_graphs(build(replace(TINY, contexts=())), [replace(batch, context={})], QUICK).keys() == {"temporal_loss"}


# --- the network ---


def test_the_fusion_is_the_projection_of_the_concatenation() -> None:
    torch.manual_seed(0)
    fusion = FeatureFusion(4, 6, 5, temporal=True, station=True)
    assert fusion.temporal is not None and fusion.station is not None
    fusion.station.bias.data.zero_()
    time, place, noise = torch.randn(2, 7, 4), torch.randn(2, 3, 4), torch.randn(2, 6)
    context = fusion(time, place, noise, 7, 3)
    matrix = torch.cat((fusion.temporal.weight, fusion.station.weight), dim=1)
    for b, s, t in ((0, 0, 0), (1, 2, 6), (0, 1, 3)):
        both = torch.cat((time[b, t], place[b, s]))
        expected = matrix @ both + fusion.temporal.bias + fusion.step(torch.nn.functional.silu(noise[b]))
        assert torch.allclose(context[b, s, :, t], expected, atol=1e-5)


def test_the_unet_begins_as_a_projection_and_knows_no_other_row() -> None:
    torch.manual_seed(0)
    net = UNet(3, (8, 16, 24), 2)
    assert net.multiple == 4
    x = torch.randn(5, 3, 20)
    contexts = [torch.randn(5, width, 20 >> i) for i, width in enumerate((8, 16, 24))]
    whole = net(x, contexts)
    assert whole.shape == (5, 8, 20)
    assert torch.allclose(net(x[2:3], [c[2:3] for c in contexts]), whole[2:3], atol=1e-5)
    assert torch.allclose(net(x, [0 * c for c in contexts]), whole), "blocks are the identity, so contexts say nothing yet"


def test_stations_permuted_permute_the_answer() -> None:
    model = moved(build(TINY))
    batch = mask(seasonal_batch(8), GENERATION)
    order = torch.randperm(16, generator=torch.Generator().manual_seed(4))
    assert batch.space.xy is not None
    permuted = replace(
        batch,
        traffic=batch.traffic[..., order],
        known=batch.known[..., order],
        space=Space(xy=batch.space.xy[:, order]),
        context={name: value[..., order] if name in ("users", "poi") else value for name, value in batch.context.items()},
    )
    x = torch.randn(8, 1, 64, 16, generator=torch.Generator().manual_seed(5))
    level = torch.full((8,), 0.5)
    plain = model.denoiser(x, level, model.condition(replace(batch, space=Space(xy=batch.space.xy))))
    other = model.denoiser(x[..., order], level, model.condition(permuted))
    assert torch.allclose(other, plain[..., order], atol=1e-4)
    assert not torch.allclose(other, plain, atol=1e-2)


@pytest.mark.parametrize("t", [1, 7, 24, 168])
def test_windows_of_any_length(t: int) -> None:
    model = moved(build(replace(TINY, channels=(8, 8, 8, 8))))
    batch = mask(seasonal_batch(2, t=t), WHOLE)
    draws = model.forecast(batch, replace(TINY.forecaster.sampler, steps=2), draws=1).draws
    assert draws.shape == (2, 1, 1, t, 16) and bool(torch.isfinite(draws[..., 0]).all())


def five_services(batch: TrafficBatch) -> TrafficBatch:
    traffic = batch.traffic * torch.arange(1.0, 6)[:, None, None]
    return replace(
        batch, traffic=traffic, known=torch.isfinite(traffic), context={**batch.context, "reference": traffic.nan_to_num().amax((2, 3))}
    )


def test_five_services_are_five_channels() -> None:
    model = moved(build(replace(TINY, services=5)))
    batch = mask(five_services(seasonal_batch(3)), WHOLE)
    assert bool(model(batch, torch.arange(3))["loss"].isfinite())
    answer = model.forecast(batch, replace(TINY.forecaster.sampler, steps=2), draws=2).draws
    assert answer.shape == (3, 2, 5, 64, 16)
    assert pretrain_graphs(model, [five_services(seasonal_batch(8))], QUICK)["temporal_loss"] < 1.5


def test_ablated_parts_do_not_matter_and_others_do() -> None:
    batch = mask(seasonal_batch(), WHOLE)
    batch = replace(batch, context={"poi": batch.context["poi"], "reference": batch.context["reference"]})
    later = replace(batch, clock=(batch.clock + torch.tensor([3, 1])) % torch.tensor([24, 7]))
    assert batch.space.xy is not None
    elsewhere = replace(batch, space=replace(batch.space, xy=10 * batch.space.xy))
    other_poi = replace(batch, context={**batch.context, "poi": batch.context["poi"].flip(-1)})
    for changes, clock, place, poi in (
        ({}, True, True, True),
        ({"temporal_graph": False}, False, True, True),
        ({"station_graph": False}, True, False, True),
        ({"contexts": ()}, True, False, False),
        ({"temporal_graph": False, "contexts": ()}, False, False, False),
    ):
        model = moved(build(replace(TINY, **changes)))
        sampler = replace(TINY.forecaster.sampler, steps=2)
        answers = [model.forecast(one, sampler, draws=1).draws.nan_to_num() for one in (batch, later, elsewhere, other_poi)]
        told = tuple(not torch.equal(answers[0], other) for other in answers[1:])
        # The known scale's own levels of unknown cells hang on distances, too, where there are cells with history; here there are none.
        assert told == (clock, place, poi), changes


def test_contexts_that_are_added_change_nothing_until_they_are_trained() -> None:
    without = replace(TINY, contexts=())
    model = moved(build(without))
    wider, config = add_contexts(model, without, ("poi",), TINY.poi_categories)
    assert config.contexts == ("poi",)
    batch = mask(seasonal_batch(), SHORT)
    sampler = replace(TINY.forecaster.sampler, steps=2)
    ours, theirs = (one.eval().forecast(batch, sampler, draws=1).draws.nan_to_num() for one in (model, wider))
    assert torch.equal(ours, theirs)
    assert add_contexts(wider, config, ("poi",), TINY.poi_categories)[0] is wider


def test_freeze_leaves_fusion_and_output() -> None:
    model = build(TINY)
    freeze(model)
    learns = {name.split(".")[1] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert learns == {"fusions", "output"}


def test_embeddings_that_change_in_time_are_refused() -> None:
    model = build(TINY)
    batch = mask(seasonal_batch(), SHORT)
    with pytest.raises(ValueError, match=r"env: shape \(\d, 64, 16, 8\), expected \(b, 1, s, d\): a station stays where it is"):
        model.condition(replace(batch, context={**batch.context, "env": torch.rand(4, 64, 16, 8)}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"channels": ()}, r"channels: \(\), expected one or more levels"),
        ({"embedding": 6}, "embedding: 6, expected a multiple of 4"),
        ({"node_minutes": 20}, "node_minutes: 20, expected 15, 30 or 60"),
        ({"contexts": ("users",)}, r"contexts: \['users'\], expected some of \['poi'\]"),
        ({"blocks": 0}, "blocks: 0, expected at least 1"),
    ],
)
def test_configurations_that_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **changes)
    with pytest.raises(ValueError, match=r"preset: 'huge', expected one of \['base', 'paper', 'small', 'tiny'\]"):
        preset("huge")


# --- the cost ---

VARIANTS: dict[str, StouterConfig] = {
    "tiny": replace(TINY, window=64),
    "padded, deep": replace(TINY, window=50, channels=(8, 12, 16), blocks=2, services=2),
    "no station": replace(TINY, window=24, contexts=()),
    "no time, no own": replace(TINY, window=24, temporal_graph=False, own_features=False),
}


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    for config in (preset(name), replace(preset(name), contexts=(), services=3), replace(preset(name), temporal_graph=False)):
        with torch.device("meta"):
            model = build(config)
        priced: Cost = cost(config)
        assert priced.parameters == sum(parameter.numel() for parameter in model.parameters())
        embedding = ("conditioner.", "denoiser.level.", "denoiser.unet.enter.")
        assert priced.embedding_parameters == sum(p.numel() for n, p in model.named_parameters() if n.startswith(embedding))


@pytest.mark.parametrize("name", VARIANTS)
def test_flops_are_what_torch_counts(name: str) -> None:
    config = VARIANTS[name]
    torch.manual_seed(0)
    model = build(config).train()
    batch = seasonal_batch(8, t=config.window)
    if config.services > 1:
        batch = replace(batch, traffic=batch.traffic.repeat(1, 2, 1, 1), known=batch.known.repeat(1, 2, 1, 1))
        batch = replace(batch, context={**batch.context, "reference": batch.context["reference"].repeat(1, 2)})
    batch = mask(batch, SHORT)
    priced = cost(config, (4, 4))

    def counted(backward: bool) -> int:
        with FlopCounterMode(display=False) as counter:
            loss = model(batch, torch.arange(8))["loss"]
            if backward:
                loss.backward()
        return int(counter.get_total_flops())

    with FlopCounterMode(display=False) as counter:
        model.scaling.fit(batch)
    scaling = int(counter.get_total_flops())
    assert counted(False) - scaling == 8 * priced.forward_flops
    assert counted(True) - scaling == 8 * priced.training_flops
    assert priced.tokens == config.window * 16
    with pytest.raises(ValueError, match=r"asked: 2, expected a share of the window's entries in \[0, 1\]"):
        cost(config, (4, 4), 2)


def test_gin_sums_over_the_edges_that_lead_to_a_node() -> None:
    """(1 + eps) x_i + sum of x_j over edges j -> i, through the layer's perceptron."""
    torch.manual_seed(0)
    encoder = GinEncoder(3, 8, 4)
    x, edges = torch.randn(3, 3), torch.tensor([[0, 1], [2, 2]])
    layer = encoder.first
    expected = layer.nn(torch.stack((x[0], x[1], x[2] + x[0] + x[1])))
    assert torch.allclose(layer(x, edges), expected, atol=1e-6)
