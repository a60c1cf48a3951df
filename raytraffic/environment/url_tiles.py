"""Satellite images from a map service with slippy-map URLs: rate-limited, patient with a busy server, and cached.

Nothing is asked for unless a `UrlTiles` is made: there is no default service. Whether a service's terms allow its tiles to be
fetched and kept is for its user to settle. The URL may carry a key, so no message shows more of it than the host.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import requests

from raytraffic.environment.answers import bounded_body, retry_after
from raytraffic.environment.tiles import MAX_TILE_BYTES, MissingTileError, RgbImage, check_pattern, check_zooms, crop, decode_tile, fill
from raytraffic.files import Location

__all__ = ["TileServerError", "UrlTiles"]


class TileServerError(RuntimeError):
    """A map service refused a tile, or gave no sound one in all attempts."""


@dataclass(frozen=True, kw_only=True)
class UrlTiles:
    """Tiles of a map service, kept in the folder `cache` (local or s3://) once fetched; the next run asks for none of them again.

    template             the service's URL with {z}, {x} and {y}, such as "https://tiles.example.org/{z}/{x}/{y}.png?key=..."
    user_agent           who asks, as map services require: a name and an address that answers
    requests_per_second  of this object in its process; n workers with one each ask n times as often
    attempts             for one tile, where the service is busy (429), fails (5xx, time-out, broken connection) or sends what is no
                         sound image; the wait doubles from 0.5 s, and is the service's own Retry-After where it says so
    timeout_seconds      for one answer, its body included
    max_wait_seconds     longer waits than this are not waited for
    """

    template: str
    user_agent: str
    cache: str
    zooms: tuple[int, ...]
    requests_per_second: float = 2.0
    attempts: int = 5
    timeout_seconds: float = 20.0
    max_wait_seconds: float = 60.0
    _turns: _Turns = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        check_pattern("template", self.template)
        check_zooms(self.zooms)
        parts = urlsplit(self.template)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"template: scheme {parts.scheme!r} and host {parts.hostname!r}, expected an http(s) URL")
        if not self.user_agent.strip():
            raise ValueError(f"user_agent: {self.user_agent!r}, expected a name and an address")
        if self.attempts < 1:
            raise ValueError(f"attempts: {self.attempts}, expected at least 1")
        for name in ("requests_per_second", "timeout_seconds", "max_wait_seconds"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number > 0")
        Location.of(self.cache)
        object.__setattr__(self, "_turns", _Turns(1 / self.requests_per_second))

    def __repr__(self) -> str:
        return f"UrlTiles(host={self._host!r}, zooms={self.zooms}, cache={self.cache!r})"

    def image(self, longitude: float, latitude: float, *, metres: float, pixels: int) -> RgbImage:
        """See Tiles; TileServerError where the service gives no sound tile."""
        return crop(self, longitude, latitude, metres=metres, pixels=pixels)

    def read(self, zoom: int, x: int, y: int) -> tuple[bytes, str]:
        """See Pyramid: the cached tile, or else the service's, which is then cached."""
        source = hashlib.blake2b(self.template.encode(), digest_size=8).hexdigest()
        cached = Location.of(self.cache).child(source, str(zoom), str(x), str(y))
        try:
            return cached.read_bytes(), str(cached)
        except FileNotFoundError:
            name = f"tile {zoom}/{x}/{y} of {self._host}"
            data = self._fetch(fill(self.template, zoom, x, y), name)
            cached.write_bytes(data)
            return data, name

    @property
    def _host(self) -> str:
        return str(urlsplit(self.template).hostname)

    def _fetch(self, url: str, name: str) -> bytes:
        for attempt in range(self.attempts):
            self._turns.take()
            try:
                data = self._get(url, name)
                decode_tile(data, name)
                return data
            except _BusyError as busy:
                fault, wait = str(busy), busy.seconds
            except requests.RequestException as error:  # its text holds the URL, and so the key
                fault, wait = type(error).__name__, None
            except MissingTileError:
                raise
            except ValueError as error:
                fault, wait = str(error).removeprefix(f"{name}: "), None
            if wait is None:
                wait = 0.5 * 2**attempt * random.uniform(1.0, 1.5)  # those who failed together do not come back together
            if wait > self.max_wait_seconds:
                raise TileServerError(
                    f"{name}: {fault}; the next attempt is {wait:.0f} s away, expected at most {self.max_wait_seconds:g} s"
                )
            if attempt + 1 < self.attempts:
                time.sleep(wait)
        raise TileServerError(f"{name}: {fault} (attempt {self.attempts} of {self.attempts}), expected an image")

    def _get(self, url: str, name: str) -> bytes:
        """The body of one answer."""
        deadline = time.monotonic() + self.timeout_seconds
        headers: Mapping[str, str] = {"User-Agent": self.user_agent, "Accept": "image/png, image/jpeg, image/webp"}
        with requests.get(url, headers=headers, timeout=self.timeout_seconds, stream=True) as answer:
            status = answer.status_code
            if status == 429 or status >= 500:
                raise _BusyError(status, retry_after(answer.headers.get("Retry-After")))
            if status in (204, 404, 410):
                raise MissingTileError(f"{name}: status {status}, expected a tile")
            if status != 200:
                raise TileServerError(f"{name}: status {status} {answer.reason}, expected 200")
            return bounded_body(answer, deadline=deadline, most=MAX_TILE_BYTES, piece=1024)  # decode_tile refuses longer ones


class _BusyError(Exception):
    """The service asks for patience: for so many seconds, or None where it does not say."""

    def __init__(self, status: int, seconds: float | None) -> None:
        super().__init__(f"status {status}")
        self.seconds = seconds


class _Turns:
    """Gives each caller its turn, `interval` seconds after the one before; safe among threads, and starts anew in another process."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self._lock = threading.Lock()
        self._next = 0.0

    def __reduce__(self) -> tuple[Any, ...]:
        return _Turns, (self.interval,)

    def take(self) -> None:
        """Waits for the next turn."""
        with self._lock:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.interval
        if turn > now:
            time.sleep(turn - now)
