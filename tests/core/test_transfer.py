"""Transfer over widths (muP): the same as without it at the base width, and activations that do not grow with the width in training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, mask, mixture
from raytraffic.models.uomo import UomoConfig, build, preset
from raytraffic.nn.transformer import AdaLNBlock, SelfAttention, ZeroLinear
from tests.batches import seasonal_batch

SETTINGS = Optimisation(learning_rate=1e-2, warmup=0, steps=1000, weight_decay=1e-2, clip=1e9)


def wide(width: int, base: int | None, entries: int = 0) -> UomoConfig:
    """A shallow member of the family."""
    return replace(preset(f"w{width}"), depth=2, base_hidden=base, entries=entries, contexts=("users",), poi_categories=())


def built(config: UomoConfig, seed: int = 0) -> Forecaster:
    """A model as constructed."""
    torch.manual_seed(seed)
    return build(config)


def rates(model: nn.Module) -> dict[str, tuple[float, float]]:
    """Learning rate scale and weight decay of every parameter."""
    found = {
        id(parameter): (group["learning_rate_scale"], group["weight_decay"])
        for group in optimiser(model, SETTINGS).param_groups
        for parameter in group["params"]
    }
    return {name: found[id(parameter)] for name, parameter in model.named_parameters()}


def test_at_the_base_width_nothing_changes() -> None:
    for width in (64, 384):
        plain = built(wide(width, None, entries=16))
        after = torch.get_rng_state()
        transferred = built(wide(width, width, entries=16))
        assert torch.equal(torch.get_rng_state(), after), "what is built on the meta device draws nothing"
        assert all(torch.equal(value, plain.state_dict()[name]) for name, value in transferred.state_dict().items())
        assert rates(transferred) == rates(plain)
        assert all(module.scale is None for module in transferred.modules() if isinstance(module, SelfAttention))


def test_learning_rates_fall_with_the_fan_in_and_decay_stays_as_strong() -> None:
    model = built(wide(128, 32, entries=16))
    scales = rates(model)
    quarter = {"qkv", "attention.out", "mlp.0", "mlp.2", "adaln"}
    for name, (scale, decay) in scales.items():
        if name.startswith("conditioner.entries."):
            expected = 4.0
        elif name == "conditioner.vector.0.weight":
            expected = (2 + 32) / (2 + 128)
        elif name.endswith(".weight") and (
            any(name.endswith(f"{part}.weight") and ".blocks." in name for part in quarter)
            or name in ("conditioner.vector.2.weight", "denoiser.level.mlp.2.weight")
            or name.startswith("denoiser.output.")
        ):
            expected = 1 / 4
        else:
            expected = 1.0
        assert scale == pytest.approx(expected, rel=1e-12), name
        own = 4.0 if name.startswith("conditioner.entries.") else 1.0
        assert decay * scale == pytest.approx(SETTINGS.weight_decay * own if name.endswith("weight") else 0.0, rel=1e-12), name


def test_spread_of_weights_at_construction() -> None:
    """Layers of inputs as at the base width, layers of activations as one over the square root of the width, zeros zero."""
    narrow, model = built(wide(64, None, entries=16)), built(wide(256, 64, entries=16))
    wider = dict(model.named_modules())
    for name, layer in narrow.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        ours = wider[name]
        assert isinstance(ours, nn.Linear)
        if isinstance(layer, ZeroLinear):
            assert not bool(ours.weight.any()) and not bool(ours.bias.any())
        elif layer.weight.numel() > 1000:
            ratio = ours.in_features / layer.in_features
            assert float(ours.weight.detach().std()) == pytest.approx(float(layer.weight.detach().std()) / math.sqrt(ratio), rel=0.05), name
    for name, value in narrow.conditioner.entries.named_parameters():  # type: ignore[union-attr]
        theirs = model.conditioner.entries.get_parameter(name)  # type: ignore[union-attr]
        assert value.shape == theirs.shape and float(theirs.detach().std()) == pytest.approx(
            float(value.detach().std()), rel=0.2, abs=1e-9
        ), name


def test_logits_of_attention_fall_with_the_size_of_a_head() -> None:
    """1 / d instead of 1 / sqrt(d), the same at the base width's 32 features a head."""
    scales = {width: built(wide(width, 128)).denoiser.blocks[0].attention.scale for width in (256, 384, 512)}  # type: ignore[index,union-attr]
    assert scales == {256: None, 384: pytest.approx(math.sqrt(32) / 48), 512: pytest.approx(math.sqrt(32) / 64)}
    attention = SelfAttention(8, 2)
    x = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    standard = attention(x)
    attention.scale = 1 / math.sqrt(4)
    torch.testing.assert_close(attention(x), standard)
    attention.scale = 1 / 4
    assert not torch.allclose(attention(x), standard, atol=1e-5)


def test_a_saved_model_answers_as_before(tmp_path: Path) -> None:
    config = replace(wide(48, 128), heads=2)
    model = built(config).eval()
    with torch.no_grad():
        for i, parameter in enumerate(model.parameters()):
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)))
    save_forecaster(tmp_path, model.state_dict(), "uomo", config, {})
    again, _, loaded = load_forecaster(tmp_path)
    batch = mask(seasonal_batch(2), SHORT)
    ours, theirs = (one.forecast(batch, replace(config.forecaster.sampler, steps=2), draws=1).draws for one in (model, again))
    assert loaded == config and torch.equal(ours.nan_to_num(), theirs.nan_to_num())
    other = build(replace(config, base_hidden=None)).eval()
    other.load_state_dict(model.state_dict())
    changed = other.forecast(batch, replace(config.forecaster.sampler, steps=2), draws=1).draws
    assert not torch.equal(ours.nan_to_num(), changed.nan_to_num()), "the attention's scale is part of the model"


def test_a_base_width_is_a_width_of_the_family() -> None:
    for base in (0, -8, 12):
        with pytest.raises(ValueError, match=f"base_hidden: {base}, expected a multiple of 8"):
            wide(64, base)


WIDTHS = (32, 64, 128, 256)


def sizes_after_training(width: int, base: int | None, seed: int) -> dict[str, float]:
    """Mean size, after five steps, of what each block and the output give, and of how much that has changed."""
    model = built(wide(width, base), seed).train()
    batch = mixture(seasonal_batch(4, t=32), (SHORT, LONG, GENERATION, RANDOM), [1.0] * 4)
    seeds, given = torch.arange(4), dict[str, Tensor]()

    def keeps(name: str, module: nn.Module) -> None:
        module.register_forward_hook(lambda _module, _arguments, answer: given.__setitem__(name, answer.detach()))

    blocks = [module for module in model.modules() if isinstance(module, AdaLNBlock)]
    for i, block in enumerate(blocks):
        keeps(f"block {i}", block)
    keeps("output", model.denoiser.output)  # type: ignore[arg-type]
    with torch.no_grad():
        model(batch, seeds)
    before, adam = dict(given), optimiser(model, SETTINGS)
    for done in range(5):
        step(model, batch, seeds, adam, done, SETTINGS)
    with torch.no_grad():
        model(batch, seeds)
    found = {name: float(value.abs().mean()) for name, value in given.items()}
    return found | {f"change of {name}": float((value - before[name]).abs().mean()) for name, value in given.items()}


def slopes(base: int | None) -> dict[str, float]:
    """Exponents of the sizes in the width, by least squares on logarithms, over two models a width."""
    rows = [[sizes_after_training(width, base, seed) for seed in range(2)] for width in WIDTHS]
    means = {name: [np.mean([math.log(row[name]) for row in of_width]) for of_width in rows] for name in rows[0][0]}
    return {name: float(np.polyfit(np.log(WIDTHS), values, 1)[0]) for name, values in means.items()}


def test_coordinate_check() -> None:
    """Yang et al. 2022, D.1: over a factor of 8 in width sizes go as its power of +-0.15 at most, and grow without the transfer."""
    flat, growing = slopes(base=32), slopes(base=None)
    assert len(flat) == 6
    assert {name: slope for name, slope in flat.items() if abs(slope) > 0.15} == {}
    assert min(growing[name] for name in growing if name.startswith("change of block")) > 0.4
    assert min(growing.values()) > 0.3
