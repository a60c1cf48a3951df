"""Rendered pictures are the same wherever and however they are cut, and show the land, so that they tell of traffic; no one pixel does."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import spearmanr

from raytraffic.environment.landscape import LAND_COVERS, Landscape, landscape
from raytraffic.environment.render import SyntheticTiles, render
from raytraffic.environment.statistics import image_statistics
from raytraffic.environment.tiles import MissingTileError, RgbImage
from raytraffic.sources.synthetic import SyntheticCities, SyntheticCity

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


def _seen(image: RgbImage) -> NDArray[np.float64]:
    """What a simple encoder might see: statistics, texture at several distances, and a histogram of colours."""
    found = image_statistics(image)
    grey = image.mean(axis=2) / 255
    texture = [np.abs(np.diff(grey, axis=axis)).mean() for axis in (0, 1)] + [np.abs(grey[k:] - grey[:-k]).mean() for k in (2, 3, 4, 6)]
    colours = np.histogramdd((image // 52).reshape(-1, 3), bins=(5, 5, 5), range=((0, 5),) * 3)[0].ravel() / image[..., 0].size
    shares = (found.vegetation, found.water, found.bare, found.built, found.paved, found.edges, found.brightness, found.contrast)
    return np.array([*shares, *found.mean_colour, *texture, *np.sqrt(colours)])


def _explained(seen: NDArray[np.float64], asked: NDArray[np.float64], trained: NDArray[np.bool_]) -> NDArray[np.float64]:
    """(d,) share of the variance of `asked` (n, d) on the other rows that a ridge regression on the `trained` rows explains."""
    scaled = (seen - seen[trained].mean(axis=0)) / (seen[trained].std(axis=0) + 1e-6)
    design = np.column_stack([scaled, np.ones(len(seen))])
    weights = np.linalg.solve(design[trained].T @ design[trained] + 30 * np.eye(design.shape[1]), design[trained].T @ asked[trained])
    rest = (asked - design @ weights)[~trained]
    return np.asarray(1 - (rest**2).mean(axis=0) / ((asked[~trained] - asked[trained].mean(axis=0)) ** 2).mean(axis=0))


def test_images_of_unseen_cities_tell_of_their_traffic_and_single_pixels_do_not() -> None:
    seen, pixel, level, rhythm, city_of = [], [], [], [], []
    for seed in range(8):
        city = SyntheticCity(name=f"city{seed}", grid=(7, 7), days=5, seed=seed)
        (record,) = SyntheticCities([city]).read(city.name)
        land, hour = landscape(city), (np.arange(city.slots) + 0.5) / 2 % 24
        assert record.xy is not None
        for site in np.flatnonzero(land.live.ravel()):
            image = render(land, *record.xy[site], metres=500, pixels=64)
            traffic = record.traffic[0, :, site].astype(np.float64)
            evening, noon = (traffic[(hour > begin) & (hour < end)].mean() for begin, end in ((19, 23), (9, 17)))
            seen.append(_seen(image))
            pixel.append(image[32, 32].astype(np.float64))
            level.append(traffic.mean())
            rhythm.append([np.log(evening / noon)])
            city_of.append(seed)
    trained = np.array(city_of) < 6
    assert _explained(np.array(seen), np.array(rhythm), trained) > 0.4
    assert _explained(np.array(pixel), np.array(rhythm), trained) < 0.1
    edges = np.array(seen)[:, 5]
    assert spearmanr(edges, level).statistic > 0.35  # denser cells are more finely built
