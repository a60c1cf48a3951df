"""Windows cut from the prepared store while streaming, in a training order that can resume at any sample."""

from raytraffic.windows.collate import to_batch
from raytraffic.windows.cut import Columns, RunReader, city_columns, cut_windows
from raytraffic.windows.order import Pool, TrainingOrder, evaluation_windows
from raytraffic.windows.stream import Share, local_batches
from raytraffic.windows.surroundings import environment_features
from raytraffic.windows.view import Selection, Windows, windows_for

__all__ = [
    "Columns",
    "Pool",
    "RunReader",
    "Selection",
    "Share",
    "TrainingOrder",
    "Windows",
    "city_columns",
    "cut_windows",
    "environment_features",
    "evaluation_windows",
    "local_batches",
    "to_batch",
    "windows_for",
]
