"""Describing by a vision model inside `raytraffic embed`: every image is asked about once, whatever fails, is run again or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from raytraffic.config.environment import EmbedConfig, EndpointConfig, ScenesConfig
from raytraffic.environment.chat import KEY, MODEL, URL
from raytraffic.environment.embeddings import EmbeddingStore
from raytraffic.environment.encoder import ImageTextEncoder
from raytraffic.environment.limits import Spent
from raytraffic.environment.places import open_tiles, read_places
from raytraffic.on_ray.embed import embed
from tests.environment.test_encoder import mini
from tests.environment.vision_server import COMPLETION_TOKENS, PROMPT_TOKENS, completion, fails, send, shown_image, vision_server
from tests.ray.conftest import CLUSTER
from tests.ray.test_train import REPOSITORY, started_by

WEST = "synthetic:west?grid=3x3&seed=2"
SITES = 9
SECRET = "sk-test-0123456789abcdef"
#: A million tokens cost so much; the limits are far away.
ENDPOINT = EndpointConfig(requests_per_minute=1e6, tokens_per_minute=1e9, concurrency=2, prompt_price=2.5, completion_price=10.0)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    mini().save(folder)
    return str(folder)


def settings(folder: Path, encoder: str) -> EmbedConfig:
    scenes = ScenesConfig(sites=(WEST,), pixels=16, describer="endpoint", cache=str(folder / "cache"), endpoint=ENDPOINT)
    return EmbedConfig(encoder=encoder, out=str(folder / "out"), scenes=scenes, batch=4, sites_per_shard=6, workers=1)


def seen(image: Any) -> str:
    """What the model of these tests keeps to say of an image: it differs from image to image."""
    return f"Around the tower of {int(image.astype(np.int64).sum())} lie fields."


def describes(handler: Any, body: dict[str, Any]) -> None:
    """A true sentence between two that refinement drops: a mood, and a lake that no synthetic cell is full of."""
    text = f"Overall, it is lively. {seen(shown_image(body))} About 95% of the image is water."
    send(handler, 200, completion(text))


def told(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out" / "summary.json").read_bytes()))


def spent(requests: int, answers: int) -> dict[str, float]:
    """The account of requests of which some were answered."""
    cost = answers * (2.5 * PROMPT_TOKENS + 10.0 * COMPLETION_TOKENS) / 1e6
    return asdict(
        Spent(
            requests=requests,
            prompt_tokens=answers * PROMPT_TOKENS,
            completion_tokens=answers * COMPLETION_TOKENS,
            cost=pytest.approx(cost),
            possible_cost=0.0,
        )
    )


@pytest.mark.slow
def test_answers_are_refined_embedded_kept_and_paid_for_once(
    cluster: None, tmp_path: Path, encoder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path, encoder)
    monkeypatch.setenv(MODEL, "gpt-4o")
    with vision_server(fails(429, Retry_After="0.1"), fails(500), otherwise=describes) as server:
        monkeypatch.setenv(URL, server.url)
        embed(config)
        assert len(server.bodies) == SITES + 2 and {body["model"] for body in server.bodies} == {"gpt-4o"}
        first = told(tmp_path)
        assert (first["sites"], first["computed"], first["failed"]) == (SITES, SITES, 0)
        assert first["spent"] == first["spent_in_all"] == spent(SITES + 2, SITES)

        embed(config)
        assert len(server.bodies) == SITES + 2
    again = told(tmp_path)
    assert (again["sites"], again["computed"], again["spent"], again["spent_in_all"]) == (SITES, 0, spent(0, 0), first["spent"])

    tiles = open_tiles(config.scenes)
    places = read_places(config.scenes)
    images = [tiles.image(place.longitude, place.latitude, metres=500.0, pixels=16) for place in places]
    _, texts = EmbeddingStore.open(str(tmp_path / "out")).read_both([place.site for place in places])
    assert np.allclose(texts, ImageTextEncoder.load(encoder).texts([seen(image) for image in images]).numpy(), atol=1e-6)
    audit = pd.concat(pd.read_parquet(file) for file in (tmp_path / "out" / "audit").iterdir())
    reasons = Counter(zip(audit["sentence"], audit["decision"], audit["reason"], strict=True))
    assert reasons == {(0, "drop", "mood"): SITES, (1, "keep", ""): SITES, (2, "drop", "image share"): SITES}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="finds the processes it started through /proc")
def test_a_killed_job_asks_only_for_what_is_missing(
    cluster: None, tmp_path: Path, encoder: str, short_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model answers four times and then not before the job is dead. The key goes from the shell to the model and nowhere else."""
    config, own = settings(tmp_path, encoder), f"{short_folder}/vision"
    answered: Counter[bytes] = Counter()
    turn, dead = threading.Lock(), threading.Event()

    def stalls(handler: Any, body: dict[str, Any]) -> None:
        image = shown_image(body).tobytes()
        with turn:
            go = dead.is_set() or len(answered) < 4
            answered[image] += go
        if go:
            describes(handler, body)
        else:
            dead.wait(600)
            handler.close_connection = True

    with vision_server(otherwise=stalls) as server, (tmp_path / "log").open("wb") as log:
        named = {URL: server.url, MODEL: "gpt-4o"}
        environment = {**os.environ, **CLUSTER, **named, KEY: SECRET, "RAY_TMPDIR": own, "OMP_NUM_THREADS": "1"}
        environment.pop("RAY_ADDRESS", None)
        job = subprocess.Popen(_command(config), cwd=REPOSITORY, env=environment, stdout=log, stderr=log, start_new_session=True)
        deadline = time.monotonic() + 300
        try:
            while len(list((tmp_path / "cache").rglob("descriptions/??/*.json"))) < 4 or len(server.bodies) < 6:
                assert job.poll() is None and time.monotonic() < deadline, (tmp_path / "log").read_text()
                time.sleep(0.05)
        finally:
            os.killpg(job.pid, signal.SIGKILL)
            job.wait()
            for child in started_by(own):
                os.kill(child, signal.SIGKILL)
        dead.set()
        assert not (tmp_path / "out" / "summary.json").exists()
        assert {headers["Authorization"] for headers in server.headers} == {f"Bearer {SECRET}"}
        before = len(server.bodies)

        for name, value in named.items():
            monkeypatch.setenv(name, value)
        embed(config)
        assert len(server.bodies) - before == SITES - 4
        last = told(tmp_path)
        embed(replace(config, out=str(tmp_path / "other")))  # looks at every site, and finds every answer
        assert len(server.bodies) - before == SITES - 4
    assert len(answered) == SITES and set(answered.values()) == {1}
    assert (last["sites"], last["failed"]) == (SITES, 0)
    assert (last["spent"], last["spent_in_all"]) == (spent(SITES - 4, SITES - 4), spent(SITES, SITES))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]


def _command(config: EmbedConfig) -> list[str]:
    """The settings as a command line."""
    scenes = {
        "sites": WEST,
        "pixels": "16",
        "describer": "endpoint",
        "cache": config.scenes.cache,
        "endpoint.requests-per-minute": str(ENDPOINT.requests_per_minute),
        "endpoint.tokens-per-minute": str(ENDPOINT.tokens_per_minute),
        "endpoint.concurrency": str(ENDPOINT.concurrency),
        "endpoint.prompt-price": str(ENDPOINT.prompt_price),
        "endpoint.completion-price": str(ENDPOINT.completion_price),
    }
    options = [word for name, value in scenes.items() for word in (f"--scenes.{name}", str(value))]
    rest = ["--encoder", config.encoder, "--out", config.out, "--batch", "4", "--sites-per-shard", "6", "--workers", "1"]
    return [sys.executable, "-m", "raytraffic.cli", "embed", *rest, *options]
