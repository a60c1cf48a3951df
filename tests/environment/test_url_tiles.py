"""Tiles of a map service on this machine that also misbehaves: what is asked for, how often, and what is kept."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raytraffic.environment import url_tiles
from raytraffic.environment.tiles import FolderTiles, MissingTileError
from raytraffic.environment.url_tiles import TileServerError, UrlTiles
from tests.environment.pyramids import LATITUDE, LONGITUDE, encoded, tile_pixels, write_folder

#: Takes a request's number (from 0) and its tile; answers status, headers and body.
Answer = Callable[[int, bytes], tuple[int, dict[str, str], bytes]]
SMALL = 100.0  # metres of a crop that lies in one tile


class MapService(ThreadingHTTPServer):
    """Serves the helper's tiles through `answer`, and notes what it was asked for and when."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked: list[tuple[str, str]] = []
        self.times: list[float] = []
        self.lock = threading.Lock()
        self.pause = 0.0  # seconds between pieces of an answer
        self.answer: Answer = lambda number, tile: (200, {}, tile)

    @property
    def template(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/{{z}}/{{x}}/{{y}}.png?key=secret"


class _Handler(BaseHTTPRequestHandler):
    server: MapService

    def do_GET(self) -> None:
        with self.server.lock:
            number = len(self.server.asked)
            self.server.asked.append((self.path, str(self.headers["User-Agent"])))
            self.server.times.append(time.monotonic())
        zoom, x, y = (int(part) for part in self.path.split("?")[0].removesuffix(".png").strip("/").split("/"))
        status, headers, body = self.server.answer(number, encoded(tile_pixels(zoom, x, y)))
        try:
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            size = 512 if self.server.pause else max(len(body), 1)
            for start in range(0, len(body), size):
                self.wfile.write(body[start : start + size])
                if self.server.pause:
                    time.sleep(self.server.pause)
        except (BrokenPipeError, ConnectionResetError):
            pass  # who asked has given up

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[MapService]:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "127.0.0.1")
    server = MapService()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between attempts, which are noted and not waited for."""
    noted: list[float] = []
    monkeypatch.setattr(url_tiles.time, "sleep", noted.append)
    return noted


def tiles(service: MapService, cache: Path, **options: Any) -> UrlTiles:
    settings = {"requests_per_second": 1e6, "user_agent": "raytraffic tests (nobody@example.org)", "zooms": (16,)} | options
    return UrlTiles(template=service.template, cache=str(cache), **settings)


def test_a_service_answers_as_a_folder_does_and_is_asked_for_each_tile_once(service: MapService, tmp_path: Path) -> None:
    write_folder(tmp_path / "folder")
    known = FolderTiles(folder=str(tmp_path / "folder"), zooms=(16,)).image(LONGITUDE, LATITUDE, metres=800, pixels=90)
    for _ in range(2):
        np.testing.assert_array_equal(tiles(service, tmp_path / "cache").image(LONGITUDE, LATITUDE, metres=800, pixels=90), known)
    paths = [path for path, _ in service.asked]
    assert len(paths) == len(set(paths)) == 9
    assert {agent for _, agent in service.asked} == {"raytraffic tests (nobody@example.org)"}
    assert len(list((tmp_path / "cache").rglob("*"))) - sum(path.is_dir() for path in (tmp_path / "cache").rglob("*")) == 9


def test_another_service_is_not_answered_from_the_cache_of_the_first(service: MapService, tmp_path: Path) -> None:
    tiles(service, tmp_path).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    other = UrlTiles(template=service.template + "2", cache=str(tmp_path), zooms=(16,), user_agent="tests")
    other.image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 2


def once(status: int, headers: dict[str, str] | None = None, body: bytes = b"no") -> Answer:
    """Misbehaves on the first request only."""
    return lambda number, tile: (200, {}, tile) if number else (status, headers or {}, body)


FAULTS: dict[str, Answer] = {
    "429": once(429),
    "500": once(500),
    "503": once(503),
    "html": once(200, {"Content-Type": "image/png"}, b"<html>quota</html>"),
    "empty": once(200, {}, b""),
    "truncated image": lambda number, tile: (200, {}, tile if number else tile[:-100]),
    "broken connection": lambda number, tile: (200, {} if number else {"Content-Length": str(len(tile) + 50)}, tile),
}


@pytest.mark.parametrize("fault", list(FAULTS))
def test_a_fault_that_passes_is_outlasted(service: MapService, tmp_path: Path, waits: list[float], fault: str) -> None:
    service.answer = FAULTS[fault]
    found = tiles(service, tmp_path, timeout_seconds=1.0)
    found.image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 2
    assert [wait for wait in waits if wait > 1e-3] == [pytest.approx(0.625, rel=0.2)]  # half a second, times 1 to 1.5


@pytest.mark.parametrize(("header", "least", "most"), [("7", 7, 7), ("date", 27, 30), ("soon", 0.5, 0.75)])
def test_retry_after_is_obeyed(service: MapService, tmp_path: Path, waits: list[float], header: str, least: float, most: float) -> None:
    said = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True) if header == "date" else header
    service.answer = once(429, {"Retry-After": said})
    tiles(service, tmp_path).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    (wait,) = [wait for wait in waits if wait > 1e-3]
    assert least <= wait <= most


def test_a_wait_that_is_too_long_is_not_waited_for(service: MapService, tmp_path: Path, waits: list[float]) -> None:
    service.answer = once(429, {"Retry-After": "3600"})
    with pytest.raises(TileServerError, match=r"status 429; the next attempt is 3600 s away, expected at most 60 s"):
        tiles(service, tmp_path).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 1


def test_waits_double_and_the_last_fault_is_told_without_the_key(service: MapService, tmp_path: Path, waits: list[float]) -> None:
    service.answer = lambda number, tile: (500, {}, b"")
    with pytest.raises(TileServerError, match=r"^tile 16/\d+/\d+ of 127\.0\.0\.1: status 500 \(attempt 4 of 4\)") as failure:
        tiles(service, tmp_path, attempts=4).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    real = [wait for wait in waits if wait > 1e-3]
    assert len(service.asked) == 4 and len(real) == 3
    for wait, base in zip(real, (0.5, 1.0, 2.0), strict=True):
        assert base <= wait <= 1.5 * base
    assert "secret" not in str(failure.value) and "secret" not in repr(tiles(service, tmp_path))


@pytest.mark.parametrize("fault", ["nobody listens", "silence", "html"])
def test_no_message_shows_the_key(service: MapService, tmp_path: Path, waits: list[float], fault: str) -> None:
    template = service.template
    release = threading.Event()
    if fault == "silence":
        service.answer = lambda number, tile: (200, {}, tile) if release.wait(5) else (200, {}, b"")
    elif fault == "html":
        service.answer = lambda number, tile: (200, {}, b"<html>secret</html>")
    else:
        template = "http://127.0.0.1:9/{z}/{x}/{y}?key=secret"
    source = UrlTiles(template=template, cache=str(tmp_path), zooms=(16,), user_agent="tests", attempts=1, timeout_seconds=0.3)
    try:
        with pytest.raises(TileServerError) as failure:
            source.image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    finally:
        release.set()
    assert "secret" not in str(failure.value)


def test_an_answer_that_does_not_come_is_given_up(service: MapService, tmp_path: Path, waits: list[float]) -> None:
    release = threading.Event()

    def silent_once(number: int, tile: bytes) -> tuple[int, dict[str, str], bytes]:
        if number == 0:
            release.wait(5)
        return 200, {}, tile

    service.answer = silent_once
    begin = time.monotonic()
    tiles(service, tmp_path, timeout_seconds=0.3).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    release.set()
    assert time.monotonic() - begin < 3 and len(service.asked) == 2


def test_an_answer_that_drips_is_given_up(service: MapService, tmp_path: Path) -> None:
    service.answer = lambda number, tile: (200, {}, tile + b"\0" * 50_000)
    service.pause = 0.05  # about ten seconds for the whole
    begin = time.monotonic()
    with pytest.raises(TileServerError, match=r"Timeout \(attempt 1 of 1\)"):
        tiles(service, tmp_path, attempts=1, timeout_seconds=0.4).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert time.monotonic() - begin < 3


@pytest.mark.parametrize("status", [204, 404, 410])
def test_a_tile_that_is_not_there_is_asked_for_once(service: MapService, tmp_path: Path, status: int) -> None:
    service.answer = lambda number, tile: (status, {}, b"")
    with pytest.raises(MissingTileError, match=f"status {status}"):
        tiles(service, tmp_path).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refusal_is_not_repeated(service: MapService, tmp_path: Path, status: int) -> None:
    service.answer = lambda number, tile: (status, {}, b"")
    with pytest.raises(TileServerError, match=f"status {status}"):
        tiles(service, tmp_path).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 1


def test_nothing_broken_is_kept(service: MapService, tmp_path: Path, waits: list[float]) -> None:
    service.answer = lambda number, tile: (200, {}, b"<html></html>")
    with pytest.raises(TileServerError):
        tiles(service, tmp_path, attempts=2).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_an_endless_answer_is_cut(service: MapService, tmp_path: Path, waits: list[float]) -> None:
    service.answer = lambda number, tile: (200, {}, tile + b"\0" * 6_000_000)
    with pytest.raises(TileServerError, match="more than 4000000 bytes"):
        tiles(service, tmp_path, attempts=1).image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)


def test_the_rate_is_kept_among_threads(service: MapService, tmp_path: Path) -> None:
    found = tiles(service, tmp_path, requests_per_second=20.0)
    longitudes = [LONGITUDE + i * 360 / 65536 for i in range(6)]
    threads = [threading.Thread(target=found.image, args=(lon, LATITUDE), kwargs={"metres": SMALL, "pixels": 8}) for lon in longitudes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(service.times) == 6
    assert max(service.times) - min(service.times) > 0.22  # five intervals of 0.05 s, less what a request's own way may vary


def test_a_source_can_be_sent_to_another_process(service: MapService, tmp_path: Path) -> None:
    found = tiles(service, tmp_path)
    again = pickle.loads(pickle.dumps(found))
    assert again == found
    again.image(LONGITUDE, LATITUDE, metres=SMALL, pixels=8)
    assert len(service.asked) == 1


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"template": "ftp://host/{z}/{x}/{y}"}, "^template: scheme 'ftp'"),
        ({"template": "https://host/{z}/{x}"}, "^template: "),
        ({"template": "https:///{z}/{x}/{y}"}, "^template: scheme 'https' and host None"),
        ({"user_agent": " "}, "^user_agent: ' ', expected"),
        ({"requests_per_second": 0.0}, "^requests_per_second: 0.0, expected a number > 0"),
        ({"timeout_seconds": float("inf")}, "^timeout_seconds: inf, expected a number > 0"),
        ({"max_wait_seconds": float("nan")}, "^max_wait_seconds: nan, expected"),
        ({"attempts": 0}, "^attempts: 0, expected at least 1"),
        ({"zooms": (-1,)}, r"^zooms: \(-1,\), expected"),
    ],
)
def test_bad_options_are_refused_by_name(change: dict[str, Any], named: str) -> None:
    options: dict[str, Any] = {"template": "https://host/{z}/{x}/{y}", "user_agent": "tests", "cache": "cache", "zooms": (16,)} | change
    with pytest.raises(ValueError, match=named):
        UrlTiles(**options)
