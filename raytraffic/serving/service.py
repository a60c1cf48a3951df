"""The forecast service: a query goes through the stages chunk by chunk and comes back as tables, in order, within its deadline.

It knows nothing of HTTP or Ray: `Stages` computes a batch's forecast somewhere, and a `Planner` makes decisions.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

import pyarrow as pa

from raytraffic.diffusion.samplers import Sampler
from raytraffic.rollout import in_windows
from raytraffic.serving.admission import Admission
from raytraffic.serving.assemble import Chunk, answer_table, chunks, sampler_of
from raytraffic.serving.cities import Cities
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel
from raytraffic.serving.planner import Answer, Planner, Wanted
from raytraffic.serving.query import Query
from raytraffic.serving.refused import Refused
from raytraffic.types import Forecast, TrafficBatch

__all__ = ["Expired", "ForecastService", "Stages"]


class Expired(Exception):  # noqa: N818 - it is an answer, not a fault
    """The deadline of a request passed before it was answered."""


class Stages(Protocol):
    """Embedding, conditioner and sampler, wherever they run."""

    async def forecast(self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float) -> Forecast:
        """`Forecaster.forecast`, bit for bit; the work is dropped at the wall-clock time `deadline` and when the call is cancelled.

        Raises Expired, or Busy where a stage's queue is full.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ForecastService:
    """`tile` is the shape of tiles that grids are cut into, and with `group_stations` of groups of neighbouring stations; `chunk_tiles` go
    through the stages together, and at most `chunks_at_once` such chunks of one request are on their way."""

    models: Mapping[str, ServedModel]
    cities: Cities
    limits: Limits
    stages: Stages
    admission: Admission
    planner: Planner
    tile: tuple[int, int] = (4, 4)
    group_stations: bool = False
    chunk_tiles: int = 16
    chunks_at_once: int = 3

    def deadline(self, timeout_s: float | None) -> float:
        """The wall-clock time by which a request that sets this time must be answered, if it is asked now."""
        return time.time() + (timeout_s or self.limits.timeout_s)

    async def decide(self, wanted: Wanted, deadline: float) -> Answer:
        """A decision by the planner. Raises Busy, Expired, and ValueError for a problem that is refused."""
        try:
            async with asyncio.timeout(max(deadline - time.time(), 0)):
                return await self.planner.decide(wanted, deadline)
        except TimeoutError:
            raise Expired from None

    async def tables(self, query: Query, deadline: float) -> AsyncGenerator[pa.Table]:
        """The answer, a table a chunk; raises Refused, Busy before any work was done, and Expired."""
        known = await asyncio.to_thread(self.cities.known, query.ask.city)
        waiting = deque(await asyncio.to_thread(list, chunks(query, known, self.tile, self.chunk_tiles, self.group_stations)))
        undone = sum(self._work(query, chunk) for chunk in waiting)
        self.admission.enter(undone)
        running: deque[tuple[float, asyncio.Task[pa.Table]]] = deque()
        try:
            while waiting or running:
                while waiting and len(running) < self.chunks_at_once:
                    chunk = waiting.popleft()
                    running.append((self._work(query, chunk), asyncio.create_task(self._answer(query, chunk, deadline))))
                work, task = running[0]
                table = await task
                running.popleft()
                undone -= work
                self.admission.progress(work)
                yield table
        finally:
            for _, task in running:
                task.cancel()
            try:
                await asyncio.gather(*(task for _, task in running), return_exceptions=True)
            finally:  # where a client goes away, what is awaited here may be cancelled again and again
                self.admission.leave(undone)

    async def table(self, query: Query, deadline: float) -> pa.Table:
        """The whole answer."""
        async with aclosing(self.tables(query, deadline)) as parts:
            return pa.concat_tables([part async for part in parts], promote_options="default").unify_dictionaries()

    async def _answer(self, query: Query, chunk: Chunk, deadline: float) -> pa.Table:
        ask, sampler = query.ask, sampler_of(query)
        pieces = in_windows(chunk.batch, query.model.window, ask.draws, ask.hop)
        piece, draws = next(pieces)
        try:
            while True:
                remaining = deadline - time.time()
                if remaining <= 0:
                    raise Expired
                async with asyncio.timeout(remaining):
                    forecast = await self.stages.forecast(query.model, piece, sampler, draws, ask.seed, deadline)
                piece, draws = pieces.send(forecast)
        except StopIteration as whole:
            values = whole.value.draws
        except TimeoutError:
            raise Expired from None
        return await asyncio.to_thread(answer_table, query, chunk, values)

    def _work(self, query: Query, chunk: Chunk) -> float:
        """Rows times sampler steps, of every window of a rollout."""
        window = query.model.window
        times = 1 + max(0, -(-(chunk.batch.shape[2] - window) // (query.ask.hop or window // 2)))
        return float(len(chunk.sites) * query.ask.draws * sampler_of(query).steps * times)

    def check(self, query: Query) -> None:
        """Refused for what only the server's cities tell."""
        if query.ask.city is not None and query.ask.city not in self.cities.names:
            raise Refused.of(["city"], repr(query.ask.city), f"one of {list(self.cities.names)}, or none")
