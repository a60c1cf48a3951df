"""Image statistics: colours by hand, shares that add up, and what they say of rendered and of real tiles."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import RgbImage


def plain(*colour: int, size: int = 24) -> RgbImage:
    return np.full((size, size, 3), colour, dtype=np.uint8)


@pytest.mark.parametrize(
    ("colour", "share"),
    [
        ((60, 90, 45), "vegetation"),
        ((90, 112, 60), "vegetation"),
        ((48, 74, 47), "vegetation"),  # a wooded hill, as smooth and dark as a lake
        ((58, 80, 82), "water"),
        ((70, 88, 69), "water"),  # a lake in Guangzhou
        ((50, 57, 56), "water"),  # one in Shenzhen
        ((150, 130, 105), "bare"),
        ((142, 88, 72), "built"),  # a tiled roof
        ((90, 130, 190), "built"),  # a blue one
        ((30, 30, 30), "built"),  # shadow
        ((0, 0, 0), "built"),
        ((255, 255, 255), "built"),
    ],
)
def test_a_plain_colour_is_one_kind(colour: tuple[int, int, int], share: str) -> None:
    found = asdict(image_statistics(plain(*colour)))
    assert {kind: found[kind] for kind in ("vegetation", "water", "bare", "built")} == {
        kind: float(kind == share) for kind in ("vegetation", "water", "bare", "built")
    }
    assert found["edges"] == 0 and found["contrast"] == pytest.approx(0)
    assert found["mean_colour"] == pytest.approx([value / 255 for value in colour])


def test_asphalt_is_paved_and_so_built() -> None:
    found = image_statistics(plain(112, 112, 112))
    assert (found.built, found.paved) == (1.0, 1.0)
    assert image_statistics(plain(250, 250, 250)).paved == 0


def test_water_is_smooth() -> None:
    generator = np.random.default_rng(0)
    rough = np.clip(plain(58, 80, 82) + generator.normal(0, 25, (24, 24, 1)), 0, 255).astype(np.uint8)
    assert image_statistics(rough).water < 0.1


def test_shares_and_edges_of_two_halves() -> None:
    image = np.concatenate([plain(60, 90, 45), plain(200, 200, 200)], axis=1)
    found = image_statistics(image)
    assert (found.vegetation, found.built) == (0.5, 0.5)
    assert found.edges == pytest.approx(2 / 48)  # the column on each side of the border
    assert found.brightness == pytest.approx((65 / 255 + 200 / 255) / 2)
    assert found.contrast == pytest.approx((200 - 65) / 255 / 2)


@settings(max_examples=30)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(1, 40))
def test_shares_add_up_for_any_image(seed: int, height: int, width: int) -> None:
    found = image_statistics(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))
    assert found.vegetation + found.water + found.bare + found.built == pytest.approx(1)
    assert 0 <= found.paved <= found.built and 0 <= found.edges <= 1


@pytest.mark.parametrize("image", [np.zeros((4, 4, 3)), np.zeros((4, 4), dtype=np.uint8), np.zeros((0, 4, 3), dtype=np.uint8)])
def test_what_is_no_image_is_refused(image: RgbImage) -> None:
    with pytest.raises(ValueError, match=r"^image: shape .* expected \(height, width, 3\) of uint8"):
        image_statistics(image)


def test_real_tiles_look_as_they_do(shared_data: Path) -> None:
    file = shared_data / "urbanclip" / "tiles_z16_24.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here")
    found = [image_statistics(image) for image in np.load(file)["images"]]
    # looked at: 2 is a brown field, 13 blue roofs along a canal, 22 a dense quarter, 23 hills around a lake
    assert found[2].bare > 0.4 and found[2].vegetation < 0.1 and found[2].edges < 0.1
    assert 0.05 < found[13].water < 0.2 and found[13].edges > 0.3
    assert found[22].built > 0.5 and found[22].paved > 0.4
    assert found[23].vegetation > 0.6 and found[23].water > 0.1 and found[23].built < 0.15


def test_real_regions_of_shanghai(shared_data: Path) -> None:
    file = shared_data / "opendiff_shanghai" / "shanghai_9regions.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here")
    found = [image_statistics(image) for image in np.load(file)["images"]]
    assert len(found) == 9
    # looked at: 5 is green on both sides of a motorway, 2 apartment blocks in greenery, 7 and 8 sheds
    assert max(range(9), key=lambda i: found[i].vegetation) == 5
    assert max(range(9), key=lambda i: found[i].edges) == 2
    assert min(found[7].built, found[8].built) > 0.5
