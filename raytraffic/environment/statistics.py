"""What can be measured of a satellite image by rules of colour: shares of vegetation, water, bare soil and built-up land, and texture.

With sum = r + g + b of a pixel, and the first rule that holds deciding:

    water       (g + b - 2 r) / sum > 0.05, (b - r) / sum > -0.02, (2 g - r - b) / sum < 0.18, sum / 3 < 0.45, and smooth: the standard
                deviation of the brightness among 5 x 5 pixels is below 0.025
    vegetation  excess green (2 g - r - b) / sum > 0.05        (Woebbecke et al., 1995)
    bare        r >= g > b, (r - b) / sum > 0.07, (r - g) / sum < 0.07
    built       whatever is left; `paved` is what of it is grey, 0.3 <= sum / 3 <= 0.62 and (largest - smallest) / sum < 0.06: roads, car
                parks and flat roofs, which colours do not tell apart

They are rough on purpose: facts to describe a picture by and to check what is said of it against, not a land-cover map.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import sobel, uniform_filter

from raytraffic.environment.tiles import RgbImage

__all__ = ["ImageStatistics", "image_statistics"]

_TINY = 1e-6
#: An edge is where the brightness changes by more than this from one pixel to the next.
_EDGE = 0.06


@dataclass(frozen=True, kw_only=True)
class ImageStatistics:
    """Shares of an image's pixels, in [0, 1]: vegetation + water + bare + built = 1, and paved is a part of built.

    edges is the share of pixels on an edge; brightness and contrast are mean and standard deviation of the grey value in [0, 1], and
    mean_colour are the means of red, green and blue in [0, 1].
    """

    vegetation: float
    water: float
    bare: float
    built: float
    paved: float
    edges: float
    brightness: float
    contrast: float
    mean_colour: tuple[float, float, float]


def image_statistics(image: RgbImage) -> ImageStatistics:
    """The statistics of an image (h, w, 3) uint8 by this file's rules; ValueError for anything else."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image: shape {image.shape} of {image.dtype}, expected (height, width, 3) of uint8")
    colours = image.astype(np.float64) / 255.0
    red, green, blue = np.moveaxis(colours, 2, 0)
    grey = colours.mean(axis=2)
    total = np.maximum(3 * grey, _TINY)
    excess_green = (2 * green - red - blue) / total
    deviation = np.sqrt(np.maximum(uniform_filter(grey**2, 5, mode="nearest") - uniform_filter(grey, 5, mode="nearest") ** 2, 0))
    bluish = ((green + blue - 2 * red) / total > 0.05) & ((blue - red) / total > -0.02)
    water = bluish & (excess_green < 0.18) & (grey < 0.45) & (deviation < 0.025)
    vegetation = ~water & (excess_green > 0.05)
    bare = ~water & ~vegetation & (red >= green) & (green > blue) & ((red - blue) / total > 0.07) & ((red - green) / total < 0.07)
    built = ~(water | vegetation | bare)
    paved = built & (grey >= 0.3) & (grey <= 0.62) & (np.ptp(colours, axis=2) / total < 0.06)
    slope = np.hypot(sobel(grey, 0, mode="nearest"), sobel(grey, 1, mode="nearest")) / 8
    return ImageStatistics(
        vegetation=float(vegetation.mean()),
        water=float(water.mean()),
        bare=float(bare.mean()),
        built=float(built.mean()),
        paved=float(paved.mean()),
        edges=float((slope > _EDGE).mean()),
        brightness=float(grey.mean()),
        contrast=float(grey.std()),
        mean_colour=(float(red.mean()), float(green.mean()), float(blue.mean())),
    )
