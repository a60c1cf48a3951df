"""What every size of the family takes: building, one training step, a checkpoint round trip; on a GPU, tokens a second and MFU.

python benchmarks/sizes.py --json figures.json [--quick]
python benchmarks/sizes.py --json figures.json --device cuda
"""

from __future__ import annotations

import os
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from measure import PeakMemory, in_fresh_process, synthetic_store, write_figures

from raytraffic import registry
from raytraffic.checkpoint import load_forecaster, save_forecaster
from raytraffic.cost import peak_flops
from raytraffic.fit import Optimisation, optimiser, step
from raytraffic.forecaster import Forecaster
from raytraffic.masks import GENERATION, LONG, RANDOM, SHORT, mixture
from raytraffic.models.uomo import UomoConfig
from raytraffic.nn.transformer import AdaLNBlock
from raytraffic.store import open_store
from raytraffic.types import TrafficBatch
from raytraffic.windows import windows_for

_TASKS = (SHORT, LONG, GENERATION, RANDOM)
_ON_CPU = ("5m", "10m", "20m", "35m", "45m", "60m", "100m", "150m", "200m")
_ON_GPU = ("5m", "35m", "100m", "200m")
_CPU_BATCH = 2
#: A batch is doubled as long as that trains so much faster.
_GAIN = 1.03
_WARM_UP, _TIMED = 3, 10
_ONE_STEP = Optimisation(learning_rate=1e-4, warmup=0)


def main(
    json: Path | None = None,
    quick: bool = False,
    device: Literal["cpu", "cuda"] = "cpu",
    presets: tuple[str, ...] = (),
    largest_batch: int = 4096,
) -> None:
    """Measure every size in a process of its own, without Ray.

    Args:
        json: Where the figures are written.
        quick: Two models below 5m: shows that it runs, measures nothing.
        device: Where the step is taken; a GPU is timed in bfloat16, as it is and with compiled blocks, at the batch that trains fastest.
        presets: Other sizes than those measured by default (all of the family; four on a GPU).
        largest_batch: The greatest batch that is tried on a GPU.
    """
    chosen = ("w16", "w32") if quick else presets or (_ON_CPU if device == "cpu" else _ON_GPU)
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        synthetic_store(folder / "store", (8, 8), days=7)
        for preset in chosen:
            if device == "cpu":
                found = in_fresh_process(one_of_everything, folder, preset)
            else:
                found = in_fresh_process(throughput, folder, preset, False, (16, largest_batch))
                batch = int(found["batch"])
                compiled = in_fresh_process(throughput, folder, preset, True, (batch, largest_batch))
                found |= {f"compiled_{key}": value for key, value in compiled.items()}
            figures |= {f"{preset}_{key}": value for key, value in found.items()}
            print(f"{preset} done", flush=True)
    write_figures(figures, json)


def one_of_everything(folder: Path, preset: str) -> dict[str, float]:
    """Builds a model, takes one training step and one checkpoint round trip: seconds, and the process's most memory meanwhile."""
    torch.set_num_threads(1)
    config = _config(preset)
    batch = _batch(folder / "store", config, _CPU_BATCH)
    _first_step(folder)
    cost = registry.model("uomo").cost(config, (4, 4), 0.5)
    figures = {"parameters": float(cost.parameters), "training_gflops": cost.training_flops / 1e9}
    with _measured("build", figures):
        torch.manual_seed(0)
        model = registry.model("uomo").build(config).train()
    assert sum(parameter.numel() for parameter in model.parameters()) == cost.parameters
    with _measured("step", figures):
        adam = optimiser(model, _ONE_STEP)
        figures["loss"] = step(model, batch, torch.arange(_CPU_BATCH), adam, 0, _ONE_STEP)["loss"]
    del adam  # a checkpoint of a run holds it too; this one is of the model
    with _measured("checkpoint", figures):
        save_forecaster(folder / preset, model.state_dict(), "uomo", config, {})
        again = load_forecaster(folder / preset)[0]
    weights = again.state_dict()
    different = [name for name, value in model.state_dict().items() if not torch.equal(value, weights[name])]
    if different:
        raise ValueError(f"{preset}: {different} differ after a checkpoint round trip, expected equal weights")
    return figures


def _first_step(folder: Path) -> None:
    """A step of a small model: the first one of a process loads what no later one waits for."""
    config = _config("w16")
    model = registry.model("uomo").build(config).train()
    step(model, _batch(folder / "store", config, _CPU_BATCH), torch.arange(_CPU_BATCH), optimiser(model, _ONE_STEP), 0, _ONE_STEP)


def throughput(folder: Path, preset: str, compiled: bool, batches: tuple[int, int]) -> dict[str, float]:
    """Tokens a second, MFU and memory of training in bfloat16 on the GPU, at the batch between two, doubled from the first while that
    trains faster and fits, that trains fastest; MFU counts the operations of the network alone."""
    config = _config(preset)
    model = registry.model("uomo").build(config).train().cuda()
    if compiled:
        for module in model.modules():
            if isinstance(module, AdaLNBlock):
                module.compile(dynamic=False)
    best: dict[str, float] = {}
    size, largest = batches
    while size <= largest:
        try:
            found = _timed(model, config, _batch(folder / "store", config, size).to("cuda"))
        except torch.cuda.OutOfMemoryError:
            break
        faster = not best or found["tokens_per_second"] > _GAIN * best["tokens_per_second"]
        if not best or found["tokens_per_second"] > best["tokens_per_second"]:
            best = found
        if not faster:
            break
        size *= 2
    if not best:
        raise RuntimeError(f"{preset}: {batches[0]} windows do not fit into the GPU's memory, expected that they do")
    return best


def _timed(model: Forecaster, config: UomoConfig, batch: TrafficBatch) -> dict[str, float]:
    """The median training step of a batch."""
    adam, seeds = optimiser(model, _ONE_STEP), torch.arange(len(batch.key), device=batch.key.device)
    torch.cuda.reset_peak_memory_stats()
    seconds = []
    for done in range(_WARM_UP + _TIMED):
        torch.cuda.synchronize()
        before = time.perf_counter()
        step(model, batch, seeds, adam, done, _ONE_STEP, mixed_precision=True)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - before)
    median = statistics.median(seconds[_WARM_UP:])
    asked = float((~batch.known & ~model.scaling.fit(batch).dead).float().mean())
    cost = registry.model("uomo").cost(config, (4, 4), asked)
    figures = {
        "batch": float(len(seeds)),
        "step_ms": 1e3 * median,
        "tokens_per_second": cost.tokens * len(seeds) / median,
        "tflops_per_second": cost.training_flops * len(seeds) / median / 1e12,
        "memory_gb": torch.cuda.max_memory_allocated() / 1e9,
    }
    peak = peak_flops(torch.cuda.get_device_name())
    return figures if peak is None else figures | {"mfu": 1e12 * figures["tflops_per_second"] / peak}


def _config(preset: str) -> UomoConfig:
    """A size as the three cities of the store ask for it."""
    config = registry.model("uomo").preset(preset)
    assert isinstance(config, UomoConfig)
    return replace(config, contexts=("users",), poi_categories=())


def _batch(store: Path, config: UomoConfig, size: int) -> TrafficBatch:
    """The first training windows of the store, each with the mask of a task; they come again where there are fewer."""
    windows = windows_for(open_store(store), "time", config)
    rows, starts = next(windows.training(0).pools()).samples()
    chosen = torch.arange(size).numpy() % len(rows)
    batch = windows.batch(windows.cut(rows[chosen], starts[chosen]))
    return mixture(replace(batch, key=torch.arange(size)), _TASKS, [1.0] * len(_TASKS))


@contextmanager
def _measured(stage: str, figures: dict[str, float]) -> Iterator[None]:
    """Adds a stage's seconds and this process's most memory during it to the figures."""
    memory, ended = PeakMemory(every=0.05), threading.Event()

    def watch() -> None:
        while not ended.wait(memory.every):
            memory.sample(os.getpid())

    watcher = threading.Thread(target=watch)
    watcher.start()
    before = time.perf_counter()
    try:
        yield
    finally:
        figures[f"{stage}_s"] = time.perf_counter() - before
        ended.set()
        watcher.join()
        memory.sample(os.getpid())
    figures[f"{stage}_mb"] = memory.mb


if __name__ == "__main__":
    tyro.cli(main)
