"""The guard before all routes: access, body size, clients that go away, request ids, one log line a request."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any

from fastapi import HTTPException

from raytraffic.serving.access import Access

__all__ = ["OPEN_ROUTES", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Coroutine[Any, Any, None]]

#: Answered to anyone: load balancers ask these.
OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready")
_DIGITS = 18  # of a length that is worth reading
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOG = logging.getLogger("raytraffic.serving")


class Guard:
    """An ASGI application around another one, which is cancelled when its client goes away; `observe(route, status, seconds)` is told of
    every request."""

    def __init__(
        self,
        app: App,
        access: Access,
        most_bytes: int,
        observe: Callable[[str, int, float], None],
    ) -> None:
        self.app = app
        self.access = access
        self.most_bytes = most_bytes
        self.observe = observe

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        given = headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        exchange = _Exchange(receive, send, self.most_bytes)
        unfinished = 499
        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await _answer(exchange.send, *refusal)
            else:
                await exchange.run(self.app, scope)
        except Exception:
            unfinished = 500
            raise
        finally:
            seconds = time.monotonic() - began
            route = str(getattr(scope.get("route"), "path", ""))  # never the path as it was asked for: metrics must stay few
            status = exchange.status if exchange.whole else unfinished
            self.observe(route, status, seconds)
            line = {"id": request_id, "method": scope["method"], "route": route, "status": status, "ms": round(1000 * seconds, 1)}
            _LOG.info("request %s", json.dumps(line))

    def _refusal(self, scope: Scope, headers: MutableMapping[str, str]) -> tuple[int, str, list[tuple[bytes, bytes]]] | None:
        if scope["path"] in OPEN_ROUTES:
            return None
        client = scope.get("client")
        refusal = self.access.refusal(headers.get("authorization"), client[0] if client else None)
        if refusal is not None:
            ask = [(b"www-authenticate", b'Basic realm="raytraffic, password = token", charset="UTF-8"')] if refusal[0] == 401 else []
            return (*refusal, ask)
        length = headers.get("content-length", "0")
        if not length.isdecimal() or len(length) > _DIGITS or int(length) > self.most_bytes:
            return 413, _too_large(self.most_bytes), [(b"connection", b"close")]
        return None


class _Exchange:
    """A request and its answer: the body is bounded as it arrives, and the work ends when the client goes away before it is answered.

    status   of the answer, 0 before there is one
    whole    whether all of the answer was sent
    """

    def __init__(self, receive: Receive, send: Send, most_bytes: int) -> None:
        self.status = 0
        self.whole = False
        self._receive, self._send, self._most_bytes = receive, send, most_bytes
        self._received = 0
        self._asked, self._over = asyncio.Event(), asyncio.Event()

    async def send(self, message: Message) -> None:
        """ASGI's send."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.whole = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    async def receive(self) -> Message:
        """ASGI's receive; what comes after the body is received by `_end` alone."""
        if self._asked.is_set():
            await self._over.wait()
            return {"type": "http.disconnect"}
        message = await self._receive()
        if message["type"] == "http.disconnect":  # before it had asked: `run` cancels the work, here
            self._over.set()
            self._asked.set()
            await asyncio.get_running_loop().create_future()
        self._received += len(message.get("body", b""))
        if self._received > self._most_bytes:  # the application answers: what it was doing for the request ends with this
            raise HTTPException(413, _too_large(self._most_bytes), {"connection": "close"})
        if not message.get("more_body", False):
            self._asked.set()
        return message

    async def _end(self) -> None:
        """Returns when the client has gone, or was answered."""
        await self._asked.wait()
        while not self._over.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._over.set()

    async def run(self, app: App, scope: Scope) -> None:
        """Runs the application, and cancels it when the client goes away first: then no one waits for what it computes."""
        work, end = asyncio.create_task(app(scope, self.receive, self.send)), asyncio.create_task(self._end())
        try:
            await asyncio.wait((work, end), return_when=asyncio.FIRST_COMPLETED)
            if work.done() or self.whole:
                await work
        finally:
            work.cancel()
            end.cancel()
            await asyncio.gather(work, end, return_exceptions=True)


def _too_large(most_bytes: int) -> str:
    return f"a body of more than {most_bytes} bytes; send fewer stations at a time"


async def _answer(send: Send, status: int, reason: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": reason}).encode()
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": kind + headers})
    await send({"type": "http.response.body", "body": body})
