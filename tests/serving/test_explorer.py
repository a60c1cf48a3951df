"""The explorer's routes: what they tell of cities, and that a site's forecast is the one /v1/forecast gives for its tile."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from raytraffic.serving.access import Access
from raytraffic.serving.admission import Busy
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import ForecastService
from tests.serving.conftest import HOSTILE, explorer_cities, row_of
from tests.serving.local_stages import body_of, service_of

ISSUE = "2024-01-10T12:00"
SLOT = 9 * 48 + 24  # of dawnport, which begins on 2024-01-01
WINDOW = 64


async def always() -> bool:
    """Ready."""
    return True


@pytest.fixture(scope="module")
def client(explorer_service: ForecastService) -> Iterator[TestClient]:
    with TestClient(build_api(explorer_service, always)) as client:
        yield client


def site(**changes: Any) -> dict[str, Any]:
    """A body that is quick to answer."""
    return {"station": "r3c9", "issue": ISSUE, "task": "short", "draws": 3, "steps": 2, "quantiles": [0.1, 0.5, 0.9], **changes}


def forecast(client: TestClient, city: str = "dawnport", **changes: Any) -> dict[str, Any]:
    response = client.post(f"/v1/cities/{city}/forecast", json=site(**changes))
    assert response.status_code == 200, response.text
    return dict(response.json())


def tile_body(city: str = "dawnport", rows: range = range(4), columns: range = range(8, 12), **settings: Any) -> dict[str, Any]:
    """The body of /v1/forecast for a tile of a grid city."""
    whole = explorer_cities()[city]
    assert whole.grid is not None
    cells = [row * whole.grid[1] + column for row in rows for column in columns]
    tile = replace(
        whole,
        grid=None,
        traffic=whole.traffic[:, :, cells],
        users=None if whole.users is None else whole.users[:, cells],
        sites=[whole.sites[cell] for cell in cells],
        xy=None,
        poi=None,
        poi_categories=(),
    )
    body = body_of(tile, cities=True, draws=3, steps=2, **settings)
    body["stations"] |= {"row": [cell // whole.grid[1] for cell in cells], "column": [cell % whole.grid[1] for cell in cells]}
    return body


def cut(body: dict[str, Any], first: int, last: int) -> dict[str, Any]:
    """The body with the slots first..last of its series alone."""
    start = np.datetime64(body["start"]) + np.timedelta64(30 * first, "m")
    series = {name: [row[first:last] for row in body[name]] for name in ("traffic", "users")}
    return {**body, "start": str(start), **series}


def columns_of(answer: dict[str, Any], station: str) -> dict[str, list[Any]]:
    """The rows of one station of an answer of /v1/forecast."""
    columns = answer["columns"]
    rows = [i for i, name in enumerate(columns["unique_id"]) if name == station]
    return {name: [values[i] for i in rows] for name, values in columns.items()}


def test_cities_are_listed(client: TestClient) -> None:
    cities = client.get("/v1/cities").json()
    assert [city["name"] for city in cities] == ["dawnport", "gridton", "lone & far/away"]
    assert cities[0] == {
        "name": "dawnport",
        "step_minutes": 30,
        "unit": "MB",
        "services": ["traffic"],
        "first": "2024-01-01T00:00",
        "last": "2024-01-14T23:30",
        "tiles": 6,
    }


def test_a_server_without_a_store_has_no_city(explorer_service: ForecastService) -> None:
    client = TestClient(build_api(service_of(*explorer_service.models.values()), always))
    assert client.get("/v1/cities").json() == []
    assert client.get("/v1/cities/dawnport/stations").status_code == 404


def test_stations_tell_where_they_lie(client: TestClient) -> None:
    known = client.get("/v1/cities/dawnport/stations").json()
    assert known["layout"] == "metres" and len(known["stations"]) == 96
    station = next(station for station in known["stations"] if station["id"] == "r3c9")
    mean = float(row_of(explorer_cities()["dawnport"], "r3c9")[-336:].mean())
    assert station == {"id": "r3c9", "tile": "r000c002", "x": 4750.0, "y": 2250.0, "mean": [pytest.approx(mean, rel=1e-5)]}
    lone = client.get("/v1/cities/lone%20%26%20far%2Faway/stations").json()
    assert lone["layout"] == "schematic" and lone["stations"][0]["id"] == HOSTILE


def test_heat_is_the_traffic_of_all_stations(client: TestClient) -> None:
    answer = client.get("/v1/cities/dawnport/heat", params={"start": ISSUE, "slots": 5}).json()
    order = [station["id"] for station in client.get("/v1/cities/dawnport/stations").json()["stations"]]
    city = explorer_cities()["dawnport"]
    for column, name in enumerate(order):
        assert [row[column] for row in answer["values"]] == row_of(city, name)[SLOT : SLOT + 5].tolist()
    assert (answer["start"], answer["step_minutes"], answer["service"]) == (ISSUE, 30, "traffic")
    beyond = client.get("/v1/cities/dawnport/heat", params={"start": "2024-01-14T23:30", "slots": 2}).json()["values"]
    assert None not in beyond[0] and set(beyond[1]) == {None}


@pytest.mark.parametrize(
    ("parameters", "loc", "message"),
    [
        (
            {"start": "2024-01-10T12:10"},
            ["query", "start"],
            "2024-01-10T12:10:00, expected a local time without zone on a whole 30-minute slot",
        ),
        ({"start": "2024-01-10T12:00Z"}, ["query", "start"], "expected a local time without zone"),
        ({"start": "soon"}, ["query", "start"], "valid datetime"),
        ({"start": ISSUE, "slots": 169}, ["query", "slots"], "less than or equal to 168"),
        ({"start": ISSUE, "slots": 0}, ["query", "slots"], "greater than or equal to 1"),
        ({"start": ISSUE, "service": "video"}, ["query", "service"], "'video', expected one of ['traffic']"),
    ],
)
def test_heat_refuses_by_the_path_of_the_field(client: TestClient, parameters: dict[str, Any], loc: list[str], message: str) -> None:
    response = client.get("/v1/cities/dawnport/heat", params=parameters)
    assert response.status_code == 422
    (problem,) = response.json()["detail"]
    assert problem["loc"] == loc and message in problem["msg"]


@pytest.mark.parametrize(("settings", "slots"), [({"task": "short"}, 16), ({"task": "long"}, 48), ({"task": None, "horizon": 70}, 70)])
def test_a_sites_forecast_is_that_of_its_tile(client: TestClient, settings: dict[str, Any], slots: int) -> None:
    answer = forecast(client, **settings, seed=7)
    asked = cut(tile_body(**settings, seed=7), SLOT - WINDOW, SLOT)
    expected = columns_of(client.post("/v1/forecast", json=asked).json(), "r3c9")
    assert answer["forecast"] == expected
    assert len(answer["forecast"]["ds"]) == slots and answer["forecast"]["ds"][0] == ISSUE
    series = row_of(explorer_cities()["dawnport"], "r3c9")
    assert answer["history"]["traffic"] == series[SLOT - WINDOW : SLOT].tolist()
    assert answer["history"]["ds"][-1] == "2024-01-10T11:30"
    assert answer["truth"]["traffic"] == series[SLOT : SLOT + slots].tolist()
    assert answer["truth"]["ds"] == answer["forecast"]["ds"]
    assert (answer["city"], answer["station"], answer["issue"], answer["draws"], answer["seed"]) == ("dawnport", "r3c9", ISSUE, 3, 7)
    assert (answer["model"], answer["steps"]) == ("tiny", 2)


def test_generation_hides_the_site_and_knows_its_neighbours(client: TestClient) -> None:
    answer = forecast(client, task="generation")
    asked = cut(tile_body(task="generation"), SLOT, SLOT + WINDOW)
    hidden = asked["stations"]["id"].index("r3c9")
    asked["traffic"][hidden] = [None] * WINDOW
    assert answer["forecast"] == columns_of(client.post("/v1/forecast", json=asked).json(), "r3c9")
    assert answer["history"] == {"service": [], "ds": [], "traffic": []}
    assert answer["truth"]["traffic"] == row_of(explorer_cities()["dawnport"], "r3c9")[SLOT : SLOT + WINDOW].tolist()
    assert len(answer["forecast"]["ds"]) == WINDOW


def test_after_the_last_measurement_the_truth_is_unknown(client: TestClient) -> None:
    answer = forecast(client, issue="2024-01-15T00:00", task=None, horizon=3)
    assert answer["truth"]["traffic"] == [None] * 3
    assert answer["forecast"]["ds"] == ["2024-01-15T00:00", "2024-01-15T00:30", "2024-01-15T01:00"]
    assert all(low <= high for low, high in zip(answer["forecast"]["0.1"], answer["forecast"]["0.9"], strict=True))


def test_a_lone_station_is_a_tile_by_itself(client: TestClient) -> None:
    city = explorer_cities()["lone & far/away"]
    answer = forecast(client, "lone%20%26%20far%2Faway", station=HOSTILE, issue="2024-05-08T18:00")
    body = body_of(city, 8, 72, cities=True, task="short", draws=3, steps=2)
    assert answer["forecast"] == columns_of(client.post("/v1/forecast", json=body).json(), HOSTILE)
    measured = [None if np.isnan(value) else value for value in row_of(city, HOSTILE)[72:88].tolist()]
    assert answer["truth"]["traffic"] == measured


@pytest.mark.parametrize(
    ("changes", "loc", "message"),
    [
        ({"issue": "2024-01-10T12:10"}, ["body", "issue"], "expected a local time without zone on a whole 30-minute slot"),
        ({"issue": "2024-01-10T12:00+01:00"}, ["body", "issue"], "expected a local time without zone"),
        ({"issue": "2023-12-31T00:00"}, ["body", "issue"], "expected a time with measurements of 'r3c9' in the 64 slots before it"),
        ({"issue": "2024-03-01T00:00"}, ["body", "issue"], "expected a time with measurements of 'r3c9' in the 64 slots before it"),
        ({"issue": "2024-01-15T00:00", "task": "generation"}, ["body", "issue"], "2024-01-01T00:00 to 2024-01-14T23:30"),
        ({"task": "weekly"}, ["body", "task"], "Input should be 'short', 'long' or 'generation'"),
        ({"horizon": 3}, ["body", "horizon"], "expected exactly one of task and horizon"),
        ({"task": None}, ["body", "horizon"], "expected exactly one of task and horizon"),
        ({"draws": 5000}, ["body", "draws"], "5000, expected at most 200"),
        ({"draws": "3"}, ["body", "draws"], "valid integer"),
        ({"quantiles": [0.9, 0.1]}, ["body", "quantiles"], "increasing levels"),
        ({"model": "huge"}, ["body", "model"], "'huge', expected one of ['tiny']"),
        ({"keep_draws": True}, ["body", "keep_draws"], "not permitted"),
        ({"timeout_s": 1e9}, ["body", "timeout_s"], "expected at most 300"),
    ],
)
def test_bad_input_is_refused_by_the_path_of_the_field(client: TestClient, changes: dict[str, Any], loc: list[str], message: str) -> None:
    response = client.post("/v1/cities/dawnport/forecast", json=site(**changes))
    assert response.status_code == 422
    problem = response.json()["detail"][0]
    assert problem["loc"] == loc and message in problem["msg"]


def test_what_is_not_there_is_told_plainly(client: TestClient) -> None:
    known = "expected one of ['dawnport', 'gridton', 'lone & far/away']"
    for path in ("stations", f"heat?start={ISSUE}"):
        response = client.get(f"/v1/cities/atlantis/{path}")
        assert (response.status_code, response.json()) == (404, {"detail": f"city: 'atlantis', {known}"})
    assert client.post("/v1/cities/atlantis/forecast", json=site()).status_code == 404
    response = client.post("/v1/cities/dawnport/forecast", json=site(station="r9c9"))
    assert (response.status_code, response.json()) == (404, {"detail": "station: 'r9c9', expected one of dawnport's 96 stations"})


def test_a_body_that_is_no_json_is_refused(client: TestClient) -> None:
    response = client.post("/v1/cities/dawnport/forecast", content=b"{")
    assert response.status_code == 422 and response.json()["detail"][0]["loc"] == ["body"]


def test_busy_says_when_to_try_again(explorer_service: ForecastService) -> None:
    class Full:
        async def forecast(self, *_: Any) -> Any:
            raise Busy(4.2)

    client = TestClient(build_api(replace(explorer_service, stages=Full()), always))
    response = client.post("/v1/cities/dawnport/forecast", json=site())
    assert (response.status_code, response.headers["retry-after"]) == (503, "5")


def test_the_page_and_its_files_come_from_here_alone(client: TestClient) -> None:
    page = client.get("/explore")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert (policy["default-src"], policy["script-src"]) == ("'self'", "'self'")
    loaded = re.findall(r'(?:src|href)="([^#"][^"]*)"', page.text)
    assert sorted(loaded) == ["data:,", "explore/explore.css", "explore/explore.js", "explore/plotly.js"]
    assert not re.search(r"<script(?![^>]*src=)|\son\w+=|style=", page.text)
    for name, kind in (
        ("explore/explore.css", "text/css"),
        ("explore/explore.js", "text/javascript"),
        ("explore/plotly.js", "text/javascript"),
    ):
        response = client.get(f"/{name}")
        assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
        assert response.headers["x-content-type-options"] == "nosniff"
    script = client.get("/explore/explore.js").text
    assert not re.search(r"https?:|innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", script)
    assert client.get("/explore/secret.js").status_code == 404
    assert client.get("/explore/..%2Fexplorer.py").status_code == 404


def test_plotly_is_sent_small_and_once(client: TestClient) -> None:
    small = client.get("/explore/plotly.js")
    whole = client.get("/explore/plotly.js", headers={"accept-encoding": "identity"})
    assert small.headers["content-encoding"] == "gzip" and "content-encoding" not in whole.headers
    assert small.content == whole.content and b"plotly.js v" in whole.content[:200]
    assert int(small.headers["content-length"]) == len(gzip.compress(whole.content, 6, mtime=0)) < len(whole.content) / 2
    again = client.get("/explore/plotly.js", headers={"if-none-match": small.headers["etag"]})
    assert again.status_code == 304 and again.content == b""


def test_the_page_is_behind_the_guard(explorer_service: ForecastService) -> None:
    api = guarded(build_api(explorer_service, always), explorer_service, Access("a-token-of-many-letters"), lambda *_: None)
    client = TestClient(api)  # type: ignore[arg-type]
    for path in ("/explore", "/explore/explore.js", "/v1/cities"):
        refused = client.get(path)
        assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic")
        assert client.get(path, auth=("", "a-token-of-many-letters")).status_code == 200


def test_the_routes_are_described(client: TestClient) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/v1/cities")} == {
        "/v1/cities",
        "/v1/cities/{city}/stations",
        "/v1/cities/{city}/heat",
        "/v1/cities/{city}/forecast",
    }
    body = paths["/v1/cities/{city}/forecast"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body["required"] == ["station", "issue"] and body["additionalProperties"] is False
    assert not [path for path in paths if path.startswith("/explore")]


def test_the_page_is_in_the_package() -> None:
    import raytraffic.serving

    static = Path(raytraffic.serving.__file__).parent / "static"
    assert {file.name for file in static.iterdir()} == {"explore.html", "explore.css", "explore.js"}
