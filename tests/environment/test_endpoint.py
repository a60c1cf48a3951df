"""The endpoint describer against a server that speaks the real protocol, and one that misbehaves."""

from __future__ import annotations

import json
import logging
import pickle
import time
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.chat import KEY, MODEL, PROMPT, URL, Endpoint
from raytraffic.environment.describe import Describer, Facts, Scene
from raytraffic.environment.endpoint import EndpointDescriber
from raytraffic.environment.limits import Prices, Spent
from tests.environment.vision_server import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Behaviour,
    VisionServer,
    completion,
    fails,
    hangs,
    raw,
    resets,
    says,
    sees,
    send,
    shown_image,
    trickles,
    vision_server,
)

SECRET = "sk-test-0123456789abcdef"


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, SECRET)


def scene(shade: int, site: str | None = None) -> Scene:
    image = np.full((8, 12, 3), shade, dtype=np.uint8)
    return Scene(facts=Facts(site=site or f"site {shade}", longitude=115.9, latitude=28.6), image=image)


def describer(server: VisionServer, folder: Path, **settings: Any) -> EndpointDescriber:
    quick: dict[str, Any] = {"first_wait_seconds": 0.01, "requests_per_minute": 1e6, "tokens_per_minute": 1e9, "timeout_seconds": 0.4}
    return EndpointDescriber(Endpoint(url=server.url, model="gpt-4o", **(quick | settings)), cache=str(folder / "cache"))


def test_a_request_is_what_the_protocol_asks_for(tmp_path: Path) -> None:
    with vision_server(says(" A lake. ")) as server:
        asking: Describer = describer(server, tmp_path, max_tokens=77, temperature=0.5, seed=3, detail="low")
        [found] = asking.describe([scene(200)])
    assert (found.site, found.text, found.failure) == ("site 200", "A lake.", None)
    assert server.lines == ["POST /v1/chat/completions HTTP/1.1"]
    [body] = server.bodies
    assert {name: body[name] for name in body if name != "messages"} == {"model": "gpt-4o", "max_tokens": 77, "temperature": 0.5, "seed": 3}
    [message] = body["messages"]
    assert message["role"] == "user"
    assert message["content"][0] == {"type": "text", "text": PROMPT}
    assert message["content"][1]["image_url"]["detail"] == "low"
    np.testing.assert_array_equal(shown_image(body), scene(200).image)


def test_the_key_is_in_the_authorization_header_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    quotes = json.dumps({"error": {"message": f"Incorrect API key: {SECRET}", "code": "invalid_api_key"}}).encode()
    with vision_server(fails(400, quotes), resets, sees) as server:
        asking = describer(server, tmp_path, attempts=2, concurrency=1)
        found = asking.describe([scene(1), scene(2), scene(3)])
    assert all(headers["Authorization"] == f"Bearer {SECRET}" for headers in server.headers)
    headers = [{**headers, "Authorization": ""} for headers in server.headers]
    out, err = capfd.readouterr()
    shown = [headers, server.bodies, found, repr(asking), asking.name, vars(asking), out, err, caplog.text]
    stored = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert stored
    assert SECRET not in "\n".join(map(str, [*shown, *stored])) and SECRET.encode() not in pickle.dumps(asking)
    assert found[0].failure == "status 400 (invalid_api_key)"


def test_without_a_key_none_is_sent_not_even_one_of_a_netrc_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEY)
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password hunter2\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with vision_server() as server:
        assert describer(server, tmp_path).describe([scene(1)])[0].text
    assert "Authorization" not in server.headers[0]


def test_a_key_that_no_header_can_hold_is_refused_without_showing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(KEY, "two words\nof key")
    with vision_server() as server, pytest.raises(ValueError, match=f"{KEY}: a key of 16 characters") as caught:
        describer(server, tmp_path).describe([scene(1)])
    assert "two words" not in str(caught.value)
    assert server.bodies == []


DATE = format_datetime(datetime.now(UTC) - timedelta(seconds=5), usegmt=True)


@pytest.mark.parametrize(
    ("fault", "charged"),
    [
        (fails(429, Retry_After="0.05"), 0),
        (fails(429, Retry_After=DATE), 0),
        (fails(429, Retry_After="soon"), 0),
        (fails(500), 0),
        (fails(503, b"<html>"), 0),
        (hangs, 1),
        (trickles, 1),
        (resets, 1),
        (raw(b'{"choices": [{"mess'), 1),
        (raw(b"[1, 2]"), 1),
        (raw(b'"text"'), 1),
        (raw(b"\xff\xfe"), 1),
        (raw(b"{}"), 1),
        (raw(b'{"choices": []}'), 1),
        (raw(b'{"choices": [{"message": null}]}'), 1),
        (raw(b'{"choices": [{"message": {"content": "x"}, "finish_reason": "stop"}], "pad": "' + b"x" * 1_100_000 + b'"}'), 1),
        (says("", usage=None), 1),
        (says(" \n", usage=None), 1),
        (says(None, usage=None), 1),
    ],
)
def test_a_passing_fault_is_asked_again(fault: Behaviour, charged: int, tmp_path: Path) -> None:
    with vision_server(fault) as server:
        asking = describer(server, tmp_path, prices=Prices(prompt=1.0, completion=1.0), max_prompt_tokens=1900, max_tokens=100)
        [found] = asking.describe([scene(9)])
    assert found.text == "The ground is [9, 9, 9]."
    assert len(server.bodies) == 2
    assert asking.spent.requests == 2
    assert asking.spent.possible_cost == pytest.approx(charged * 2000 / 1e6)


def test_a_lasting_fault_uses_the_attempts_up_and_is_told(tmp_path: Path) -> None:
    with vision_server(otherwise=fails(503)) as server:
        [found] = describer(server, tmp_path, attempts=3).describe([scene(9)])
        assert found.failure == "status 503 (attempt 3 of 3)"
        assert len(server.bodies) == 3
        server.otherwise = sees
        assert describer(server, tmp_path).describe([scene(9)])[0].text, "a fault was kept in the cache"


def test_the_wait_is_what_retry_after_says(tmp_path: Path) -> None:
    with vision_server(fails(429, Retry_After="0.3")) as server:
        assert describer(server, tmp_path).describe([scene(9)])[0].text
    assert 0.3 <= server.times[1] - server.times[0] < 1.5


def test_a_longer_retry_after_than_the_longest_wait_is_not_waited_for(tmp_path: Path) -> None:
    with vision_server(fails(429, Retry_After="600")) as server:
        [found] = describer(server, tmp_path, max_wait_seconds=5.0).describe([scene(9)])
    assert found.failure == "status 429 (attempt 1 of 5); the next is 600 s away"
    assert len(server.bodies) == 1


def test_waits_double_with_a_spread_that_the_seed_decides(tmp_path: Path) -> None:
    with vision_server() as server:
        asking, same, other = (describer(server, tmp_path, seed=seed, first_wait_seconds=1.0) for seed in (0, 0, 1))
    waits = [asking._wait("key", attempt) for attempt in (1, 2, 3, 4)]
    assert waits == [same._wait("key", attempt) for attempt in (1, 2, 3, 4)]
    assert waits != [other._wait("key", attempt) for attempt in (1, 2, 3, 4)]
    assert waits[0] != asking._wait("other key", 1)
    assert all(2.0**i <= wait <= 1.5 * 2.0**i for i, wait in enumerate(waits))


def test_an_answer_that_was_cut_off_keeps_its_whole_sentences(tmp_path: Path) -> None:
    with vision_server(says("A lake lies in the north. It is 3.5 km wi", finish="length"), says("A lake lies", finish="length")) as server:
        first, second = describer(server, tmp_path, concurrency=1).describe([scene(1), scene(2)])
    assert first.text == "A lake lies in the north."
    assert second.failure == "an answer that was cut off at max_tokens within its first sentence"


def test_a_request_that_is_not_taken_is_sent_again_by_the_next_run_only(tmp_path: Path) -> None:
    with vision_server(fails(400), sees) as server:
        assert describer(server, tmp_path).describe([scene(1)])[0].failure == "status 400"
        assert len(server.bodies) == 1
        assert describer(server, tmp_path).describe([scene(1)])[0].text


def test_an_answer_that_trickles_is_given_up_in_time(tmp_path: Path) -> None:
    """It would take 5 s to its end, and no single read longer than 0.05 s."""
    with vision_server(trickles) as server:
        assert describer(server, tmp_path).describe([scene(1)])[0].text
    assert 0.4 <= server.times[1] - server.times[0] < 2.5


@pytest.mark.parametrize("refusal", [says(None, refusal="I cannot help."), says("", finish="content_filter")])
def test_a_refusal_is_taken_for_an_answer(refusal: Behaviour, tmp_path: Path) -> None:
    with vision_server(refusal) as server:
        for _ in range(2):
            asking = describer(server, tmp_path)
            [found] = asking.describe([scene(1)])
            assert found.failure == "the model refuses to describe the image"
    assert len(server.bodies) == 1, "a refusal was asked for again"


def test_one_scene_that_fails_stops_no_other(tmp_path: Path) -> None:
    def moody(handler: Any, body: dict[str, Any]) -> None:
        (send(handler, 422, b"{}") if shown_image(body)[0, 0, 0] == 2 else sees(handler, body))

    blind = Scene(facts=Facts(site="blind", longitude=0.0, latitude=0.0))
    with vision_server(otherwise=moody) as server:
        found = describer(server, tmp_path).describe([scene(1), scene(2), blind, scene(3), scene(1, site="twin")])
    assert [one.site for one in found] == ["site 1", "site 2", "blind", "site 3", "twin"]
    assert [one.failure for one in found] == [None, "status 422", "it has no image", None, None]
    assert found[4].text == found[0].text == "The ground is [1, 1, 1]."
    assert len(server.bodies) == 3, "equal images were asked about twice"


@pytest.mark.parametrize(
    "denial",
    [
        fails(401),
        fails(403),
        fails(404, b'{"error": {"code": "model_not_found"}}'),
        fails(429, b'{"error": {"code": "insufficient_quota"}}'),
    ],
)
def test_a_denied_request_is_the_last(denial: Behaviour, tmp_path: Path) -> None:
    with vision_server(denial) as server:
        found = describer(server, tmp_path, concurrency=1).describe([scene(i) for i in range(5)])
    assert len({one.failure for one in found}) == 1 and found[0].failure is not None
    assert len(server.bodies) == 1


def test_a_redirect_is_not_followed(tmp_path: Path) -> None:
    with vision_server() as other, vision_server(fails(307, Location=f"{other.url}/chat/completions")) as server:
        [found] = describer(server, tmp_path).describe([scene(1)])
    assert found.failure == "status 307"
    assert other.bodies == []


def test_nothing_is_asked_twice_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends, as by Ctrl-C, while the fourth image is asked about; the next run asks about the rest only."""
    scenes = [scene(i) for i in range(8)]
    from raytraffic.environment import endpoint

    real, asked = endpoint.ask, Counter[int]()

    def crash(settings: Endpoint, image: Any) -> Any:
        if len(asked) == 3:
            raise KeyboardInterrupt
        asked[int(image[0, 0, 0])] += 1
        return real(settings, image)

    with vision_server() as server:
        monkeypatch.setattr(endpoint, "ask", crash)
        with pytest.raises(KeyboardInterrupt):
            describer(server, tmp_path, concurrency=1).describe(scenes)
        monkeypatch.setattr(endpoint, "ask", real)
        again = describer(server, tmp_path)
        found = again.describe(scenes)
        assert [one.text for one in found] == [f"The ground is [{i}, {i}, {i}]." for i in range(8)]
        assert Counter(int(shown_image(body)[0, 0, 0]) for body in server.bodies) == Counter(range(8))
        assert again.spent.requests == 5
        third = describer(server, tmp_path)
        assert third.describe(scenes) == found
    assert third.spent.requests == 0 and len(server.bodies) == 8
    assert third.ledger.of_run() == Spent() and third.ledger.in_all().requests == 8, "the run that crashed is in no account"


@pytest.mark.parametrize(
    "change", [{"prompt": "What?"}, {"model": "other"}, {"max_tokens": 9}, {"temperature": 1.0}, {"seed": 5}, {"detail": "low"}]
)
def test_another_question_has_another_answer_and_another_name(change: dict[str, Any], tmp_path: Path) -> None:
    with vision_server() as server:
        first = describer(server, tmp_path)
        second = EndpointDescriber(replace(first.endpoint, **change), cache=str(first.cache))
        first.describe([scene(1)])
        second.describe([scene(1)])
        assert len(server.bodies) == 2
        assert first.name != second.name
        patient = EndpointDescriber(replace(first.endpoint, attempts=9, concurrency=2), cache=str(first.cache))
        patient.describe([scene(1)])
        assert len(server.bodies) == 2 and patient.name == first.name


def test_images_of_equal_bytes_and_other_shapes_are_not_taken_for_each_other(tmp_path: Path) -> None:
    facts = Facts(site="a", longitude=0.0, latitude=0.0)
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8)
    with vision_server() as server:
        describer(server, tmp_path).describe([Scene(facts=facts, image=pixels.reshape(shape)) for shape in ((4, 6, 3), (6, 4, 3))])
    assert len(server.bodies) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'{"text": "", "failure": null}', b'{"text": 3, "failure": null}', b"[]", b'{"text": "a"}'])
def test_a_cache_file_that_is_not_sound_is_asked_for_again(content: bytes, tmp_path: Path) -> None:
    with vision_server() as server:
        first = describer(server, tmp_path).describe([scene(1)])
        [file] = (tmp_path / "cache").glob("??/*.json")
        file.write_bytes(content)
        assert describer(server, tmp_path).describe([scene(1)]) == first
        assert len(server.bodies) == 2
        assert json.loads(file.read_text())["text"] == first[0].text


def test_the_account_adds_up_what_answers_report(tmp_path: Path) -> None:
    with vision_server(says("Fields.", usage={"prompt_tokens": 10, "completion_tokens": -1})) as server:
        asking = describer(
            server, tmp_path, prices=Prices(prompt=2.5, completion=10.0), concurrency=1, max_prompt_tokens=2000, max_tokens=100
        )
        assert all(one.text for one in asking.describe([scene(i) for i in range(4)]))
    spent = asking.spent
    assert (spent.requests, spent.prompt_tokens, spent.completion_tokens) == (4, 3 * PROMPT_TOKENS, 3 * COMPLETION_TOKENS)
    assert spent.cost == pytest.approx(3 * (2.5 * PROMPT_TOKENS + 10 * COMPLETION_TOKENS) / 1e6)
    assert spent.possible_cost == pytest.approx((2.5 * 2000 + 10 * 100) / 1e6), "an answer without usage may have been charged"
    assert asking.ledger.of_run() == spent, "what is kept beside the answers is another account"


@pytest.mark.parametrize("concurrency", [1, 8])
def test_the_budget_is_not_exceeded(concurrency: int, tmp_path: Path) -> None:
    """A request may cost 0.004 and does cost 0.003: 0.0145 are enough for 4 of them, or 3 where three at once set the most aside."""
    prices = Prices(prompt=2.0, completion=20.0)
    with vision_server() as server:
        asking = describer(server, tmp_path, prices=prices, budget=0.0145, max_prompt_tokens=1000, max_tokens=100, concurrency=concurrency)
        found = asking.describe([scene(i) for i in range(10)])
    described = [one for one in found if one.failure is None]
    assert len(described) == len(server.bodies)
    assert len(described) == 4 if concurrency == 1 else len(described) in (3, 4)
    assert asking.spent.cost == pytest.approx(0.003 * len(described)) and asking.spent.cost <= 0.0145
    assert all(one.failure is None or one.failure.startswith("budget of 0.0145: ") for one in found)


def test_a_second_run_with_a_fresh_budget_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"prices": Prices(prompt=2.0, completion=20.0), "budget": 0.01, "max_prompt_tokens": 1000, "max_tokens": 100}
    scenes = [scene(i) for i in range(5)]
    with vision_server() as server:
        first = describer(server, tmp_path, concurrency=1, **settings).describe(scenes)
        second = describer(server, tmp_path, concurrency=1, **settings).describe(scenes)
    assert [one.failure is None for one in first] == [True, True, True, False, False]
    assert all(one.failure is None for one in second) and len(server.bodies) == 5


def test_no_more_requests_run_at_once_than_allowed(tmp_path: Path) -> None:
    def slow(handler: Any, body: dict[str, Any]) -> None:
        time.sleep(0.05)
        sees(handler, body)

    with vision_server(otherwise=slow) as server:
        describer(server, tmp_path, concurrency=3).describe([scene(i) for i in range(9)])
    assert server.most_at_once == 3


def test_requests_are_spaced_by_the_rate(tmp_path: Path) -> None:
    with vision_server() as server:
        describer(server, tmp_path, requests_per_minute=1200.0).describe([scene(i) for i in range(5)])
    assert server.times[-1] - server.times[0] >= 4 * 0.05 - 0.02


def test_a_pickled_describer_asks_the_same_and_starts_a_new_account(tmp_path: Path) -> None:
    with vision_server() as server:
        asking = describer(server, tmp_path)
        asking.describe([scene(1)])
        copy: EndpointDescriber = pickle.loads(pickle.dumps(asking))
        assert copy.name == asking.name and copy.endpoint == asking.endpoint
        assert copy.describe([scene(1)]) == asking.describe([scene(1)])
        assert copy.spent.requests == 0 and asking.spent.requests == 1
        copy.describe([scene(2)])
        stranger = describer(server, tmp_path)
        stranger.describe([scene(3)])
    assert asking.ledger.of_run() == copy.ledger.of_run() == asking.spent + copy.spent
    assert (asking.ledger.of_run().requests, stranger.ledger.of_run().requests, stranger.ledger.in_all().requests) == (2, 1, 3)


def test_an_account_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    with vision_server() as server:
        asking = describer(server, tmp_path)
        asking.describe([scene(1)])
    [file] = (tmp_path / "cache" / "account").glob("*/*.json")
    file.write_text("{}{")
    with pytest.raises(ValueError, match=r"\.json: .*, expected the account of a process"):
        asking.ledger.of_run()


def test_the_environment_names_endpoint_and_model() -> None:
    found = Endpoint.from_environment({URL: "http://localhost:8000/v1 ", MODEL: "llava"})
    assert (found.url, found.model, found.key_variable) == ("http://localhost:8000/v1", "llava", KEY)
    with pytest.raises(ValueError, match=f"{MODEL}: not set"):
        Endpoint.from_environment({URL: "http://localhost"})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"url": "ftp://a/v1"}, "url: host 'a', expected http"),
        ({"url": "https://me:secret@a/v1"}, "url: host 'a', expected http"),
        ({"url": "https://a/v1?key=secret"}, "url: host 'a', expected http"),
        ({"model": " "}, "model: ' ', expected a text"),
        ({"max_tokens": 0}, "max_tokens: 0, expected at least 1"),
        ({"concurrency": 0}, "concurrency: 0, expected at least 1"),
        ({"timeout_seconds": float("inf")}, "timeout_seconds: inf, expected a number > 0"),
        ({"tokens_per_minute": 0}, "tokens_per_minute: 0, expected a number > 0"),
        ({"temperature": 3.0}, r"temperature: 3.0, expected a number in \[0, 2\]"),
        ({"budget": 5.0}, "budget: 5.0 with prices .*, expected a number > 0 and prices"),
    ],
)
def test_settings_are_checked(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        Endpoint(**{"url": "http://a", "model": "m", **wrong})
    assert "secret" not in str(caught.value)


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=8)
)
def test_whatever_json_comes_back_is_a_text_or_a_fault(found: object) -> None:
    from raytraffic.environment.chat import Answer, ChatFault, _answer

    for body in (
        found,
        {"choices": found},
        {"choices": [found]},
        {"choices": [{"message": found}]},
        {"choices": [{"message": {"content": found}}]},
    ):
        try:
            answer = _answer(json.dumps({**body, "usage": found} if isinstance(body, dict) else body).encode())
        except ChatFault:
            continue
        assert isinstance(answer, Answer) and answer.text.strip() == answer.text != ""


def test_the_server_of_these_tests_speaks_the_protocol() -> None:
    """Its answer has the fields that OpenAI documents, so that the tests above mean something."""
    found = json.loads(completion("Text."))
    assert found["choices"][0]["message"] == {"role": "assistant", "content": "Text."}
    assert found["usage"]["total_tokens"] == PROMPT_TOKENS + COMPLETION_TOKENS
