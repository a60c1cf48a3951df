"""The client against the application on a loopback port, and against stubs that are busy, away or break off."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from time import monotonic
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import requests

from raytraffic.client import Client, ForecastBusy, ForecastFailed, ForecastOptions, ForecastRefused
from raytraffic.serving.access import TOKEN, Access
from raytraffic.serving.body import Ask
from raytraffic.serving.frames import request_bytes, request_object
from raytraffic.serving.query import METADATA, read_arrow, read_json
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import ForecastService
from tests.serving.local_stages import body_of, grid_city, listening, service_of, small_model, station_city

SECRET = "correct-horse-battery"
CITY = station_city(steps=14)
SETTINGS: dict[str, Any] = {"horizon": 3, "draws": 3, "steps": 2, "seed": 4}


def long_frame(city: Any = CITY) -> pd.DataFrame:
    """A city's measurements, one row a station and slot, shuffled; what was not measured has no row."""
    times = pd.date_range(city.start, periods=city.shape[1], freq=f"{city.step_minutes}min")
    parts = [
        pd.DataFrame({"unique_id": site, "service": service, "ds": times, "y": city.traffic[c, :, i], "users": city.users[:, i]})
        for c, service in enumerate(city.services)
        for i, site in enumerate(city.sites)
    ]
    frame = pd.concat(parts, ignore_index=True)
    kept = frame if len(city.services) > 1 else frame.drop(columns="service")
    return kept.sample(frac=1, random_state=0)


def sites_frame(city: Any = CITY) -> pd.DataFrame:
    """What its stations are."""
    frame = pd.DataFrame(
        {"unique_id": city.sites} | {f"poi:{name}": counts for name, counts in zip(city.poi_categories, city.poi, strict=True)}
    )
    if city.grid is not None:
        frame["row"], frame["column"] = np.divmod(np.arange(city.shape[2]), city.grid[1])
    return frame.iloc[::-1]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> ForecastService:
    """A small model, one of two services, and one that was trained with a forecast of the users."""
    folder = tmp_path_factory.mktemp("client")
    told = small_model(folder / "three", "told", contexts=("users", "expected_users", "poi"))
    return service_of(small_model(folder / "one"), small_model(folder / "two", "pair", services=2), told, chunk_tiles=2)


async def _ready() -> bool:
    return True


@pytest.fixture(scope="module")
def url(service: ForecastService) -> Iterator[str]:
    """The service on a free port of the loopback interface."""
    app = guarded(build_api(service, _ready), service, Access(SECRET), lambda *_: None)
    with listening(app) as url:
        yield url


@pytest.fixture(scope="module")
def client(url: str) -> Client:
    """With the token."""
    return Client(url, SECRET, timeout_s=120, retries=0)


def direct(url: str, body: dict[str, Any]) -> pd.DataFrame:
    """The answer to a JSON request as the client would give it."""
    answer = requests.post(f"{url}/v1/forecast", json=body, headers={"Authorization": f"Bearer {SECRET}"}, timeout=120)
    assert answer.status_code == 200, answer.text
    frame = pd.DataFrame(answer.json()["columns"])
    frame["ds"] = pd.to_datetime(frame["ds"]).astype("datetime64[s]")
    return frame.sort_values(["unique_id", "service", "ds"], ignore_index=True)


@pytest.mark.parametrize(
    "city", [CITY, grid_city(steps=14, grid=(3, 4)), station_city("pair", 14, services=("b", "a"))], ids=lambda city: city.name
)
def test_a_frame_is_the_request_it_stands_for(client: Client, service: ForecastService, url: str, city: Any) -> None:
    frame = long_frame(city).sort_values("service", ascending=False) if len(city.services) > 1 else long_frame(city)
    before = frame.copy()
    model = "pair" if len(city.services) > 1 else None
    answer = client.forecast(frame.dropna(subset="y"), sites=sites_frame(city), model=model, **SETTINGS)
    body = body_of(city, model=model, **SETTINGS)
    gone = np.isnan(city.traffic).all(axis=0)
    body["users"] = [[None if gone[t, s] else value for t, value in enumerate(row)] for s, row in enumerate(body["users"])]
    pd.testing.assert_frame_equal(answer, direct(url, body), check_dtype=False)
    assert answer["ds"].dtype.kind == "M" and len(answer) == city.shape[2] * 3 * len(city.services)
    assert {name: answer.attrs[name] for name in ("model", "steps", "seed")} == {"model": model or "tiny", "steps": 2, "seed": 4}
    assert answer.attrs["version"] == service.models[model or "tiny"].version
    pd.testing.assert_frame_equal(frame, before)


def test_a_stream_yields_the_same_rows_part_by_part(client: Client) -> None:
    parts = list(client.stream(long_frame(), **SETTINGS))
    assert len(parts) == 3 and all(part.attrs["model"] == "tiny" for part in parts)
    whole = pd.concat(parts, ignore_index=True).sort_values(["unique_id", "service", "ds"], ignore_index=True)
    pd.testing.assert_frame_equal(whole, client.forecast(long_frame(), **SETTINGS))


def test_draws_quantiles_and_tasks(client: Client) -> None:
    answer = client.forecast(long_frame(), task="short", keep_draws=True, quantiles=[0.5], draws=4, steps=2)
    assert list(answer.columns) == ["unique_id", "service", "ds", "mean", "0.5", "draws"]
    assert len(answer) == 5 * 4 and all(len(draws) == 4 for draws in answer["draws"])


def test_sites_without_history_are_generated(client: Client) -> None:
    sites = pd.DataFrame({"unique_id": ["new", *CITY.sites]})
    answer = client.forecast(long_frame(), task="generation", sites=sites, draws=2, steps=2)
    assert (answer["unique_id"] == "new").sum() == CITY.shape[1]
    assert len(answer) == CITY.shape[1] + int(np.isnan(CITY.traffic).sum())
    with pytest.raises(ForecastRefused, match=r"422: body.traffic.0: only nulls"):
        client.forecast(long_frame(), sites=sites, **SETTINGS)


def future_frame(slots: int, first: int = 14) -> pd.DataFrame:
    """Users expected at two of the stations from a slot on, shuffled, one of the slots left out."""
    times = pd.date_range(CITY.start, periods=first + slots, freq="30min")[first:]
    parts = [
        pd.DataFrame({"unique_id": site, "ds": times, "expected_users": np.arange(slots) * 30.0}) for site in (CITY.sites[0], CITY.sites[3])
    ]
    return pd.concat(parts, ignore_index=True).drop(index=1).sample(frac=1, random_state=1)


@pytest.mark.parametrize(
    ("settings", "slots", "first"), [({"horizon": 3}, 3, 14), ({"task": "short"}, 4, 14), ({"task": "generation"}, 14, 0)]
)
def test_a_forecast_of_the_users_is_the_request_it_stands_for(
    client: Client, url: str, settings: dict[str, Any], slots: int, first: int
) -> None:
    asked: dict[str, Any] = {"draws": 3, "steps": 2, "model": "told", **settings}
    future = future_frame(slots, first)
    answer = client.forecast(long_frame(), future=future, sites=sites_frame(), **asked)
    users: list[list[float | None]] = [[None] * slots for _ in CITY.sites]
    users[0] = [0.0, None, *(30.0 * slot for slot in range(2, slots))]
    users[3] = [30.0 * slot for slot in range(slots)]
    pd.testing.assert_frame_equal(answer, direct(url, body_of(CITY, **asked) | {"expected_users": users}), check_dtype=False)
    assert not answer.equals(client.forecast(long_frame(), sites=sites_frame(), **asked))
    with pytest.raises(ForecastRefused, match=r"^422: body.expected_users: given, expected none, for model 'tiny' was not trained"):
        client.forecast(long_frame(), future=future, **{**asked, "model": "tiny"})


def moving(name: str, settings: dict[str, Any], future: pd.DataFrame | None = None) -> tuple[list[Any], dict[str, Any]]:
    """A column in Arrow, and the request in JSON, of a user whose place is not known in the third slot and one who is not told of."""
    frame = pd.concat([one(place=["home", "work", None, "home"]), one(unique_id="b")], ignore_index=True).sample(frac=1, random_state=2)
    table = pa.ipc.open_stream(request_bytes(frame, None, future, settings)).read_all()
    return table.column(name).to_pylist(), request_object(frame, None, future, settings)


def test_places_are_a_column_of_the_history_and_of_the_future() -> None:
    before = [["home", "work", None, "home"], [None] * 4]
    lists, said = moving("places", {"horizon": 3})
    assert lists == said["places"] == before
    times = pd.to_datetime(["2024-03-04T02:30", "2024-03-04T03:00", "2024-03-04T02:00"])
    future = pd.DataFrame({"unique_id": ["a", "a", "b"], "ds": times, "place": ["café", None, 7]})
    beyond = [[None, "café", None], ["7", None, None]]
    lists, said = moving("places", {"horizon": 3}, future)
    assert lists == said["places"] == [[*user, *more] for user, more in zip(before, beyond, strict=True)]
    assert "expected_users" not in said
    both, _ = moving("expected_users", {"task": "short"}, future.assign(expected_users=[1.0, 2.0, None]))
    assert both == [[None, 1.0, 2.0], [None] * 3]
    times = pd.to_datetime(["2024-03-04T00:00", "2024-03-04T00:30", "2024-03-04T01:00"])
    same_slots = pd.DataFrame({"unique_id": ["a", "a", "b"], "ds": times, "place": ["café", None, 7]})
    lists, _ = moving("places", {"task": "generation"}, same_slots)
    assert lists == [["café", "work", None, "home"], [None, None, "7", None]]


def test_a_hop_is_an_option(client: Client, url: str) -> None:
    answer = client.forecast(long_frame(), sites=sites_frame(), hop=1, **SETTINGS)
    pd.testing.assert_frame_equal(answer, direct(url, body_of(CITY, hop=1, **SETTINGS)), check_dtype=False)
    assert not answer.equals(client.forecast(long_frame(), sites=sites_frame(), **SETTINGS))


def test_a_task_s_users_are_expected_in_all_its_slots(client: Client) -> None:
    with pytest.raises(ForecastRefused, match=r"^422: body.expected_users: 3 slots, expected 4, the slots that are answered$"):
        client.forecast(long_frame(), future=future_frame(3), task="short", model="told")


def test_options_are_the_settings_of_the_api(client: Client) -> None:
    """Each is declared once; what none is called is a mistake here, as of any function."""
    ours = set(ForecastOptions.__annotations__) - {"sites", "future"}
    assert ours == set(Ask.model_fields) - {"start", "step_minutes", "stream"}
    for ask in (client.forecast, lambda *args, **options: next(client.stream(*args, **options))):
        for wrong in ("hroizon", "stream", "start"):
            with pytest.raises(TypeError, match=rf"options: \['{wrong}'\], expected some of \['task', 'horizon', "):
                ask(one(), **{wrong: 1})


def test_what_else_there_is(client: Client) -> None:
    assert [model["name"] for model in client.models()] == ["tiny", "pair", "told"]
    assert len(client.cities()) == 0
    assert client.ready() and not Client("http://127.0.0.1:9", SECRET).ready()


def one(**changes: Any) -> pd.DataFrame:
    """Four rows of a station."""
    return pd.DataFrame({"unique_id": "a", "ds": pd.date_range("2024-03-04", periods=4, freq="30min"), "y": [1.0, 2.0, 3.0, 4.0]} | changes)


def late(minutes: int) -> pd.DatetimeIndex:
    """Four times, the last so many minutes after the first."""
    return pd.DatetimeIndex(
        [*pd.date_range("2024-03-04", periods=3, freq="30min"), pd.Timestamp("2024-03-04") + pd.Timedelta(minutes=minutes)]
    )


BAD_FRAMES: dict[str, tuple[pd.DataFrame, str]] = {
    "no rows": (one().iloc[:0], "history: no rows"),
    "no traffic": (one().drop(columns="y"), "history: columns .* expected unique_id, ds, y"),
    "another column": (one(zoo=1), "history: columns .* expected unique_id, ds, y"),
    "a row twice": (pd.concat([one(), one().iloc[2:3]]), "history: station 'a' at 2024-03-04 01:00:00 is there twice"),
    "between slots": (one(ds=late(70)), "station 'a' at 2024-03-04 01:10:00 is not on a whole 30-minute slot"),
    "beside the hour": (one(ds=late(90) + pd.Timedelta("10min")), "station 'a' at 2024-03-04 00:10:00 is not on a whole 30-minute slot"),
    "seconds": (one(ds=pd.date_range("2024-03-04T00:00:01", periods=4, freq="30min")), "has seconds, expected whole minutes"),
    "an odd step": (one(ds=pd.date_range("2024-03-04", periods=4, freq="7min")), r"7 minutes apart, expected one of \(5, 10,"),
    "one time": (one().iloc[:1], "one time a station, expected at least two"),
    "a zone": (one(ds=pd.date_range("2024-03-04", periods=4, freq="30min", tz="UTC")), "ds in zone UTC, expected local times"),
    "no name": (one(unique_id=["a", None, "a", "a"]), "unique_id is missing in row 1"),
    "places of services": (
        pd.concat([one(service="x", place="here"), one(service="y", place=["here", None, "there", "here"])]),
        "history: station 'a' at 2024-03-04 01:00:00 is at several places, expected one for all services",
    ),
    "no time": (one(ds=[*pd.date_range("2024-03-04", periods=3, freq="30min"), pd.NaT]), "ds is missing in row 3"),
    "users of services": (pd.concat([one(service="x", users=1), one(service="y", users=2)]), "has several numbers of users"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FRAMES)
def test_frames_that_are_no_history_are_refused_here(name: str) -> None:
    frame, message = BAD_FRAMES[name]
    with pytest.raises(ValueError, match=message):
        Client("http://127.0.0.1:9", SECRET).forecast(frame, horizon=1)


@pytest.mark.parametrize(
    ("future", "message"),
    [
        ({"users": [1.0]}, r"future: 1 rows of \['unique_id', 'ds', 'expected_users', 'users'\], expected some of unique_id, ds"),
        ({"place": ["x"], "unique_id": ["b"]}, "station 'b' at 2024-03-04 02:00:00 has neither history nor a row of sites"),
        ({"unique_id": ["b"]}, "station 'b' at 2024-03-04 02:00:00 has neither history nor a row of sites"),
        ({"ds": pd.to_datetime(["2024-03-04T01:30"])}, "station 'a' at 2024-03-04 01:30:00 is none of the 2 slots that are forecast"),
        ({"ds": pd.to_datetime(["2024-03-04T03:00"])}, "station 'a' at 2024-03-04 03:00:00 is none of the 2 slots that are forecast"),
        ({"ds": pd.to_datetime(["2024-03-04T02:10"])}, "future: station 'a' at 2024-03-04 02:10:00 is not on a whole 30-minute slot"),
        ({"ds": pd.to_datetime(["2024-03-04T02:00Z"])}, "future: ds in zone UTC, expected local times without zone"),
        ({"ds": [pd.NaT]}, "future: ds is missing in row 0"),
        ({"unique_id": ["a", "a"]}, "future: station 'a' at 2024-03-04 02:00:00 is there twice, expected one row a station and time"),
    ],
)
def test_futures_that_are_none_are_refused_here(future: dict[str, Any], message: str) -> None:
    frame = pd.DataFrame({"unique_id": "a", "ds": pd.Timestamp("2024-03-04T02:00"), "expected_users": 1.0} | future)
    with pytest.raises(ValueError, match=message):
        Client("http://127.0.0.1:9", SECRET).forecast(one(), horizon=2, future=frame)


@pytest.mark.parametrize(
    ("sites", "message"),
    [
        ({"name": ["a"]}, "expected unique_id in every row"),
        ({"unique_id": ["b"]}, "no row for station 'a'"),
        ({"unique_id": ["a", "a"]}, "station 'a' is there twice"),
        ({"unique_id": ["a"], "height": [3]}, "column 'height', expected unique_id, row, column"),
        ({"unique_id": ["a"], "row": [0.5], "column": [1]}, "column 'row' holds something else"),
        ({"unique_id": ["a"], "poi:bank": ["many"]}, "column 'poi:bank' holds something else"),
    ],
)
def test_sites_that_are_none_are_refused_here(sites: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Client("http://127.0.0.1:9", SECRET).forecast(one(), horizon=1, sites=pd.DataFrame(sites))


def test_refusals_name_the_field_and_never_the_token(client: Client, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ForecastRefused, match=r"^422: body.draws: 1000, expected at most 200$") as refused:
        client.forecast(one(), horizon=1, draws=1000)
    assert refused.value.status == 422 and refused.value.problems[0]["loc"] == ["body", "draws"]
    with pytest.raises(ForecastRefused, match=r"^408: the deadline passed"):
        client.forecast(pd.concat([one(unique_id=str(i)) for i in range(200)]), horizon=1000, draws=200, steps=100, timeout_s=0.3)
    wrong = "wrong-" + SECRET
    with pytest.raises(ForecastRefused, match=r"^401: expected the header") as refused:
        Client(url, wrong).forecast(one(), horizon=1)
    monkeypatch.setenv(TOKEN, SECRET)
    assert Client(url).models()
    for text in (repr(client), repr(Client(url)), str(refused.value), repr(refused.value)):
        assert SECRET not in text


@contextmanager
def stub(*answers: tuple[int, dict[str, str], bytes]) -> Iterator[tuple[str, list[float]]]:
    """A server that gives these answers, the last one again and again; its URL, and when it was asked."""
    asked: list[float] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, body = answers[min(len(asked), len(answers) - 1)]
            asked.append(monotonic())
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", asked
    server.shutdown()
    server.server_close()
    thread.join()


BUSY = (503, {"Retry-After": "0.2"}, b'{"detail": "busy"}')


@pytest.fixture(scope="module")
def whole(url: str) -> bytes:
    """The bytes of a streamed answer of three batches."""
    body = request_bytes(long_frame(), None, None, {**SETTINGS, "stream": True})
    headers = {"Authorization": f"Bearer {SECRET}", "Content-Type": "application/vnd.apache.arrow.stream"}
    answer = requests.post(f"{url}/v1/forecast", data=body, headers=headers, timeout=120)
    assert answer.status_code == 200 and METADATA in answer.content
    return answer.content


def test_busy_is_asked_again_when_it_said(whole: bytes) -> None:
    with stub(BUSY, BUSY, (200, {}, whole)) as (url, asked):
        assert len(Client(url, SECRET).forecast(one(), horizon=1)) == 15
        assert len(asked) == 3 and all(0.2 <= after - before < 2 for before, after in pairwise(asked))


def test_busy_is_told_in_the_end() -> None:
    with stub(BUSY) as (url, asked):
        with pytest.raises(ForecastBusy, match=r"try again in 0.2 s") as busy:
            Client(url, SECRET, retries=1).forecast(one(), horizon=1)
        assert len(asked) == 2 and busy.value.retry_after_s == 0.2
    with stub((503, {"Retry-After": "60"}, b"")) as (url, asked):
        began = monotonic()
        with pytest.raises(ForecastBusy, match=r"60 s"):
            Client(url, SECRET, timeout_s=5).forecast(one(), horizon=1)
        assert len(asked) == 1 and monotonic() - began < 4


@pytest.mark.parametrize("status", [302, 400, 422, 500])
def test_nothing_else_is_asked_again(status: int) -> None:
    with stub((status, {"Location": "http://127.0.0.1:9/"}, b"no JSON")) as (url, asked):
        with pytest.raises(ForecastRefused if 400 <= status < 500 else ForecastFailed, match=str(status)):
            Client(url, SECRET).forecast(one(), horizon=1)
        assert len(asked) == 1


def test_no_server_is_a_failure_without_secrets() -> None:
    with pytest.raises(ForecastFailed, match=r"127.0.0.1:9: ConnectionError") as failed:
        Client("http://127.0.0.1:9", SECRET, retries=1).forecast(one(), horizon=1)
    error: BaseException | None = failed.value
    while error is not None:
        assert SECRET not in repr(error) and getattr(error, "request", None) is None
        error = error.__cause__ or error.__context__


def test_a_slow_server_is_given_up() -> None:
    with stub((200, {"Content-Length": "1000"}, b"\xff\xff\xff\xff")) as (url, _), pytest.raises(ForecastFailed):
        Client(url, SECRET, timeout_s=0.5, retries=0).forecast(one(), horizon=1)


@pytest.mark.parametrize("how", ["short of its length", "whole to HTTP", "at a message's end", "no Arrow"])
def test_a_truncated_stream_raises(whole: bytes, how: str) -> None:
    answers = {
        "short of its length": (200, {"Content-Length": str(len(whole)), "Connection": "close"}, whole[: len(whole) // 2]),
        "whole to HTTP": (200, {}, whole[:-60]),
        "at a message's end": (200, {}, whole[:-8]),
        "no Arrow": (200, {}, b"<html>"),
    }
    with stub(answers[how]) as (url, asked):
        for ask in (lambda client: list(client.stream(one(), horizon=1)), lambda client: client.forecast(one(), horizon=1)):
            with pytest.raises(ForecastFailed, match="the answer broke off"):
                ask(Client(url, SECRET, timeout_s=10, retries=0))
        assert len(asked) == 2


def test_a_frame_s_gaps_are_nulls_and_its_step_is_the_usual_one() -> None:
    frame = one(ds=pd.to_datetime(["2024-03-04T00:00", "2024-03-04T00:30", "2024-03-04T01:00", "2024-03-04T03:00"]))
    other = pd.DataFrame({"unique_id": "b", "ds": pd.to_datetime(["2024-03-04T02:30"]), "y": [9.0]})
    reader = pa.ipc.open_stream(request_bytes(pd.concat([frame, other]), None, None, {}))
    table = reader.read_all()
    assert json.loads(table.schema.metadata[METADATA]) == {"start": "2024-03-04T00:00", "step_minutes": 30}
    assert table.column("traffic").to_pylist() == [[1, 2, 3, None, None, None, 4], [None, None, None, None, None, 9, None]]


TYPES = {"macro": {"capacity": 180.0, "price": 2.0}, "micro": {"capacity": 60.0, "price": 1.0}}


def test_decisions_are_the_same_from_a_history_and_from_its_forecast(url: str) -> None:
    client = Client(url, SECRET)
    forecast = client.forecast(long_frame(), sites=sites_frame(), keep_draws=True, **SETTINGS)
    problem = {"station_types": TYPES, "money": 6.0}
    ours, theirs = client.deployment(long_frame(), problem, sites=sites_frame(), **SETTINGS), client.deployment(forecast, problem)
    pd.testing.assert_frame_equal(ours, theirs)
    assert (
        sorted(ours["unique_id"]) == sorted(CITY.sites) and ours["built_macro"].sum() + ours["built_micro"].sum() == ours.attrs["built"] > 0
    )
    assert ours.attrs["status"] == "optimal" and ours.attrs["forecast"]["draws"] == 3 and theirs.attrs["forecast"] is None
    problem = {"rrus": 4, "rru_capacity": 100.0}
    ours, theirs = client.sleep(long_frame(), problem, sites=sites_frame(), **SETTINGS), client.sleep(forecast, problem, timeout_s=30)
    pd.testing.assert_frame_equal(ours, theirs)
    assert sorted(zip(ours["unique_id"], ours["ds"], strict=True)) == list(zip(forecast["unique_id"], forecast["ds"], strict=True))
    assert ours["active"].between(0, 4).all() and ours["active"].nunique() > 1 and set(ours.attrs["overloaded_slots"]) == set(CITY.sites)


def test_a_decision_that_is_refused_says_where(url: str) -> None:
    client = Client(url, SECRET)
    with pytest.raises(ForecastRefused, match=r"422: body\.station_types\.macro\.capacity"):
        client.deployment(long_frame(), {"station_types": {"macro": {"capacity": -1}}}, **SETTINGS)
    forecast = client.forecast(long_frame(), keep_draws=True, **SETTINGS)
    with pytest.raises(TypeError, match=r"options: \['seed'\] of a forecast that is made already"):
        client.sleep(forecast, {"rrus": 1, "rru_capacity": 1.0}, seed=3)


def test_a_request_in_json_says_what_it_says_in_arrow(service: ForecastService) -> None:
    for city, model in ((CITY, "tiny"), (station_city("twice", steps=14, services=("video", "chat")), "pair")):
        sites = sites_frame(city).assign(x=np.arange(5.0), y=np.arange(5.0) * 7)
        settings = {**SETTINGS, "model": model}
        if model == "pair":
            sites = sites[["unique_id", "x", "y"]]
        whole = request_object(long_frame(city), sites, None, settings)
        ours = read_json(json.dumps(whole).encode(), service.limits, service.models)
        theirs = read_arrow(request_bytes(long_frame(city), sites, None, settings), service.limits, service.models)
        assert ours.ask == theirs.ask and ours.ids == theirs.ids and ours.services == theirs.services
        np.testing.assert_array_equal(ours.traffic, theirs.traffic)
        assert ours.xy is not None and theirs.xy is not None
        np.testing.assert_array_equal(ours.xy, theirs.xy)
        assert ours.poi.keys() == theirs.poi.keys() and all((ours.poi[name] == theirs.poi[name]).all() for name in ours.poi)
