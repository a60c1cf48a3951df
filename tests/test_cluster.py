"""A verb runs on no cluster that others can reach and that lets everybody in."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest
import ray

from raytraffic.on_ray.cluster import refuse_open_cluster
from raytraffic.on_ray.serve import ServeArgs, app

OUTSIDE = "10.0.0.4:6379"


class Door(BaseHTTPRequestHandler):
    """A dashboard that answers with one status."""

    status = 200

    def do_GET(self) -> None:
        """Any path."""
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def dashboard() -> Iterator[str]:
    """Its address."""
    server = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "localhost:6379", "[::1]:6379"])
def test_loopback_needs_no_token(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    refuse_open_cluster(address, None)


@pytest.mark.parametrize("mode", ["disabled", "", None])
def test_a_cluster_without_token_mode_is_refused(mode: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    if mode is None:
        monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    else:
        monkeypatch.setenv("RAY_AUTH_MODE", mode)
    with pytest.raises(ValueError, match=r"RAY_ADDRESS: the cluster at 10\.0\.0\.4:6379 can be reached .* RAY_AUTH_MODE=.*get-auth-token"):
        refuse_open_cluster(OUTSIDE, None)


@pytest.mark.parametrize(("status", "refused"), [(200, True), (401, False), (403, False)])
def test_a_cluster_must_really_ask_for_the_token(dashboard: str, status: int, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(Door, "status", status)
    if refused:
        with pytest.raises(ValueError, match="answers without a token"):
            refuse_open_cluster(OUTSIDE, dashboard)
    else:
        refuse_open_cluster(OUTSIDE, dashboard)


def test_a_door_that_cannot_be_tried_counts_as_locked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    refuse_open_cluster(OUTSIDE, "127.0.0.1:1")
    refuse_open_cluster(OUTSIDE, None)


def test_the_token_is_never_told(monkeypatch: pytest.MonkeyPatch, dashboard: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", "a-secret-of-many-letters")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with pytest.raises(ValueError, match="answers without") as told:
        refuse_open_cluster(OUTSIDE, dashboard)
    assert "a-secret" not in str(told.value)


def test_no_service_is_built_on_an_open_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address=OUTSIDE))
    with pytest.raises(ValueError, match=r"the cluster at 10\.0\.0\.4:6379 can be reached from other machines"):
        app(ServeArgs(checkpoints={"uomo": "none"}))
