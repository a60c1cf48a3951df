"""The service while it scales, loses replicas and a node, and is given another checkpoint: failed requests and time to recover.

python benchmarks/serve_faults.py [--clients 2] [--json figures.json]

Clients ask without a pause and, after a failure, once more (`--retries 1`); `<fault>_failed` counts requests that failed all the same,
`<fault>_first_failed` those that failed at first, `<fault>_gap_s` the longest time without a good answer while the fault was mended.
Autoscaling: `scaled_up_s` and `scaled_down_s`, from begin and end of the load to two running samplers and back to one, `scaling_failed`
requests over both, and `other_stages_replicas` at the most. The node is one of a cluster of two on this machine.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import ray
import requests
import tyro
from measure import write_figures
from ray import serve
from ray.cluster_utils import Cluster
from serving import APP, Answers, body_of, checkpoint, closed_loop, deployed, local_cluster, with_options

from raytraffic.on_ray.serve import ServeArgs, app

_STAGES = ("gateway", "embedder", "conditioner", "sampler")
_LIGHT = {name: {"ray_actor_options": {"num_cpus": 0.1}} for name in _STAGES}


def main(clients: int = 2, seconds: float = 20.0, preset: str = "tiny", json: Path | None = None, quick: bool = False) -> None:
    """Break the service under load.

    Args:
        clients: Clients that ask without a pause.
        seconds: Load before, and at least after, every fault.
        preset: The served model.
        json: Where the figures are written.
        quick: Short loads and the first fault alone: shows that it runs, measures nothing.
    """
    seconds = 2.0 if quick else seconds
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder, other = checkpoint(Path(name) / "model", preset), checkpoint(Path(name) / "next", preset, shift=1e-3)
        args = ServeArgs(checkpoints={"uomo": str(folder)}, most_wait_s=1e6, most_requests=1000)
        with local_cluster(cpus=4):
            with deployed(args, _LIGHT) as url:
                figures |= _broken("sampler_kill", url, clients, seconds, lambda: kill("sampler"))
                if not quick:
                    figures |= _broken("conditioner_kill", url, clients, seconds, lambda: kill("conditioner"))
                    figures |= _broken("gateway_kill", url, clients, seconds, lambda: kill("gateway"))
                    figures |= _broken("proxy_kill", url, clients, seconds, kill_proxy)
                    new = args.model_copy(update={"checkpoints": {"uomo": str(other)}})
                    figures |= _broken("redeploy", url, clients, seconds, lambda: serve.run(with_options(app(new), _LIGHT), name=APP))
            if not quick:
                figures |= autoscaling(args, clients, seconds)
        if not quick:
            figures |= node_death(args, clients, seconds)
    write_figures(figures, json)


@dataclass
class _Load:
    """Clients in a thread of their own."""

    url: str
    clients: int
    answers: Answers = field(default_factory=Answers)
    first: Answers = field(default_factory=Answers)


@contextmanager
def loaded(url: str, clients: int, stations: int = 16) -> Iterator[_Load]:
    """Load while the `with` lasts."""
    load = _Load(url, clients)
    loop = asyncio.new_event_loop()
    stop = asyncio.Event()

    def run() -> None:
        load.answers = loop.run_until_complete(closed_loop(url, body_of(stations), clients, 3600, retries=1, stop=stop, first=load.first))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield load
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(timeout=180)


def _broken(name: str, url: str, clients: int, seconds: float, fault: Callable[[], object]) -> dict[str, float]:
    """The figures of a fault under load; the load goes on until every deployment is healthy again."""
    with loaded(url, clients) as load:
        time.sleep(seconds)
        at = time.monotonic()
        fault()
        time.sleep(2)
        _until(lambda: _healthy() and _answers(url), 120)
        time.sleep(seconds)
    times = [at, *sorted(when for when, status in zip(load.answers.at, load.answers.status, strict=True) if status == 200 and when > at)]
    gaps = [late - early for early, late in pairwise(times)]
    print(name, {status: load.answers.status.count(status) for status in set(load.answers.status)}, flush=True)
    return {
        f"{name}_failed": float(sum(status != 200 for status in load.answers.status)),
        f"{name}_first_failed": float(sum(status != 200 for status in load.first.status)),
        f"{name}_requests": float(len(load.answers.status)),
        f"{name}_gap_s": max(gaps),
    }


def autoscaling(args: ServeArgs, clients: int, seconds: float) -> dict[str, float]:
    """The sampler between one and two replicas, as the load says."""
    scaling = {"min_replicas": 1, "max_replicas": 2, "target_ongoing_requests": 2, "upscale_delay_s": 2, "downscale_delay_s": 5}
    overrides = _LIGHT | {"sampler": {"ray_actor_options": {"num_cpus": 0.1}, "autoscaling_config": scaling, "num_replicas": None}}
    others = 1
    with deployed(args, overrides) as url:
        began = time.monotonic()
        with loaded(url, 4 * clients, stations=64) as load:
            _until(lambda: _replicas()["sampler"] == 2, 120)
            up = time.monotonic() - began
            others = max(count for stage, count in _replicas().items() if stage != "sampler")
            time.sleep(seconds)
        ended = time.monotonic()
        with loaded(url, 1, stations=1) as quiet:
            _until(lambda: _replicas()["sampler"] == 1, 120)
            down = time.monotonic() - ended
            time.sleep(2)
    failed = sum(status != 200 for status in (*load.answers.status, *quiet.answers.status))
    return {
        "scaled_up_s": up,
        "scaled_down_s": down,
        "scaling_failed": float(failed),
        "scaling_requests": float(len(load.answers.status) + len(quiet.answers.status)),
        "other_stages_replicas": float(others),
    }


def node_death(args: ServeArgs, clients: int, seconds: float) -> dict[str, float]:
    """Two nodes with a sampler each; the one without the proxy dies and another one joins."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 4, "include_dashboard": False})
    node = cluster.add_node(num_cpus=4)
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    try:
        spread = {name: {**options, "num_replicas": 2, "max_replicas_per_node": 1} for name, options in _LIGHT.items()}
        with deployed(args, spread) as url:

            def fault() -> None:
                cluster.remove_node(node, allow_graceful=False)
                cluster.add_node(num_cpus=4)

            return _broken("node_kill", url, clients, seconds, fault)
    finally:
        ray.shutdown()
        cluster.shutdown()


def kill(deployment: str) -> None:
    """Kills a replica as a crash would."""
    ray.kill(_actor(f"#{deployment}#"), no_restart=True)


def kill_proxy() -> None:
    """Kills the HTTP proxy."""
    ray.kill(_actor("SERVE_PROXY_ACTOR"), no_restart=False)


def _actor(part: str) -> Any:
    names = sorted(actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True) if part in actor["name"])
    return ray.get_actor(names[0], namespace="serve")


def _replicas() -> dict[str, int]:
    """Running replicas a deployment."""
    found = serve.status().applications[APP].deployments
    return {name: int(details.replica_states.get("RUNNING", 0)) for name, details in found.items()}


def _healthy() -> bool:
    application = serve.status().applications.get(APP)
    return application is not None and application.status == "RUNNING" and min(_replicas().values()) >= 1


def _answers(url: str) -> bool:
    """Whether the application can be reached."""
    try:
        return requests.get(f"{url}/v2/health/ready", timeout=5).status_code == 200
    except requests.RequestException:
        return False


def _until(condition: Callable[[], bool], seconds: float) -> None:
    """Waits for the condition; TimeoutError when it does not come true in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"after {seconds} s: {serve.status()}")
        time.sleep(0.25)


if __name__ == "__main__":
    tyro.cli(main)
