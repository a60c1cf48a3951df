"""A local server that speaks the chat completions protocol with images, and misbehaves on request."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: Writes an answer to a request whose JSON body is given.
Behaviour = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]

PROMPT_TOKENS, COMPLETION_TOKENS = 1000, 50


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(body)


def completion(content: str | None, *, finish: str = "stop", usage: object = "real", **message: object) -> bytes:
    """The body of a chat completion as OpenAI and vLLM answer it."""
    tokens = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS, "total_tokens": PROMPT_TOKENS + COMPLETION_TOKENS}
    choice = {"index": 0, "message": {"role": "assistant", "content": content, **message}, "finish_reason": finish}
    found: dict[str, object] = {"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
    if usage is not None:
        found["usage"] = tokens if usage == "real" else usage
    return json.dumps(found).encode()


def says(content: str | None, **how: Any) -> Behaviour:
    """Answers with this text."""
    return lambda handler, body: send(handler, 200, completion(content, **how))


def fails(status: int, body: bytes = b"{}", **headers: str) -> Behaviour:
    """Answers with this status."""
    return lambda handler, _: send(handler, status, body, **headers)


def raw(body: bytes) -> Behaviour:
    """Answers 200 with this body."""
    return lambda handler, _: send(handler, 200, body)


def resets(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Breaks the connection off in the middle of the body."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    handler.wfile.write(b'{"choices": [')
    handler.wfile.flush()
    handler.connection.close()


def trickles(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Sends a byte now and then, so that no single read takes long."""
    handler.send_response(200)
    handler.send_header("Content-Length", "5000")
    handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b" ")
            handler.wfile.flush()
            time.sleep(0.05)
    except OSError:
        pass


def hangs(handler: BaseHTTPRequestHandler, _: dict[str, Any]) -> None:
    """Sends nothing for longer than anybody waits here."""
    time.sleep(1.5)
    handler.close_connection = True


def sees(handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
    """Says which colour the first pixel of the image has."""
    send(handler, 200, completion(f"The ground is {shown_image(body)[0, 0].tolist()}."))


def shown_image(body: dict[str, Any]) -> NDArray[np.uint8]:
    """The image of a request, decoded."""
    [part] = [part for part in body["messages"][0]["content"] if part["type"] == "image_url"]
    head, _, data = part["image_url"]["url"].partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data, validate=True))))


class VisionServer:
    """Answers request i by `script`[i], and by `otherwise` after its end; keeps what it was asked and when."""

    def __init__(self, script: Sequence[Behaviour], otherwise: Behaviour) -> None:
        self.script = list(script)
        self.otherwise = otherwise
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.lines: list[str] = []
        self.times: list[float] = []
        self.at_once = self.most_at_once = 0
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        with self._lock:
            behaviour = self.script.pop(0) if self.script else self.otherwise
            self.bodies.append(body)
            self.headers.append(dict(handler.headers))
            self.lines.append(handler.requestline)
            self.times.append(time.monotonic())
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            behaviour(handler, body)
        finally:
            with self._lock:
                self.at_once -= 1


@contextmanager
def vision_server(*script: Behaviour, otherwise: Behaviour = sees) -> Iterator[VisionServer]:
    """A server on a free port of this machine, while the context lasts."""
    served = VisionServer(script, otherwise)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            served.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
