"""Fixtures every test may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Before any test imports ray: its clusters are to listen on the loopback interface only (docs/decisions/0017).
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data beside the repository (or RAYTRAFFIC_DATA); the test skips where it is absent."""
    folder = Path(os.environ.get("RAYTRAFFIC_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"real data is not here ({folder.name} not found; set RAYTRAFFIC_DATA to its folder)")
    return folder
