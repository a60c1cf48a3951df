"""UoMo's family: one rule through the paper's Table 6, and every size of it builds, trains and is saved."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.config import from_json, to_json
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, mixture
from raytraffic.models.uomo import PRESETS, UomoConfig, build, preset
from raytraffic.models.uomo.family import NAMED, NARROW, depth, heads
from tests.batches import seasonal_batch

#: Depth, width and heads of the presets as checkpoints hold them: they never change.
FIXED = {
    "w16": (2, 16, 1),
    "w24": (2, 24, 1),
    "w32": (3, 32, 1),
    "w48": (5, 48, 2),
    "w64": (6, 64, 2),
    "w96": (9, 96, 3),
    "20m": (15, 224, 7),
    "45m": (17, 320, 8),
    "tiny": (2, 32, 2),
    "small": (4, 128, 4),
    "5m": (12, 128, 4),
    "10m": (14, 192, 6),
    "35m": (16, 256, 8),
    "60m": (17, 384, 8),
    "100m": (18, 512, 8),
    "150m": (19, 640, 10),
    "200m": (20, 768, 12),
    "faithful": (4, 128, 4),
    "faithful-35m": (16, 256, 8),
    "release": (8, 512, 8),
}
WIDTHS = st.integers(1, 256).map(lambda eighth: 8 * eighth)


def test_the_rule_goes_through_table_6() -> None:
    assert [depth(width) for width in (128, 256, 768)] == [12, 16, 20]


def test_presets_keep_their_shapes() -> None:
    assert {name: (config.depth, config.hidden, config.heads) for name, config in PRESETS.items()} == FIXED


def test_sizes_of_the_family_differ_in_depth_width_and_heads_alone() -> None:
    like = to_json(preset("5m"))
    for name in (*NAMED, *(f"w{width}" for width in NARROW)):
        ours = to_json(preset(name))
        assert {key for key in like if ours[key] != like[key]} <= {"depth", "hidden", "heads"}, name


def test_named_sizes_grow_from_5m_to_200m_in_steps_of_less_than_three() -> None:
    counts = [registry.model("uomo").cost(preset(name), (4, 4), 0.5).parameters for name in NAMED]
    assert len(counts) >= 8 and all(1.3 < larger / smaller < 3 for smaller, larger in pairwise(counts))
    assert 3.5e6 < counts[0] < 5.5e6 and 190e6 < counts[-1] < 220e6


@given(width=WIDTHS)
def test_every_width_has_a_depth_and_heads_that_divide_it(width: int) -> None:
    assert depth(width) >= 2 and depth(width + 8) >= depth(width)
    size, rest = divmod(width, heads(width))
    assert rest == 0 and size % 8 == 0
    if width <= 256 and width % 32 == 0:
        assert size == 32
    if width >= 512 and width % 64 == 0:
        assert size == 64


def test_a_width_is_a_name() -> None:
    assert (preset("w128"), preset("w16")) == (preset("5m"), PRESETS["w16"])
    config = preset("w40")
    assert (config.depth, config.hidden, config.heads) == (4, 40, 1)
    for name in ("w41", "w0", "w4"):
        with pytest.raises(ValueError, match=rf"preset: '{name}', expected a width that is a multiple of 8, as w40"):
            preset(name)
    with pytest.raises(ValueError, match=r"preset: 'wide', expected one of \['100m', .*\], or a width of the family as w40"):
        preset("wide")


def test_a_configuration_from_before_the_transfer_is_read() -> None:
    old = to_json(preset("5m"))
    del old["base_hidden"]
    assert from_json(UomoConfig, old, "config") == preset("5m")


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMED)
def test_every_size_builds_trains_and_is_saved(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(preset(name)).train()
    batch = mixture(seasonal_batch(2), (SHORT, LONG, GENERATION, RANDOM), [1.0] * 4, seed=1)
    before = {key: value.clone() for key, value in model.denoiser.output.state_dict().items()}
    settings = Optimisation(warmup=0)
    figures = step(model, batch, torch.arange(2), optimiser(model, settings), 0, settings)
    assert figures["gradient_norm"] > 0  # a norm that is not finite raises
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert not torch.equal(model.denoiser.output.out.weight, before["out.weight"])  # type: ignore[union-attr]
    save_forecaster(tmp_path, model.state_dict(), "uomo", preset(name), {})
    again, _, config = load_forecaster(tmp_path)
    assert config == preset(name)
    weights = again.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
