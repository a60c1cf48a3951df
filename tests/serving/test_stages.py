"""Jobs that are drawn together have the bits they have alone, and the three stages behind Serve handles those of the whole forecaster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import ReplicaContext
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import ReplicaRank
from torch import Tensor, nn

from raytraffic.checkpoint import load_forecaster
from raytraffic.diffusion.samplers import Sampler
from raytraffic.forecaster import Forecaster
from raytraffic.masks import GENERATION, LONG, SHORT, mask
from raytraffic.on_ray.serve import _RemoteStages
from raytraffic.on_ray.stages import Conditioner, Embedder, Job, SamplerStage, draw_or_fail, draw_together
from raytraffic.serving.models import ServedModel
from raytraffic.serving.service import Expired
from raytraffic.types import Condition, Forecast, TrafficBatch
from tests.batches import seasonal_batch
from tests.serving.local_stages import POI, SAMPLER, WINDOW, small_model, until

LATER = 1e12


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> ServedModel:
    """A small model."""
    return small_model(tmp_path_factory.mktemp("stages") / "model")


@pytest.fixture(scope="module")
def forecaster(served: ServedModel) -> Forecaster:
    """It, loaded."""
    return load_forecaster(served.folder)[0].eval()


def windows(count: int, seed: int = 0) -> TrafficBatch:
    """Windows to forecast, of several tasks."""
    batch = seasonal_batch(count, t=WINDOW, seed=seed, poi=len(POI))
    return mask(replace(batch, key=batch.key + 1000 * seed), [SHORT, LONG, GENERATION][seed % 3])


def job(forecaster: Forecaster, count: int, draws: int, seed: int, sampler: Sampler = SAMPLER, until: float = LATER) -> Job:
    """`draws` draws of `count` windows."""
    batch = windows(count, seed)
    with torch.no_grad():
        condition = forecaster.condition(forecaster.embed(batch), guided=sampler.guidance != 1)
    return Job("key", batch, condition, sampler, draws, seed, until)


def alone(forecaster: Forecaster, one: Job) -> Tensor:
    """The draws of a job by itself."""
    return forecaster.draw(one.batch, one.condition, one.sampler, one.draws, one.seed).draws.nan_to_num(-1)


def same(forecast: Forecast | None, draws: Tensor) -> bool:
    """Bit for bit."""
    return forecast is not None and torch.equal(forecast.draws.nan_to_num(-1), draws)


class Counting(nn.Module):
    """A denoiser that counts its calls and then tells someone."""

    def __init__(self, denoiser: nn.Module, then: Any = None) -> None:
        super().__init__()
        self.denoiser, self.then, self.calls = denoiser, then, 0

    def forward(self, *arguments: Any) -> Tensor:
        self.calls += 1
        if self.then is not None:
            self.then(self.calls)
        return self.denoiser(*arguments)


@pytest.fixture
def counting(forecaster: Forecaster) -> Iterator[Counting]:
    """The forecaster's denoiser, counting."""
    counted = Counting(forecaster.denoiser)
    with instead(forecaster, counted):
        yield counted


@contextmanager
def instead(forecaster: Forecaster, denoiser: nn.Module) -> Iterator[None]:
    """The forecaster with another denoiser."""
    own = forecaster.denoiser
    forecaster.denoiser = denoiser
    try:
        yield
    finally:
        forecaster.denoiser = own


#: Windows, draws, seed of each job.
TOGETHER = [
    [(1, 1, 1)],
    [(1, 1, 1), (1, 1, 2)],
    [(3, 2, 1), (1, 5, 2), (2, 3, 3)],
    [(4, 4, 1), (1, 1, 2), (1, 20, 3), (2, 1, 4)],
]


@pytest.mark.parametrize("shapes", TOGETHER, ids=len)
@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_together_each_job_has_the_bits_it_has_alone(forecaster: Forecaster, shapes: list[tuple[int, int, int]], guidance: float) -> None:
    sampler = replace(SAMPLER, guidance=guidance)
    jobs = [job(forecaster, *shape, sampler=sampler) for shape in shapes]
    for one, together in zip(jobs, draw_together(forecaster, jobs, "cpu"), strict=True):
        assert same(together, alone(forecaster, one))
        assert together is not None and together.draws.shape == (len(one.batch.key), one.draws, *one.batch.shape[1:])
    for one, together in zip(reversed(jobs), draw_together(forecaster, jobs[::-1], "cpu"), strict=True):
        assert same(together, alone(forecaster, one))


def test_calls_are_shared(forecaster: Forecaster, counting: Counting) -> None:
    draw_together(forecaster, [job(forecaster, 1, 2, seed) for seed in range(4)], "cpu")
    assert counting.calls == SAMPLER.steps  # 8 rows, one call a step


def test_who_is_gone_is_not_drawn_and_disturbs_no_one(forecaster: Forecaster, counting: Counting) -> None:
    jobs = [job(forecaster, count, draws, seed) for count, draws, seed in ((2, 8, 1), (1, 3, 2), (2, 8, 3), (1, 6, 4))]
    expected = [alone(forecaster, one) for one in jobs]
    jobs[0].gone = True
    jobs[2].deadline = time.time() - 1
    counting.calls = 0
    drawn = draw_together(forecaster, jobs, "cpu")
    assert drawn[0] is None and drawn[2] is None and same(drawn[1], expected[1]) and same(drawn[3], expected[3])
    # 41 rows are blocks of 8: 0 1 | 1.. of them 0 and 1 hold job 0 alone, 3 job 2 alone; those of jobs 1 and 3 remain.
    assert counting.calls == SAMPLER.steps * len({row // 8 for row in (*range(16, 19), *range(35, 41))})
    assert draw_together(forecaster, [jobs[0], jobs[2]], "cpu") == [None, None]
    assert counting.calls == SAMPLER.steps * 3


def test_who_leaves_meanwhile_is_left_within_a_step(forecaster: Forecaster, counting: Counting) -> None:
    jobs = [job(forecaster, 4, 4, 1), job(forecaster, 1, 8, 2)]
    expected = alone(forecaster, jobs[1])
    counting.calls = 0

    def leave(calls: int) -> None:
        jobs[0].gone = jobs[0].gone or calls == SAMPLER.steps + 1  # in the first step of its second block

    counting.then = leave
    drawn = draw_together(forecaster, jobs, "cpu")
    assert drawn[0] is None and same(drawn[1], expected)
    assert counting.calls == SAMPLER.steps + 1 + SAMPLER.steps


def test_the_deadline_ends_a_draw_within_a_step(forecaster: Forecaster, counting: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    one = job(forecaster, 1, 8, 1, sampler=replace(SAMPLER, steps=50), until=time.time() + 3600)
    counting.then = lambda calls: calls == 3 and monkeypatch.setattr(one, "deadline", 0.0)
    assert draw_together(forecaster, [one], "cpu") == [None]
    assert counting.calls == 3


class Poisoned(nn.Module):
    """A denoiser that fails at a condition of NaN."""

    def __init__(self, denoiser: nn.Module) -> None:
        super().__init__()
        self.denoiser = denoiser

    def forward(self, x: Tensor, level: Tensor, condition: Condition) -> Tensor:
        assert condition.tokens is not None
        if condition.tokens.isnan().any():
            raise ZeroDivisionError("a poisoned condition")
        return self.denoiser(x, level, condition)


@pytest.mark.parametrize("bad", [(0,), (3,), (1, 4), (0, 1, 2, 3, 4)])
def test_a_job_that_fails_fails_alone(forecaster: Forecaster, bad: tuple[int, ...]) -> None:
    """Five jobs share calls of the network; a call with a poisoned row fails."""
    jobs = [job(forecaster, 1, draws, seed) for seed, draws in enumerate((1, 2, 1, 3, 2))]
    expected = [alone(forecaster, one) for one in jobs]
    for i in bad:
        jobs[i].condition = replace(jobs[i].condition, tokens=torch.full_like(jobs[i].condition.tokens, torch.nan))  # type: ignore[arg-type]
    with instead(forecaster, Poisoned(forecaster.denoiser)):
        answers = draw_or_fail(forecaster, jobs, "cpu")
    for i, (answer, draws) in enumerate(zip(answers, expected, strict=True)):
        assert isinstance(answer, ZeroDivisionError) if i in bad else isinstance(answer, Forecast) and same(answer, draws)


def test_only_one_kind_shares_calls(forecaster: Forecaster) -> None:
    one = job(forecaster, 1, 1, 1)
    space = replace(one.batch.space, xy=None)
    context = {name: value for name, value in one.batch.context.items() if name != "users"}
    guided = replace(one, condition=replace(one.condition, free=one.condition))
    short = seasonal_batch(1, t=8, poi=len(POI))
    env = torch.zeros(1, WINDOW, 16, 4)  # of a station, and of a user who moves
    others = [
        replace(one, key="other"),
        replace(one, sampler=replace(SAMPLER, steps=2)),
        replace(one, batch=replace(one.batch, space=space)),
        replace(one, batch=replace(one.batch, context=context)),
        replace(one, batch=short),
        replace(one, batch=replace(one.batch, context={**one.batch.context, "env": env[:, :1]})),
        replace(one, batch=replace(one.batch, context={**one.batch.context, "env": env})),
        replace(one, condition=replace(one.condition, vector=env[:, :1])),
        replace(one, condition=replace(one.condition, vector=env)),
        guided,
    ]
    kinds = [one.kind(), *(other.kind() for other in others)]
    assert len(set(kinds)) == len(kinds)
    assert replace(one, draws=7, seed=9, deadline=0.0, gone=True).kind() == one.kind()


class Probe:
    """A deployment that asks the stages as the gateway does."""

    def __init__(self, embedder: DeploymentHandle, conditioner: DeploymentHandle, sampler: DeploymentHandle) -> None:
        self.stages = _RemoteStages(embedder, conditioner, sampler)

    async def __call__(
        self, model: ServedModel, batch: TrafficBatch, sampler: Sampler, draws: int, seed: int, deadline: float
    ) -> Forecast | None:
        """None where the deadline passed."""
        try:
            return await self.stages.forecast(model, batch, sampler, draws, seed, deadline)
        except Expired:
            return None


@pytest.fixture(scope="module")
def probe() -> Iterator[DeploymentHandle]:
    """The stages in this process, without a cluster: Serve's local testing mode, with the context that its multiplexing asks for."""
    before = ray.is_initialized()  # by tests of clusters in the same process
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray, "init", lambda *_, **__: pytest.fail("a cluster was started"))
        patch.setattr(serve.context, "_INTERNAL_REPLICA_CONTEXT", _context())
        patch.setattr(serve.multiplex._ModelMultiplexWrapper, "_push_model_ids_info", lambda _: None)
        stages = [
            serve.deployment(kind).bind(*arguments) for kind, arguments in ((Embedder, (1.0,)), (Conditioner, ()), (SamplerStage, ()))
        ]
        yield serve.run(serve.deployment(Probe).bind(*stages), _local_testing_mode=True)
        assert ray.is_initialized() == before


def _context() -> ReplicaContext:
    return ReplicaContext(
        replica_id=ReplicaID("local", DeploymentID("stages", "local")),
        servable_object=None,
        _deployment_config=DeploymentConfig(),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )


@pytest.mark.parametrize(("count", "draws", "seed", "guidance"), [(1, 1, 1, 1.0), (3, 4, 2, 1.0), (16, 40, 3, 1.0), (2, 3, 4, 2.0)])
def test_staged_is_whole_is_served(
    probe: DeploymentHandle, forecaster: Forecaster, served: ServedModel, count: int, draws: int, seed: int, guidance: float
) -> None:
    """640 rows are more than wait together; they are drawn all the same."""
    batch, sampler = windows(count, seed), replace(SAMPLER, guidance=guidance)
    whole = forecaster.forecast(batch, sampler, draws, seed).draws.nan_to_num(-1)
    embedded = forecaster.embed(batch)
    with torch.no_grad():
        condition = forecaster.condition(embedded, guided=guidance != 1)
    assert torch.equal(forecaster.draw(embedded, condition, sampler, draws, seed).draws.nan_to_num(-1), whole)
    assert same(probe.remote(served, batch, sampler, draws, seed, time.time() + 600).result(timeout_s=60), whole)


def test_what_a_site_is_among_its_neighbours_is_served_as_in_the_whole(probe: DeploymentHandle, tmp_path: Path) -> None:
    """The same POI at other places is another embedding, also from the cache."""
    graph = small_model(tmp_path / "graph", model="stouter")
    whole = load_forecaster(graph.folder)[0].eval()
    batch = windows(3)
    assert batch.space.xy is not None
    apart, nowhere = batch.space.xy * torch.tensor([1.0, 40.0]), torch.full_like(batch.space.xy, torch.nan)
    batches = [replace(batch, space=replace(batch.space, xy=xy)) for xy in (batch.space.xy, apart, nowhere, None, batch.space.xy)]
    envs = [whole.embed(one).context["env"] for one in batches]
    assert not torch.equal(envs[0], envs[1]) and not torch.equal(envs[0], envs[2])
    for one in batches:
        answer = probe.remote(graph, one, SAMPLER, 2, 7, time.time() + 600).result(timeout_s=60)
        assert same(answer, whole.forecast(one, SAMPLER, 2, 7).draws.nan_to_num(-1))


def test_calls_at_a_time_are_served_as_alone(probe: DeploymentHandle, forecaster: Forecaster, served: ServedModel) -> None:
    asked = [(windows(1 + seed % 3, seed), 1 + seed, seed) for seed in range(8)]
    answers = [probe.remote(served, batch, SAMPLER, draws, seed, time.time() + 600) for batch, draws, seed in asked]
    for (batch, draws, seed), answer in zip(asked, answers, strict=True):
        assert same(answer.result(timeout_s=60), forecaster.forecast(batch, SAMPLER, draws, seed).draws.nan_to_num(-1))


def test_of_calls_at_a_time_only_the_one_at_fault_fails(probe: DeploymentHandle, forecaster: Forecaster, served: ServedModel) -> None:
    """The sampler stumbles upon a key of another type, the embedder upon a category too many; the first call keeps the others waiting."""
    asked = [(windows(2, seed), 60 if seed == 0 else 1 + seed, seed) for seed in range(7)]
    asked[3] = (replace(asked[3][0], key=asked[3][0].key.float()), *asked[3][1:])
    poi = asked[5][0].context["poi"]
    asked[5] = (replace(asked[5][0], context={**asked[5][0].context, "poi": torch.cat((poi, poi), dim=1)}), *asked[5][1:])
    answers = [probe.remote(served, batch, SAMPLER, draws, seed, time.time() + 600) for batch, draws, seed in asked]
    for i, ((batch, draws, seed), answer) in enumerate(zip(asked, answers, strict=True)):
        if i in (3, 5):
            with pytest.raises(RuntimeError):
                answer.result(timeout_s=60)
        else:
            assert same(answer.result(timeout_s=60), forecaster.forecast(batch, SAMPLER, draws, seed).draws.nan_to_num(-1))


def test_a_call_that_is_cancelled_is_drawn_no_further(
    probe: DeploymentHandle, served: ServedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    draw_rows = Forecaster.draw_rows

    def watched(*arguments: Any) -> Tensor:
        def stop() -> bool:
            asked.append(arguments[-1]())
            return asked[-1]

        return draw_rows(*arguments[:-1], stop)

    monkeypatch.setattr(Forecaster, "draw_rows", watched)
    answer = probe.remote(served, windows(16), replace(SAMPLER, steps=100), 200, 0, time.time() + 600)
    until(lambda: len(asked) > 2)
    answer.cancel()
    until(lambda: asked[-1])
    assert len(asked) < 16 * 200 // SAMPLER.rows * 100 / 4


def test_past_the_deadline_nothing_is_served(probe: DeploymentHandle, served: ServedModel) -> None:
    assert probe.remote(served, windows(1), SAMPLER, 1, 0, time.time() - 1).result(timeout_s=60) is None


def test_a_replaced_checkpoint_is_named(probe: DeploymentHandle, served: ServedModel, tmp_path: Path) -> None:
    before = small_model(tmp_path / "model", seed=1)
    small_model(tmp_path / "model", seed=2)
    with pytest.raises(Exception, match=rf"version [0-9a-f]+, expected {before.version}; it was replaced while it was served"):
        probe.remote(before, windows(1), SAMPLER, 1, 0, time.time() + 600).result(timeout_s=60)
