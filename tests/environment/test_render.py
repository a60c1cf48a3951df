"""Rendered pictures are the same wherever and however they are cut, and show the land, so that they tell of traffic; no one pixel does."""

from __future__ import annotations

import hashlib
import importlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr

from raytraffic.environment.landscape import LAND_COVERS, Landscape, landscape
from raytraffic.environment.render import SyntheticTiles, render
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import MissingTileError, RgbImage
from raytraffic.sources.synthetic import SyntheticCity

CITY = SyntheticCity(name="town", grid=(6, 6), days=1, seed=3)
REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def land() -> Landscape:
    return landscape(CITY)


def close(one: RgbImage, other: RgbImage) -> None:
    """Equal but for pixels at whose rim float32 rounds to one side or the other."""
    assert one.shape == other.shape
    assert (np.abs(one.astype(int) - other).max(axis=2) > 2).mean() < 0.01


def test_size_and_range(land: Landscape) -> None:
    image = render(land, 750.0, 750.0, metres=500, pixels=50)
    assert image.shape == (50, 50, 3) and image.dtype == np.uint8
    assert image.std() > 10 and 60 < image.mean() < 180


def test_same_in_another_process(land: Landscape) -> None:
    here = hashlib.sha256(render(land, 750.0, 1250.0, metres=500, pixels=64).tobytes()).hexdigest()
    code = """
import hashlib
from raytraffic.environment.landscape import landscape
from raytraffic.environment.render import render
from raytraffic.sources.synthetic import SyntheticCity
land = landscape(SyntheticCity(name="town", grid=(6, 6), days=1, seed=3))
print(hashlib.sha256(render(land, 750.0, 1250.0, metres=500, pixels=64).tobytes()).hexdigest())
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    assert out.stdout.strip() == here


def test_a_part_is_cut_out_of_the_whole(land: Landscape) -> None:
    whole = render(land, 1500.0, 1500.0, metres=1000, pixels=400)
    part = render(land, 1500.0 + 250.0, 1500.0 + 125.0, metres=250, pixels=100)  # north-east of the middle
    close(part, whole[100:200, 250:350])


def test_sizes_agree(land: Landscape) -> None:
    fine, coarse = (render(land, 1250.0, 750.0, metres=500, pixels=pixels).astype(float) for pixels in (256, 32))
    means = fine.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert np.corrcoef(means.ravel(), coarse.ravel())[0, 1] > 0.8
    np.testing.assert_allclose(fine.mean(axis=(0, 1)), coarse.mean(axis=(0, 1)), atol=4)


def test_cities_differ_in_more_than_their_plan(land: Landscape) -> None:
    other = landscape(SyntheticCity(name="town", grid=(6, 6), days=1, seed=4))
    assert (render(land, 750, 750, metres=500, pixels=32) != render(other, 750, 750, metres=500, pixels=32)).mean() > 0.9


def test_tiles_show_their_place(land: Landscape) -> None:
    tiles = SyntheticTiles((SyntheticCity(name="elsewhere", grid=(3, 3)), CITY))
    longitude, latitude = (float(value[0]) for value in land.degrees(np.array([[1250.0, 2250.0]])))
    close(tiles.image(longitude, latitude, metres=400, pixels=60), render(land, 1250.0, 2250.0, metres=400, pixels=60))
    with pytest.raises(MissingTileError, match=r"expected a place in one of the synthetic cities \['elsewhere', 'town'\]"):
        tiles.image(longitude, latitude + 1.0, metres=400, pixels=60)
    with pytest.raises(ValueError, match=r"^latitude: 91\.0, expected"):
        tiles.image(longitude, 91.0, metres=400, pixels=60)


def test_around_a_city_lie_fields(land: Landscape) -> None:
    beyond = image_statistics(render(land, -2000.0, -2000.0, metres=500, pixels=64))
    assert beyond.vegetation + beyond.bare > 0.6 and beyond.water == 0


def test_colours_show_water_and_greenery(land: Landscape) -> None:
    shares = land.shares()
    found = [image_statistics(render(land, 250 + 500 * (i % 6), 2750 - 500 * (i // 6), metres=500, pixels=128)) for i in range(36)]
    water, green = (shares[LAND_COVERS.index(cover)] for cover in ("water", "park"))
    assert np.corrcoef(water, [each.water for each in found])[0, 1] > 0.9
    assert np.corrcoef(green, [each.vegetation + each.bare for each in found])[0, 1] > 0.6
    assert np.corrcoef(water + green, [each.built for each in found])[0, 1] < -0.85


@pytest.mark.parametrize(
    ("metres", "pixels", "named"),
    [
        (0.0, 8, "^metres: 0.0, expected"),
        (float("inf"), 8, "^metres: inf, expected"),
        (10.0, 0, "^pixels: 0, "),
        (10.0, 9999, "^pixels: 9999, "),
    ],
)
def test_a_picture_of_no_sense_is_refused(land: Landscape, metres: float, pixels: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        render(land, 100.0, 100.0, metres=metres, pixels=pixels)


def test_a_hundred_small_tiles_a_second(land: Landscape) -> None:
    render(land, 250.0, 250.0, metres=500, pixels=64)
    took = []
    for _ in range(3):
        begin = time.process_time()
        for i in range(36):
            render(land, 250 + 500 * (i % 6), 250 + 500 * (i // 6), metres=500, pixels=64)
        took.append((time.process_time() - begin) / 36)
    assert min(took) < 0.02  # under 5 ms were measured; a busy machine takes longer


def test_images_of_unseen_cities_tell_of_their_traffic_and_single_pixels_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    benchmark = importlib.import_module("landscape")
    cities = [list(benchmark.cells_of(SyntheticCity(name=f"city{seed}", grid=(7, 7), days=5, seed=seed))) for seed in range(8)]
    cells = [cell for city in cities for cell in city]
    fitted = np.arange(len(cells)) < sum(map(len, cities[:6]))
    features, pixels = np.array([cell.features for cell in cells]), np.array([cell.pixel for cell in cells])
    evening, level = ([cell.asked[name] for cell in cells] for name in ("evening", "level"))
    for seen, holds in ((features, lambda r2: r2 > 0.4), (pixels, lambda r2: r2 < 0.1)):
        assert holds(benchmark.explained(seen[fitted], np.array(evening)[fitted], seen[~fitted], np.array(evening)[~fitted]))
    edges = features[:, 5]
    assert spearmanr(edges, level).statistic > 0.35  # denser cells are more finely built
