"""Requests: JSON and Arrow say the same, every limit refuses by path and status, and no body does anything but be read or be refused."""

from __future__ import annotations

import json
import resource
import string
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytraffic.diffusion.samplers import Sampler
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel
from raytraffic.serving.query import METADATA, Query, read_arrow, read_json
from raytraffic.serving.refused import Refused
from tests.serving.local_stages import (
    arrow_bytes,
    arrow_table,
    body_of,
    grid_city,
    json_bytes,
    small_body,
    station_city,
    stream_bytes,
)


def served(name: str, services: int = 1, contexts: tuple[str, ...] = ("users", "poi"), moving: bool = False) -> ServedModel:
    """What a server knows of a model; nothing here needs its weights."""
    return ServedModel(
        name=name,
        folder="nowhere",
        version="0" * 12,
        model="uomo",
        window=16,
        services=services,
        poi_categories=("bank", "park"),
        env_features=0,
        moving=moving,
        contexts=contexts,
        sampler=Sampler(steps=3),
        noise_levels=4,
        calibrated=False,
    )


MODELS = {
    "tiny": served("tiny"),
    "pair": served("pair", 2),
    "told": served("told", contexts=("users", "expected_users")),
    "moves": served("moves", contexts=("env",), moving=True),
}
LIMITS = Limits(
    stations=8, history=64, horizon=32, draws=9, quantiles=4, steps=5, answer_values=500, traffic=1e6, missing=0.9, timeout_s=60
)
CITY = station_city(steps=12)
FULL = body_of(CITY, horizon=4, draws=3, steps=2, seed=7, quantiles=[0.25, 0.75], keep_draws=True, timeout_s=9.5)
#: With a forecast of the users of the four slots that are asked for.
EXPECTED = small_body(model="told", expected_users=[[5.0, None, 0.0, 7.5], [None] * 4])
#: With where users are: in the twelve slots of history, and in those and the four that are asked for.
BEFORE = small_body(model="moves", places=[["p 1", None, "p 0", *["p 1"] * 9], [None] * 12])
MOVES = small_body(model="moves", places=[[*["p 1"] * 12, "p 2", None, "p 0", "p 0"], ["p 2"] * 16])
Read = Callable[[bytes, Limits, dict[str, ServedModel]], Query]
READERS = {"json": read_json, "arrow": read_arrow}
BYTES = {"json": json_bytes, "arrow": arrow_bytes}


def refusal(read: Read, body: bytes) -> Refused:
    """The refusal of a body that must be refused."""
    with pytest.raises(Refused) as caught:
        read(body, LIMITS, MODELS)
    return caught.value


def same(one: Query, other: Query) -> None:
    """Every field, bit for bit."""
    assert (one.ask, one.ids, one.model, one.services) == (other.ask, other.ids, other.model, other.services)
    assert one.traffic.dtype == other.traffic.dtype == np.float32 and np.array_equal(one.traffic, other.traffic, equal_nan=True)
    for mine, theirs in ((one.users, other.users), (one.expected_users, other.expected_users), (one.cell, other.cell)):
        assert (mine is None) == (theirs is None)
        if mine is not None and theirs is not None:
            assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs, equal_nan=mine.dtype.kind == "f")
    assert (one.places is None) == (other.places is None)
    if one.places is not None and other.places is not None:
        assert one.places.names == other.places.names and np.array_equal(one.places.place, other.places.place)
    assert (one.xy is None) == (other.xy is None) and np.array_equal(one.xy, other.xy)  # type: ignore[arg-type]
    assert set(one.poi) == set(other.poi) and all(np.array_equal(one.poi[name], other.poi[name]) for name in one.poi)


@pytest.mark.parametrize(
    "body",
    [
        FULL,
        body_of(grid_city(steps=12, grid=(2, 3)), task="short", draws=3),
        body_of(station_city(steps=12, services=("video", "chat")), horizon=3, model="pair", draws=3),
        small_body(),
        EXPECTED,
        BEFORE,
        MOVES,
        small_body(hop=3),
        {name: value for name, value in small_body(task="generation", horizon=None).items() if name != "traffic"},
        small_body(stations={"id": ["a", "b"], "x": [1.5, -2e6], "y": [0.0, 7.25]}),
    ],
    ids=["stations", "grid", "services", "small", "users expected", "places before", "places", "hop", "nothing known", "metres"],
)
def test_json_and_arrow_say_the_same(body: dict[str, Any]) -> None:
    ours = read_json(json_bytes(body), LIMITS, MODELS)
    same(ours, read_arrow(arrow_bytes(body), LIMITS, MODELS))
    assert ours.ids == tuple(body["stations"]["id"])


def test_a_query_holds_what_was_sent() -> None:
    query = read_json(json_bytes(FULL), LIMITS, MODELS)
    assert np.array_equal(query.traffic, CITY.traffic, equal_nan=True) and np.isnan(query.traffic).any()
    assert CITY.users is not None and CITY.poi is not None
    assert np.array_equal(query.users, CITY.users) and np.array_equal(np.stack([query.poi[name] for name in CITY.poi_categories]), CITY.poi)
    assert query.expected_users is None
    assert np.array_equal(
        np.array(EXPECTED["expected_users"], dtype=np.float32).T,
        read_json(json_bytes(EXPECTED), LIMITS, MODELS).expected_users,  # type: ignore[arg-type]
        equal_nan=True,
    )
    assert query.cell is None and query.start_minute * 60 == int(np.datetime64(CITY.start, "s").astype(np.int64))
    gridded = read_json(json_bytes(body_of(grid_city(steps=12, grid=(2, 3)), horizon=1, draws=3)), LIMITS, MODELS)
    assert gridded.cell is not None and gridded.cell.tolist() == [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]


def test_places_are_names_and_numbers_of_them() -> None:
    for body in (BEFORE, MOVES):
        places = read_json(json_bytes(body), LIMITS, MODELS).places
        assert places is not None and places.place.shape == (len(body["places"][0]), 2) and len(set(places.names)) == len(places.names)
        assert [[None if at < 0 else places.names[at] for at in user] for user in places.place.T.tolist()] == body["places"]


def test_a_hop_is_at_most_what_is_forecast_and_leaves_some_of_the_window() -> None:
    for horizon, most in ((4, 4), (15, 15), (16, 15), (32, 15)):
        for reader in READERS:
            assert READERS[reader](BYTES[reader](small_body(horizon=horizon, hop=most)), LIMITS, MODELS).ask.hop == most
            refused = refusal(READERS[reader], BYTES[reader](small_body(horizon=horizon, hop=most + 1)))
            assert refused.problems[0]["loc"] == ["body", "hop"]
            told = f"{most + 1}, expected 1 to {most}: at most the horizon, and less than the model's window of 16 slots"
            assert refused.problems[0]["msg"] == told


@pytest.mark.parametrize("kind", [pa.float32(), pa.float16(), pa.int32(), pa.uint64(), pa.decimal128(12, 3)], ids=str)
@pytest.mark.parametrize("shape", ["list", "large_list", "fixed"])
def test_numbers_of_any_type_are_numbers(kind: pa.DataType, shape: str) -> None:
    body = small_body(traffic=[[1.0, 2.0, None], [4.0, 5.0, 6.0]])
    lists = {"list": pa.list_(kind), "large_list": pa.large_list(kind), "fixed": pa.list_(kind, 3)}[shape]
    values = [
        [
            None if v is None else Decimal(int(v)) if pa.types.is_decimal(kind) else np.float16(v) if kind == pa.float16() else int(v)
            for v in row
        ]
        for row in body["traffic"]
    ]
    table = arrow_table(body)
    table = table.set_column(table.column_names.index("traffic"), "traffic", pa.array(values, lists))
    same(read_arrow(stream_bytes(table), LIMITS, MODELS), read_json(json_bytes(body), LIMITS, MODELS))


def test_an_arrow_table_may_come_in_batches() -> None:
    table = arrow_table(FULL)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=2)
    same(read_arrow(bytes(sink.getvalue()), LIMITS, MODELS), read_json(json_bytes(FULL), LIMITS, MODELS))


WRONG: dict[str, tuple[dict[str, Any], str, int]] = {
    "unknown field": ({"hroizon": 4}, "body.hroizon", 422),
    "no start": ({"start": None}, "body.start", 422),
    "start with zone": ({"start": "2024-03-04T00:00Z"}, "body.start", 422),
    "start between slots": ({"start": "2024-03-04T00:10"}, "body.start", 422),
    "start with seconds": ({"start": "2024-03-04T00:00:01"}, "body.start", 422),
    "start too early": ({"start": "1969-12-31T00:00"}, "body.start", 422),
    "start too late": ({"start": "2201-01-01T00:00"}, "body.start", 422),
    "start a number": ({"start": 0}, "body.start", 422),
    "odd step": ({"step_minutes": 7}, "body.step_minutes", 422),
    "step zero": ({"step_minutes": 0}, "body.step_minutes", 422),
    "unknown model": ({"model": "other"}, "body.model", 422),
    "long model name": ({"model": "m" * 257}, "body.model", 422),
    "long city name": ({"city": "c" * 257}, "body.city", 422),
    "task and horizon": ({"task": "short"}, "body.horizon", 422),
    "neither task nor horizon": ({"horizon": None}, "body.horizon", 422),
    "unknown task": ({"task": "guess", "horizon": None}, "body.task", 422),
    "horizon zero": ({"horizon": 0}, "body.horizon", 422),
    "horizon too long": ({"horizon": 33}, "body.horizon", 422),
    "too many draws": ({"draws": 10}, "body.draws", 422),
    "no draws": ({"draws": 0}, "body.draws", 422),
    "too many steps": ({"steps": 6}, "body.steps", 422),
    "more steps than noise levels": ({"steps": 5}, "body.steps", 422),
    "too long a deadline": ({"timeout_s": 61}, "body.timeout_s", 422),
    "deadline zero": ({"timeout_s": 0}, "body.timeout_s", 422),
    "seed too large": ({"seed": 2**63}, "body.seed", 422),
    "levels not increasing": ({"quantiles": [0.5, 0.1]}, "body.quantiles", 422),
    "a level twice": ({"quantiles": [0.5, 0.5]}, "body.quantiles", 422),
    "levels of one name": ({"quantiles": [0.12345678, 0.12345679]}, "body.quantiles", 422),
    "level above one": ({"quantiles": [0.5, 1.5]}, "body.quantiles", 422),
    "too many levels": ({"quantiles": [0.1, 0.2, 0.3, 0.4, 0.5]}, "body.quantiles", 422),
    "no stations": ({"stations": {"id": []}, "traffic": []}, "body.stations", 422),
    "too many stations": ({"stations": {"id": list("abcdefghi")}, "traffic": [[1.0]] * 9}, "body.stations", 413),
    "a station twice": ({"stations": {"id": ["a", "a"]}}, "body.stations.id.1", 422),
    "a station without name": ({"stations": {"id": ["a", ""]}}, "body.stations.id.1", 422),
    "an unprintable name": ({"stations": {"id": ["a\n", "b"]}}, "body.stations.id.0", 422),
    "a long name": ({"stations": {"id": ["a" * 257, "b"]}}, "body.stations.id.0", 422),
    "row alone": ({"stations": {"id": ["a", "b"], "row": [0, 1]}}, "body.stations.column", 422),
    "column alone": ({"stations": {"id": ["a", "b"], "column": [0, 1]}}, "body.stations.row", 422),
    "one cell for two": ({"stations": {"id": ["a", "b"], "row": [1, 1], "column": [2, 2]}}, "body.stations.row", 422),
    "a negative cell": ({"stations": {"id": ["a", "b"], "row": [-1, 1], "column": [2, 2]}}, "body.stations.row", 422),
    "a far cell": ({"stations": {"id": ["a", "b"], "row": [2**20, 1], "column": [2, 2]}}, "body.stations.row", 422),
    "x without y": ({"stations": {"id": ["a", "b"], "x": [1, 2]}}, "body.stations.y", 422),
    "a place too far": ({"stations": {"id": ["a", "b"], "x": [1, 2], "y": [1, -1e9]}}, "body.stations.y.1", 422),
    "unknown category": ({"stations": {"id": ["a", "b"], "poi": {"zoo": [1, 2]}}}, "body.stations.poi", 422),
    "negative count": ({"stations": {"id": ["a", "b"], "poi": {"bank": [1, -2]}}}, "body.stations.poi.bank", 422),
    "huge count": ({"stations": {"id": ["a", "b"], "poi": {"bank": [1, 1e10]}}}, "body.stations.poi.bank", 422),
    "no traffic": ({"traffic": None}, "body.traffic", 422),
    "another service": ({"traffic": {"x": [[1.0], [2.0]], "y": [[1.0], [2.0]]}}, "body.traffic", 422),
    "missing service": ({"model": "pair"}, "body.traffic", 422),
    "slots of services": ({"model": "pair", "traffic": {"x": [[1.0], [2.0]], "y": [[1.0, 2.0], [2.0, 1.0]]}}, "body.traffic", 422),
    "slots of users": ({"users": [[1.0], [2.0]]}, "body.traffic", 422),
    "negative traffic": ({"traffic": [[1.0, 2.0], [3.0, -4.0]]}, "body.traffic.1.1", 422),
    "implausible traffic": ({"traffic": [[1.0, 2.0], [3.0, 2e6]]}, "body.traffic.1.1", 422),
    "infinite traffic": ({"traffic": [[1.0, 2.0], [3.0, float("inf")]]}, "body.traffic.1.1", 422),
    "negative users": ({"traffic": [[1.0], [2.0]], "users": [[1.0], [-1.0]]}, "body.users.1.0", 422),
    "users that no one told the model of": ({"expected_users": [[1.0] * 4] * 2}, "body.expected_users", 422),
    "users of other slots": ({"model": "told", "expected_users": [[1.0] * 5] * 2}, "body.expected_users", 422),
    "users of other slots of a task": (
        {"model": "told", "task": "long", "horizon": None, "expected_users": [[1.0] * 4] * 2},
        "body.expected_users",
        422,
    ),
    "users of other slots in generation": (
        {"model": "told", "task": "generation", "horizon": None, "expected_users": [[1.0] * 4] * 2},
        "body.expected_users",
        422,
    ),
    "negative users expected": ({"model": "told", "expected_users": [[1.0] * 4, [1, 2, -3, 4]]}, "body.expected_users.1.2", 422),
    "infinitely many users": ({"model": "told", "expected_users": [[1.0] * 4, [1, float("inf"), 3, 4]]}, "body.expected_users.1.1", 422),
    "implausibly many users": ({"model": "told", "expected_users": [[1e7, 1, 1, 1], [1.0] * 4]}, "body.expected_users.0.0", 422),
    "places that no one asked the model of": ({"places": [["a"] * 12] * 2}, "body.places", 422),
    "places of fewer slots": ({"model": "moves", "places": [["a"] * 11] * 2}, "body.places", 422),
    "places of some slots that are forecast": ({"model": "moves", "places": [["a"] * 15] * 2}, "body.places", 422),
    "places of slots beyond generation": (
        {"model": "moves", "task": "generation", "horizon": None, "places": [["a"] * 16] * 2},
        "body.places",
        422,
    ),
    "no hop": ({"hop": 0}, "body.hop", 422),
    "a hop in generation": ({"task": "generation", "horizon": None, "hop": 1}, "body.hop", 422),
    "a hop beyond a task": ({"task": "short", "horizon": None, "hop": 5}, "body.hop", 422),
    "an unknown station": ({"traffic": [[1.0, 2.0], [None, None]]}, "body.traffic.1", 422),
    "almost all null": ({"traffic": [[1.0, *[None] * 30]] * 2}, "body.traffic", 422),
    "nothing to generate": ({"task": "generation", "horizon": None, "traffic": [[1.0], [2.0]]}, "body.traffic", 422),
    "too large an answer": ({"keep_draws": True, "horizon": 32, "draws": 8}, "body.stations", 413),
    "too large an answer of a task": (
        {
            "keep_draws": True,
            "task": "long",
            "horizon": None,
            "draws": 9,
            "quantiles": [],
            "stations": {"id": list("abcde")},
            "traffic": [[1.0]] * 5,
        },
        "body.stations",
        413,
    ),
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_refused_by_its_path(name: str, reader: str) -> None:
    changes, path, status = WRONG[name]
    refused = refusal(READERS[reader], BYTES[reader](small_body(**changes)))
    assert (refused.status, ".".join(str(part) for part in refused.problems[0]["loc"])) == (status, path)
    assert set(refused.problems[0]) == {"loc", "msg", "type"} and str(refused).startswith(path)


WRONG_JSON: dict[str, tuple[dict[str, Any], str, int]] = {
    "a list a station": ({"traffic": [[1.0]]}, "body.traffic", 422),
    "a list a station of users": ({"users": [[1.0]]}, "body.users", 422),
    "a shorter list": ({"traffic": [[1.0, 2.0], [1.0]]}, "body.traffic.1", 422),
    "a shorter list of a service": ({"model": "pair", "traffic": {"x": [[1.0], []], "y": [[1.0], [2.0]]}}, "body.traffic.x.1", 422),
    "a list a station of expected users": ({"model": "told", "expected_users": [[1.0] * 4]}, "body.expected_users", 422),
    "a list a user": ({"model": "moves", "places": [["a"] * 12]}, "body.places", 422),
    "a shorter list of places": ({"model": "moves", "places": [["a"] * 12, ["a"]]}, "body.places.1", 422),
    "a number for a place": ({"model": "moves", "places": [["a"] * 12, [*["a"] * 11, 1]]}, "body.places.1.11", 422),
    "too many places": ({"model": "moves", "places": [[None] * 97] * 2}, "body.places", 413),
    "a text for a number": ({"traffic": [[1.0], ["x"]]}, "body.traffic.1.0", 422),
    "a text for a number of a service": ({"traffic": {"a": [[1.0], ["x"]]}}, "body.traffic", 422),
    "no slots": ({"traffic": [[], []]}, "body.traffic", 422),
    "too many slots": ({"traffic": [[1.0] * 65] * 2}, "body.traffic", 413),
    "rows of another length": ({"stations": {"id": ["a", "b"], "row": [1], "column": [2, 3]}}, "body.stations.column", 422),
    "places of another length": ({"stations": {"id": ["a", "b"], "x": [1, 2], "y": [1]}}, "body.stations.y", 422),
    "a place that is none": ({"stations": {"id": ["a", "b"], "x": [None, 2], "y": [1, 2]}}, "body.stations.x.0", 422),
    "counts of another length": ({"stations": {"id": ["a", "b"], "poi": {"bank": [1]}}}, "body.stations.poi.bank", 422),
    "a field of stations": ({"stations": {"id": ["a", "b"], "name": []}}, "body.stations.name", 422),
}


@pytest.mark.parametrize("name", WRONG_JSON)
def test_what_only_json_can_say_wrong(name: str) -> None:
    changes, path, status = WRONG_JSON[name]
    refused = refusal(read_json, json_bytes(small_body(**changes)))
    assert (refused.status, ".".join(str(part) for part in refused.problems[0]["loc"])) == (status, path)


def column(name: str, values: pa.Array) -> pa.Table:
    """The small request's table with another column."""
    table = arrow_table(small_body())
    return (
        table.set_column(table.column_names.index(name), name, values) if name in table.column_names else table.append_column(name, values)
    )


def lists(values: list[list[Any] | None], kind: pa.DataType) -> pa.Array:
    """A list column."""
    return pa.array(values, pa.list_(kind))


class _Opaque(pa.ExtensionType):
    """An extension type of lists, as other libraries register them."""

    def __init__(self) -> None:
        super().__init__(pa.list_(pa.float64()), "tests.opaque")

    def __arrow_ext_serialize__(self) -> bytes:
        return b"{}"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type: pa.DataType, serialized: bytes) -> _Opaque:
        return cls() if json.loads(serialized) == {} else {}["missing"]


def opaque() -> pa.Array:
    """A column of an extension type."""
    return pa.ExtensionArray.from_storage(_Opaque(), pa.array([[1.0], [2.0]]))


def ends(last: int) -> pa.Array:
    """The ends of one list, in a large list's type."""
    return pa.array([0, last], pa.int64())


def twice() -> pa.Table:
    """Two columns of one name."""
    table = arrow_table(small_body())
    return table.append_column("id", table.column("id"))


WRONG_COLUMNS: dict[str, tuple[Callable[[], pa.Table], str]] = {
    "unknown column": (lambda: column("zoo", pa.array([1, 2])), "body.columns"),
    "a column twice": (twice, "body.columns"),
    "no id": (lambda: arrow_table(small_body()).drop_columns("id"), "body.columns"),
    "no settings": (lambda: arrow_table(small_body()).replace_schema_metadata(None), "body.metadata"),
    "settings of garbage": (lambda: arrow_table(small_body()).replace_schema_metadata({METADATA: b"\xff{"}), "body"),
    "settings of a list": (lambda: arrow_table(small_body()).replace_schema_metadata({METADATA: b"[]"}), "body"),
    "traffic and a service": (lambda: column("traffic.traffic", pa.array([[1.0] * 12] * 2)), "body.columns"),
    "null ids": (lambda: column("id", pa.array(["a", None])), "body.columns.id"),
    "ids of a dictionary": (lambda: column("id", pa.array(["a", "b"]).dictionary_encode()), "body.columns.id"),
    "ids as views": (lambda: column("id", pa.array(["a", "b"], pa.string_view())), "body.columns.id"),
    "ids in runs": (lambda: column("id", pa.RunEndEncodedArray.from_arrays([1, 2], pa.array(["a", "b"]))), "body.columns.id"),
    "ids as numbers": (lambda: column("id", pa.array([1, 2])), "body.columns.id"),
    "ids as bytes": (lambda: column("id", pa.array([b"a", b"b"])), "body.columns.id"),
    "traffic of texts": (lambda: column("traffic", lists([["1"], ["2"]], pa.string())), "body.columns.traffic"),
    "traffic of dictionaries": (
        lambda: column("traffic", lists([["1"], ["2"]], pa.dictionary(pa.int8(), pa.string()))),
        "body.columns.traffic",
    ),
    "traffic of truths": (lambda: column("traffic", lists([[True], [False]], pa.bool_())), "body.columns.traffic"),
    "traffic of times": (lambda: column("traffic", lists([[1], [2]], pa.timestamp("s"))), "body.columns.traffic"),
    "traffic of lists": (lambda: column("traffic", lists([[[1.0]], [[2.0]]], pa.list_(pa.float64()))), "body.columns.traffic"),
    "traffic of records": (
        lambda: column("traffic", lists([[{"a": 1.0}], [{"a": 2.0}]], pa.struct({"a": pa.float64()}))),
        "body.columns.traffic",
    ),
    "traffic of numbers": (lambda: column("traffic", pa.array([1.0, 2.0])), "body.columns.traffic"),
    "traffic as list views": (lambda: column("traffic", pa.array([[1.0], [2.0]], pa.list_view(pa.float64()))), "body.columns.traffic"),
    "expected users of texts": (lambda: column("expected_users", lists([["1"], ["2"]], pa.string())), "body.columns.expected_users"),
    "places as numbers": (lambda: column("places", lists([[1], [2]], pa.int8())), "body.columns.places"),
    "places of dictionaries": (
        lambda: column("places", lists([["1"], ["2"]], pa.dictionary(pa.int8(), pa.string()))),
        "body.columns.places",
    ),
    "places as views": (lambda: column("places", lists([["1"], ["2"]], pa.string_view())), "body.columns.places"),
    "a place a user": (lambda: column("places", pa.array(["a", "b"])), "body.columns.places"),
    "places of null lists": (lambda: column("places", lists([["a"], None], pa.string())), "body.columns.places"),
    "null lists": (lambda: column("traffic", lists([[1.0], None], pa.float64())), "body.columns.traffic"),
    "shorter lists": (lambda: column("traffic", lists([[1.0, 2.0], [1.0]], pa.float64())), "body.columns.traffic"),
    "empty lists": (lambda: column("traffic", lists([[], []], pa.float64())), "body.columns.traffic"),
    "fractional rows": (lambda: column("row", pa.array([0.5, 1.0])), "body.columns.row"),
    "rows as texts": (lambda: column("row", pa.array(["0", "1"])), "body.columns.row"),
    "counts of a dictionary": (lambda: column("poi.bank", pa.array([1.0, 2.0]).dictionary_encode()), "body.columns.poi.bank"),
    "counts that are NaN": (lambda: column("poi.bank", pa.array([1.0, float("nan")])), "body.stations.poi.bank"),
    "null counts": (lambda: column("poi.bank", pa.array([1.0, None])), "body.columns.poi.bank"),
}


@pytest.mark.parametrize("name", WRONG_COLUMNS)
def test_what_only_arrow_can_say_wrong(name: str) -> None:
    make, path = WRONG_COLUMNS[name]
    refused = refusal(read_arrow, stream_bytes(make()))
    assert (refused.status, ".".join(str(part) for part in refused.problems[0]["loc"])) == (422, path)


def test_lists_of_nulls_are_nulls() -> None:
    body = small_body(task="generation", horizon=None)
    table = arrow_table(body)
    table = table.set_column(1, "traffic", pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 16), 16))
    assert np.isnan(read_arrow(stream_bytes(table), LIMITS, MODELS).traffic).all()


def test_long_lists_are_refused_before_they_are_read() -> None:
    long = column("traffic", pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 2**27), 2**27))  # 2 GiB as numbers, no bytes on the wire
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = refusal(read_arrow, stream_bytes(long))
    assert refused.status == 413 and "134217728 slots" in str(refused)
    users = column("expected_users", pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 2**27), 2**27))
    assert refusal(read_arrow, stream_bytes(users)).status == 413
    places = column("places", pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 2**27), 2**27))
    assert refusal(read_arrow, stream_bytes(places)).status == 413
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 100_000  # KiB


@pytest.mark.parametrize("kind", [pa.list_(pa.large_string()), pa.large_list(pa.string()), pa.list_(pa.string(), 12)], ids=str)
def test_places_come_in_lists_of_any_kind(kind: pa.DataType) -> None:
    table = arrow_table(BEFORE)
    table = table.set_column(table.column_names.index("places"), "places", pa.array(BEFORE["places"], kind))
    same(read_arrow(stream_bytes(table), LIMITS, MODELS), read_json(json_bytes(BEFORE), LIMITS, MODELS))
    nowhere = table.set_column(table.column_names.index("places"), "places", pa.FixedSizeListArray.from_arrays(pa.nulls(24), 12))
    places = read_arrow(stream_bytes(nowhere), LIMITS, MODELS).places
    assert places is not None and places.names == () and places.place.shape == (12, 2) and (places.place == -1).all()


def test_services_of_nulls_are_counted_before_they_are_read() -> None:
    many = arrow_table(small_body(task="generation", horizon=None)).drop_columns("traffic")
    for i in range(3):
        many = many.append_column(f"traffic.{i}", pa.FixedSizeListArray.from_arrays(pa.nulls(2 * 16), 16))
    assert refusal(read_arrow, stream_bytes(many)).problems[0]["msg"].endswith("at most 2 services, as the models were trained on")


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
@pytest.mark.parametrize("dictionary", [False, True])
def test_compressed_bodies_are_refused_before_they_are_unpacked(codec: str, dictionary: bool) -> None:
    zeros = pa.array(np.zeros(2**23))
    values = pa.array(["x" * 2**26]).dictionary_encode() if dictionary else pa.LargeListArray.from_arrays(ends(len(zeros)), zeros)
    table = pa.table({"id": pa.array(["a"]), "traffic": values})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
        writer.write_table(table)
    body = bytes(sink.getvalue())
    assert len(body) < 2**20
    del zeros, values, table, sink
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "compressed" in str(refusal(read_arrow, body))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 50_000  # KiB


def test_extension_types_that_cannot_be_read_are_refused() -> None:
    pa.register_extension_type(_Opaque())
    try:
        body = stream_bytes(column("traffic", opaque()))
        assert refusal(read_arrow, body).problems[0]["loc"] == ["body", "columns", "traffic"]
        broken = body.replace(b"\x02\x00\x00\x00{}", b"\x02\x00\x00\x00[]")
        assert broken != body and refusal(read_arrow, broken).problems[0]["loc"] == ["body"]
    finally:
        pa.unregister_extension_type("tests.opaque")


def test_messages_are_short_whatever_was_sent() -> None:
    long = "y" * 100_000
    for read, body in (
        (read_json, json_bytes(small_body(**{long: 1}))),
        (read_json, json_bytes(small_body(stations={"id": ["a", "b"], "poi": {long: [1, 2]}}))),
        (read_json, json_bytes(small_body(traffic={long: [[1.0], [2.0]], "x": [[1.0], [2.0]]}))),
        (read_arrow, stream_bytes(column(long, pa.array([1, 2])))),
        (read_arrow, stream_bytes(column(f"traffic.{long}", pa.array([[1.0], [2.0]])))),
    ):
        assert len(json.dumps(refusal(read, body).problems)) < 2_000


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[]",
        b'"' + b"\\ud800" + b'"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"start": 1e400}',
        b'{"start": ' + b"9" * 5_000 + b"}",
        b'{"seed": 1e400}',
        b"\xff\xfe",
        b"\x00" * 100,
    ],
    ids=range(11),
)
def test_texts_that_are_no_requests(text: bytes) -> None:
    assert refusal(read_json, text).status == 422
    assert refusal(read_arrow, text).status == 422


def answer_of(read: Read, body: bytes) -> Query | Refused:
    """The query of a body, or why there is none; anything else is raised."""
    try:
        return read(body, LIMITS, MODELS)
    except Refused as refused:
        return refused


def read_or_refused(read: Read, body: bytes) -> None:
    """The one thing that any body may do; what is refused can be told in JSON."""
    answer = answer_of(read, body)
    if isinstance(answer, Refused):
        assert answer.status in (413, 422) and answer.problems
        assert json.loads(json.dumps(answer.problems, ensure_ascii=False, allow_nan=False).encode())


FUZZ = settings(max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
numbers = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.sampled_from([0, 1, 2, 0.5, 12, 30, float("nan"), float("inf")])
)
texts = st.one_of(st.text(max_size=8), st.sampled_from(["a", "short", "generation", "2024-03-04T00:00", "tiny", "pair", "\ud800", "\x00"]))
values = st.recursive(
    numbers | texts,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.sampled_from(["id", "row", "poi"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@FUZZ
@given(body=st.binary(max_size=400))
def test_any_bytes(body: bytes) -> None:
    read_or_refused(read_json, body)
    read_or_refused(read_arrow, body)


@FUZZ
@given(data=st.data())
def test_any_change_of_a_json_body(data: st.DataObject) -> None:
    """One to three fields, at any depth, become anything."""
    body: Any = json.loads(json_bytes(FULL))
    for _ in range(data.draw(st.integers(1, 3))):
        at, name = body, data.draw(st.sampled_from([*sorted(body), "stream", "model", "city", "task"]))
        while data.draw(st.booleans()) and isinstance(at, dict | list) and isinstance(_inner(at, name), dict | list) and _inner(at, name):
            at = _inner(at, name)
            name = data.draw(st.sampled_from(sorted(at)) if isinstance(at, dict) else st.integers(0, len(at) - 1))
        at[name] = data.draw(values)
    read_or_refused(read_json, json.dumps(body).replace("NaN", data.draw(st.sampled_from(["NaN", "1e400", "-Infinity"]))).encode())


def _inner(at: Any, name: Any) -> Any:
    return at.get(name) if isinstance(at, dict) else at[name]


@FUZZ
@given(cuts=st.lists(st.tuples(st.integers(0, 4000), st.binary(max_size=8)), min_size=1, max_size=4), end=st.integers(0, 8000))
def test_any_damage_to_an_arrow_body(cuts: list[tuple[int, bytes]], end: int) -> None:
    body = bytearray(arrow_bytes(FULL))
    for at, replacement in cuts:
        body[at : at + len(replacement)] = replacement
    read_or_refused(read_arrow, bytes(body[:end]))


kinds = st.sampled_from(
    [
        *(pa.int8(), pa.uint64(), pa.float16(), pa.float32(), pa.float64(), pa.bool_(), pa.null(), pa.string(), pa.large_string()),
        *(
            pa.binary(),
            pa.string_view(),
            pa.decimal128(20, 4),
            pa.timestamp("ns", "UTC"),
            pa.duration("s"),
            pa.date32(),
            pa.month_day_nano_interval(),
        ),
        *(
            pa.dictionary(pa.int8(), pa.string()),
            pa.dictionary(pa.int8(), pa.float64()),
            pa.struct({"a": pa.int8()}),
            pa.map_(pa.string(), pa.int8()),
        ),
    ]
)
containers = st.sampled_from(
    [pa.list_, pa.large_list, pa.list_view, lambda kind: pa.list_(kind, 2), lambda kind: pa.list_(pa.list_(kind)), lambda kind: kind]
)
column_names = st.sampled_from(
    ["id", "row", "column", "users", "expected_users", "places", "traffic", "traffic.x", "traffic.y", "poi.bank", "poi.zoo", "zoo"]
)


@FUZZ
@given(
    columns=st.dictionaries(column_names, st.tuples(kinds, containers), max_size=4),
    length=st.integers(0, 10),
    metadata=st.one_of(st.binary(max_size=40), values.map(lambda value: json.dumps(value).encode()), st.just(b"")),
    keep=st.booleans(),
)
def test_any_columns(columns: dict[str, tuple[pa.DataType, Any]], length: int, metadata: bytes, keep: bool) -> None:
    """Columns of any type, all null or zero, beside or instead of good ones, and any settings."""
    table = arrow_table(small_body())
    if not keep:
        table = table.slice(0, 0).drop_columns(table.column_names)
    for name, (kind, container) in columns.items():
        whole = container(kind)
        values = pa.nulls(len(table) if keep else length, whole)
        table = table.drop_columns(name) if name in table.column_names else table
        if not table.column_names:
            table = pa.table({name: values}).replace_schema_metadata(table.schema.metadata)
            continue
        table = table.append_column(name, values)
    if metadata:
        table = table.replace_schema_metadata({METADATA: metadata})
    read_or_refused(read_arrow, stream_bytes(table))


@FUZZ
@given(name=st.text(string.printable, max_size=300), value=st.floats() | st.none())
def test_any_name_and_any_number_are_the_same_in_both(name: str, value: float | None) -> None:
    body = small_body(stations={"id": [name, "other"]}, traffic=[[1.0, 2.0], [2.0, value]])
    ours, theirs = (answer_of(read, BYTES[kind](body)) for kind, read in READERS.items())
    if isinstance(ours, Query) and isinstance(theirs, Query):
        same(ours, theirs)
    else:
        assert isinstance(ours, Refused) and isinstance(theirs, Refused) and ours.problems == theirs.problems
