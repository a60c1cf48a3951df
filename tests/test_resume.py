"""Saving and restoring a run: exact in one process, and from any sharding to any other over two real processes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

from raytraffic import registry
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, step
from raytraffic.masks import SHORT, mask
from raytraffic.resume import full_weights, newest, prune, restore, save
from tests.batches import seasonal_batch

SETTINGS = Optimisation(learning_rate=1e-3, warmup=2, steps=6)


def build() -> tuple[nn.Module, torch.optim.Optimizer, Ema]:
    torch.manual_seed(0)
    model = registry.build("uomo", "tiny")
    return model, optimiser(model, SETTINGS), Ema(model.named_parameters(), SETTINGS.ema)


def advance(called: nn.Module, model: nn.Module, adam: torch.optim.Optimizer, ema: Ema, begin: int, end: int, share: slice) -> None:
    batch = mask(seasonal_batch(4), SHORT).select(share)
    for done in range(begin, end):
        step(called, batch, batch.key + done, adam, done, SETTINGS)
        ema.update(model.named_parameters(), done + 1)


def everything(model: nn.Module, ema: Ema) -> dict[str, torch.Tensor]:
    own = full_weights(dict(model.named_parameters()))
    return own | {f"ema.{name}": value for name, value in full_weights(ema.weights).items()}


def test_going_on_is_exact(tmp_path: Path) -> None:
    model, adam, ema = build()
    advance(model, model, adam, ema, 0, 3, slice(None))
    save(Location.of(tmp_path), model, adam, ema, 3, {"best_loss": 0.5}, write=True)
    advance(model, model, adam, ema, 3, 6, slice(None))
    uninterrupted = everything(model, ema)

    model, adam, ema = build()
    found = newest(Location.of(tmp_path))
    assert found is not None
    assert restore(found, model, adam, ema) == {"done": 3, "best_loss": 0.5}
    advance(model, model, adam, ema, 3, 6, slice(None))
    for name, value in everything(model, ema).items():
        assert torch.equal(value, uninterrupted[name]), name


def _worker(rank: int, shard: str, folder: str, port: int) -> None:
    """Goes on from step 3 on two ranks, saves step 6, and writes what it holds."""
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.manual_seed(0)
    model: nn.Module = registry.build("uomo", "tiny")
    if shard == "fsdp":
        from torch.distributed.fsdp import fully_shard

        called = fully_shard(model, reshard_after_forward=True)
    else:
        called = nn.parallel.DistributedDataParallel(model)
    adam = optimiser(model, SETTINGS)
    ema = Ema(model.named_parameters(), SETTINGS.ema)
    found = newest(Location.of(folder))
    assert found is not None
    restore(found, model, adam, ema)
    advance(called, model, adam, ema, 3, 6, slice(2 * rank, 2 * rank + 2))
    with ema.applied(model):
        model(mask(seasonal_batch(4), SHORT).select(slice(0, 2)), torch.arange(2))
    save(Location.of(folder), model, adam, ema, 6, {}, write=rank == 0)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_workers_go_on_where_one_stopped(tmp_path: Path, shard: str) -> None:
    model, adam, ema = build()
    advance(model, model, adam, ema, 0, 3, slice(None))
    save(Location.of(tmp_path), model, adam, ema, 3, {}, write=True)
    advance(model, model, adam, ema, 3, 6, slice(None))
    alone = everything(model, ema)
    mp.spawn(_worker, args=(shard, str(tmp_path), 20000 + os.getpid() % 20000), nprocs=2)

    model, adam, ema = build()
    found = newest(Location.of(tmp_path))
    assert found is not None
    assert found.name == "step-00000006"
    restore(found, model, adam, ema)
    for name, value in everything(model, ema).items():
        # Sums over two halves of a batch round differently; Adam's first steps amplify that in near-zero gradients.
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=2e-5, msg=name)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    model, adam, ema = build()
    folder = Location.of(tmp_path)
    for done in (1, 2, 3, 4):
        save(folder, model, adam, ema, done, {}, write=True)
    (tmp_path / "step-00000005").mkdir()  # interrupted: no marker
    prune(folder, keep=2, best=1)
    assert [child.name for child in folder.list()] == ["step-00000001", "step-00000003", "step-00000004", "step-00000005"]
    found = newest(folder)
    assert found is not None
    assert found.name == "step-00000004"
