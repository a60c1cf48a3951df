"""A client of the forecast service: pandas in, pandas out.

    from raytraffic.client import Client
    forecast = Client("http://127.0.0.1:8000").forecast(history, horizon=24)

A forecast is a pure function of its request, so one that met a busy server, or none, is asked again.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import requests
from numpy.typing import NDArray
from requests.auth import AuthBase

from raytraffic.serving.access import read_token
from raytraffic.serving.query import ARROW, METADATA
from raytraffic.sources.city import STEP_MINUTES

__all__ = ["Client", "ForecastBusy", "ForecastFailed", "ForecastRefused"]

_KEYS = ["unique_id", "service", "ds"]
_GRACE_S = 5.0  # in which a server that was given a deadline can say that it passed
_END = b"\xff\xff\xff\xff\x00\x00\x00\x00"  # of every whole Arrow stream


class ForecastRefused(Exception):  # noqa: N818 - it is an answer, not a fault
    """The server does not answer this request: the HTTP `status` (4xx) and `problems`, each with `loc` and `msg`."""

    def __init__(self, status: int, detail: object) -> None:
        self.status = status
        self.problems: list[Mapping[str, Any]] = [p for p in detail if isinstance(p, Mapping)] if isinstance(detail, list) else []
        found = "; ".join(f"{'.'.join(str(part) for part in p.get('loc', ()))}: {p.get('msg')}" for p in self.problems)
        super().__init__(f"{status}: {found or detail}")


class ForecastBusy(Exception):  # noqa: N818 - it is an answer, not a fault
    """The server was busy each time it was asked; `retry_after_s` is what it said last."""

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the server is busy, try again in {retry_after_s:g} s")
        self.retry_after_s = retry_after_s


class ForecastFailed(Exception):  # noqa: N818 - one family with the two above
    """No server answered, it failed, or its answer broke off or took too long."""


class Client:
    """Asks the service at `url` with a bearer token, else that of the server's environment variables (raytraffic.serving.access).

    A request is given up after `timeout_s` seconds in all; it is asked up to 1 + `retries` times where the server is busy or away.
    """

    def __init__(self, url: str = "http://127.0.0.1:8000", token: str | None = None, timeout_s: float = 300, retries: int = 2) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self.retries = retries
        self._auth = _Bearer(token or read_token())
        self._session = requests.Session()

    def __repr__(self) -> str:
        return f"Client({self.url!r}, timeout_s={self.timeout_s:g}, retries={self.retries})"

    def forecast(
        self,
        history: pd.DataFrame,
        *,
        task: str | None = None,
        horizon: int | None = None,
        city: str | None = None,
        model: str | None = None,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        draws: int = 20,
        keep_draws: bool = False,
        steps: int | None = None,
        seed: int = 0,
        sites: pd.DataFrame | None = None,
        timeout_s: float | None = None,
    ) -> pd.DataFrame:
        """The forecast, a row a station, service and slot, sorted by them; `attrs` say which model, version, steps and seed made it.

        `history` has columns unique_id, ds (local time), y (traffic) and, if known, service (in the model's order) and users. Its step is
        the most frequent distance between a station's neighbouring rows; slots without a row were not measured. `sites` has unique_id
        and row, column (cells of the city's grid) and poi:<category> counts; where it is given it names the stations, with history or
        without.
        With `timeout_s` the server, too, drops the work when that many seconds have passed, and refuses with 408.

        Raises ValueError for a frame that is no such history, ForecastRefused, ForecastBusy and ForecastFailed.
        """
        settings = {
            **{"task": task, "horizon": horizon, "city": city, "model": model, "quantiles": [*quantiles], "draws": draws},
            **{"keep_draws": keep_draws, "steps": steps, "seed": seed, "timeout_s": timeout_s},
        }
        parts = list(self._frames(_request(history, sites, settings), timeout_s))
        whole = pd.concat(parts, ignore_index=True).sort_values(_KEYS, ignore_index=True)
        whole.attrs = parts[0].attrs
        return whole

    def stream(
        self,
        history: pd.DataFrame,
        *,
        task: str | None = None,
        horizon: int | None = None,
        city: str | None = None,
        model: str | None = None,
        quantiles: Sequence[float] = (0.1, 0.5, 0.9),
        draws: int = 20,
        keep_draws: bool = False,
        steps: int | None = None,
        seed: int = 0,
        sites: pd.DataFrame | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[pd.DataFrame]:
        """The rows of `forecast` as they are made, some stations at a time; see there. ForecastFailed where the stream breaks off."""
        settings = {
            **{"task": task, "horizon": horizon, "city": city, "model": model, "quantiles": [*quantiles], "draws": draws},
            **{"keep_draws": keep_draws, "steps": steps, "seed": seed, "timeout_s": timeout_s, "stream": True},
        }
        yield from self._frames(_request(history, sites, settings), timeout_s)

    def models(self) -> list[dict[str, Any]]:
        """The served models, the default one first."""
        return list(self._json("/v1/models"))

    def cities(self) -> Any:
        """The cities the server has measured, as GET /v1/cities answers them."""
        return self._json("/v1/cities")

    def ready(self) -> bool:
        """Whether a forecast would be answered now; False also where nothing listens."""
        try:
            return self._session.get(f"{self.url}/v2/health/ready", timeout=self.timeout_s).status_code == 200
        except requests.RequestException:
            return False

    def _json(self, path: str) -> Any:
        with self._answer("GET", path, None, time.monotonic() + self.timeout_s) as answer:
            return answer.json()

    def _frames(self, body: bytes, timeout_s: float | None) -> Iterator[pd.DataFrame]:
        """The batches of the answer as they arrive."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s + _GRACE_S)
        with self._answer("POST", "/v1/forecast", body, deadline) as answer:
            arriving = _Arriving(answer, deadline)
            try:
                reader = pa.ipc.open_stream(arriving)
                about = json.loads(reader.schema.metadata[METADATA])
                for batch in reader:
                    frame = batch.to_pandas().sort_values(_KEYS, ignore_index=True)
                    frame.attrs = about
                    yield frame
                fault = None if arriving.last == _END else "it ended early"
            except (pa.ArrowException, requests.RequestException, OSError) as error:
                fault = type(error).__name__
        if fault is not None:
            raise ForecastFailed(f"{self.url}: the answer broke off ({fault})")

    def _answer(self, method: str, path: str, body: bytes | None, deadline: float) -> requests.Response:
        """The answer 200, its body unread; asks again while the server is busy or away, each time a little later."""
        headers = {"Content-Type": ARROW, "Accept": ARROW} if body is not None else {}
        for attempt in range(1 + self.retries):
            failure: ForecastBusy | ForecastFailed
            try:
                answer = self._session.request(
                    method,
                    self.url + path,
                    data=body,
                    headers=headers,
                    auth=self._auth,
                    timeout=max(deadline - time.monotonic(), 0.001),
                    allow_redirects=False,
                    stream=True,
                )
            except requests.RequestException as error:  # holds the request, and so the token: it goes no further
                failure, wait = ForecastFailed(f"{self.url}: {type(error).__name__}"), 0.2 * 2**attempt
            else:
                if answer.status_code == 200:
                    return answer
                detail = _detail(answer)
                if 400 <= answer.status_code < 500:
                    raise ForecastRefused(answer.status_code, detail)
                if answer.status_code != 503:
                    raise ForecastFailed(f"{self.url}: status {answer.status_code}: {detail}")
                wait = _retry_after(answer)
                failure = ForecastBusy(wait)
            wait *= random.uniform(1.0, 1.5)  # those who were refused together do not come back together
            if attempt == self.retries or time.monotonic() + wait >= deadline:
                break
            time.sleep(wait)
        raise failure


class _Bearer(AuthBase):
    """Sets the token, and keeps requests from looking for another one in a .netrc file."""

    def __init__(self, token: str | None) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token is not None:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


class _Arriving:
    """The body of an answer as a file that Arrow reads; it knows the `last` bytes that were read and gives up at the deadline."""

    closed = False

    def __init__(self, answer: requests.Response, deadline: float) -> None:
        self._parts = answer.iter_content(None)
        self._held = b""
        self._deadline = deadline
        self.last = b""

    def read(self, size: int) -> bytes:
        """`size` bytes, fewer only at the end."""
        parts = [self._held]
        missing = size - len(self._held)
        while missing > 0:
            if time.monotonic() > self._deadline:
                raise TimeoutError
            part = next(self._parts, b"")
            if not part:
                break
            parts.append(part)
            missing -= len(part)
        whole = b"".join(parts)
        data, self._held = whole[:size], whole[size:]
        self.last = (self.last + data[-len(_END) :])[-len(_END) :]
        return data


def _detail(answer: requests.Response) -> object:
    """What the server says of a failure."""
    with answer:
        try:
            return answer.json().get("detail")
        except (requests.RequestException, ValueError, AttributeError):
            return answer.reason


def _retry_after(answer: requests.Response) -> float:
    try:
        return min(max(float(answer.headers.get("Retry-After", "1")), 0.0), 3600.0)
    except ValueError:
        return 1.0


def _request(history: pd.DataFrame, sites: pd.DataFrame | None, settings: Mapping[str, Any]) -> bytes:
    """The Arrow body of a request: its stations on one grid of slots."""
    rows = _rows(history)
    step = _step(rows)
    minute = rows["ds"].to_numpy().astype("datetime64[m]").astype(np.int64)
    off = minute % step != 0
    if off.any():
        raise ValueError(f"history: {_row(rows, off)} is not on a whole {step}-minute slot, as most rows are")
    twice = rows.duplicated(_KEYS).to_numpy()
    if twice.any():
        raise ValueError(f"history: {_row(rows, twice)} is there twice, expected one row a station, service and time")
    ids = _ids(rows, sites)
    station = pd.Index(ids).get_indexer(rows["unique_id"])
    unknown = station < 0
    if unknown.any():
        raise ValueError(f"sites: no row for station {rows['unique_id'].to_numpy()[unknown][0]!r}, expected every station of the history")
    slot = (minute - minute.min()) // step
    columns: dict[str, pa.Array] = {"id": pa.array(ids, pa.string()), **_site_columns(sites, ids)}
    for service in rows["service"].unique():
        mine = (rows["service"] == service).to_numpy()
        name = f"traffic.{service}" if "service" in history else "traffic"
        columns[name] = _lists(len(ids), int(slot.max()) + 1, station[mine], slot[mine], rows["traffic"].to_numpy()[mine])
    if "users" in history:
        columns["users"] = _lists(len(ids), int(slot.max()) + 1, station, slot, _users(rows))
    start = str(np.datetime64(int(minute.min()), "m"))
    ask = {"start": start, "step_minutes": step, **{name: value for name, value in settings.items() if value is not None}}
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(ask).encode()})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _rows(history: pd.DataFrame) -> pd.DataFrame:
    """The history as texts, whole minutes and float64 numbers, with a service in every row."""
    missing = sorted({"unique_id", "ds", "y"} - set(history.columns))
    unknown = sorted(set(map(str, history.columns)) - {"unique_id", "ds", "y", "service", "users"})
    if missing or unknown:
        raise ValueError(f"history: columns {list(history.columns)}, expected unique_id, ds, y and perhaps service, users")
    if history.empty:
        raise ValueError("history: no rows, expected at least two of a station")
    for name in ("unique_id", "ds", "service"):
        if name in history and history[name].isna().any():
            raise ValueError(f"history: {name} is missing in row {int(np.flatnonzero(history[name].isna())[0])}, expected one in every row")
    times = pd.to_datetime(history["ds"])
    if times.dt.tz is not None:
        raise ValueError(f"history: ds in zone {times.dt.tz}, expected local times without zone")
    rows = pd.DataFrame(
        {
            "unique_id": history["unique_id"].astype(str).to_numpy(dtype=object),
            "ds": times.dt.floor("min").to_numpy(),
            "service": history["service"].astype(str).to_numpy(dtype=object) if "service" in history else "traffic",
            "traffic": history["y"].to_numpy(dtype=np.float64, na_value=np.nan),
            "users": history["users"].to_numpy(dtype=np.float64, na_value=np.nan) if "users" in history else np.nan,
        }
    )
    within = (rows["ds"] != times.to_numpy()).to_numpy()
    if within.any():
        raise ValueError(f"history: {_row(rows, within)} has seconds, expected whole minutes")
    return rows


def _step(rows: pd.DataFrame) -> int:
    """Minutes of a slot."""
    ordered = rows.sort_values(_KEYS)
    apart = ordered.groupby(["unique_id", "service"], sort=False)["ds"].diff().dropna()
    minutes = (apart[apart > pd.Timedelta(0)] // pd.Timedelta(minutes=1)).mode()
    if minutes.empty:
        raise ValueError("history: one time a station, expected at least two, whose distance is the step")
    step = int(minutes.min())
    if step not in STEP_MINUTES:
        raise ValueError(f"history: rows are {step} minutes apart, expected one of {STEP_MINUTES}")
    return step


def _row(rows: pd.DataFrame, which: NDArray[np.bool_]) -> str:
    """The first such row in words."""
    row = rows.iloc[int(np.flatnonzero(which)[0])]
    return f"station {row['unique_id']!r} at {row['ds']}"


def _users(rows: pd.DataFrame) -> NDArray[np.float64]:
    """Users of each row; they are a station's, so all its services must say the same or nothing."""
    groups = rows.groupby(["unique_id", "ds"], sort=False)["users"]
    apart = (groups.transform("max") != groups.transform("min")) & groups.transform("max").notna()
    if apart.any():
        raise ValueError(f"history: {_row(rows, apart.to_numpy())} has several numbers of users, expected one for all services")
    users: NDArray[np.float64] = groups.transform("max").to_numpy()
    return users


def _ids(rows: pd.DataFrame, sites: pd.DataFrame | None) -> list[str]:
    """The stations' names, sorted."""
    if sites is None:
        return sorted(rows["unique_id"].unique())
    if "unique_id" not in sites or sites["unique_id"].isna().any():
        raise ValueError(f"sites: columns {list(sites.columns)}, expected unique_id in every row")
    names = sites["unique_id"].astype(str)
    if names.duplicated().any():
        raise ValueError(f"sites: station {names[names.duplicated()].iloc[0]!r} is there twice, expected one row a station")
    return sorted(names)


def _site_columns(sites: pd.DataFrame | None, ids: Sequence[str]) -> dict[str, pa.Array]:
    """Cells and points of interest of the stations, in their order."""
    if sites is None:
        return {}
    ordered = sites.set_index(sites["unique_id"].astype(str)).loc[list(ids)]
    columns = {}
    for name in sites.columns.drop("unique_id"):
        if name not in ("row", "column") and not str(name).startswith("poi:"):
            raise ValueError(f"sites: column {name!r}, expected unique_id, row, column and poi:<category>")
        try:
            kind = pa.int64() if name in ("row", "column") else pa.float64()
            columns[str(name).replace("poi:", "poi.", 1)] = pa.array(ordered[name].to_numpy(), kind)
        except (pa.ArrowException, TypeError, ValueError):
            raise ValueError(f"sites: column {name!r} holds something else than numbers (whole ones for row and column)") from None
    return columns


def _lists(
    stations: int, slots: int, station: NDArray[np.int64], slot: NDArray[np.int64], values: NDArray[np.float64]
) -> pa.FixedSizeListArray:
    """A list of slots a station, null where no row is or says nothing."""
    grid = np.full((stations, slots), np.nan)
    grid[station, slot] = values
    return pa.FixedSizeListArray.from_arrays(pa.array(grid.reshape(-1), mask=np.isnan(grid).reshape(-1)), slots)
