"""Slippy-map tiles whose colours say where they lie, so that a crop can be checked against its place."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: A place in the middle of a tile of zoom 16, and the tiles around it.
LONGITUDE, LATITUDE = 115.89752, 28.64962
TILE = (53866, 27320)
AROUND = [(TILE[0] + i, TILE[1] + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]
_WORLD_16 = 65536 * 256


def colours_at(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3) colours of world coordinates: red grows eastwards and green southwards, from 0 to 255 over three tiles of zoom 16."""
    red = (x * _WORLD_16 / 256 - (TILE[0] - 1)) / 3 * 255
    green = (y * _WORLD_16 / 256 - (TILE[1] - 1)) / 3 * 255
    return np.clip(np.stack([red, green, np.full_like(red, 40.0)], axis=-1), 0, 255)


def tile_pixels(zoom: int, x: int, y: int) -> NDArray[np.uint8]:
    """(256, 256, 3) of one tile."""
    scale = 256.0 * 2**zoom
    columns, rows = np.meshgrid((256 * x + np.arange(256) + 0.5) / scale, (256 * y + np.arange(256) + 0.5) / scale)
    return np.rint(colours_at(columns, rows)).astype(np.uint8)


def encoded(pixels: NDArray[np.uint8], kind: str = "PNG") -> bytes:
    """An image file of these pixels."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, kind)
    return stream.getvalue()


def write_folder(folder: Path, zoom: int = 16, tiles: list[tuple[int, int]] = AROUND) -> None:
    """Tiles as folder/z/x/y.png."""
    for x, y in tiles:
        file = folder / str(zoom) / str(x) / f"{y}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(tile_pixels(zoom, x, y)))
