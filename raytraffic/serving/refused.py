"""What is refused, and how it is told: by the path of the field in the body that was sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import TypeAdapter, ValidationError

__all__ = ["ANSWERS", "Refused", "brief", "check_slots", "problems"]

#: What a status other than 200 means, for OpenAPI.
ANSWERS: dict[int | str, dict[str, Any]] = {
    401: {"description": "No token, or another one."},
    403: {"description": "The server has no token and the request comes from another machine."},
    408: {"description": "The deadline passed; the work was dropped."},
    413: {"description": "More than the server's limits allow."},
    415: {"description": "Another content type than those of the request body."},
    422: {"description": "A field is wrong; `detail` names it by its path."},
    500: {"description": "A fault of the server; `request_id` names it in the log."},
    503: {"description": "Busy: try again after the seconds that the header Retry-After says."},
}


class Refused(Exception):  # noqa: N818 - it is an answer, not a fault
    """A request that is not served: an HTTP status (413, 422) and problems, each with `loc`, `msg` and `type`."""

    def __init__(self, problems: Sequence[Mapping[str, Any]], status: int = 422) -> None:
        super().__init__("; ".join(f"{'.'.join(str(part) for part in p['loc'])}: {p['msg']}" for p in problems))
        self.problems = list(problems)
        self.status = status

    @classmethod
    def of(cls, loc: Sequence[str | int], value: object, expected: str, status: int = 422) -> Refused:
        """One problem: the field at `loc` has `value` where `expected` was."""
        return cls([{"loc": ["body", *loc], "msg": f"{value}, expected {expected}", "type": "value_error"}], status)

    def inside(self, field: str) -> Refused:
        """The same of a body that stands in a field of the one that was sent."""
        return Refused([{**one, "loc": ["body", field, *one["loc"][1:]]} for one in self.problems], self.status)


def check_slots(slots: int, loc: Sequence[str | int], most: int) -> None:
    """Refused, by the path `loc` of a series, unless it has 1 to `most` slots."""
    if not 1 <= slots <= most:
        raise Refused.of(loc, f"{slots} slots", f"1 to {most}", 422 if slots == 0 else 413)


def brief(value: object) -> str:
    """A value as a message may show it: names come from the request and have any length."""
    return str(value)[:200]


def problems(error: ValidationError, body: bytes) -> list[dict[str, Any]]:
    """Pydantic's findings in a JSON body, the first few, without the input (it may be large)."""
    found = error.errors(include_url=False, include_input=False, include_context=False)[:10]
    sent = TypeAdapter(Any).validate_json(body) if any(one["loc"] for one in found) else None  # without any path it is no JSON
    return [{"loc": ["body", *_path(one["loc"], one["type"], sent)], "msg": one["msg"], "type": one["type"]} for one in found]


def _path(loc: Sequence[str | int], kind: str, sent: Any) -> list[str | int]:
    """The path as it was sent: pydantic puts the names of a union's branches into it."""
    path: list[str | int] = []
    for number, part in enumerate(loc):
        there = part in sent if isinstance(sent, dict) else isinstance(sent, list) and isinstance(part, int) and part < len(sent)
        if there:
            sent = sent[part]
        if there or (kind == "missing" and number == len(loc) - 1):
            path.append(brief(part) if isinstance(part, str) else part)
    return path
