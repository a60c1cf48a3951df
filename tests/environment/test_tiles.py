"""Crops of slippy-map tiles show the place that was asked for, from a folder, S3 and a zip file; what is no sound tile is named."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from raytraffic.environment.mercator import metres_per_pixel, project, tile_of, unproject
from raytraffic.environment.tiles import FolderTiles, MissingTileError, Tiles, ZipTiles, decode_tile
from raytraffic.files import Location
from tests.environment.pyramids import AROUND, LATITUDE, LONGITUDE, TILE, colours_at, encoded, tile_pixels, write_folder
from tests.fixtures_s3 import _s3_server, s3_bucket

__all__ = ["_s3_server", "s3_bucket"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("tiles")
    write_folder(found)
    return found


def expected(longitude: float, latitude: float, metres: float, pixels: int) -> NDArray[np.float64]:
    """What a crop of `colours_at` looks like, from the place of each of its pixels."""
    half = metres / 2 / (metres_per_pixel(latitude, 0) * 256)
    x, y = (float(value) for value in project(longitude, latitude))
    offset = ((np.arange(pixels) + 0.5) / pixels * 2 - 1) * half
    columns, rows = np.meshgrid(x + offset, y + offset)
    return colours_at(columns, rows)


def zipped(folder: Path, file: Path) -> ZipTiles:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(folder.rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return ZipTiles(file=str(file), zooms=(16,))


def test_the_place_is_the_one_in_the_helper() -> None:
    assert tile_of(LONGITUDE, LATITUDE, 16) == TILE


@settings(max_examples=25)
@given(st.floats(-0.9, 0.9), st.floats(-0.9, 0.9), st.floats(50, 500), st.sampled_from([16, 64, 200]))
def test_a_crop_shows_its_place_across_tile_borders(folder: Path, east: float, south: float, metres: float, pixels: int) -> None:
    x, y = (TILE[0] + 0.5 + east / 2) / 2**16, (TILE[1] + 0.5 + south / 2) / 2**16
    longitude, latitude = (float(value) for value in unproject(x, y))
    image = FolderTiles(folder=str(folder), zooms=(16,)).image(longitude, latitude, metres=metres, pixels=pixels)
    assert image.shape == (pixels, pixels, 3) and image.dtype == np.uint8
    # half a grey level of rounding in the tiles, half in the crop, and as much in bicubic weights at its rim
    np.testing.assert_allclose(image, expected(longitude, latitude, metres, pixels), atol=1.5)


def test_a_tiles_own_square_comes_back_bit_for_bit(folder: Path) -> None:
    longitude, latitude = (float(value) for value in unproject((TILE[0] + 0.5) / 2**16, (TILE[1] + 0.5) / 2**16))
    metres = 256 * metres_per_pixel(latitude, 16)
    image = FolderTiles(folder=str(folder), zooms=(16,)).image(longitude, latitude, metres=metres, pixels=256)
    np.testing.assert_array_equal(image, tile_pixels(16, *TILE))


def test_the_coarsest_zoom_that_is_fine_enough_is_read(tmp_path: Path) -> None:
    for zoom, level in ((14, 0), (15, 100), (16, 200)):
        x, y = tile_of(LONGITUDE, LATITUDE, zoom)
        tiles = [(x + i, y + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
        for tile in tiles:
            file = tmp_path / str(zoom) / str(tile[0]) / f"{tile[1]}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(np.full((256, 256, 3), level, dtype=np.uint8)))
    found = FolderTiles(folder=str(tmp_path), zooms=(14, 15, 16))
    a_pixel = metres_per_pixel(LATITUDE, 15)
    seen = [int(found.image(LONGITUDE, LATITUDE, metres=64 * size, pixels=64).max()) for size in (a_pixel, 0.7 * a_pixel, 1.9 * a_pixel)]
    assert seen == [100, 200, 100]
    # beyond the finest zoom it is enlarged, and what is between is taken from the finer one
    assert found.image(LONGITUDE, LATITUDE, metres=6 * a_pixel, pixels=64).max() == 200
    assert found.image(LONGITUDE, LATITUDE, metres=2.1 * 64 * a_pixel, pixels=64).max() == 0


def test_folder_s3_and_zip_answer_alike(folder: Path, tmp_path: Path, s3_bucket: str) -> None:
    for file in folder.rglob("*.png"):
        Location.of(f"{s3_bucket}/tiles/{file.relative_to(folder)}").write_bytes(file.read_bytes())
    archive = zipped(folder, tmp_path / "tiles.zip")
    Location.of(f"{s3_bucket}/tiles.zip").write_bytes((tmp_path / "tiles.zip").read_bytes())
    sources: list[Tiles] = [
        FolderTiles(folder=str(folder), zooms=(16,)),
        FolderTiles(folder=f"{s3_bucket}/tiles", zooms=(16,)),
        archive,
        ZipTiles(file=f"{s3_bucket}/tiles.zip", zooms=(16,)),
        pickle.loads(pickle.dumps(archive)),
    ]
    images = [source.image(LONGITUDE, LATITUDE, metres=600, pixels=100) for source in sources]
    for image in images[1:]:
        np.testing.assert_array_equal(image, images[0])


def test_other_layouts_by_their_pattern(tmp_path: Path) -> None:
    for x, y in AROUND:
        (tmp_path / f"16_{x}_{y}.jpg").write_bytes(encoded(tile_pixels(16, x, y), "JPEG"))
    image = FolderTiles(folder=str(tmp_path), zooms=(16,), pattern="{z}_{x}_{y}.jpg").image(LONGITUDE, LATITUDE, metres=400, pixels=64)
    np.testing.assert_allclose(image, expected(LONGITUDE, LATITUDE, 400, 64), atol=6)  # what JPEG loses


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_a_missing_tile_is_named(folder: Path, tmp_path: Path, kind: str) -> None:
    source: Tiles = FolderTiles(folder=str(folder), zooms=(16,)) if kind == "folder" else zipped(folder, tmp_path / "t.zip")
    with pytest.raises(MissingTileError, match=rf"16/{TILE[0] + 2}/\d+\.png: no such"):
        source.image(LONGITUDE + 0.011, LATITUDE, metres=100, pixels=64)


def png_claiming(width: int, height: int) -> bytes:
    """A few bytes that say they are a huge image."""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )


GOOD = encoded(tile_pixels(16, *TILE))
BROKEN = {
    "truncated": (GOOD[: len(GOOD) // 2], "truncated, or no image"),
    "html": (b"<html><body>quota exceeded</body></html>", "truncated, or no image"),
    "empty": (b"", "truncated, or no image"),
    "garbled": (GOOD[:60] + b"\xff" * 40 + GOOD[100:], "truncated, or no image"),
    "small": (encoded(np.zeros((8, 8, 3), dtype=np.uint8)), "8 x 8 pixels of mode RGB, expected 256 x 256"),
    "sixteen bits": (encoded(np.zeros((256, 256), dtype=np.uint16)), "256 x 256 pixels of mode I;16, expected 256 x 256 pixels of 8-bit"),
    "bomb": (png_claiming(60000, 60000), "truncated, or no image|60000 x 60000 pixels"),
    "large": (png_claiming(5000, 5000), "5000 x 5000 pixels of mode RGB"),
    "long": (GOOD + b"\0" * 4_000_000, "more than 4000000 bytes"),
    "another kind": (encoded(np.zeros((256, 256, 3), dtype=np.uint8), "GIF"), "truncated, or no image"),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("fault", list(BROKEN))
def test_a_broken_tile_names_its_file(tmp_path: Path, fault: str) -> None:
    data, message = BROKEN[fault]
    write_folder(tmp_path)
    (tmp_path / "16" / str(TILE[0]) / f"{TILE[1]}.png").write_bytes(data)
    name = f"16/{TILE[0]}/{TILE[1]}.png"
    with pytest.raises(ValueError, match=f"{name}: ({message})"):
        FolderTiles(folder=str(tmp_path), zooms=(16,)).image(LONGITUDE, LATITUDE, metres=100, pixels=64)
    with pytest.raises(ValueError, match=f"t.zip:{name}: ({message})"):
        zipped(tmp_path, tmp_path / "t.zip").image(LONGITUDE, LATITUDE, metres=100, pixels=64)


def test_a_damaged_zip_file_is_named(folder: Path, tmp_path: Path) -> None:
    source = zipped(folder, tmp_path / "t.zip")
    whole = (tmp_path / "t.zip").read_bytes()
    (tmp_path / "t.zip").write_bytes(whole[:-200])
    with pytest.raises(ValueError, match=r"t\.zip: truncated or corrupt"):
        source.image(LONGITUDE, LATITUDE, metres=100, pixels=64)
    member = whole.index(GOOD[30:60]) if GOOD[30:60] in whole else 200
    (tmp_path / "t.zip").write_bytes(whole[:member] + b"\0" * 3000 + whole[member + 3000 :])
    with pytest.raises(ValueError, match=r"t\.zip"):
        source.image(LONGITUDE, LATITUDE, metres=900, pixels=64)
    with pytest.raises(ValueError, match=r"none\.zip: no such file"):
        ZipTiles(file=str(tmp_path / "none.zip"), zooms=(16,)).image(LONGITUDE, LATITUDE, metres=100, pixels=64)


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA"])
def test_other_kinds_of_colours_become_rgb(mode: str) -> None:
    stream = io.BytesIO()
    Image.fromarray(np.full((256, 256, 3), 51, dtype=np.uint8)).convert(mode).save(stream, "PNG")
    np.testing.assert_array_equal(decode_tile(stream.getvalue(), "tile"), np.full((256, 256, 3), 51))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"zooms": ()}, r"^zooms: \(\), expected at least one"),
        ({"zooms": (16, 31)}, r"^zooms: \(16, 31\), expected"),
        ({"pattern": "{z}/{x}.png"}, r"^pattern: '\{z\}/\{x\}\.png', expected"),
        ({"pattern": "{z}/{x}/{y}/{y}.png"}, "^pattern: "),
        ({"pattern": "{s}/{z}/{x}/{y}.png"}, "^pattern: "),
        ({"folder": "ftp://host/tiles"}, "^path: "),
    ],
)
def test_bad_options_are_refused_by_name(change: dict[str, str], named: str) -> None:
    options = {"folder": "tiles", "zooms": (16,)} | change
    with pytest.raises(ValueError, match=named):
        FolderTiles(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("metres", "pixels", "named"),
    [
        (100.0, 0, "^pixels: 0, expected"),
        (100.0, 5000, "^pixels: 5000, expected"),
        (50_000.0, 64, r"^metres: 50000 touch .* expected at most 256"),
    ],
)
def test_a_crop_of_no_sense_is_refused(folder: Path, metres: float, pixels: int, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        FolderTiles(folder=str(folder), zooms=(16,)).image(LONGITUDE, LATITUDE, metres=metres, pixels=pixels)


def test_real_tiles_are_cropped(shared_data: Path, tmp_path: Path) -> None:
    file = shared_data / "urbanclip" / "tiles_z16_24.npz"
    if not file.is_file():
        pytest.skip(f"{file.name} is not here")
    images = np.load(file)["images"]
    for (x, y), image in zip(AROUND, images, strict=False):
        path = tmp_path / "16" / str(x) / f"{y}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(image))
    longitude, latitude = (float(value) for value in unproject((TILE[0] + 1) / 2**16, (TILE[1] + 0.5) / 2**16))
    metres = 256 * metres_per_pixel(latitude, 16)
    seen = FolderTiles(folder=str(tmp_path), zooms=(16,)).image(longitude, latitude, metres=metres, pixels=256)
    at = dict(zip(AROUND, images, strict=False))
    joined = np.concatenate([at[TILE][:, 128:], at[TILE[0] + 1, TILE[1]][:, :128]], axis=1)
    np.testing.assert_array_equal(seen, joined)
