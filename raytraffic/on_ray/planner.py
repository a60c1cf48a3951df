"""The planner of the Serve application: decisions, each alone in a replica, so that a solver's minute holds up no forecast."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from ray.serve.metrics import Histogram

from raytraffic.on_ray.stages import SECONDS
from raytraffic.serving.planner import Answer, Wanted, decide_by

__all__ = ["PlannerStage"]


class PlannerStage:
    """Makes one decision at a time. A solver cannot be interrupted: one whose caller has left runs on until its own time limit."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="raytraffic-planner")
        self._seconds = Histogram("raytraffic_plan_seconds", "Time of one decision.", boundaries=SECONDS)

    async def __call__(self, wanted: Wanted, deadline: float) -> Answer | ValueError | None:
        """The decision, the error of a problem that is refused, or None when the wall-clock time `deadline` passed before it was begun."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._decide, wanted, deadline)

    def _decide(self, wanted: Wanted, deadline: float) -> Answer | ValueError | None:
        began = time.monotonic()
        try:
            return decide_by(wanted, deadline)
        except ValueError as error:
            return error
        finally:
            self._seconds.observe(time.monotonic() - began)
