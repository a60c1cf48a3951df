"""Connecting to the cluster a verb runs on: the one `ray job submit` (or RAY_ADDRESS) names, or a private local one."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Any

import ray
import ray.data

__all__ = ["connect", "dataset"]


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine; does nothing where ray runs already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        ray.init(logging_level=logging.WARNING)
    else:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # C++ notices about its own internals; Python errors still show
        ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def dataset(items: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    """One block an item, order kept, no progress bars of its own: every job here cuts its work into items first."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.raise_original_map_exception = True  # a ValueError stays one, so that the command line can tell it in one line
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
    return ray.data.from_items(list(items), override_num_blocks=max(1, len(items)))
