"""The suite `uomo-tables`: evaluations and fine-tunings in stages, each in a folder of its own, and the page that is made from them.

A stage's folder holds stage.json: what it was asked for, the hashes of what it read, and whether it finished. The same command after
an interruption runs what is not finished; a stage that was asked for something else before is made anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from raytraffic.checkpoint import CARD, load_forecaster, read_marker
from raytraffic.config import EvaluateConfig, FinetuneConfig, UomoTables, to_json
from raytraffic.diffusion.samplers import Sampler
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster
from raytraffic.masks import named_tasks
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.train import train
from raytraffic.report.evaluation import ForecastExample
from raytraffic.report.examples import forecast_examples, read_examples, write_examples
from raytraffic.report.figures import Point
from raytraffic.report.suite import FULL, PRETRAINED, WITHOUT_POI, WITHOUT_USERS, Shot, SuiteResults, suite_report
from raytraffic.report.tables import Row
from raytraffic.store import Store, open_store
from raytraffic.training import initial_model
from raytraffic.windows import Selection, windows_for

__all__ = ["run_evaluation", "run_suite"]

_FREE = {"out", "workers", "gpu"}  # settings on which no result depends
_CONTEXTS = {FULL: ("users", "poi"), WITHOUT_POI: ("users",), WITHOUT_USERS: ("poi",)}
_FIGURE_4_CITIES = 2


def run_evaluation(config: EvaluateConfig) -> Location:
    """Scores one checkpoint, or makes the suite that is asked for; returns the folder of the result."""
    return evaluate(config) if config.suite == "none" else run_suite(config)


def run_suite(config: EvaluateConfig) -> Location:
    """Writes suite.html, suite.md and figures/ into `out` (UoMo, Tables 1-5, Figures 4-7), with a folder a stage; returns `out`.

    Tables 4 and 5 and the figures are of the first of `splits` (`unseen_split` for unseen cities). Raises ValueError before anything
    runs when a checkpoint or a store does not fit what it is given for.
    """
    out, suite = Location.of(config.out), config.uomo_tables
    point, sizes = _checked(config)
    single = replace(config, suite="none", uomo_tables=UomoTables())
    alone = replace(single, splits=config.splits[:1], beside=(), fitted=())
    rows = _scores(single, out.child("evaluation"))
    ours = [row for row in rows if (row["model"], row["split"]) == (point.name, config.splits[0])]
    cities = suite.cities or open_store(config.store).index.cities[:_FIGURE_4_CITIES]
    results = SuiteResults(
        model=point.name,
        about=_about(config, point),
        rows=rows,
        forecasts=_forecasts(alone, out.child("forecasts"), cities),
        shots=_shots(alone, suite, out.child("unseen")),
        ablation=_ablation(alone, suite, out.child("ablation")),
        sizes=[(point, ours), *_sizes(alone, suite, sizes, out.child("sizes"))] if sizes else [],
    )
    page = suite_report(results, out)
    print(f"The page of the suite is {page}.", flush=True)
    return out


def _checked(config: EvaluateConfig) -> tuple[Point, dict[str, Point]]:
    """The size of the checkpoint and, by name, of the other ones; ValueError for what cannot be used."""
    suite, store = config.uomo_tables, open_store(config.store)
    named_tasks(config.tasks)
    unknown = sorted(set(suite.cities) - set(store.index.cities))
    if unknown:
        raise ValueError(f"uomo_tables.cities: {unknown}, expected some of {list(store.index.cities)}")
    forecaster, name, model = load_forecaster(config.checkpoint)
    if suite.unseen is not None:
        windows_for(open_store(suite.unseen), suite.unseen_split, model)
    if suite.plain is not None:
        _check_plain(config, suite, suite.plain, store)
    named = _named(suite.sizes).items()
    return _point(name, forecaster), {size: _point(size, load_forecaster(folder)[0]) for size, folder in named}


def _check_plain(config: EvaluateConfig, suite: UomoTables, plain: str, store: Store) -> None:
    """ValueError unless the checkpoint without contexts learns exactly those of each row of Table 5."""
    for contexts in _CONTEXTS.values():
        known = initial_model(_alignment(config, suite, plain, contexts, Location.of(config.out)), store)[1].contexts
        if set(known) != set(contexts):
            expected = f"expected {contexts}: a checkpoint without contexts, and a store that has them"
            raise ValueError(f"uomo_tables.plain: {plain}, fine-tuned with {contexts} on {config.store}, knows {known}, {expected}")


def _point(name: str, forecaster: Forecaster) -> Point:
    label, _, data = name.partition("@")
    return Point(name=label, data=data, parameters=sum(parameter.numel() for parameter in forecaster.parameters()))


def _named(sizes: Sequence[str]) -> dict[str, str]:
    return {name: folder for name, _, folder in (size.partition("=") for size in sizes)}


def _about(config: EvaluateConfig, point: Point) -> list[str]:
    """What the page is of, for its summary."""
    suite = config.uomo_tables
    unseen = "" if suite.unseen is None else f" Table 4 and Figures 5 and 6 are of the {suite.unseen_split} split of {suite.unseen}."
    return [
        f"The checkpoint {config.checkpoint} ({point.parameters:,} parameters) on the {config.part} part of {config.store}: "
        f"{config.draws} draws of {config.steps} {config.method} steps, one window in {config.stride} of every series. "
        f"Table 5 and Figures 4 and 7 are of the {config.splits[0]} split.{unseen}",
        "The folder evaluation holds the whole report behind Tables 1-3.",
    ]


def _scores(config: EvaluateConfig, folder: Location) -> list[Row]:
    """The rows of an evaluation."""
    _once(folder, "scores.json", _settings(config), lambda: evaluate(replace(config, out=str(folder))))
    return list(json.loads(folder.child("scores.json").read_bytes()))


def _own_scores(config: EvaluateConfig, folder: Location) -> list[Row]:
    """The rows of the checkpoint itself in an evaluation."""
    name = load_forecaster(config.checkpoint)[1]
    return [row for row in _scores(config, folder) if row["model"] == name]


def _forecasts(config: EvaluateConfig, folder: Location, cities: Sequence[str] = ()) -> list[ForecastExample]:
    """One forecast a task and city (of these; of all if none is named), told the same of each city as in the evaluation."""
    file = folder.child("examples.json")

    def draw() -> None:
        forecaster, _, model = load_forecaster(config.checkpoint)
        told = Selection(share=config.share, seed=config.seed)
        view = windows_for(open_store(config.store), config.splits[0], model, told)
        sampler = Sampler(config.method, config.steps, guidance=config.guidance)
        write_examples(forecast_examples(forecaster, view, config.part, named_tasks(config.tasks), sampler, config.seed, cities), file)

    _once(folder, file.name, {**_settings(config), "cities": list(cities)}, draw)
    return read_examples(file)


def _shots(config: EvaluateConfig, suite: UomoTables, folder: Location) -> dict[str, Shot]:
    """Table 4, Figures 5 and 6: the checkpoint as it is and fine-tuned on each share, told the same share of the cities."""
    tasks = tuple(task for task in ("short", "long") if task in config.tasks)
    if suite.unseen is None or not tasks:
        return {}
    unseen = replace(config, store=suite.unseen, splits=(suite.unseen_split,), tasks=tasks)
    found = {"zero-shot": _shot(replace(unseen, share=0.0), folder.child("zero-shot"))}
    for share in sorted(suite.shares):
        place = folder.child(f"share-{share:g}")
        tuned = _finetuned(_few_shot(unseen, suite, share, place.child("run")))
        found[f"{100 * share:g} %"] = _shot(replace(unseen, checkpoint=str(tuned), share=share), place)
    return found


def _shot(config: EvaluateConfig, folder: Location) -> Shot:
    rows = _scores(config, folder.child("evaluation"))
    long = "long" in config.tasks
    return Shot(rows=rows, forecasts=_forecasts(replace(config, tasks=("long",)), folder.child("forecasts")) if long else [])


def _few_shot(config: EvaluateConfig, suite: UomoTables, share: float, out: Location) -> FinetuneConfig:
    """Everything learns, without the contrastive objective: there is no new context to align."""
    return FinetuneConfig(
        checkpoint=config.checkpoint,
        store=config.store,
        out=str(out),
        split=config.splits[0],
        share=share,
        trainable="all",
        contrast=0.0,
        contexts=(),
        steps=suite.few_shot_steps,
        learning_rate=2e-4,
        warmup=suite.few_shot_steps // 10,
        validate_every=max(1, suite.few_shot_steps // 4),
        seed=config.seed,
        gpu=config.gpu,
    )


def _ablation(config: EvaluateConfig, suite: UomoTables, folder: Location) -> dict[str, list[Row]]:
    """Table 5: the pre-trained checkpoint aligned with both contexts, with either, and as it is."""
    tasks = tuple(task for task in ("short", "generation") if task in config.tasks)
    if suite.plain is None or not tasks:
        return {}
    scored, found = replace(config, tasks=tasks), {}
    for name, contexts in _CONTEXTS.items():
        place = folder.child("-".join(contexts))
        tuned = _finetuned(_alignment(config, suite, suite.plain, contexts, place.child("run")))
        found[name] = _own_scores(replace(scored, checkpoint=str(tuned)), place.child("evaluation"))
    found[PRETRAINED] = _own_scores(replace(scored, checkpoint=suite.plain), folder.child("none", "evaluation"))
    return found


def _alignment(config: EvaluateConfig, suite: UomoTables, plain: str, contexts: tuple[str, ...], out: Location) -> FinetuneConfig:
    """The paper's fine-tuning (3.3) with some contexts."""
    return FinetuneConfig(
        checkpoint=plain,
        store=config.store,
        out=str(out),
        split=config.splits[0],
        contexts=contexts,
        steps=suite.finetune_steps,
        warmup=suite.finetune_steps // 10,
        validate_every=max(1, suite.finetune_steps // 4),
        seed=config.seed,
        gpu=config.gpu,
    )


def _sizes(config: EvaluateConfig, suite: UomoTables, points: Mapping[str, Point], folder: Location) -> list[tuple[Point, list[Row]]]:
    """Figure 7: every other checkpoint with its scores."""
    named = _named(suite.sizes).items()
    return [(points[name], _own_scores(replace(config, checkpoint=path), folder.child(name))) for name, path in named]


def _finetuned(config: FinetuneConfig) -> Location:
    """The best model of a fine-tuning run."""
    folder = Location.of(config.out)
    _once(folder, "best/committed.json", _settings(config), lambda: train(config))
    return folder.child("best")


def _settings(config: EvaluateConfig | FinetuneConfig) -> dict[str, Any]:
    """What a stage's result depends on: its configuration, and the content of the checkpoints and the store it reads."""
    beside = config.beside if isinstance(config, EvaluateConfig) else ()
    checkpoints = {path: _digests(path) for path in (config.checkpoint, *_named(beside).values())}
    manifest = hashlib.sha256(Location.of(config.store).child("manifest.json").read_bytes()).hexdigest()
    asked = {name: value for name, value in to_json(config).items() if name not in _FREE}
    return {**asked, "read": {**checkpoints, config.store: manifest}}


def _digests(checkpoint: str) -> dict[str, str]:
    """The SHA-256 of a checkpoint's files; its card may be rewritten, which changes no result."""
    return {name: digest for name, digest in json.loads(read_marker(Location.of(checkpoint))).items() if name != CARD}


def _once(folder: Location, result: str, settings: Mapping[str, Any], work: Callable[[], object]) -> None:
    """Does the work of a stage unless its folder says that it was finished with these settings."""
    marker = folder.child("stage.json")
    before = json.loads(marker.read_bytes()) if marker.exists() else None
    if before == {"settings": settings, "finished": True} and folder.child(result).exists():
        print(f"suite: {folder} is there", flush=True)
        return
    if before is not None and before["settings"] != settings:
        folder.delete()
    print(f"suite: {folder}", flush=True)
    marker.write_bytes(json.dumps({"settings": settings, "finished": False}, indent=1).encode())
    work()
    marker.write_bytes(json.dumps({"settings": settings, "finished": True}, indent=1).encode())
