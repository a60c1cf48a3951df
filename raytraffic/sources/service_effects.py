"""The known effects in synthetic service usage: what a place does to the use of services, and what services do to each other.

All numbers are made up; a study that plants them can look whether a model finds them. They add to the logarithms of rates, in the units
of LSDM's Table I (raytraffic.sources.session_parameters.SERVICE_CATEGORIES) and of the land uses of synthetic cities (LAND_USES).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from raytraffic.sources.session_parameters import SERVICE_CATEGORIES

__all__ = ["ENVIRONMENT", "HABIT", "HOUR_BEFORE", "SAME_HOUR"]

Array = NDArray[np.float64]


def _links(**of: dict[str, float]) -> Array:
    """(c, c) weights of sources (columns) on targets (rows), both named by their first word."""
    first = [name.split()[0] for name in SERVICE_CATEGORIES]
    out = np.zeros((len(first), len(first)))
    for target, weights in of.items():
        for source, weight in weights.items():
            out[first.index(target), first.index(source)] = weight
    out.flags.writeable = False
    return out


#: (c, l) what a land use, LAND_USES = residential, business, leisure, transport, adds to a category's log-rate.
ENVIRONMENT = np.array(
    [
        [-0.5, 1.5, -1.0, 0.0],  # Utilities: mail and files at the office
        [1.0, -2.0, 0.5, 1.0],  # Games: at home and on the way
        [1.2, -2.0, -0.5, 0.5],  # Entertainment: at home
        [0.0, 1.0, -1.0, 1.5],  # News
        [0.2, -0.6, 0.4, 0.0],  # Social Networking
        [-1.0, 0.0, 1.0, 2.5],  # Travel: at the hubs
        [0.0, -1.0, 2.0, -0.5],  # Lifestyle: where shops are
        [-1.5, -0.5, 0.5, 2.5],  # Navigation: on the way
        [-0.5, 0.3, -0.5, 2.0],  # Music: on the way
        [-0.2, -1.0, 1.5, 0.0],  # Photo & Video: where there is something to see
    ]
)
ENVIRONMENT.flags.writeable = False
#: (c, c) what the use of a category (column) adds to the log-rate of another (row) in the same hour; strictly lower triangular ...
SAME_HOUR = _links(
    News={"Games": -1.5},
    Social={"Entertainment": -0.5},
    Navigation={"Travel": 1.2},
    Music={"Navigation": 1.0},
    Photo={"Social": 0.8},
)
#: ... and in the next.
HOUR_BEFORE = _links(
    Games={"Music": 1.2},
    Entertainment={"Entertainment": 0.6, "Photo": -0.4, "Lifestyle": 0.8},
    News={"Utilities": 1.2},
    Social={"News": 0.5, "Lifestyle": 0.6},
    Travel={"Utilities": 1.0},
    Lifestyle={"Navigation": 1.5},
    Navigation={"Lifestyle": 0.8},
    Music={"Utilities": -0.8},
    Photo={"Navigation": 0.8, "Entertainment": -0.8, "Lifestyle": 0.9},
)
#: (c, part) factors of the night (0-6), the morning (6-9), the day (9-17) and the evening (17-24).
_PARTS = np.array(
    [
        [0.6, 1.2, 1.4, 0.7],
        [0.8, 0.8, 0.8, 1.6],
        [1.0, 0.5, 0.7, 1.8],
        [0.4, 2.2, 1.0, 0.9],
        [0.8, 1.0, 1.0, 1.2],
        [0.4, 1.4, 1.2, 1.0],
        [0.4, 0.6, 1.2, 1.3],
        [0.4, 1.6, 1.0, 1.2],
        [0.5, 1.6, 1.0, 1.0],
        [0.8, 0.7, 1.0, 1.3],
    ]
)
#: (c, 24) factors of a category's rate by hour of day.
HABIT = np.repeat(_PARTS, [6, 3, 8, 7], axis=1)
HABIT.flags.writeable = False
