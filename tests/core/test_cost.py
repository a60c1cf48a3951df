"""The cost of a model by its formula equals what the built model holds and what torch counts while it runs."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from raytraffic import registry
from raytraffic.cost import Part, attention, linear, peak_flops
from raytraffic.forecaster import Forecaster
from raytraffic.marginals import NODES, quantiles
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, mixture
from raytraffic.models.uomo import PRESETS, UomoConfig, build, cost, preset
from raytraffic.models.uomo.cost import parts
from raytraffic.models.uomo.entries import entry_features
from raytraffic.types import Condition, Space, TrafficBatch
from tests.batches import seasonal_batch

#: Sizes and token shapes, windows that are padded, and every context.
VARIANTS: dict[str, UomoConfig] = {
    "tiny": preset("tiny"),
    "tiny-transfer": replace(preset("tiny"), base_hidden=64),
    "w24": replace(preset("w24"), contexts=("users",), poi_categories=()),
    "w48-no-entries": replace(preset("w48"), entries=0, contexts=()),
    "w64-single-entries": replace(preset("w64"), token=(1, 1, 1), window=24),
    "w96-padded": replace(preset("w96"), token=(8, 3, 3), window=60, contexts=("poi",)),
    "5m": preset("5m"),
}


def on_meta(config: UomoConfig) -> Forecaster:
    """A model without weights."""
    with torch.device("meta"):
        return build(config)


def windows_of(config: UomoConfig) -> TrafficBatch:
    """Windows as a configuration takes them, with hidden entries: as many as are embedded together, since fewer are filled up."""
    return mixture(seasonal_batch(8, t=config.window), (SHORT, LONG, GENERATION, RANDOM), [1.0] * 4, seed=1)


def counted(work: Callable[[], Any]) -> int:
    """What FlopCounterMode counts, attention by its matrix products."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


def asked_share(model: Forecaster, batch: TrafficBatch) -> float:
    """The share of the entries that the entry network answers."""
    return float((~batch.known & ~model.scaling.fit(batch).dead).double().mean())


def beside_the_network(model: Forecaster, config: UomoConfig, batch: TrafficBatch, backward: bool) -> int:
    """Matrix products that belong to no layer and to no width: scaling, kriging, and quantiles of the marginals."""
    scale = model.scaling.fit(batch)
    total = counted(lambda: model.scaling.fit(batch))
    if config.entries:
        knots = torch.zeros(*batch.shape, len(NODES), requires_grad=True)
        total += counted(lambda: entry_features(batch, scale))
        total += counted(lambda: quantiles(knots).sum().backward() if backward else quantiles(knots))
    return total


@pytest.mark.parametrize("name", [*PRESETS, "w40"])
def test_parameters_are_those_of_the_built_model(name: str) -> None:
    for config in (preset(name), replace(preset(name), contexts=("users",)), replace(preset(name), services=3)):
        model, priced = on_meta(config), cost(config)
        count = {key: value.numel() for key, value in model.named_parameters()}
        assert priced.parameters == sum(count.values())
        embedding = [key for key in count if not key.startswith(("denoiser.blocks.", "denoiser.output.", "conditioner.entries."))]
        assert priced.embedding_parameters == sum(count[key] for key in embedding)
        assert priced.body_parameters == priced.parameters - priced.embedding_parameters


def test_every_model_of_the_registry_has_a_cost() -> None:
    for name in sorted(registry.MODELS):
        entry = registry.model(name)
        config = entry.preset("tiny")
        assert entry.cost(config, (4, 4), 0.5).parameters == sum(p.numel() for p in entry.build(config).parameters()), name


@pytest.mark.parametrize("name", VARIANTS)
def test_forward_and_training_flops_are_what_torch_counts(name: str) -> None:
    config = VARIANTS[name]
    torch.manual_seed(0)
    model, batch, seeds = build(config).train(), windows_of(config), torch.arange(8)
    priced = cost(config, (4, 4), asked_share(model, batch))
    forward = counted(lambda: model(batch, seeds)) - beside_the_network(model, config, batch, backward=False)
    training = counted(lambda: model(batch, seeds)["loss"].backward()) - beside_the_network(model, config, batch, backward=True)
    assert forward == round(8 * priced.forward_flops)
    assert training == round(8 * priced.training_flops)


def test_what_is_beside_the_network_is_little() -> None:
    """The formula leaves out scaling, kriging and quantiles: under 2 % of a 5m training step, and less of larger ones."""
    config = preset("5m")
    model, batch = build(config), windows_of(config)
    priced = cost(config, (4, 4), asked_share(model, batch))
    assert 0 < beside_the_network(model, config, batch, backward=True) < 0.02 * 8 * priced.training_flops


@pytest.mark.parametrize("name", ["20m", "200m", "release"])
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "training"])
def test_the_denoiser_of_large_sizes_on_the_meta_device(name: str, backward: bool) -> None:
    config = preset(name)
    model, priced = on_meta(config), parts(config)
    nt, nh, nw = (-(-size // token) for size, token in zip((config.window, 4, 4), config.token, strict=True))
    x = torch.empty(2, 1, config.window, 16, device="meta")
    told = {"tokens": torch.empty(2, nt * nh * nw, config.hidden, device="meta"), "vector": torch.empty(2, config.hidden, device="meta")}
    condition = Condition(known=torch.empty_like(x, dtype=torch.bool), space=Space(grid=(4, 4)), **told)
    level = torch.empty(2, device="meta")

    def work() -> None:
        answer = model.denoiser(x, level, condition)
        if backward:
            answer.sum().backward()

    volume = config.token[0] * config.token[1] * config.token[2]
    embeddings = linear(volume, config.hidden, nt * nh * nw, of_data=True)
    embeddings += linear(128, config.hidden, 1, of_data=True) + linear(config.hidden, config.hidden, 1)
    whole = priced["blocks"] + priced["output"] + embeddings
    assert counted(work) == 2 * (whole.training_flops if backward else whole.forward_flops)


def test_fused_attention_is_counted_with_the_scores_it_computes_twice() -> None:
    """FlopCounterMode adds to the backward pass of fused kernels the scores that they compute again; the formula, as MFU, does not."""
    config = preset("w48")
    model, batch, seeds = build(config).train(), windows_of(config), torch.arange(8)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        model(batch, seeds)["loss"].backward()
    plain = counted(lambda: model(batch, seeds)["loss"].backward())
    assert counter.get_total_flops() - plain == 8 * config.depth * 2 * 64**2 * config.hidden


def test_only_the_entry_network_depends_on_what_is_asked() -> None:
    none, half, all_ = (parts(preset("5m"), (4, 4), share) for share in (0.0, 0.5, 1.0))
    assert none["entries"].forward_flops == 0 and 2 * half["entries"].forward_flops == all_["entries"].forward_flops > 0
    assert all(none[part] == all_[part] for part in none if part != "entries")
    for share in (-0.1, 1.5, float("nan")):
        with pytest.raises(ValueError, match=rf"asked: {share}, expected a share of the window's entries in \[0, 1\]"):
            cost(preset("5m"), (4, 4), share)


def test_tokens_are_those_of_the_denoiser() -> None:
    assert cost(preset("5m")).tokens == 64 and cost(preset("release")).tokens == 1024 and cost(preset("small")).tokens == 16
    assert cost(preset("5m"), (3, 5)).tokens == 16 * 2 * 3


def test_parts_add_up_by_hand() -> None:
    assert linear(3, 5, 7) == Part(20, 210, 630) and linear(3, 5, 7, of_data=True) == Part(20, 210, 420)
    assert attention(10, 6) == Part(0, 2400, 7200)
    assert (linear(3, 5, 7) + attention(10, 6)) * 2 == Part(40, 5220, 15660)


def test_peak_flops_by_the_name_of_a_device() -> None:
    assert peak_flops("NVIDIA H200") == peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert (peak_flops("NVIDIA L40S"), peak_flops("NVIDIA L4")) == (362e12, 121e12)
    assert peak_flops("AMD EPYC") is None


def test_costs_need_no_torch() -> None:
    program = "import sys, raytraffic.cost; assert not {'torch', 'ray', 'numpy'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
