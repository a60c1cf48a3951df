"""The command line: `raytraffic <verb>`, one verb a job; `jobs/<verb>.py` are the same verbs for `ray job submit`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import tyro

from raytraffic.config import (
    CalibrateConfig,
    ContrastConfig,
    EmbedConfig,
    EvaluateConfig,
    FinetuneConfig,
    ForecastConfig,
    OptimizeConfig,
    PrepareConfig,
    PretrainConfig,
    QuickstartConfig,
    ServeConfig,
    StudyConfig,
    TrainConfig,
    from_json,
    to_json,
)
from raytraffic.files import Location

__all__ = ["main"]


@dataclass(frozen=True)
class Verb:
    """A verb's configuration and the function, by module, that carries it out."""

    config: type[Any]
    module: str
    function: str

    def run(self, config: Any) -> Any:
        """Carries the verb out; its module (and with it ray) is imported only now, so that --help is quick."""
        function: Callable[[Any], Any] = getattr(import_module(self.module), self.function)
        return function(config)


VERBS: dict[str, Verb] = {
    "prepare": Verb(PrepareConfig, "raytraffic.on_ray.prepare", "prepare"),
    "train": Verb(TrainConfig, "raytraffic.on_ray.train", "train"),
    "finetune": Verb(FinetuneConfig, "raytraffic.on_ray.train", "train"),
    "calibrate": Verb(CalibrateConfig, "raytraffic.on_ray.calibrate", "calibrate"),
    "evaluate": Verb(EvaluateConfig, "raytraffic.on_ray.suite", "run_evaluation"),
    "contrast": Verb(ContrastConfig, "raytraffic.on_ray.contrast", "contrast"),
    "embed": Verb(EmbedConfig, "raytraffic.on_ray.embed", "embed"),
    "forecast": Verb(ForecastConfig, "raytraffic.on_ray.forecast", "forecast"),
    "optimize": Verb(OptimizeConfig, "raytraffic.on_ray.optimize", "optimize"),
    "serve": Verb(ServeConfig, "raytraffic.on_ray.serve", "serve_checkpoints"),
    "study": Verb(StudyConfig, "raytraffic.on_ray.study", "study"),
    "pretrain": Verb(PretrainConfig, "raytraffic.on_ray.pretrain", "pretrain"),
    "quickstart": Verb(QuickstartConfig, "raytraffic.on_ray.quickstart", "quickstart"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; returns 0, 1 for a failure, 2 for a mistake in what was asked for (told in one line), 130 when interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_overview())
        return 0 if words else 2
    if words[0] not in VERBS:
        print(f"raytraffic: unknown verb {words[0]!r}, expected one of {', '.join(VERBS)}", file=sys.stderr)
        return 2
    verb = VERBS[words[0]]
    try:
        config = _settings(verb, words[0], words[1:])
    except SystemExit as told:  # --help, or what was wrong, is printed already
        return int(told.code or 0)
    except ValueError as error:
        print(f"raytraffic {words[0]}: {error}", file=sys.stderr)
        return 2
    try:
        print(f"raytraffic {words[0]} {json.dumps(to_json(config))}", flush=True)
        result = verb.run(config)
    except KeyboardInterrupt:
        print(f"raytraffic {words[0]}: interrupted; the same command goes on where it was", file=sys.stderr)
        return 130
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None or os.environ.get("RAYTRAFFIC_TRACEBACK"):
            raise
        print(f"raytraffic {words[0]}: {mistake}", file=sys.stderr)
        return 2
    print(f"raytraffic {words[0]}: done: {result}", flush=True)
    return 0


def _settings(verb: Verb, name: str, words: Sequence[str]) -> Any:
    """The verb's configuration from its options, and from the JSON file that `--config` names where no option is given.

    Raises ValueError for a file that holds no such settings, SystemExit for wrong options.
    """
    if "--config" not in words:
        return tyro.cli(verb.config, prog=f"raytraffic {name}", args=words)
    at = list(words).index("--config")
    if at + 1 == len(words):
        raise ValueError("--config: nothing, expected the path or s3:// URL of a JSON file")
    file = Location.of(words[at + 1])
    try:
        found = json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(f"--config {file}: {error}, expected a JSON file") from None
    default = from_json(verb.config, found, str(file))
    return tyro.cli(verb.config, prog=f"raytraffic {name}", args=[*words[:at], *words[at + 2 :]], default=default)


def _mistake(error: BaseException) -> str | None:
    """The first line of the user's mistake (a ValueError, also one raised in a Ray worker), or None if the fault is ours."""
    seen: list[BaseException] = []
    while error not in seen:
        seen.append(error)
        cause = getattr(error, "cause", None)  # what Ray wrapped
        if isinstance(error, ValueError):
            return str(cause or error).strip().partition("\n")[0]  # Ray appends lines of advice
        failures = getattr(error, "worker_failures", None) or {}
        inner = next(iter(failures.values()), None) or cause or error.__cause__
        if inner is None:
            return None
        error = inner
    return None


def _overview() -> str:
    lines = [
        "usage: raytraffic <verb> [--config FILE] [options]",
        "",
        "raytraffic <verb> --help lists its options. --config names a JSON file of them, as every run keeps in its config.json; options",
        "given beside it count.",
        "",
    ]
    lines += [f"  {name:<11} {(verb.config.__doc__ or '').strip().splitlines()[0]}" for name, verb in VERBS.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
