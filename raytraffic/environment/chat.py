"""One question to a vision language model over the OpenAI-compatible protocol: POST {url}/chat/completions with an image as a data URI.

GPT-4o, vLLM and Ray Serve LLM speak it. The key is read from the environment of the process that asks, at the moment it asks: it is no
part of any object, and so of no pickle, message or file.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import os
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
from PIL import Image
from requests.auth import AuthBase

from raytraffic.environment import answers
from raytraffic.environment.limits import Prices, Usage
from raytraffic.environment.tiles import RgbImage

__all__ = ["KEY", "MODEL", "PROMPT", "URL", "Answer", "ChatFault", "Endpoint", "ask"]

#: Environment variables: the endpoint's URL up to and with its version ("https://api.openai.com/v1"), the model's name there, the key.
URL, MODEL, KEY = "RAYTRAFFIC_VISION_URL", "RAYTRAFFIC_VISION_MODEL", "RAYTRAFFIC_VISION_KEY"

#: Detailed, and on the aspects that matter, as LEC-Diff (Fig. 3) found best; it asks for nothing that refinement would drop.
PROMPT = (
    "This is a satellite image, north up, of the surroundings of a mobile base station. Describe in five to eight plain sentences what is "
    "there: kinds of land and roughly how much of the image each covers, buildings (kind, height, density), roads and railways, water, "
    "vegetation, open and industrial land, and where in the image they lie. State only what can be seen. No introduction, no "
    "impressions, no guesses, no advice, no lists."
)
_MAX_BODY = 1_000_000
_SHORTEST_KEY = 8


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """An endpoint, what it is asked, and how hard.

    url, model             see URL and MODEL, the variables that `from_environment` reads
    key_variable           environment variable that holds the key; where it is not set, none is sent
    prompt, max_tokens, temperature, seed, detail
                           of the request; `max_tokens` of the answer, `detail` of the image ("low" costs least with OpenAI)
    max_prompt_tokens      the most a prompt may have, its image included: the budget sets that much aside
    attempts               for one image, where the endpoint is busy (429), fails (5xx, time-out, broken connection) or answers nonsense;
                           the wait doubles from `first_wait_seconds`, and is the endpoint's own Retry-After where it says so
    max_wait_seconds       longer waits than this are not waited for
    timeout_seconds        for one answer, its body included
    concurrency            requests at a time
    requests_per_minute, tokens_per_minute
                           of one describer in its process: n workers with one each ask n times as often
    prices, budget         of a million tokens, and the most that one describer may spend
    """

    url: str
    model: str
    key_variable: str = KEY
    prompt: str = PROMPT
    max_tokens: int = 400
    temperature: float = 0.0
    seed: int = 0
    detail: Literal["auto", "low", "high"] = "auto"
    max_prompt_tokens: int = 3000
    attempts: int = 5
    first_wait_seconds: float = 1.0
    max_wait_seconds: float = 120.0
    timeout_seconds: float = 120.0
    concurrency: int = 4
    requests_per_minute: float = 60.0
    tokens_per_minute: float = 100_000.0
    prices: Prices = field(default_factory=Prices)
    budget: float | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query or parts.fragment:
            raise ValueError(f"url: host {parts.hostname!r}, expected http(s)://host[:port]/path without user, query or fragment")
        for name in ("model", "key_variable", "prompt"):
            if not getattr(self, name).strip():
                raise ValueError(f"{name}: {getattr(self, name)!r}, expected a text")
        for name in ("max_tokens", "max_prompt_tokens", "attempts", "concurrency"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: {getattr(self, name)}, expected at least 1")
        for name in ("first_wait_seconds", "max_wait_seconds", "timeout_seconds", "requests_per_minute", "tokens_per_minute"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name}: {getattr(self, name)}, expected a number > 0")
        if not 0 <= self.temperature <= 2:
            raise ValueError(f"temperature: {self.temperature}, expected a number in [0, 2]")
        if self.budget is not None and not (self.budget > 0 and self.prices.prompt + self.prices.completion > 0):
            raise ValueError(f"budget: {self.budget} with prices {self.prices}, expected a number > 0 and prices")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Endpoint:
        """The endpoint that URL and MODEL name; dataclasses.replace changes the rest. ValueError names a variable that is not set."""
        for name in (URL, MODEL):
            if not environment.get(name, "").strip():
                raise ValueError(f"{name}: not set, expected {'the URL of an endpoint' if name == URL else 'the name of a model'}")
        return cls(url=environment[URL].strip(), model=environment[MODEL].strip())

    def question(self) -> str:
        """A digest of what an answer depends on besides the image: equal questions about equal images may share an answer."""
        asked = [self.model, self.prompt, self.max_tokens, self.temperature, self.seed, self.detail]
        return hashlib.blake2b(json.dumps(asked).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A text, whether it was cut off at max_tokens, and the tokens used if the endpoint told."""

    text: str
    cut: bool
    usage: Usage | None


class ChatFault(Exception):  # noqa: N818 - some are answers, not errors
    """No text, because the endpoint

    busy        asks for patience: for `wait` seconds, or as many as the asker likes
    lost        was not reached, or its answer was not
    unsound     answered nonsense, or nothing
    refused     will not describe this image
    rejected    does not take this request
    denied      takes none: wrong key, model or URL, or no money left

    `usage` is what it cost, where the endpoint told.
    """

    def __init__(
        self,
        kind: Literal["busy", "lost", "unsound", "refused", "rejected", "denied"],
        text: str,
        *,
        wait: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.wait = wait
        self.usage = usage


def ask(endpoint: Endpoint, image: RgbImage) -> Answer:
    """Asks once about an image (h, w, 3); ChatFault where no text comes back. ValueError where the key is none that a header can hold."""
    key = _key(endpoint.key_variable)
    try:
        status, retry_after, body = _post(endpoint, _request(endpoint, image), key)
    except requests.RequestException as error:  # holds the request, and so the key: it goes no further
        lost = type(error).__name__
    else:
        if status != 200:
            raise _fault(status, body, retry_after)
        return _answer(body)
    raise ChatFault("lost", lost)


def _post(endpoint: Endpoint, question: dict[str, Any], key: str | None) -> tuple[int, str | None, bytes]:
    """Status, Retry-After and body of the response, which has `timeout_seconds` in all."""
    deadline = time.monotonic() + endpoint.timeout_seconds
    with requests.post(
        f"{endpoint.url.rstrip('/')}/chat/completions",
        json=question,
        headers={"Accept": "application/json"},
        auth=_Bearer(key),
        timeout=endpoint.timeout_seconds,
        allow_redirects=False,
        stream=True,
    ) as response:
        body = answers.bounded_body(response, deadline=deadline, most=_MAX_BODY, piece=16)  # a longer one is no JSON then
        return response.status_code, response.headers.get("Retry-After"), body


def _request(endpoint: Endpoint, image: RgbImage) -> dict[str, Any]:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "PNG")
    uri = f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"
    content = [
        {"type": "text", "text": endpoint.prompt},
        {"type": "image_url", "image_url": {"url": uri, "detail": endpoint.detail}},
    ]
    return {
        "model": endpoint.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": endpoint.max_tokens,
        "temperature": endpoint.temperature,
        "seed": endpoint.seed,
    }


def _fault(status: int, body: bytes, retry_after: str | None) -> ChatFault:
    """Of what the endpoint says of a failure only its code is shown: its message may quote the key."""
    code = _code(body)
    text = f"status {status}" + (f" ({code})" if code else "")
    if status in (401, 402, 403, 404) or code == "insufficient_quota":
        return ChatFault("denied", text)
    if status in (408, 409, 429) or status >= 500:
        return ChatFault("busy", text, wait=answers.retry_after(retry_after))
    return ChatFault("rejected", text)


def _answer(body: bytes) -> Answer:
    """The text of a chat completion."""
    try:
        completion = json.loads(body)
        choice = completion["choices"][0]
        message, finish = choice["message"], choice.get("finish_reason")
        text = message.get("content")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        raise ChatFault("unsound", "an answer that is no chat completion", usage=_usage(body)) from None
    usage = _usage(body)
    if message.get("refusal") or finish == "content_filter":
        raise ChatFault("refused", "the model refuses to describe the image", usage=usage)
    if not isinstance(text, str) or not text.strip():
        raise ChatFault("unsound", f"an empty answer (finish_reason {finish!r})", usage=usage)
    return Answer(text=text.strip(), cut=finish == "length", usage=usage)


def _usage(body: bytes) -> Usage | None:
    """The tokens an answer reports; None where it reports none that make sense."""
    try:
        found = json.loads(body)["usage"]
        counts = found["prompt_tokens"], found["completion_tokens"]
    except (ValueError, KeyError, TypeError):
        return None
    if not all(type(count) is int and count >= 0 for count in counts):
        return None
    return Usage(prompt_tokens=counts[0], completion_tokens=counts[1])


def _code(body: bytes) -> str | None:
    """The error code of an OpenAI-compatible failure, if it is one word of a known shape."""
    try:
        code = json.loads(body)["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return None
    return code if isinstance(code, str) and re.fullmatch(r"[a-z]{2,16}(?:_[a-z]{2,16}){0,5}", code) else None


def _key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip()
    if not key:
        return None
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        raise ValueError(f"{variable}: a key of {len(key)} characters, expected {_SHORTEST_KEY} or more of printable ASCII without blanks")
    return key


class _Bearer(AuthBase):
    """Sets the key, and keeps requests from looking for another one in a .netrc file."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request
