"""The recipe of a pre-trained checkpoint: prepare, plan, train, calibrate, score and describe, each once, whatever interrupts it.

out/config.json    what was asked for                     out/run           the training run
out/store          the prepared cities                    out/model         the checkpoint, calibrated, with its model card
out/plan.json      the preset and the number of steps     out/evaluation    its scores by place
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from raytraffic import __version__, registry
from raytraffic.checkpoint import CARD, committed, copy_forecaster, load_forecaster, read_committed, save_card
from raytraffic.config import CalibrateConfig, EvaluateConfig, PrepareConfig, PretrainConfig, TrainConfig, from_json, to_json
from raytraffic.files import Location
from raytraffic.on_ray.budget import Plan, choose, seconds_per_step
from raytraffic.on_ray.calibrate import calibrate
from raytraffic.on_ray.evaluate import evaluate
from raytraffic.on_ray.prepare import prepare
from raytraffic.on_ray.train import train
from raytraffic.report.model_card import CityFacts, ModelFacts, model_card
from raytraffic.sources.open import open_source
from raytraffic.store import Store, assign, open_store
from raytraffic.store.splits import PARTS
from raytraffic.training import keep_settings
from raytraffic.training_log import optimisation_seconds, read_metrics

__all__ = ["pretrain"]

#: Largest first; the last is taken where none gets enough steps.
_ON_CPU = ("5m", "small", "tiny")
_ON_GPU = ("5m",)
#: What may differ when the command is given again: nothing that is kept but the card and the scores hangs on it.
_FREE = {"out", "licence", "stride"}


def pretrain(config: PretrainConfig) -> Location:
    """Ends in a calibrated checkpoint with its card and returns its folder; the same command again goes on where it was.

    Raises ValueError for an unknown preset, for sources that `prepare` refuses, for an `out` that was asked for something else,
    and for data of which no place can be held back.
    """
    out = Location.of(config.out)
    if config.preset != "auto":
        registry.model(TrainConfig.model).preset(config.preset)
    keep_settings(out, config, _FREE)
    gpu = torch.cuda.is_available()
    store = _prepared(config, out.child("store"))
    wanted = TrainConfig(store=str(store.location), out=str(out.child("run")), split="place", seed=config.seed, gpu=gpu)
    plan = _planned(config, wanted, out.child("plan.json"))
    training = replace(wanted, preset=plan.preset, steps=plan.steps)
    best, model = train(training), out.child("model")
    calibration = CalibrateConfig(checkpoint=str(model), store=training.store, split="place", seed=config.seed, gpu=gpu)
    evaluation = EvaluateConfig(
        checkpoint=str(model),
        store=training.store,
        out=str(out.child("evaluation")),
        splits=("place",),
        stride=config.stride,
        seed=config.seed,
        gpu=gpu,
    )
    if gpu:  # every actor holds one
        calibration, evaluation = replace(calibration, workers=1), replace(evaluation, workers=1)
    _calibrated(best, calibration)
    _evaluated(evaluation)
    card = model_card(_facts(config, training, calibration, evaluation))
    if read_committed(model, CARD) != card.encode():
        save_card(model, card)
    return model


def _prepared(config: PretrainConfig, folder: Location) -> Store:
    """The store of all cities; one that is whole is kept."""
    if not folder.child("manifest.json").exists():
        prepare(PrepareConfig(sources=(*config.data, *config.synthetic), out=str(folder), seed=config.seed))
    return open_store(folder)


def _planned(config: PretrainConfig, wanted: TrainConfig, file: Location) -> Plan:
    """What is trained and how long, from `plan.json` where it is written already."""
    if not file.exists():
        auto = _ON_GPU if wanted.gpu else _ON_CPU
        presets = auto if config.preset == "auto" else (config.preset,)
        plan = choose(((preset, seconds_per_step(replace(wanted, preset=preset))) for preset in presets), config.minutes)
        file.write_bytes(json.dumps(to_json(plan)).encode())
    plan = from_json(Plan, json.loads(file.read_bytes()), str(file))
    if config.preset not in ("auto", plan.preset):
        raise ValueError(f"{file}: preset is {plan.preset!r}, expected {config.preset!r}; this folder holds another model")
    print(f"preset {plan.preset}, {plan.steps} steps ({file})", flush=True)
    return plan


def _calibrated(best: Location, config: CalibrateConfig) -> None:
    """Copies the best model of the run and calibrates the copy, each unless it is done."""
    model = Location.of(config.checkpoint)
    if not committed(model):
        copy_forecaster(best, model)
    if load_forecaster(model)[0].calibration is None:
        calibrate(config)


def _evaluated(config: EvaluateConfig) -> None:
    """Scores the checkpoint, unless its last file is there and it was the same evaluation."""
    out = Location.of(config.out)
    settings = out.child("config.json")
    if not (out.child("report.html").exists() and settings.exists() and json.loads(settings.read_bytes()) == to_json(config)):
        out.delete()  # so that the last file of another evaluation is never taken for this one's
        evaluate(config)


def _facts(config: PretrainConfig, training: TrainConfig, calibration: CalibrateConfig, evaluation: EvaluateConfig) -> ModelFacts:
    forecaster, _, model_config = load_forecaster(calibration.checkpoint)
    log = read_metrics(Location.of(training.out))
    losses = {int(row["step"]): row["validation_loss"] for row in log if row["validation_loss"] is not None}
    return ModelFacts(
        version=__version__,
        parameters=sum(parameter.numel() for parameter in forecaster.parameters()),
        contexts=model_config.contexts,
        window=model_config.window,
        request=config,
        training=training,
        calibration=calibration,
        evaluation=evaluation,
        cities=_cities(open_store(training.store), _sources(config)),
        rows=json.loads(Location.of(evaluation.out).child("scores.json").read_bytes()),
        minutes=optimisation_seconds(log, training.batch) / 60,
        best_step=min(losses, key=lambda step: losses[step]),
    )


def _sources(config: PretrainConfig) -> dict[str, str]:
    """City -> the source it comes from."""
    return {name: source for source in (*config.data, *config.synthetic) for name in open_source(source).names()}


def _cities(store: Store, sources: Mapping[str, str]) -> list[CityFacts]:
    """What the store knows of every city, the measured ones first."""
    parts = assign(store.index, store.split("place"))
    found = []
    for name in sorted(store.index.cities, key=lambda name: (sources[name].startswith("synthetic:"), name)):
        rows, entry = store.index.rows_of(name), store.manifest["cities"][name]
        ranges = {part: parts.part(part)[rows] for part in PARTS}
        places = {part: len(np.unique(store.index.place[rows[lo_hi[:, 0] < lo_hi[:, 1]]])) for part, lo_hi in ranges.items()}
        found.append(
            CityFacts(
                name=name,
                source=sources[name],
                synthetic=sources[name].startswith("synthetic:"),
                step_minutes=entry["step_minutes"],
                periods={period: facts["steps"] for period, facts in entry["periods"].items()},
                trained=places["train"],
                validated=places["validation"],
                tested=places["test"],
                users=entry["has_users"],
                poi_categories=len(entry["poi_categories"]),
            )
        )
    return found
