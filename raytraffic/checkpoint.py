"""Checkpoints without pickle: safetensors and JSON, committed by one last file, local or s3://.

A checkpoint is a folder that holds `committed.json`, written last, with the SHA-256 of every other file. A folder without
it was interrupted and does not count; a file that does not match it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from raytraffic import registry
from raytraffic.calibration import Calibration
from raytraffic.config import from_json, to_json
from raytraffic.files import Location
from raytraffic.forecaster import Forecaster

__all__ = [
    "CARD",
    "commit",
    "committed",
    "copy_forecaster",
    "load_forecaster",
    "read_committed",
    "read_marker",
    "read_tensors",
    "save_calibration",
    "save_card",
    "save_forecaster",
]

MARKER = "committed.json"
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CALIBRATION = "calibration.json"
CARD = "README.md"


def commit(folder: Location, files: Mapping[str, bytes | Mapping[str, Tensor] | dict[str, Any]]) -> None:
    """Writes files (bytes, tensors as safetensors, dictionaries as JSON) into a folder and commits it by the marker.

    An earlier checkpoint there loses its marker first, so that an interruption never leaves a mixture that counts.
    """
    folder.child(MARKER).delete()
    digests = {}
    for name, content in files.items():
        data = _encode(name, content)
        folder.child(name).write_bytes(data)
        digests[name] = hashlib.sha256(data).hexdigest()
    folder.child(MARKER).write_bytes(json.dumps(digests, indent=1, sort_keys=True).encode())


def committed(folder: Location) -> bool:
    """Whether a folder holds a whole checkpoint."""
    return folder.child(MARKER).exists()


def read_marker(folder: Location) -> bytes:
    """The marker of a whole checkpoint; ValueError where there is none."""
    marker = folder.child(MARKER)
    if not marker.exists():
        raise ValueError(f"{folder}: no {MARKER}, expected a whole checkpoint (this one was never finished, or is none)")
    return marker.read_bytes()


def read_committed(folder: Location, name: str) -> bytes:
    """A checkpoint's file, checked against the marker; ValueError names the file if it is missing or damaged."""
    marker = folder.child(MARKER)
    digests = _json(marker, read_marker(folder))
    if not isinstance(digests, dict) or name not in digests:
        raise ValueError(f"{marker}: no {name} in it, expected the SHA-256 of every file")
    file = folder.child(name)
    if not file.exists():
        raise ValueError(f"{file}: missing, expected the file that {MARKER} names; restore it")
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != digests[name]:
        raise ValueError(f"{file}: its SHA-256 differs from the one in {MARKER}, expected the file as it was written; restore it")
    return data


def read_tensors(folder: Location, name: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint's safetensors file."""
    try:
        # Sorted: the file's order differs from process to process, and ranks that shard tensors must go through them alike.
        return dict(sorted(safetensors.torch.load(read_committed(folder, name)).items()))
    except safetensors.SafetensorError as error:
        raise ValueError(f"{folder.child(name)}: {error}, expected a safetensors file") from None


def save_forecaster(
    folder: Location | Path | str, weights: Mapping[str, Tensor], model: str, config: Any, facts: Mapping[str, Any]
) -> None:
    """Saves a model as model.safetensors, config.json and a README model card; `facts` say how it was made and what it reached."""
    content = {"model": model, "config": to_json(config)}
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    card = _card(model, sum(value.numel() for value in plain.values()), facts)
    commit(Location.of(folder), {WEIGHTS: plain, CONFIG: content, CARD: card.encode()})


def save_calibration(folder: Location | Path | str, calibration: Calibration) -> None:
    """Adds a calibration to a saved model, or replaces the one it has; the model does not count as whole until it is written."""
    folder = Location.of(folder)
    commit(folder, {**_files_but(CALIBRATION, folder), CALIBRATION: to_json(calibration)})


def save_card(folder: Location | Path | str, text: str) -> None:
    """Replaces the model card of a saved model; the model does not count as whole until it is written."""
    folder = Location.of(folder)
    commit(folder, {**_files_but(CARD, folder), CARD: text.encode()})


def copy_forecaster(source: Location | Path | str, target: Location | Path | str) -> None:
    """Saves the model of one folder, without its calibration, into another; ValueError where it is damaged."""
    commit(Location.of(target), _files_but(CALIBRATION, Location.of(source)))


def load_forecaster(folder: Location | Path | str) -> tuple[Forecaster, str, Any]:
    """The model saved in a folder, in eval mode and calibrated if it was, with its name and configuration; ValueError if
    anything does not fit."""
    folder = Location.of(folder)
    content = _json(folder.child(CONFIG), read_committed(folder, CONFIG))
    if not isinstance(content, dict) or set(content) != {"model", "config"}:
        raise ValueError(f"{folder.child(CONFIG)}: expected an object with exactly the fields 'model' and 'config'")
    entry = registry.model(content["model"])
    config = from_json(entry.config, content["config"], str(folder.child(CONFIG)))
    forecaster = entry.build(config)
    weights = read_tensors(folder, WEIGHTS)
    expected = forecaster.state_dict()
    for name in sorted(set(weights) ^ set(expected)):
        problem = "missing" if name in expected else "unexpected"
        raise ValueError(f"{folder.child(WEIGHTS)}: tensor {name!r} is {problem}, expected the tensors of its config.json")
    for name, value in expected.items():
        if weights[name].shape != value.shape:
            raise ValueError(f"{folder.child(WEIGHTS)}: {name} has shape {tuple(weights[name].shape)}, expected {tuple(value.shape)}")
        if not bool(weights[name].isfinite().all()):
            raise ValueError(f"{folder.child(WEIGHTS)}: {name} holds NaN or infinite weights, expected finite ones")
    forecaster.load_state_dict(weights)
    if CALIBRATION in _json(folder.child(MARKER), read_marker(folder)):
        fields = _json(folder.child(CALIBRATION), read_committed(folder, CALIBRATION))
        forecaster.calibration = from_json(Calibration, fields, str(folder.child(CALIBRATION)))
    return forecaster.eval(), content["model"], config


def _files_but(left_out: str, folder: Location) -> dict[str, bytes]:
    """Every file of a whole checkpoint, but one."""
    return {name: read_committed(folder, name) for name in _json(folder.child(MARKER), read_marker(folder)) if name != left_out}


def _json(file: Location, data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError as error:
        raise ValueError(f"{file}: {error}, expected JSON") from None


def _encode(name: str, content: bytes | Mapping[str, Any]) -> bytes:
    if isinstance(content, bytes):
        return content
    if name.endswith(".safetensors"):
        return safetensors.torch.save({key: value.contiguous() for key, value in content.items()})
    return json.dumps(content, indent=1).encode()


def _card(model: str, parameters: int, facts: Mapping[str, Any]) -> str:
    lines = [f"# raytraffic {model}", "", f"{parameters:,} parameters. Load with `raytraffic.Forecaster.from_pretrained(folder)`.", ""]
    for title, value in facts.items():
        lines += [f"## {title}", "", value if isinstance(value, str) else f"```json\n{json.dumps(value, indent=1)}\n```", ""]
    return "\n".join(lines)
