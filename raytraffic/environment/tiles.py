"""Satellite images around a place, cut from slippy-map tiles (z/x/y, 256 x 256, Web Mercator) in a folder, in S3 or in a zip file.

The layout is what map services answer and what gdal2tiles (--xyz) and QGIS (Generate XYZ tiles) write: row 0 is the northernmost.
A crop reads the coarsest of the given zooms that is at least as fine as what is asked for, or the finest there is; it joins the
tiles the crop touches and resamples once (bicubic, antialiased). `raytraffic.environment.url_tiles` reads a map service.
"""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from raytraffic.environment.mercator import MAX_ZOOM, TILE_PIXELS, box_around, metres_per_pixel
from raytraffic.files import Location

__all__ = ["FolderTiles", "MissingTileError", "Pyramid", "RgbImage", "Tiles", "ZipTiles", "crop", "decode_tile"]

RgbImage = NDArray[np.uint8]

#: A crop of more tiles than this was meant for a coarser zoom; so was a larger image.
MAX_TILES = 256
MAX_PIXELS = 4096
#: No honest tile of 256 x 256 pixels is larger; bytes.
MAX_TILE_BYTES = 4_000_000
_FORMATS = ("PNG", "JPEG", "WEBP")
_MODES = ("RGB", "RGBA", "P", "PA", "L", "LA", "1", "CMYK", "YCbCr")


class Tiles(Protocol):
    """Where satellite images come from."""

    def image(self, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
        """(pixels, pixels, 3) the square of `metres` a side around a place, north up; MissingTileError where there is none."""
        ...


class MissingTileError(ValueError):
    """A place lies where no tile is: outside of what was downloaded, or of the city."""


class Pyramid(Protocol):
    """Slippy-map tiles as files: the zooms there are, and a tile's bytes with the name that messages call it by."""

    @property
    def zooms(self) -> Sequence[int]:
        """Zoom levels that may be read."""
        ...

    def read(self, zoom: int, x: int, y: int) -> tuple[bytes, str]:
        """A tile's file and its name; MissingTileError where there is none."""
        ...


@dataclass(frozen=True, kw_only=True)
class FolderTiles:
    """Tiles in a folder (local or s3://); `pattern` is a tile's path in it, with {z}, {x} and {y}."""

    folder: str
    zooms: tuple[int, ...]
    pattern: str = "{z}/{x}/{y}.png"

    def __post_init__(self) -> None:
        Location.of(self.folder)
        check_pattern("pattern", self.pattern)
        check_zooms(self.zooms)

    def image(self, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
        """See Tiles; ValueError names a file that is no sound tile."""
        return crop(self, longitude, latitude, metres=metres, pixels=pixels)

    def read(self, zoom: int, x: int, y: int) -> tuple[bytes, str]:
        """See Pyramid."""
        file = Location.of(self.folder).child(fill(self.pattern, zoom, x, y))
        try:
            with file.open_file() as stream:
                return stream.read(MAX_TILE_BYTES + 1), str(file)
        except FileNotFoundError as error:
            raise MissingTileError(f"{file}: no such file, expected a tile") from error


@dataclass(frozen=True, kw_only=True)
class ZipTiles:
    """Tiles in a zip file (local or s3://), of which only what a crop needs is read; `pattern` as in FolderTiles.

    Each crop opens the file anew: its directory is read from the end, so that a ZipTiles can be sent to another process.
    """

    file: str
    zooms: tuple[int, ...]
    pattern: str = "{z}/{x}/{y}.png"

    def __post_init__(self) -> None:
        Location.of(self.file)
        check_pattern("pattern", self.pattern)
        check_zooms(self.zooms)

    def image(self, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
        """See Tiles; ValueError names a file that is no sound tile, or the zip file."""
        with self._archive() as archive:
            return crop(_Archive(archive, self), longitude, latitude, metres=metres, pixels=pixels)

    @contextmanager
    def _archive(self) -> Iterator[zipfile.ZipFile]:
        try:
            with Location.of(self.file).open_file() as stream, zipfile.ZipFile(stream) as archive:
                yield archive
        except FileNotFoundError as error:
            raise ValueError(f"{self.file}: no such file, expected a zip file of tiles") from error
        except zipfile.BadZipFile as error:
            raise ValueError(f"{self.file}: truncated or corrupt ({error}), expected a zip file of tiles") from error


@dataclass(frozen=True)
class _Archive:
    """The pyramid in an open zip file."""

    archive: zipfile.ZipFile
    tiles: ZipTiles

    @property
    def zooms(self) -> Sequence[int]:
        return self.tiles.zooms

    def read(self, zoom: int, x: int, y: int) -> tuple[bytes, str]:
        member = fill(self.tiles.pattern, zoom, x, y)
        name = f"{self.tiles.file}:{member}"
        try:
            with self.archive.open(member) as stream:
                return stream.read(MAX_TILE_BYTES + 1), name  # a bounded read: what a member claims to unpack to is not believed
        except KeyError as error:
            raise MissingTileError(f"{name}: no such member, expected a tile") from error
        except (RuntimeError, NotImplementedError, OSError, EOFError) as error:  # encrypted, of another compression, cut off
            raise ValueError(f"{name}: cannot be read ({error}), expected a tile") from error


def crop(pyramid: Pyramid, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
    """(pixels, pixels, 3): `metres` a side around a place, cut from a pyramid of tiles.

    ValueError for a place near the antimeridian or a pole, a crop of more than MAX_TILES tiles, and a file that is no sound tile.
    """
    if not 1 <= pixels <= MAX_PIXELS:
        raise ValueError(f"pixels: {pixels}, expected a number from 1 to {MAX_PIXELS}")
    box = box_around(longitude, latitude, metres)
    zoom = _zoom_for(pyramid.zooms, latitude, metres / pixels)
    left, upper, right, lower = box.pixels(zoom)
    columns, rows = _tiles_between(left, right, zoom), _tiles_between(upper, lower, zoom)
    if len(columns) * len(rows) > MAX_TILES:
        expected = f"at most {MAX_TILES}, a smaller crop or a coarser zoom"
        raise ValueError(f"metres: {metres:g} touch {len(columns)} x {len(rows)} tiles of zoom {zoom}, expected {expected}")
    mosaic = Image.new("RGB", (len(columns) * TILE_PIXELS, len(rows) * TILE_PIXELS))
    for i, x in enumerate(columns):
        for j, y in enumerate(rows):
            mosaic.paste(Image.fromarray(decode_tile(*pyramid.read(zoom, x, y))), (i * TILE_PIXELS, j * TILE_PIXELS))
    corner_x, corner_y = columns[0] * TILE_PIXELS, rows[0] * TILE_PIXELS
    # rounding may put an edge a hair outside of the mosaic, which Pillow refuses
    edges = (max(left - corner_x, 0), max(upper - corner_y, 0), min(right - corner_x, mosaic.width), min(lower - corner_y, mosaic.height))
    return np.asarray(mosaic.resize((pixels, pixels), Image.Resampling.BICUBIC, box=edges))


def decode_tile(data: bytes, name: str) -> RgbImage:
    """(256, 256, 3) a tile's file; ValueError names what is no sound PNG, JPEG or WebP image of that size.

    The size is read from the head of the file before any pixel is unpacked.
    """
    if len(data) > MAX_TILE_BYTES:
        raise ValueError(f"{name}: more than {MAX_TILE_BYTES} bytes, expected a tile of {TILE_PIXELS} x {TILE_PIXELS} pixels")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            if image.size != (TILE_PIXELS, TILE_PIXELS) or image.mode not in _MODES:
                found = f"{image.size[0]} x {image.size[1]} pixels of mode {image.mode}"
                raise ValueError(f"{name}: {found}, expected {TILE_PIXELS} x {TILE_PIXELS} pixels of 8-bit colours")
            return np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, EOFError, Image.DecompressionBombError) as error:  # what Pillow raises of broken files
        raise ValueError(f"{name}: truncated, or no image ({error}), expected a PNG, JPEG or WebP tile") from error


def fill(pattern: str, zoom: int, x: int, y: int) -> str:
    """A pattern with its {z}, {x} and {y} filled in."""
    return pattern.replace("{z}", str(zoom)).replace("{x}", str(x)).replace("{y}", str(y))


def check_pattern(field: str, pattern: str) -> None:
    """ValueError for a pattern that has not each of {z}, {x} and {y} once and no other."""
    if sorted(re.findall(r"\{[^{}]*\}", pattern)) != ["{x}", "{y}", "{z}"]:
        raise ValueError(f"{field}: {pattern!r}, expected {{z}}, {{x}} and {{y}}, each once, and no other braces")


def check_zooms(zooms: Sequence[int]) -> None:
    """ValueError for zooms that are none, or not in 0..MAX_ZOOM."""
    if not zooms or not all(0 <= zoom <= MAX_ZOOM for zoom in zooms):
        raise ValueError(f"zooms: {tuple(zooms)}, expected at least one, each from 0 to {MAX_ZOOM}")


def _zoom_for(zooms: Sequence[int], latitude: float, metres_a_pixel: float) -> int:
    """The coarsest zoom at least as fine as asked for (1 % less will do), or the finest."""
    fine = [zoom for zoom in zooms if metres_per_pixel(latitude, zoom) <= 1.01 * metres_a_pixel]
    return min(fine) if fine else max(zooms)


def _tiles_between(first: float, last: float, zoom: int) -> range:
    """Columns or rows of the tiles that pixels `first` to `last` of the world lie in."""
    end = -int(-last // TILE_PIXELS)
    return range(int(first // TILE_PIXELS), min(end, 2**zoom))
