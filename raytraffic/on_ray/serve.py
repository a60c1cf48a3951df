"""The Serve application: gateway -> embedder -> conditioner -> sampler, for `serve run serve_configs/*.yaml` and `raytraffic serve`.

The gateway reads and checks requests and cuts them into chunks of tiles; what a stage makes of a chunk goes to the next one without coming
back to it. Draws that are decided on do come back, and go to the planner. What a stage may use, how it scales and what may queue before it
stands in the Serve config, under the deployments' names.
"""

# Without `from __future__ import annotations`: Serve reads the type of the builder's argument, and a text is none to it.
import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import ray
import torch
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.exceptions import RayError, RayTaskError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle
from ray.serve.metrics import Counter, Gauge, Histogram

from raytraffic import registry
from raytraffic.config import ServeConfig
from raytraffic.diffusion.samplers import Sampler
from raytraffic.on_ray.cluster import connect, refuse_open_cluster
from raytraffic.on_ray.planner import PlannerStage
from raytraffic.on_ray.stages import SECONDS, Conditioner, Embedder, SamplerStage
from raytraffic.serving.access import Access, is_loopback, read_token
from raytraffic.serving.admission import Admission, Busy
from raytraffic.serving.cities import Cities
from raytraffic.serving.limits import Limits
from raytraffic.serving.models import ServedModel, served_model
from raytraffic.serving.planner import Answer, Wanted
from raytraffic.serving.routes import build_api, guarded
from raytraffic.serving.service import Expired, ForecastService
from raytraffic.store import open_store
from raytraffic.types import URBAN_CONTEXTS, Forecast, TrafficBatch

__all__ = ["ServeArgs", "app", "args_of", "serve_checkpoints"]

T = TypeVar("T")
_LOG = logging.getLogger("raytraffic.serving")
#: What a call ends with when a replica or its node goes away, and how long is waited before it is made again.
_LOST = (RayError, RayServeException)
_PAUSES = (0.1, 0.5, 2.0, 5.0)


class ServeArgs(BaseModel):
    """The `args` of the application in a Serve config; a misspelt one is refused."""

    model_config = ConfigDict(extra="forbid")

    checkpoints: dict[str, str] = Field(
        min_length=1, description="Name and folder (or s3:// URL) of each served model; the first is the default."
    )
    store: str | None = Field(None, description="A prepared store: its cities' profiles and levels are used where a request names one.")
    token_file: str | None = Field(
        None, description="File with the bearer token; else the environment's. Without a token only loopback is served."
    )
    limits: Limits = Limits()
    tile: tuple[int, int] = Field((4, 4), description="Rows and columns of a tile, as the models' stores were prepared with.")
    group_stations: bool = Field(
        False, description="Stations without cells share tiles with their neighbours, as the models' stores were prepared with."
    )
    chunk_tiles: int = Field(16, ge=1, description="Tiles that go through the stages together.")
    chunks_at_once: int = Field(
        3, ge=1, description="Chunks of one request on their way at a time: while one is sampled the next is conditioned."
    )
    most_wait_s: float = Field(2.0, gt=0, description="A request is refused (503) when what waits already takes longer.")
    most_requests: int = Field(64, ge=1, description="Requests a gateway works on at a time.")
    cache_mib: float = Field(256, gt=0, description="Site embeddings an embedder keeps.")
    warm: bool = Field(True, description="A gateway takes requests only after each model has answered one.")


class _RemoteStages:
    """The stages behind Serve handles."""

    def __init__(self, embedder: DeploymentHandle, conditioner: DeploymentHandle, sampler: DeploymentHandle) -> None:
        self.embedder, self.conditioner, self.sampler = embedder, conditioner, sampler

    async def forecast(self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float) -> Forecast:
        """See raytraffic.serving.service.Stages."""
        forecast = await _insisting(lambda: self._through(model, batch, sampler, draws, seed, deadline), retry_after_s=1.0)
        if forecast is None:
            raise Expired
        return forecast

    async def _through(
        self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float
    ) -> Forecast | None:
        embedder, conditioner, stage = (
            handle.options(multiplexed_model_id=model.key) for handle in (self.embedder, self.conditioner, self.sampler)
        )
        env: Any = None
        if model.poi_categories and "env" not in batch.context:
            env = embedder.remote(model.key, batch.context["poi"], batch.space.xy)
        # Responses are handed on before they are there: arrays go from stage to stage, not through the gateway.
        condition = conditioner.remote(model.key, batch, env, sampler.guidance != 1)
        drawn = stage.remote(model.key, _drawn_from(batch), condition, sampler, draws, seed, deadline)
        try:
            forecast: Forecast | None = await drawn
        except asyncio.CancelledError:
            for response in (env, condition, drawn):
                if response is not None:
                    response.cancel()
            raise
        return forecast


def _drawn_from(batch: TrafficBatch) -> TrafficBatch:
    """The batch as the sampler is sent it: what surrounds sites it is told by the condition, and vectors of every slot are large."""
    return replace(batch, context={name: value for name, value in batch.context.items() if name not in URBAN_CONTEXTS})


class _RemotePlanner:
    """The planner behind a Serve handle."""

    def __init__(self, planner: DeploymentHandle) -> None:
        self.planner = planner

    async def decide(self, wanted: Wanted, deadline: float) -> Answer:
        """See raytraffic.serving.planner.Planner."""
        found: Answer | ValueError | None = await _insisting(lambda: self._asked(wanted, deadline), retry_after_s=5.0)
        if found is None:
            raise Expired
        if isinstance(found, ValueError):
            raise found
        return found

    async def _asked(self, wanted: Wanted, deadline: float) -> Answer | ValueError | None:
        response = self.planner.remote(wanted, deadline)
        try:
            found: Answer | ValueError | None = await response
        except asyncio.CancelledError:
            response.cancel()
            raise
        return found


async def _insisting(call: Callable[[], Awaitable[T]], retry_after_s: float) -> T:
    """What a call comes to; Busy where a queue is full. One that loses its replica or node is made again: it would give the same."""
    for pause in (*_PAUSES, None):
        try:
            return await call()
        except BackPressureError:
            raise Busy(retry_after_s) from None
        except _LOST as error:
            if pause is None or _is_ours(error):
                raise
            _LOG.warning("a replica was lost, asked again in %s s: %s", pause, str(error).partition("\n")[0])
            await asyncio.sleep(pause)
    raise AssertionError("the last call returns or raises")


def _is_ours(error: BaseException) -> bool:
    """Whether our code raised the error in a stage, which asking again would not change."""
    return isinstance(error, RayTaskError) and not isinstance(error.cause, RayError | RayServeException)


class _Meters:
    """What the gateway counts."""

    def __init__(self, admission: Admission) -> None:
        self.admission = admission
        self._requests = Counter("raytraffic_requests", "HTTP requests.", tag_keys=("route", "status"))  # type: ignore[arg-type]
        self._seconds = Histogram("raytraffic_request_seconds", "Time of an HTTP request.", boundaries=SECONDS, tag_keys=("route",))
        self._waiting = Gauge("raytraffic_waiting_work", "Rows times sampler steps that were taken in and are not done.")
        self._wait = Gauge("raytraffic_expected_wait_seconds", "Time in which they will be.")

    def observe(self, route: str, status: int, seconds: float) -> None:
        """One request is over."""
        self._requests.inc(1, {"route": route, "status": str(status)})
        self._seconds.observe(seconds, {"route": route})
        self._waiting.set(self.admission.waiting)
        self._wait.set(self.admission.wait_s())


class Gateway:
    """HTTP in, HTTP out; every answer carries the request id that the log lines carry (Serve's proxy gives it)."""

    async def __init__(  # type: ignore[misc]  # Serve awaits it
        self,
        args: ServeArgs,
        embedder: DeploymentHandle,
        conditioner: DeploymentHandle,
        sampler: DeploymentHandle,
        planner: DeploymentHandle,
    ) -> None:
        logging.getLogger("raytraffic").setLevel(logging.INFO)
        torch.set_num_threads(1)
        models = {name: served_model(name, folder) for name, folder in args.checkpoints.items()}
        admission = Admission(args.most_wait_s, args.most_requests)
        self._service = ForecastService(
            models=models,
            cities=Cities(args.store),
            limits=args.limits,
            stages=_RemoteStages(embedder, conditioner, sampler),
            admission=admission,
            planner=_RemotePlanner(planner),
            tile=args.tile,
            group_stations=args.group_stations,
            chunk_tiles=args.chunk_tiles,
            chunks_at_once=args.chunks_at_once,
        )
        self._access = Access(read_token(args.token_file))
        self._meters = _Meters(admission)
        self._ready = False
        if args.warm:
            await self._warm(models)
        self._ready = True
        served = ", ".join(f"{model.name} {model.version} ({model.folder})" for model in models.values())
        _LOG.info("serving %s; cities: %s; %r", served, ", ".join(self._service.cities.names) or "none", self._access)

    async def _warm(self, models: Mapping[str, ServedModel]) -> None:
        """Every stage has loaded every model, and has drawn once, before this gateway is asked anything."""
        for model in models.values():
            await self._service.stages.forecast(model, _blank(model), Sampler(steps=1), 1, 0, time.time() + 600)

    async def _is_ready(self) -> bool:
        return self._ready

    def __serve_build_asgi_app__(self) -> Any:
        return guarded(build_api(self._service, self._is_ready), self._service, self._access, self._meters.observe)


def _blank(model: ServedModel) -> TrafficBatch:
    """A window in which half is known, to warm a model up."""
    t, c = model.window, model.services
    known = (torch.arange(t) < t // 2)[None, None, :, None].expand(1, c, t, 1)
    return TrafficBatch(
        traffic=known.float(),
        known=known,
        clock=torch.stack((torch.arange(t) % 24, torch.zeros(t, dtype=torch.int64)), dim=-1)[None],
        step_minutes=torch.tensor([60]),
        key=torch.zeros(1, dtype=torch.int64),
        context=_blank_context(model),
    )


def _blank_context(model: ServedModel) -> dict[str, torch.Tensor]:
    """What the gateway always tells a model of its contexts."""
    poi = {"poi": torch.zeros(1, len(model.poi_categories), 1)} if model.poi_categories else {}
    env = {"env": torch.full((1, 1, 1, model.env_features), torch.nan)} if "env" in model.contexts else {}
    return {**poi, **env}


def app(args: ServeArgs) -> serve.Application:
    """The application of a Serve config's `args`.

    ValueError where a checkpoint, the store or the token cannot be used, and on a cluster that others can reach and that asks for no token.
    """
    if ray.is_initialized():  # Serve builds a config's application on the cluster; without one it is only looked at
        refuse_open_cluster(ray.get_runtime_context().gcs_address, None)
    for name, folder in args.checkpoints.items():
        kind = served_model(name, folder).model
        if args.group_stations and registry.model(kind).on_grid:
            raise ValueError(f"group_stations: True with {name!r}, a {kind} model, expected False: it takes tiles of a grid")
    if args.store is not None:
        _check_store(args, args.store)
    read_token(args.token_file)
    stages = (
        _deployment("embedder", Embedder, cpus=0.1, ongoing=32).bind(args.cache_mib),
        _deployment("conditioner", Conditioner, cpus=0.5, ongoing=16).bind(),
        _deployment("sampler", SamplerStage, cpus=1.0, ongoing=32).bind(),
        # It stands still until it is asked for a decision: a fifth of a core is set aside, and a decision takes what it finds.
        _deployment("planner", PlannerStage, cpus=0.2, ongoing=1).options(max_queued_requests=8).bind(),
    )
    gateway = _deployment("gateway", serve.ingress()(Gateway), cpus=0.2, ongoing=2 * args.most_requests)
    # A request that was let in is answered before its gateway goes, also where new stages have yet to start.
    return gateway.options(graceful_shutdown_timeout_s=args.limits.timeout_s + 30).bind(args, *stages)


def _check_store(args: ServeArgs, folder: str) -> None:
    """ValueError, before anything is deployed, for a store that cannot be read, and where tiles are not made as they are in it."""
    cities = Cities(folder)
    assert cities.names is not None and cities.store is not None
    layout = cities.store.layout
    for name, ours, theirs in (("group_stations", args.group_stations, layout.group_stations), ("tile", args.tile, layout.tile)):
        if ours != theirs:
            raise ValueError(f"{name}: {ours}, expected {theirs} as {folder} was prepared")


def _deployment(name: str, kind: Any, cpus: float, ongoing: int) -> serve.Deployment:
    """What holds where a Serve config says nothing else: one replica each, all five on two CPU cores."""
    return serve.deployment(name=name, max_ongoing_requests=ongoing, ray_actor_options={"num_cpus": cpus})(kind)


def serve_checkpoints(config: ServeConfig) -> str:
    """Serves until it is interrupted; returns what was served.

    Raises ValueError where it would listen to other machines without a token.
    """
    if not is_loopback(config.host) and read_token(config.token_file) is None:
        raise ValueError(
            f"host: {config.host!r} without a token, expected 127.0.0.1, or a token: token_file, or the environment's "
            "RAYTRAFFIC_SERVE_TOKEN_FILE"
        )
    args = args_of(config)
    application = app(args)
    connect()
    serve.start(http_options={"host": config.host, "port": config.port, "request_timeout_s": args.limits.timeout_s + 30})
    serve.run(application, name="raytraffic", route_prefix="/", logging_config={"log_level": "WARNING"})
    print(f"raytraffic serves {', '.join(args.checkpoints)} at http://{config.host}:{config.port} (Ctrl-C ends it)", flush=True)
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        serve.shutdown()
    return f"served {', '.join(args.checkpoints)}"


def args_of(config: ServeConfig) -> ServeArgs:
    """The application's arguments, with tiles as those of the store where there is one; ValueError where it cannot be read."""
    names = dict(checkpoint.partition("=")[::2] for checkpoint in config.checkpoints)
    args = ServeArgs(checkpoints=names, store=config.store, token_file=config.token_file)
    if config.store is None:
        return args
    layout = open_store(config.store).layout
    return args.model_copy(update={"tile": layout.tile, "group_stations": layout.group_stations})
