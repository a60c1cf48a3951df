"""A client of the forecast service: pandas in, pandas out.

    from raytraffic.client import Client
    client = Client("http://127.0.0.1:8000")
    forecast = client.forecast(history, horizon=24, keep_draws=True)
    asleep = client.sleep(forecast, {"rrus": 8, "rru_capacity": 50, "served_share": 0.95})

A forecast is a pure function of its request, so one that met a busy server, or none, is asked again.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
import pandas as pd
import pyarrow as pa
import requests
from requests.auth import AuthBase

from raytraffic.serving.access import read_token
from raytraffic.serving.frames import KEYS, drawn_object, request_bytes, request_object
from raytraffic.serving.query import ARROW, METADATA

__all__ = ["Client", "ForecastBusy", "ForecastFailed", "ForecastOptions", "ForecastRefused"]

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


class ForecastOptions(TypedDict, total=False):
    """What a forecast may be asked for, all of it optional but one of `task` and `horizon`; the server fills in what is left out.

    task         "short" or "long", the horizons a model was trained for; or "generation", which answers the slots without measurement
    horizon      slots after the history, any number
    hop          slots of it that are forecast at a time, from the draws before them: 1 for a model that was trained one step ahead
    city         one the server has measured: its weekly profile and levels are used
    model        a served model's name; else the server's first
    quantiles    increasing levels in [0, 1]; else 0.1, 0.5, 0.9
    draws        draws of the forecast, else 20; with `keep_draws` they are answered too
    steps        sampler steps; else the model's own number
    seed         else 0; the same request with the same seed has the same answer
    sites        unique_id, and row, column (cells of the city's grid), x, y (metres of any one projection) and poi:<category> counts;
                 where it is given it names the stations, with history or without
    future       unique_id, ds and what you expect of the slots that are forecast: expected_users, your own forecast of the users, for
                 models that were trained with one; place, where users will be, for models of users who move; slots without a row are not
                 expected to be anything
    timeout_s    seconds after which the server, too, drops the work, and refuses with 408
    """

    task: Literal["short", "long", "generation"] | None
    horizon: int | None
    hop: int | None
    city: str | None
    model: str | None
    quantiles: Sequence[float]
    draws: int
    keep_draws: bool
    steps: int | None
    seed: int
    sites: pd.DataFrame | None
    future: pd.DataFrame | None
    timeout_s: float | None


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

    def forecast(self, history: pd.DataFrame, **options: Unpack[ForecastOptions]) -> pd.DataFrame:
        """The forecast, a row a station, service and slot, sorted by them; `attrs` say which model, version, steps and seed made it.

        `history` has columns unique_id, ds (local time), y (traffic) and, if known, service (in the model's order), users, and place: where
        a user who moves was, by the names of `city`. Its step is the most frequent distance between a station's neighbouring rows; slots
        without a row were not measured.

        Raises TypeError for an option that is none, ValueError for frames that are not what they should be, ForecastRefused, ForecastBusy
        and ForecastFailed.
        """
        parts = list(self._frames(history, options, stream=False))
        whole = pd.concat(parts, ignore_index=True).sort_values(KEYS, ignore_index=True)
        whole.attrs = parts[0].attrs
        return whole

    def stream(self, history: pd.DataFrame, **options: Unpack[ForecastOptions]) -> Iterator[pd.DataFrame]:
        """The rows of `forecast` as they are made, some stations at a time; see there. ForecastFailed where the stream breaks off."""
        yield from self._frames(history, options, stream=True)

    def deployment(self, traffic: pd.DataFrame, problem: Mapping[str, Any], **options: Unpack[ForecastOptions]) -> pd.DataFrame:
        """Where base stations are built, a row a station; `attrs` hold the rest of the answer: the solver's status, gap and seconds, and
        what is promised.

        `traffic` is a history, of which the server makes a forecast with `options` (see `forecast`), or a forecast that was made with
        `keep_draws`, which is decided on as it is and takes no options but `timeout_s`. `problem` holds the fields of POST /v1/deployment:
        station_types, money, ...

        Raises as `forecast` does.
        """
        answer = self._decision("/v1/deployment", traffic, problem, options)
        return _with_attrs(pd.DataFrame(answer.pop("plan")), answer)

    def sleep(self, traffic: pd.DataFrame, problem: Mapping[str, Any], **options: Unpack[ForecastOptions]) -> pd.DataFrame:
        """How many radio units of each cell are `active` when, a row a station and slot; see `deployment`.

        `problem` holds the fields of POST /v1/sleep: rrus, rru_capacity, ...
        """
        answer = self._decision("/v1/sleep", traffic, problem, options)
        schedule, slots = answer.pop("schedule"), pd.to_datetime(answer.pop("ds")).astype("datetime64[s]")
        stations = pd.DataFrame({name: schedule[name] for name in ("unique_id", "rrus")})
        rows = stations.loc[stations.index.repeat(len(slots))].reset_index(drop=True)
        rows["ds"] = np.tile(slots.to_numpy(), len(stations))
        rows["active"] = [count for counts in schedule["active"] for count in counts]
        return _with_attrs(
            rows, {**answer, "overloaded_slots": dict(zip(schedule["unique_id"], schedule["overloaded_slots"], strict=True))}
        )

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

    def _frames(self, history: pd.DataFrame, options: ForecastOptions, stream: bool) -> Iterator[pd.DataFrame]:
        """The batches of the answer as they arrive."""
        settings = _settings(options)
        if stream:
            settings["stream"] = True
        body = request_bytes(history, options.get("sites"), options.get("future"), settings)
        deadline = self._deadline(options)
        with self._answer("POST", "/v1/forecast", body, deadline) as answer:
            arriving = _Arriving(answer, deadline)
            try:
                reader = pa.ipc.open_stream(arriving)
                about = json.loads(reader.schema.metadata[METADATA])
                for batch in reader:
                    frame = batch.to_pandas().sort_values(KEYS, ignore_index=True)
                    frame.attrs = about
                    yield frame
                fault = None if arriving.last == _END else "it ended early"
            except (pa.ArrowException, requests.RequestException, OSError) as error:
                fault = type(error).__name__
        if fault is not None:
            raise ForecastFailed(f"{self.url}: the answer broke off ({fault})")

    def _decision(self, path: str, traffic: pd.DataFrame, problem: Mapping[str, Any], options: ForecastOptions) -> dict[str, Any]:
        """The answer of a route that decides."""
        settings = _settings(options)
        timeout = {"timeout_s": settings.pop("timeout_s")} if "timeout_s" in settings else {}
        if "draws" in traffic:
            if settings or options.get("sites") is not None or options.get("future") is not None:
                given = sorted(set(options) - {"timeout_s"})
                raise TypeError(f"options: {given} of a forecast that is made already, expected timeout_s alone")
            source: dict[str, Any] = {"draws": drawn_object(traffic)}
        else:
            source = {"forecast": request_object(traffic, options.get("sites"), options.get("future"), settings)}
        body = json.dumps({**problem, **source, **timeout}).encode()
        with self._answer("POST", path, body, self._deadline(options), "application/json") as answer:
            try:
                return dict(answer.json())
            except (requests.RequestException, ValueError) as error:
                fault = type(error).__name__
        raise ForecastFailed(f"{self.url}: the answer broke off ({fault})")

    def _deadline(self, options: ForecastOptions) -> float:
        """When a request is given up, on the monotonic clock."""
        timeout_s = options.get("timeout_s")
        return time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s + _GRACE_S)

    def _answer(self, method: str, path: str, body: bytes | None, deadline: float, kind: str = ARROW) -> requests.Response:
        """The answer 200 of this kind, its body unread; asks again while the server is busy or away, each time a little later."""
        headers = {"Content-Type": kind, "Accept": kind} if body is not None else {}
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


def _settings(options: ForecastOptions) -> dict[str, Any]:
    """The options that stand among a request's settings; TypeError for one that is none."""
    unknown = sorted(set(options) - set(ForecastOptions.__annotations__))
    if unknown:
        raise TypeError(f"options: {unknown}, expected some of {list(ForecastOptions.__annotations__)}")
    settings: dict[str, Any] = {name: value for name, value in options.items() if value is not None and name not in ("sites", "future")}
    return settings | ({"quantiles": [*options["quantiles"]]} if "quantiles" in options else {})


def _with_attrs(frame: pd.DataFrame, attrs: Mapping[str, Any]) -> pd.DataFrame:
    frame.attrs = dict(attrs)
    return frame


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
