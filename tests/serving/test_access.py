"""Who may ask: tokens are read from where they may be, compared whole, and never shown."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.serving.access import TOKEN, TOKEN_FILE, Access, is_loopback, read_token

SECRET = "correct-horse-battery"


def basic(text: bytes) -> str:
    """A Basic header."""
    return "Basic " + base64.b64encode(text).decode()


def test_a_token_is_read_from_a_file_before_the_environment(tmp_path: Path) -> None:
    file, other = tmp_path / "token", tmp_path / "other"
    file.write_text(f"  {SECRET}\n")
    other.write_text("another-token-of-length")
    assert read_token(environment={}) is None
    assert read_token(environment={TOKEN: f"{SECRET} "}) == SECRET
    assert read_token(environment={TOKEN: "x" * 16, TOKEN_FILE: str(file)}) == SECRET
    assert read_token(str(file), {TOKEN: "x" * 16, TOKEN_FILE: str(other)}) == SECRET


@pytest.mark.parametrize(
    "token", ["", "short", "x" * 15, "two words of length", "tab\tinside-of-a-token", "schlüssel-von-länge", "x" * 15 + "\x7f"]
)
def test_weak_tokens_are_refused_and_not_shown(token: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text(token, encoding="utf-8")
    for arguments in ((str(file), {}), (None, {TOKEN: token}), (None, {TOKEN_FILE: str(file)})):
        with pytest.raises(ValueError, match="expected 16 or more of printable ASCII") as error:
            read_token(*arguments)
        assert not token or token not in str(error.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"absent: FileNotFoundError, expected a readable file"):
        read_token(str(tmp_path / "absent"))
    with pytest.raises(ValueError, match="IsADirectoryError"):
        read_token(str(tmp_path))
    (tmp_path / "binary").write_bytes(b"\xff\xfe" * 20)
    with pytest.raises(ValueError, match="UnicodeDecodeError"):
        read_token(str(tmp_path / "binary"))


@pytest.mark.parametrize(
    "given_", [f"Bearer {SECRET}", f"bearer   {SECRET} ", basic(f"anyone:{SECRET}".encode()), basic(f":{SECRET}".encode())]
)
def test_the_token_passes_from_anywhere(given_: str) -> None:
    access = Access(SECRET)
    assert access.refusal(given_, "203.0.113.9") is None and access.refusal(given_, None) is None


@pytest.mark.parametrize(
    "given_",
    [
        *(
            None,
            "",
            "Bearer",
            "Bearer ",
            SECRET,
            f"Bearer {SECRET}x",
            f"Bearer {SECRET[:-1]}",
            f"Token {SECRET}",
            f"Bearer {SECRET} {SECRET}",
        ),
        *(
            basic(SECRET.encode()),
            basic(b"a:" + SECRET.encode() + b":"),
            "Basic !!!",
            "Basic \xe9\xe9",
            "Bearer \xe9",
            basic(b"a:\xff\xfe"),
        ),
    ],
)
def test_anything_else_does_not(given_: str | None) -> None:
    refusal = Access(SECRET).refusal(given_, "127.0.0.1")
    assert refusal is not None and refusal[0] == 401 and SECRET not in refusal[1]


@given(header=st.text(st.characters(max_codepoint=255), max_size=60))
def test_no_header_breaks_it(header: str) -> None:
    for scheme in ("", "Bearer ", "Basic "):
        refusal = Access(SECRET).refusal(scheme + header, "127.0.0.1")
        assert refusal is not None and refusal[0] == 401


@pytest.mark.parametrize(
    ("client", "passes"), [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("10.0.0.1", False), ("::", False), (None, False)]
)
def test_without_a_token_only_this_machine_passes(client: str | None, passes: bool) -> None:
    refusal = Access(None).refusal(f"Bearer {SECRET}", client)
    assert (refusal is None) == passes and (passes or (refusal is not None and refusal[0] == 403))


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("::1", True), ("[::1]", True)),
        *(
            ("", False),
            ("0.0.0.0", False),
            ("::", False),
            ("192.168.0.1", False),
            ("127.0.0.1.example.org", False),
            ("localhost.example.org", False),
        ),
    ],
)
def test_loopback_is_what_no_other_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_it_never_shows_the_token() -> None:
    assert repr(Access(SECRET)) == "Access(token)" and repr(Access(None)) == "Access(loopback only)"
