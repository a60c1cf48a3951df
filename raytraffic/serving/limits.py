"""What one request may ask for."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Limits"]


class Limits(BaseModel):
    """Bounds of a request, checked before anything is computed; `docs/serving.md` says how to choose them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    body_mib: float = Field(64.0, gt=0, description="Size of a request's body, as sent.")
    stations: int = Field(20_000, ge=1)
    history: int = Field(2_048, ge=1, description="Slots of history.")
    horizon: int = Field(1_024, ge=1, description="Slots of forecast.")
    draws: int = Field(200, ge=1)
    quantiles: int = Field(99, ge=1)
    steps: int = Field(100, ge=1, description="Sampler steps.")
    answer_values: int = Field(50_000_000, ge=1, description="Stations x services x answered slots x (draws, where they are kept, or 1).")
    traffic: float = Field(1e15, gt=0, description="The largest plausible measurement, in the city's unit.")
    missing: float = Field(0.999, ge=0, le=1, description="Share of the known stations' history that may be null.")
    plan_values: int = Field(20_000_000, ge=1, description="Stations x slots x draws that a decision is made on.")
    plan_seconds: float = Field(60.0, gt=0, description="The most a decision's solver may take; also what it may where nothing is said.")
    plan_capacities: int = Field(50_000, ge=1, description="Capacities over all stations that a deployment may choose between.")
    timeout_s: float = Field(300.0, gt=0, description="The longest deadline a request may set; also the one of requests that set none.")
