"""What a forecast request may say: the fields of `/v1/forecast`, as OpenAPI describes them."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from raytraffic.masks import LONG, SHORT
from raytraffic.sources.city import STEP_MINUTES

__all__ = ["LONGEST_NAME", "Ask", "JsonBody", "Matrix", "Names", "Stations"]

LONGEST_NAME = 256

Matrix = list[list[float | None]]
Names = list[list[str | None]]


class Ask(BaseModel):
    """The settings of a request."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str | None = Field(None, max_length=LONGEST_NAME, description="A served model's name; the server's first if not given.")
    city: str | None = Field(
        None,
        max_length=LONGEST_NAME,
        description="A city the server has measured (GET /v1/cities): its weekly profile and levels are used. Without it the "
        "forecast rests on the request's history alone.",
    )
    start: datetime = Field(description="Local wall-clock time of the first slot of history, without zone, on a whole step.")
    step_minutes: int = Field(description=f"Minutes of a slot, one of {STEP_MINUTES}.")
    task: Literal["short", "long", "generation"] | None = Field(
        None,
        description="short and long: the horizons a model was trained for (a quarter and three quarters of its window); generation: every "
        "null of `traffic` is answered (stations without history, gaps) and nothing after it. Exactly one of task and horizon.",
    )
    horizon: int | None = Field(None, ge=1, description="Slots after the history that are forecast, any number.")
    hop: int | None = Field(
        None,
        ge=1,
        description="Slots that are forecast at a time, from the draws before them: 1 for a model that was trained one step ahead. At most "
        "the horizon and less than the model's window; if not given, what fits its window and then half of one at a time.",
    )
    quantiles: list[float] = Field([0.1, 0.5, 0.9], description="Increasing levels in [0, 1].")
    draws: int = Field(20, ge=1, description="Draws of the forecast.")
    keep_draws: bool = Field(False, description="Answer the draws themselves too.")
    steps: int | None = Field(None, ge=1, description="Sampler steps; the model's own number if not given.")
    seed: int = Field(0, ge=-(2**63), lt=2**63, description="The same request with the same seed has the same answer.")
    timeout_s: float | None = Field(None, gt=0, description="The work is dropped when the answer takes longer.")
    stream: bool = Field(False, description="Answer station groups as they are ready: an Arrow stream, or one JSON object a line.")

    def slots(self, window: int) -> int:
        """Slots after the history that a model of this window is asked for; 0 in generation."""
        if self.task == "generation":
            return 0
        return self.horizon if self.horizon is not None else round(window * (SHORT if self.task == "short" else LONG).low)


class Stations(BaseModel):
    """Columns that say what each station is."""

    model_config = ConfigDict(extra="forbid")

    id: list[str] = Field(description="Unique names.")
    row: list[int] | None = Field(None, description="With `column`: the station's cell of the city's grid, so that near cells help.")
    column: list[int] | None = None
    x: list[float] | None = Field(
        None,
        description="With `y`: where the station stands, in metres of any one local projection, so that models know who is near whom. "
        "Where they are not given, stations of a city that the server knows by these ids stand where its store says.",
    )
    y: list[float] | None = None
    poi: dict[str, list[float]] | None = Field(None, description="Counts of points of interest, by category.")


class JsonBody(Ask):
    """A request in JSON."""

    stations: Stations
    traffic: Matrix | dict[str, Matrix] | None = Field(
        None,
        description="Measured traffic, one list of slots a station, null where nothing was measured; by service where a model has several. "
        "May be left out in generation, which then answers one whole window.",
    )
    users: Matrix | None = Field(None, description="Active users, as `traffic`; they count only where traffic is known.")
    expected_users: Matrix | None = Field(
        None,
        description="Your own forecast of the users: one list a station of the slots that are forecast (in generation: of the slots of "
        "`traffic`), null where you expect nothing. Only for models with `expected_users` among their `contexts` (GET /v1/models).",
    )
    places: Names | None = Field(
        None,
        description="Where users are: one list a user of the names of places of `city`, in the slots of `traffic` or in these and those "
        "that are forecast, null where that is unknown. Only for models of users who move (`places` in GET /v1/models).",
    )
