"""raytraffic: distributed forecasts of mobile-network traffic with diffusion models, on Ray.

Importing this package imports neither ray nor any model; the public names load when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Forecast": "raytraffic.types",
    "Forecaster": "raytraffic.pretrained",
    "Sampler": "raytraffic.diffusion.samplers",
    "TrafficBatch": "raytraffic.types",
}
__all__ = ["Forecast", "Forecaster", "Sampler", "TrafficBatch", "__version__"]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'raytraffic' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
