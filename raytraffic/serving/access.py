"""Who may ask: a bearer token from a file or the environment, compared in constant time and never shown."""

from __future__ import annotations

import base64
import hmac
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path

__all__ = ["TOKEN", "TOKEN_FILE", "Access", "is_loopback", "read_token"]

TOKEN = "RAYTRAFFIC_SERVE_TOKEN"
TOKEN_FILE = "RAYTRAFFIC_SERVE_TOKEN_FILE"
_SHORTEST = 16


def read_token(file: str | None = None, environment: Mapping[str, str] = os.environ) -> str | None:
    """The token of `file`, of the file that TOKEN_FILE names, or of TOKEN; None where none is set. ValueError (which never shows the
    token) for a file that cannot be read and for a token that is short or is not printable ASCII without blanks."""
    file = file or environment.get(TOKEN_FILE)
    if file:
        try:
            token = Path(file).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"{file}: {type(error).__name__}, expected a readable file that holds the token") from None
        where = file
    elif TOKEN in environment:
        token, where = environment[TOKEN].strip(), TOKEN
    else:
        return None
    if len(token) < _SHORTEST or not token.isascii() or not token.isprintable() or " " in token:
        raise ValueError(f"{where}: a token of {len(token)} characters, expected {_SHORTEST} or more of printable ASCII without blanks")
    return token


class Access:
    """Decides by the Authorization header, and by the client's address where no token is set: then only this machine may ask."""

    def __init__(self, token: str | None) -> None:
        self._token = None if token is None else token.encode()

    def __repr__(self) -> str:
        return f"Access({'token' if self._token is not None else 'loopback only'})"

    def refusal(self, authorization: str | None, client: str | None) -> tuple[int, str] | None:
        """None where the request may pass, or the status and the reason."""
        if self._token is None:
            if client is not None and is_loopback(client):
                return None
            return 403, f"no token is set: only requests from this machine are answered; set {TOKEN_FILE} on the server"
        if hmac.compare_digest(_given(authorization or ""), self._token):
            return None
        return 401, "expected the header 'Authorization: Bearer <token>' with the server's token"


def _given(authorization: str) -> bytes:
    """The token of a Bearer header, or the password of a Basic one: browsers ask their user for that by themselves."""
    scheme, _, given = authorization.partition(" ")
    if scheme.lower() == "bearer":
        return given.strip().encode()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(given.strip(), validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return b""


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's own and no other machine can reach it."""
    if host in ("localhost", ""):
        return host == "localhost"
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
