"""Satellite-like pictures of synthetic cities, so that everything that looks at images runs offline.

A picture is a function of the place alone: each sample point asks which block and lot of the landscape it lies in and whether a road, a
building, its shadow, a tree or water covers it there, and takes that colour. So crops that overlap agree, at any size, and nothing is kept.
Roof colours overlap between land covers; what tells them apart is sizes, spacing, shadows and greenery. The pictures are synthetic.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from raytraffic.environment.landscape import BLOCKS, LAND_COVERS, Landscape, landscape
from raytraffic.environment.mercator import check_place
from raytraffic.environment.tiles import MAX_PIXELS, MissingTileError, RgbImage
from raytraffic.sources.synthetic import CELL_METRES, SyntheticCity

__all__ = ["SyntheticTiles", "render"]

Float = NDArray[np.float32]
Int = NDArray[np.int32]
Bool = NDArray[np.bool_]
Hash = NDArray[np.uint32]

#: Samples of a pixel along a side, of which the pixel is the mean.
_SAMPLES = 2
_BLOCK_METRES = CELL_METRES / BLOCKS
_TEXTURE = 512  # samples a side of the noise, which repeats
_TEXTURE_METRES = 1.7  # of a sample


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How the blocks of one style are drawn.

    lots      of a block, across and along
    sides     least and most share of a lot's sides that a building takes
    shadow    length in metres of a building's shadow
    trees     share of the ground that they cover in the least and in the most densely built cell
    ground    colour between the buildings; roofs: four colours
    """

    ground: tuple[int, int, int]
    trees: tuple[float, float]
    lots: tuple[int, int] = (1, 1)
    sides: tuple[float, float] = (0.0, 0.0)
    shadow: float = 0.0
    roofs: tuple[tuple[int, int, int], ...] = ((0, 0, 0),) * 4


_GREY, _BRICK, _PALE, _BLUE, _DARK, _SAND = (128, 126, 122), (138, 92, 78), (198, 196, 190), (94, 126, 168), (88, 86, 88), (164, 146, 120)
#: By LAND_COVERS (residential being low houses), and two more.
_STYLES = {
    "water": _Style(ground=(58, 80, 80), trees=(0.0, 0.0)),
    "park": _Style(
        ground=(92, 110, 66), trees=(0.45, 0.35), lots=(2, 2), sides=(0.06, 0.16), shadow=3.0, roofs=(_BRICK, _GREY, _PALE, _SAND)
    ),
    "residential": _Style(
        ground=(112, 114, 88), trees=(0.45, 0.2), lots=(5, 4), sides=(0.5, 0.85), shadow=3.0, roofs=(_BRICK, _GREY, _SAND, _DARK)
    ),
    "commercial": _Style(
        ground=(134, 130, 122), trees=(0.15, 0.05), lots=(2, 2), sides=(0.65, 0.92), shadow=6.0, roofs=(_PALE, _GREY, _SAND, _BRICK)
    ),
    "office": _Style(
        ground=(138, 137, 132), trees=(0.2, 0.08), lots=(2, 3), sides=(0.5, 0.8), shadow=16.0, roofs=(_GREY, _PALE, _DARK, _GREY)
    ),
    "industrial": _Style(
        ground=(138, 130, 116), trees=(0.1, 0.04), lots=(1, 3), sides=(0.78, 0.95), shadow=4.0, roofs=(_BLUE, _PALE, _GREY, _GREY)
    ),
    "slabs": _Style(
        ground=(100, 108, 80), trees=(0.45, 0.3), lots=(2, 3), sides=(0.44, 0.85), shadow=11.0, roofs=(_DARK, _GREY, _BRICK, _GREY)
    ),
    "fields": _Style(ground=(122, 118, 80), trees=(0.06, 0.04)),
}
_WATER, _PARK, _HOUSES, _SHOPS, _OFFICES, _SHEDS, _SLABS, _FIELDS = range(len(_STYLES))
assert tuple(_STYLES)[: len(LAND_COVERS)] == LAND_COVERS
_LOTS = np.array([style.lots for style in _STYLES.values()], dtype=np.float32).T
_SIDES = np.array([style.sides for style in _STYLES.values()], dtype=np.float32).T
_TREES = np.array([style.trees for style in _STYLES.values()], dtype=np.float32).T
_SHADOW = np.array([style.shadow for style in _STYLES.values()], dtype=np.float32)

#: Every colour there is: the grounds by style, then these, then the roofs by style.
_CROPS = ((102, 118, 68), (128, 114, 86), (112, 122, 78), (138, 126, 94))
_TREE, _ASPHALT, _MARKING, _CAR, _CROP = range(len(_STYLES), len(_STYLES) + 5)
_ROOF = _CROP + len(_CROPS)
_PALETTE = np.array(
    [
        *(style.ground for style in _STYLES.values()),
        (48, 68, 42),
        (112, 112, 112),
        (172, 170, 164),
        (214, 214, 212),
        *_CROPS,
        *(roof for style in _STYLES.values() for roof in style.roofs),
    ],
    dtype=np.float32,
)


@dataclass(frozen=True)
class SyntheticTiles:
    """Tiles of synthetic cities, each where its landscape says that it lies."""

    cities: tuple[SyntheticCity, ...]

    def image(self, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
        """See Tiles; around a city lie fields, but the place itself is to lie in one of them (MissingTileError)."""
        check_place(longitude, latitude)
        for land in self._lands:
            x, y = land.metres(longitude, latitude)
            if 0 <= x <= land.extent[0] and 0 <= y <= land.extent[1]:
                return render(land, x, y, metres=metres, pixels=pixels)
        names = [city.name for city in self.cities]
        raise MissingTileError(f"longitude, latitude: {longitude}, {latitude}, expected a place in one of the synthetic cities {names}")

    @cached_property
    def _lands(self) -> tuple[Landscape, ...]:
        return tuple(landscape(city) for city in self.cities)


def render(land: Landscape, x: float, y: float, *, metres: float, pixels: int) -> RgbImage:
    """(pixels, pixels, 3) picture of the square of `metres` a side around a place in the city's metres (City.xy), north up."""
    if not 1 <= pixels <= MAX_PIXELS:
        raise ValueError(f"pixels: {pixels}, expected a number from 1 to {MAX_PIXELS}")
    if not 0 < metres < float("inf"):
        raise ValueError(f"metres: {metres}, expected a length > 0")
    offset = (np.arange(pixels * _SAMPLES) + 0.5) * (metres / (pixels * _SAMPLES)) - metres / 2
    east, south = np.meshgrid((x + offset).astype(np.float32), (land.extent[1] - y + offset).astype(np.float32))
    colour = _Picture(_scene(land), east, south).colour()
    total = sum(colour[i::_SAMPLES, j::_SAMPLES] for i in range(_SAMPLES) for j in range(_SAMPLES))
    return np.clip(total / _SAMPLES**2 + 0.5, 0, 255).astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _Scene:
    """What is drawn of a landscape, a ring of fields around it included: arrays by block (6 h + 2, 6 w + 2)."""

    style: Int
    built: Float
    road: Float  # half the width of the roads around the block's cell, metres
    random: Hash
    shift: tuple[float, float]  # metres by which its noise is shifted
    light: Float  # (3,) factor of the colours


@dataclass(frozen=True, eq=False)
class _Noise:
    """Fields (_TEXTURE, _TEXTURE) of unit variance, as fine as a tree, as wide as a pond and as wide as a block."""

    trees: Float
    waves: Float
    bends: Float


@lru_cache(maxsize=1)
def _noise() -> _Noise:
    """The noise of all pictures."""
    generator = np.random.Generator(np.random.Philox(0))
    white = generator.standard_normal((3, _TEXTURE, _TEXTURE))
    smooth = [gaussian_filter(field, sigma, mode="wrap") for field, sigma in zip(white, (1.6, 12.0, 40.0), strict=True)]
    return _Noise(*(((field - field.mean()) / field.std()).astype(np.float32) for field in smooth))


@lru_cache(maxsize=64)
def _scene(land: Landscape) -> _Scene:
    generator = np.random.Generator(np.random.Philox(land.seed & (2**64 - 1)))
    shape = (land.covers.shape[0] + 2, land.covers.shape[1] + 2)
    random = generator.integers(0, 2**32, shape, dtype=np.uint32)
    luck = generator.random(shape)
    built, transport, live = _by_block(land.built), _by_block(land.transport), _by_block(land.live)
    style = np.pad(land.covers.astype(np.int32), 1, constant_values=_FIELDS)
    style[(style == _HOUSES) & (luck < built * 1.4 - 0.3)] = _SLABS
    style[(style == _PARK) & (live == 0) & (luck < 0.7)] = _FIELDS
    return _Scene(
        style=style,
        built=built,
        road=np.where(live > 0, 5.0 + 12.0 * transport, 3.0).astype(np.float32),
        random=random,
        shift=tuple(generator.uniform(0.0, _TEXTURE * _TEXTURE_METRES, 2).tolist()),
        light=(generator.uniform(0.92, 1.08) * generator.uniform(0.97, 1.03, 3)).astype(np.float32),
    )


def _by_block(cells: NDArray[np.generic]) -> Float:
    """(6 h + 2, 6 w + 2) values of cells (h, w) for their blocks, 0 in the ring around them."""
    return np.pad(np.kron(cells.astype(np.float32), np.ones((BLOCKS, BLOCKS), dtype=np.float32)), 1)


class _Picture:
    """The colours of sample points (n, n), given in metres east and south of the city's north-west corner."""

    def __init__(self, scene: _Scene, east: Float, south: Float) -> None:
        noise, east_of, south_of = _noise(), east + np.float32(scene.shift[0]), south + np.float32(scene.shift[1])
        self.scene = scene
        self.waves = _sampled(noise.waves, east_of, south_of)
        self.trees = _sampled(noise.trees, east_of, south_of)
        self.grain = _sampled(noise.trees, east_of * 2.3, south_of * 2.3)
        # nothing is as straight as a grid: the whole land is bent a little
        self.east = east + 7.0 * _sampled(noise.bends, east_of, south_of)
        self.south = south + 7.0 * _sampled(noise.bends, south_of, east_of)
        self.lot = _Lot(scene, self.east, self.south)

    def colour(self) -> Float:
        """(n, n, 3) colours from 0 to 255: what lies on top is painted last."""
        paint, shade = self._ground()
        np.putmask(paint, self._wood(), _TREE)
        water = self._water()
        np.putmask(paint, water, _WATER)
        np.putmask(shade, water, 1.0 + 0.03 * self.waves)
        self._roads(paint)
        reach = _SHADOW[self.lot.style]
        shadow = _Lot(self.scene, self.east + reach, self.south + reach).building
        np.putmask(shade, shadow, shade * np.float32(0.55))
        self._buildings(paint, shade)
        colours: Float = np.take(_PALETTE * self.scene.light, paint, axis=0)
        colours *= (shade * (1.0 + 0.06 * self.grain))[..., None]
        return colours

    def _ground(self) -> tuple[Int, Float]:
        """What lies under everything, as indices into the palette, and the factors of its brightness."""
        lot = self.lot
        fields = lot.style == _FIELDS
        paint = np.where(fields, _CROP + _bits(lot.block_random, 9, 2), lot.style)
        brightness = 0.9 + 0.2 * _fraction(lot.block_random, 14) + 0.07 * self.waves + 0.04 * self.trees
        furrows = fields & (np.floor(lot.across * 16.0) % 2 == 0)
        return paint, np.where(furrows, brightness * 0.92, brightness).astype(np.float32)

    def _wood(self) -> Bool:
        """In yards, parks and along the avenues."""
        lot = self.lot
        least, most = _TREES[:, lot.style]
        share = least + (most - least) * lot.built
        share = np.where((lot.to_avenue > lot.road) & (lot.to_avenue < lot.road + 6.0), 0.5, share)
        return np.asarray(self.trees > 1.7 - 3.4 * share)

    def _water(self) -> Bool:
        """Lakes whose shores are straight only beside buildings, and a pond here and there in a park."""
        lot, scene = self.lot, self.scene
        open_ = (lot.style == _WATER) | (lot.style == _PARK) | (lot.style == _FIELDS)
        at = _block(scene, self.east + 14.0 * self.waves, self.south - 14.0 * self.waves)
        lake = scene.style.ravel()[at] == _WATER
        pond = (lot.style == _PARK) & (self.waves > 1.7)
        return np.asarray(open_ & (lake | pond))

    def _roads(self, paint: Int) -> None:
        """Avenues around the cells, streets between built blocks, paths through parks; cars on some."""
        lot = self.lot
        built = (lot.style != _WATER) & (lot.style != _PARK) & (lot.style != _FIELDS)
        avenue = lot.to_avenue < lot.road
        road = avenue | (built & (lot.rim < 3.5))
        path = (lot.style == _PARK) & (np.abs(lot.across - 0.5 - 0.12 * self.waves) < 0.02)
        np.putmask(paint, path, _SHOPS)
        np.putmask(paint, road, _ASPHALT)
        np.putmask(paint, avenue & (np.abs(lot.to_avenue - lot.road * 0.5) < 0.5), _MARKING)
        np.putmask(paint, road & (self.grain > 2.2), _CAR)

    def _buildings(self, paint: Int, shade: Float) -> None:
        """Roofs: most of a block are of one kind."""
        lot = self.lot
        kind = np.where(_bits(lot.random, 0, 3) < 5, _bits(lot.block_random, 5, 2), _bits(lot.random, 3, 2))
        bright = 0.82 + 0.36 * _fraction(lot.random, 12)
        ridged = (lot.style == _HOUSES) | (lot.style == _SHEDS)
        dim = ridged & (lot.in_along > 0.5)  # the side that lies away from the sun
        dim |= (lot.style == _SHEDS) & (np.floor(lot.in_across * 14.0) % 2 == 0)
        dim |= ((lot.style == _OFFICES) | (lot.style == _SHOPS)) & (self.trees > 1.3)  # what stands on flat roofs
        np.putmask(paint, lot.building, _ROOF + 4 * lot.style + kind)
        np.putmask(shade, lot.building, np.where(dim, bright * 0.86, bright))


class _Lot:
    """Block and lot of sample points (n, n), and where in them they lie."""

    def __init__(self, scene: _Scene, east: Float, south: Float) -> None:
        column, row = np.floor(east * np.float32(1 / _BLOCK_METRES)), np.floor(south * np.float32(1 / _BLOCK_METRES))
        self.across, self.along = east * np.float32(1 / _BLOCK_METRES) - column, south * np.float32(1 / _BLOCK_METRES) - row
        self._east, self._south = east, south
        at = _block(scene, east, south)
        self.style, self.built, self.road = scene.style.ravel()[at], scene.built.ravel()[at], scene.road.ravel()[at]
        # beyond the ring of fields the ring goes on; its blocks differ by their place
        place = (column * 7919.0 + row * 104729.0).astype(np.int32).view(np.uint32)
        self.block_random = _mixed(scene.random.ravel()[at] ^ np.where(self.style == _FIELDS, place, np.uint32(0)))
        turned = (_bits(self.block_random, 0, 1) == 1) & (self.style != _SLABS)  # slabs face the sun
        lots_across, lots_along = _LOTS[:, self.style]
        across = np.where(turned, self.along, self.across) * lots_across
        along = np.where(turned, self.across, self.along) * lots_along
        i, j = np.floor(across), np.floor(along)
        self.in_across, self.in_along = across - i, along - j
        self.random = _mixed(self.block_random + (i * 8.0 + j + 1.0).astype(np.uint32) * np.uint32(0x9E3779B1))

    @cached_property
    def building(self) -> Bool:
        """Where a building stands: on most lots of a dense cell, on fewer of others, and never on a road."""
        least, most = _SIDES[:, self.style]
        slab = self.style == _SLABS
        wide = np.where(slab, most, least + (most - least) * _fraction(self.random, 0))
        deep = np.where(slab, least, least + (most - least) * _fraction(self.random, 8))
        inside = (np.abs(self.in_across - 0.5) * 2.0 < wide) & (np.abs(self.in_along - 0.5) * 2.0 < deep)
        filled = _fraction(self.random, 16) < 0.5 + 0.5 * self.built
        return np.asarray(inside & filled & (self.rim > 5.0) & (self.to_avenue > self.road + 2.0))

    @cached_property
    def rim(self) -> Float:
        """Metres to the nearest edge of the block."""
        return np.asarray(np.minimum(_to_edge(self.across), _to_edge(self.along)) * np.float32(_BLOCK_METRES))

    @cached_property
    def to_avenue(self) -> Float:
        """Metres to the nearest edge of the cell."""
        across, along = self._east * np.float32(1 / CELL_METRES), self._south * np.float32(1 / CELL_METRES)
        return np.asarray(np.minimum(_to_edge(across - np.floor(across)), _to_edge(along - np.floor(along))) * np.float32(CELL_METRES))


def _block(scene: _Scene, east: Float, south: Float) -> Int:
    """Index of the block of points in metres into a scene's arrays; that of the ring around it for points outside."""
    rows, columns = scene.style.shape
    column = np.clip(np.floor(east * np.float32(1 / _BLOCK_METRES)) + 1.0, 0, columns - 1)
    row = np.clip(np.floor(south * np.float32(1 / _BLOCK_METRES)) + 1.0, 0, rows - 1)
    return np.asarray(row.astype(np.int32) * columns + column.astype(np.int32))


def _to_edge(within: Float) -> Float:
    return np.minimum(within, 1.0 - within)


def _sampled(texture: Float, east: Float, south: Float) -> Float:
    """Noise at points in metres."""
    row, column = (np.floor(metres * np.float32(1 / _TEXTURE_METRES)).astype(np.int32) & (_TEXTURE - 1) for metres in (south, east))
    return texture.ravel()[row * _TEXTURE + column]


def _bits(random: Hash, first: int, count: int) -> Int:
    """So many of 32 random bits, as a number."""
    return ((random >> np.uint32(first)) & np.uint32(2**count - 1)).view(np.int32)


def _fraction(random: Hash, first: int) -> Float:
    """Eight of 32 random bits, as a number in [0, 1]."""
    return _bits(random, first, 8).astype(np.float32) * np.float32(1 / 255)


def _mixed(value: Hash) -> Hash:
    """Random bits of random bits and an index (the finaliser of MurmurHash3)."""
    value = (value ^ (value >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    value = (value ^ (value >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return value ^ (value >> np.uint32(16))
