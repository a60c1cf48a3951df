"""The three stages of a Forecaster as Serve deployments: embedder, conditioner, sampler.

A replica loads the checkpoint that a call names (folder and version), so that a request is answered by one version throughout, also while a
new one is rolled out. The denoising loop runs whole inside one sampler replica; rows of requests that wait together share its calls.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import ray
import torch
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve.metrics import Counter, Gauge, Histogram
from torch import Tensor

from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster, rows_of
from raytraffic.serving.cache import SiteCache
from raytraffic.serving.models import served_model
from raytraffic.types import Condition, Forecast, Scale, Space, TrafficBatch

__all__ = ["SECONDS", "Conditioner", "Embedder", "Job", "SamplerStage", "draw_or_fail", "draw_together"]

T = TypeVar("T")
#: Checkpoints a replica holds at most.
_MODELS = 3
#: Boundaries of all histograms of times.
SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300]


class _Stage:
    """What stages share: models loaded on demand, one thread that computes, and the time it takes."""

    name = ""

    def __init__(self) -> None:
        torch.set_num_threads(max(1, int(_cpus())))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"raytraffic-{self.name}")
        self._seconds = Histogram("raytraffic_stage_seconds", "Time of one call of a stage.", boundaries=SECONDS, tag_keys=("stage",))
        self._seconds.set_default_tags({"stage": self.name})

    @serve.multiplexed(max_num_models_per_replica=_MODELS)
    async def forecaster(self, key: str) -> Forecaster:
        """The model of a ServedModel's key; ValueError where its folder holds another version by now."""
        return await self._compute(_load, key, self.device)

    async def _compute(self, function: Callable[..., T], *arguments: Any) -> T:
        """In the replica's one thread: the event loop goes on answering health checks, and two calls never share the cores."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, _timed, self._seconds, function, *arguments)


def _cpus() -> float:
    """The CPUs this replica was given; 1 in the driver's own process (local testing), whether or not that is connected to a cluster."""
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return 1.0
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0))


def _timed(seconds: Histogram, function: Callable[..., T], *arguments: Any) -> T:
    began = time.monotonic()
    try:
        return function(*arguments)
    finally:
        seconds.observe(time.monotonic() - began)


def _load(key: str, device: str) -> Forecaster:
    version, _, folder = key.partition("@")
    found = served_model("", folder).version
    if found != version:
        raise ValueError(f"{folder}: version {found}, expected {version}; it was replaced while it was served: save new versions elsewhere")
    forecaster, _, _ = load_forecaster(folder)
    return forecaster.to(device).eval()


class Embedder(_Stage):
    """Stage 1: the static context of sites as embeddings. A site's may depend on all of its tile, so tiles are what is computed once."""

    name = "embedder"

    def __init__(self, cache_mib: float) -> None:
        super().__init__()
        self._cache = SiteCache(int(cache_mib * 2**20))
        self._found = Counter("raytraffic_site_cache", "Embeddings of tiles of sites asked for.", tag_keys=("result",))
        self._size = Gauge("raytraffic_site_cache_bytes", "Bytes of embeddings held.")

    async def __call__(self, key: str, poi: Tensor, xy: Tensor | None) -> Tensor:
        """`env` (b, 1, s, d) of counts (b, k, s) at places (b, s, 2), None where none is known."""
        forecaster = await self.forecaster(key)
        return await self._compute(self._embed, forecaster, key, poi, xy)

    def _embed(self, forecaster: Forecaster, key: str, poi: Tensor, xy: Tensor | None) -> Tensor:
        k, s = poi.shape[1:]
        before = self._cache.hits, self._cache.misses
        content = poi.flatten(1) if xy is None else torch.cat((poi.flatten(1), xy.flatten(1)), dim=1)

        def compute(tiles: Tensor) -> Tensor:
            places = None if xy is None else tiles[:, k * s :].unflatten(1, (s, 2))
            return _embedded(forecaster, tiles[:, : k * s].unflatten(1, (k, s)), places)

        env = self._cache.embed(f"{s} {xy is None} {key}", content, compute)
        for result, count in zip(("hit", "miss"), (self._cache.hits - before[0], self._cache.misses - before[1]), strict=True):
            if count:
                self._found.inc(count, {"result": result})
        self._size.set(self._cache.bytes)
        return env[:, None]


@torch.no_grad()
def _embedded(forecaster: Forecaster, poi: Tensor, xy: Tensor | None) -> Tensor:
    """(m, s, d) of tiles' counts (m, k, s) and places (m, s, 2)."""
    m, _, s = poi.shape
    nothing = torch.zeros(m, 1, 1, s)
    device = next(forecaster.parameters()).device
    batch = TrafficBatch(
        traffic=nothing,
        known=nothing.bool(),
        clock=torch.zeros(m, 1, 2, dtype=torch.int64),
        step_minutes=torch.full((m,), 60),
        key=torch.zeros(m, dtype=torch.int64),
        space=Space(xy=xy),
        context={"poi": poi},
    )
    return forecaster.embed(batch.to(device)).context["env"][:, 0].cpu()


class Conditioner(_Stage):
    """Stage 2: what the denoiser is told, once a forecast."""

    name = "conditioner"

    async def __call__(self, key: str, batch: TrafficBatch, env: Tensor | None, guided: bool) -> Condition:
        forecaster = await self.forecaster(key)
        return await self._compute(self._condition, forecaster, batch, env, guided)

    @torch.no_grad()
    def _condition(self, forecaster: Forecaster, batch: TrafficBatch, env: Tensor | None, guided: bool) -> Condition:
        if env is not None:
            batch = replace(batch, context={**batch.context, "env": env})
        return forecaster.condition(batch.to(self.device), guided).to("cpu")


@dataclass(eq=False)
class Job:
    """Draws of the windows of one batch, wanted until the wall-clock time `deadline` unless `gone`."""

    key: str
    batch: TrafficBatch
    condition: Condition
    sampler: Sampler
    draws: int
    seed: int
    deadline: float
    gone: bool = field(default=False)

    @property
    def rows(self) -> int:
        """Windows times draws."""
        return len(self.batch.key) * self.draws

    @property
    def wanted(self) -> bool:
        """Whether anyone still waits for it."""
        return not self.gone and time.time() < self.deadline

    def kind(self) -> tuple[Any, ...]:
        """Jobs of one kind may share calls of the network."""
        batch, condition = self.batch, self.condition
        contexts = tuple(sorted((name, value.shape[1:]) for name, value in batch.context.items()))
        told = tuple(None if value is None else value.shape[1:] for value in (condition.vector, condition.tokens, condition.field))
        return self.key, self.sampler, batch.shape[1:], batch.space.grid, batch.space.xy is None, contexts, told, condition.free is None


#: What a job comes to: None where no one waited for it any more, the error where it failed.
_Answer = Forecast | Exception | None


class Batching(BaseModel):
    """How jobs wait for one another: until `rows` are together, or `wait_s` have passed."""

    model_config = ConfigDict(extra="forbid")

    rows: int = Field(512, ge=1)
    wait_s: float = Field(0.005, ge=0)


def _rows(items: Sequence[tuple[Forecaster, Job]]) -> int:
    """What counts as the size of a batch; a job alone is of size 1, for Serve fails an item that is over the limit by itself."""
    return 1 if len(items) == 1 else sum(job.rows for _, job in items)


class SamplerStage(_Stage):
    """Stage 3: the whole denoising loop of every draw."""

    name = "sampler"

    def __init__(self) -> None:
        super().__init__()
        self._rows = Histogram("raytraffic_batch_rows", "Draws that were computed together.", boundaries=[2**i for i in range(13)])
        self._jobs = Histogram("raytraffic_batch_jobs", "Calls that were computed together.", boundaries=[1, 2, 3, 4, 6, 8, 12, 16, 32])
        self._draws = Counter("raytraffic_draws", "Draws made (windows x draws).")
        self._dropped = Counter("raytraffic_dropped_draws", "Draws no one waited for any more, or that failed.")

    def reconfigure(self, settings: dict[str, Any]) -> None:
        """Serve's user_config: see Batching; applies without a restart."""
        batching = Batching.model_validate(settings)
        self._together.set_max_batch_size(batching.rows)  # type: ignore[attr-defined]
        self._together.set_batch_wait_timeout_s(batching.wait_s)  # type: ignore[attr-defined]

    async def __call__(
        self, key: str, batch: TrafficBatch, condition: Condition, sampler: Sampler, draws: int, seed: int, deadline: float
    ) -> Forecast | None:
        """The forecast, or None when the deadline passed before it was made."""
        forecaster = await self.forecaster(key)
        job = Job(key, batch, condition, sampler, draws, seed, deadline)
        try:
            answer = await self._together((forecaster, job))
        finally:
            job.gone = True  # answered, or the caller has left: then no block is begun for it any more
        if isinstance(answer, Exception):
            raise answer
        return answer

    @serve.batch(max_batch_size=512, batch_wait_timeout_s=0.005, batch_size_fn=_rows)
    async def _together(self, items: list[tuple[Forecaster, Job]]) -> list[_Answer]:
        return await self._compute(self._draw, items)

    def _draw(self, items: list[tuple[Forecaster, Job]]) -> list[_Answer]:
        self._jobs.observe(len(items))
        self._rows.observe(sum(job.rows for _, job in items))
        answers: dict[Job, _Answer] = {}
        kinds = {job.kind(): forecaster for forecaster, job in items}
        for kind, forecaster in kinds.items():
            jobs = [job for _, job in items if job.kind() == kind]
            for job, answer in zip(jobs, draw_or_fail(forecaster, jobs, self.device), strict=True):
                (self._draws if isinstance(answer, Forecast) else self._dropped).inc(job.rows)
                answers[job] = answer
        return [answers[job] for _, job in items]


def draw_or_fail(forecaster: Forecaster, jobs: Sequence[Job], device: str) -> list[_Answer]:
    """`draw_together`, but a job that fails is answered with its error and costs the others nothing but time."""
    try:
        return list(draw_together(forecaster, jobs, device))
    except Exception as error:
        if len(jobs) == 1:
            return [error]
    half = len(jobs) // 2  # which job was at fault is found by halves: a draw is the same in any company
    return [*draw_or_fail(forecaster, jobs[:half], device), *draw_or_fail(forecaster, jobs[half:], device)]


@torch.no_grad()
def draw_together(forecaster: Forecaster, jobs: Sequence[Job], device: str) -> list[Forecast | None]:
    """The forecasts of jobs of one kind, each the same to the last bit as alone; None for those no one waited for any more."""
    sampler = jobs[0].sampler
    batches = [job.batch.to(device) for job in jobs]
    conditions = [job.condition.to(device) for job in jobs]
    scales = [forecaster.scale(batch, condition) for batch, condition in zip(batches, conditions, strict=True)]
    batch, condition, scale = TrafficBatch.cat(batches), Condition.cat(conditions), Scale.cat(scales)
    count = torch.tensor([len(one.key) for one in batches])
    first = (count.cumsum(0) - count).tolist()
    of_job = [rows_of(one, job.draws, job.seed) for one, job in zip(batches, jobs, strict=True)]
    of_row = torch.arange(len(jobs)).repeat_interleave(torch.tensor([job.rows for job in jobs]))
    rows = torch.cat([begin + window for begin, (window, _) in zip(first, of_job, strict=True)])
    seeds = torch.cat([seed for _, seed in of_job])
    drawn: Tensor | None = None
    lost: set[int] = set()
    for at in range(0, len(rows), sampler.rows):
        block = slice(at, at + sampler.rows)
        members = [int(i) for i in of_row[block].unique()]

        def unwanted(members: list[int] = members) -> bool:
            return not any(jobs[i].wanted and i not in lost for i in members)

        try:
            if unwanted():
                raise InterruptedError
            part = forecaster.draw_rows(batch, condition, scale, sampler, rows[block], seeds[block], unwanted)
        except InterruptedError:
            lost.update(members)
            continue
        if drawn is None:
            drawn = part.new_empty(len(rows), *part.shape[1:])
        drawn[block] = part
    answers: list[Forecast | None] = []
    for i, (job, one) in enumerate(zip(jobs, batches, strict=True)):
        if i in lost or drawn is None:
            answers.append(None)
            continue
        forecast = forecaster.finish(one, drawn[(of_row == i).to(device)].unflatten(0, (-1, job.draws)))
        answers.append(Forecast(draws=forecast.draws.cpu(), known=forecast.known.cpu()))
    return answers
