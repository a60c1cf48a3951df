"""The guard: access before anything else, bodies bounded as they arrive, one log line a request with nothing secret in it."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI, Request

from raytraffic.serving.access import Access
from raytraffic.serving.guard import Guard

SECRET = "correct-horse-battery"
BEARER = {"Authorization": f"Bearer {SECRET}"}


class Observed:
    """What the guard told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, int]] = []

    def __call__(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.requests.append((route, status))


def app() -> FastAPI:
    """Routes that count bytes, fail, and say what they know."""
    api = FastAPI()

    @api.post("/count/{name}")
    async def count(name: str, request: Request) -> int:
        return len(await request.body())

    @api.get("/fail")
    async def fail() -> None:
        raise RuntimeError("a fault")

    @api.get("/v2/health/live")
    async def live(request: Request) -> str:
        return str(request.state.request_id)

    return api


async def _ask(method: str, path: str, token: str | None, client: str, **request: Any) -> tuple[httpx2.Response, Observed]:
    observed = Observed()
    transport = httpx2.ASGITransport(Guard(app(), Access(token), 1000, observed), raise_app_exceptions=False, client=(client, 1))  # type: ignore[arg-type]
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as asking:
        return await asking.request(method, path, **request), observed


def ask(
    method: str, path: str, token: str | None = SECRET, client: str = "203.0.113.9", **request: Any
) -> tuple[httpx2.Response, Observed]:
    """The answer, and what was observed."""
    return asyncio.run(_ask(method, path, token, client, **request))


def test_a_request_with_the_token_passes() -> None:
    answer, observed = ask("POST", "/count/x", headers=BEARER, content=b"x" * 1000)
    assert (answer.status_code, answer.json()) == (200, 1000) and observed.requests == [("/count/{name}", 200)]


@pytest.mark.parametrize("path", ["/count/x", "/openapi.json", "/nowhere", "/v2/health/live/", "/v2/health"])
def test_without_it_none_does(path: str) -> None:
    answer, observed = ask("POST", path, content=b"x" * 9999)
    assert answer.status_code == 401 and observed.requests == [("", 401)]
    assert answer.headers["www-authenticate"].startswith("Basic ")
    assert SECRET not in answer.text


def test_a_server_without_token_answers_this_machine_alone() -> None:
    assert ask("POST", "/count/x", token=None, client="127.0.0.1")[0].status_code == 200
    answer, _ = ask("POST", "/count/x", token=None)
    assert answer.status_code == 403 and "www-authenticate" not in answer.headers


def test_health_is_anyone_s() -> None:
    assert ask("GET", "/v2/health/live")[0].status_code == 200
    assert ask("GET", "/v2/health/live", token=None)[0].status_code == 200


@pytest.mark.parametrize("length", ["1001", "9" * 5000, "-1", "x", "1e3", "0x10"])
def test_a_length_over_the_limit_is_refused_unread(length: str) -> None:
    async def never() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    answer, observed = ask("POST", "/count/x", headers={**BEARER, "Content-Length": length}, content=never())
    assert answer.status_code == 413 and observed.requests == [("", 413)]
    assert "more than 1000 bytes" in answer.json()["detail"] and answer.headers["connection"] == "close"


def test_a_body_of_unknown_length_is_bounded_as_it_arrives() -> None:
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 100
            yield b"x" * 100

    answer, observed = ask("POST", "/count/x", headers=BEARER, content=endless())
    assert answer.status_code == 413 and observed.requests == [("/count/{name}", 413)]
    assert "more than 1000 bytes" in answer.json()["detail"] and answer.headers["connection"] == "close"
    assert sent < 2000


def test_a_fault_is_observed() -> None:
    answer, observed = ask("GET", "/fail", headers=BEARER)
    assert answer.status_code == 500 and observed.requests == [("/fail", 500)] and "a fault" not in answer.text


def test_paths_that_no_route_has_are_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "raytraffic.serving"):
        answer, observed = ask("GET", "/any/thing?at=all", headers=BEARER)
    assert answer.status_code == 404 and observed.requests == [("", 404)]
    assert "any" not in caplog.text


@pytest.mark.parametrize(("given", "kept"), [("job-7.2_x", True), ("", False), ("a b", False), ('"}\n{', False), ("x" * 129, False)])
def test_one_log_line_carries_the_request_s_id(given: str, kept: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "raytraffic.serving"):
        answer, _ = ask("GET", "/v2/health/live", headers={**BEARER, "X-Request-ID": given.replace("\n", "")})
    (line,) = [record.getMessage() for record in caplog.records if record.name == "raytraffic.serving"]
    told = json.loads(line.removeprefix("request "))
    assert set(told) == {"id", "method", "route", "status", "ms"} and told["status"] == 200 and told["route"] == "/v2/health/live"
    assert told["id"] == answer.json() and (told["id"] == given) == kept
    assert SECRET not in line
