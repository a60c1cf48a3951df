"""What clients of other people's services do alike: read an answer within bounds of time and size, and understand Retry-After."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import requests

__all__ = ["bounded_body", "retry_after"]


def bounded_body(answer: requests.Response, *, deadline: float, most: int, piece: int) -> bytes:
    """The body of a streamed answer, read `piece` bytes at a time (few, so that a slow answer is noticed).

    Longer ones are cut a piece beyond `most` bytes, which no reader takes. Raises requests.Timeout past `deadline` (time.monotonic).
    """
    body = b""
    for part in answer.iter_content(piece):
        body += part
        if time.monotonic() > deadline:
            raise requests.Timeout
        if len(body) > most:
            break
    return body


def retry_after(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, which may be a number or a date; None where it says neither."""
    if header is None:
        return None
    if re.fullmatch(r"\s*\d+(?:\.\d+)?\s*", header):
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    return max((when - datetime.now(UTC)).total_seconds(), 0.0) if when.tzinfo else None
