"""The image-text pairs that an encoder is trained on: made once, part by part, into the run's folder, and read by every worker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from raytraffic.config.environment import ContrastConfig
from raytraffic.environment.places import Place, open_describer, open_tiles, pairs, read_places
from raytraffic.environment.refine import write_audit
from raytraffic.environment.tiles import RgbImage
from raytraffic.files import Location

__all__ = ["Pairs", "make_part", "missing_parts", "read_pairs"]

_SCHEMA = pa.schema([("site", pa.string()), ("text", pa.string()), ("pixels", pa.binary()), ("failure", pa.string())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Pairs:
    """n pairs in memory: images (n, pixels, pixels, 3) and their texts."""

    images: NDArray[np.uint8]
    texts: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.texts)

    def some(self, rows: Sequence[int] | NDArray[np.int64]) -> tuple[list[RgbImage], list[str]]:
        """Images and texts of some pairs."""
        return [self.images[row] for row in rows], [self.texts[row] for row in rows]


def missing_parts(config: ContrastConfig) -> list[tuple[int, list[Place]]]:
    """Parts that are not there yet, each with its sites."""
    places = read_places(config.scenes)
    there = {file.name for file in _folder(config).list()}
    parts = range(0, len(places), config.pairs_per_part)
    chunks = [(number, places[at : at + config.pairs_per_part]) for number, at in enumerate(parts)]
    return [(number, chunk) for number, chunk in chunks if _name(number) not in there]


def make_part(config: ContrastConfig, number: int, places: Sequence[Place]) -> None:
    """Writes a part, and beside it the audit of its texts; a site without image or text says why in place of them."""
    made = pairs(places, open_tiles(config.scenes), open_describer(config.scenes), config.scenes)
    write_audit(made.audit, Location.of(config.out).child("audit", _name(number)))
    rows = [{"site": pair.site, "text": pair.text, "pixels": pair.image.tobytes()} for pair in made.pairs]
    rows += [{"site": site, "failure": reason} for site, reason in made.failures.items()]
    _folder(config).child(_name(number)).write_table(pa.Table.from_pylist(rows, schema=_SCHEMA))


def read_pairs(config: ContrastConfig) -> tuple[Pairs, Pairs]:
    """The pairs that are trained on and, at most `candidates` evenly spaced, those of held-out cities.

    ValueError where there are too few of either.
    """
    rows = [row for part in _folder(config).list() for row in part.read_table().to_pylist()]
    whole = sorted((row for row in rows if row["failure"] is None), key=lambda row: str(row["site"]))
    failed = [row for row in rows if row["failure"] is not None]
    told = f"; {len(failed)} sites failed, the first, {failed[0]['site']}: {failed[0]['failure']}" if failed else ""
    apart = [row for row in whole if _city(row) in config.held_out]
    trained = [row for row in whole if _city(row) not in config.held_out]
    if config.steps and len(trained) < config.batch:
        raise ValueError(f"batch: {config.batch}, expected at most the number of pairs to train on ({len(trained)}){told}")
    if config.held_out and len(apart) < 2:
        raise ValueError(f"held_out: {config.held_out} have {len(apart)} pairs, expected at least 2{told}")
    chosen = np.unique(np.linspace(0, len(apart) - 1, min(config.candidates, len(apart))).round().astype(np.int64))
    return _loaded(trained, config.scenes.pixels), _loaded([apart[i] for i in chosen], config.scenes.pixels)


def _loaded(rows: Sequence[dict[str, str | bytes]], pixels: int) -> Pairs:
    images = np.frombuffer(b"".join(bytes(row["pixels"]) for row in rows), dtype=np.uint8)  # type: ignore[arg-type]
    return Pairs(images=images.reshape(-1, pixels, pixels, 3), texts=tuple(str(row["text"]) for row in rows))


def _city(row: dict[str, str | bytes]) -> str:
    return str(row["site"]).partition("/")[0]


def _folder(config: ContrastConfig) -> Location:
    return Location.of(config.out).child("pairs")


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"
