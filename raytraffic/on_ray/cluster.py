"""Connecting to the cluster a verb runs on: the one `ray job submit` (or RAY_ADDRESS) names, or a private local one."""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import ray
import ray.data

__all__ = ["connect", "dataset", "refuse_open_cluster"]


def connect() -> None:
    """Joins the cluster of RAY_ADDRESS, or starts one on this machine; does nothing where ray runs already.

    Raises ValueError for a cluster that others can reach and that asks for no token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if ray.is_initialized():
        return
    if os.environ.get("RAY_ADDRESS"):
        joined = ray.init(logging_level=logging.WARNING)
        try:
            refuse_open_cluster(ray.get_runtime_context().gcs_address, joined.dashboard_url)
        except ValueError:
            ray.shutdown()
            raise
    else:
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # C++ notices about its own internals; Python errors still show
        # "local": without an address Ray joins whatever cluster of this machine it finds a trace of, also one that has ended.
        ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)


def refuse_open_cluster(gcs_address: str, dashboard_url: str | None) -> None:
    """Raises ValueError where the cluster's head is not on the loopback interface and does not ask for a token (docs/security.md)."""
    host = gcs_address.rpartition(":")[0].strip("[]")
    if all(ipaddress.ip_address(str(found[4][0])).is_loopback for found in socket.getaddrinfo(host, None)):
        return
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode == "token" and (dashboard_url is None or _asks_for_token(dashboard_url)):
        return
    found = "answers without a token" if mode == "token" else f"is joined with RAY_AUTH_MODE={mode or '(not set)'}"
    raise ValueError(
        f"RAY_ADDRESS: the cluster at {gcs_address} can be reached from other machines and {found}, expected token authentication: whoever "
        "reaches it runs code on it. Start every node and client with RAY_AUTH_MODE=token and one token "
        "(`ray get-auth-token --generate`; docs/security.md)"
    )


def _asks_for_token(dashboard_url: str) -> bool:
    """Whether the cluster's own door turns away who shows none; a door that cannot be tried counts as locked."""
    try:
        with urllib.request.urlopen(f"http://{dashboard_url}/api/version", timeout=5):
            return False
    except urllib.error.HTTPError as error:
        return error.code in (401, 403)
    except OSError:
        return True


def dataset(items: Sequence[dict[str, Any]]) -> ray.data.Dataset:
    """One block an item, order kept, no progress bars of its own: every job here cuts its work into items first."""
    context = ray.data.DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    # Reservation keeps CPUs back for other operators. There is one, and on two CPUs its tasks would run one after another.
    context.op_resource_reservation_enabled = False
    context.raise_original_map_exception = True  # a ValueError stays one, so that the command line can tell it in one line
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what fails is raised
    return ray.data.from_items(list(items), override_num_blocks=max(1, len(items)))
