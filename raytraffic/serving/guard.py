"""The guard before all routes: access, body size, request ids, one log line a request."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import HTTPException

from raytraffic.serving.access import Access

__all__ = ["OPEN_ROUTES", "Guard"]

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Answered to anyone: load balancers ask these.
OPEN_ROUTES = ("/v2/health/live", "/v2/health/ready")
_DIGITS = 18  # of a length that is worth reading
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_LOG = logging.getLogger("raytraffic.serving")


class Guard:
    """An ASGI application around another one; `observe(route, status, seconds)` is told of every request."""

    def __init__(
        self,
        app: Callable[[Scope, Receive, Send], Awaitable[None]],
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
        status = 0

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        received = 0

        async def bounded() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received > self.most_bytes:  # the application answers: what it was doing for the request ends with this
                raise HTTPException(413, self._too_large()[1], {"connection": "close"})
            return message

        try:
            refusal = self._refusal(scope, headers)
            if refusal is not None:
                await _answer(tell, *refusal)
            else:
                await self.app(scope, bounded, tell)
        finally:
            seconds = time.monotonic() - began
            route = str(getattr(scope.get("route"), "path", ""))  # never the path as it was asked for: metrics must stay few
            self.observe(route, status or 499, seconds)
            line = {"id": request_id, "method": scope["method"], "route": route, "status": status or 499, "ms": round(1000 * seconds, 1)}
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
            return self._too_large()
        return None

    def _too_large(self) -> tuple[int, str, list[tuple[bytes, bytes]]]:
        return 413, f"a body of more than {self.most_bytes} bytes; send fewer stations at a time", [(b"connection", b"close")]


async def _answer(send: Send, status: int, reason: str, headers: list[tuple[bytes, bytes]]) -> None:
    body = json.dumps({"detail": reason}).encode()
    kind = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": kind + headers})
    await send({"type": "http.response.body", "body": body})
