"""Embedding of sites through Ray Data actors: image and text of each, one shard of vectors a group of sites, the index last.

What a shard holds is a function of the sites and of what was there when the run began, not of workers or retries. A run that was stopped
goes on: content that stands in a shard is not computed again, and a site whose request (place, sources, encoder and its calibration)
stands in the index is not even looked at, unless asked for. Content that sites of two groups share is computed for both when one run
makes both. Which vision model is asked is decided by the process that starts the run; its key is read where it is asked, on the workers.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
import torch

from raytraffic.config import from_json, to_json
from raytraffic.config.environment import EmbedConfig
from raytraffic.environment.agreement import Calibration, read_calibration, refinement_by
from raytraffic.environment.describe import Describer
from raytraffic.environment.embeddings import EmbeddingStore, Entry, content_key
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.endpoint import EndpointDescriber
from raytraffic.environment.places import Pair, Place, open_describer, open_tiles, pairs, read_places
from raytraffic.environment.refine import Refinement, write_audit
from raytraffic.files import Location
from raytraffic.lease import held
from raytraffic.on_ray.cluster import connect, dataset
from raytraffic.on_ray.progress import Stage

__all__ = ["embed"]

#: Settings of scenes that a site's image and text do not hang on; of sites, what matters is the site's own place.
_MACHINERY = {"sites", "cache", "user_agent", "requests_per_second", "endpoint"}


def embed(config: EmbedConfig) -> Location:
    """Embeds what is missing into the store at `out` and returns it; `failures.parquet` there says why a site has no vectors, the files of
    `audit/` what became of every sentence that was said of those looked at, and `summary.json` what was done and what it cost.

    An encoder's calibration decides which sentences agree with their image. Raises ValueError for wrong sources, a store of another
    encoder, an `out` that another process writes to, and where no site could be embedded.
    """
    out = Location.of(config.out)
    places = read_places(config.scenes)
    open_tiles(config.scenes)
    describer = open_describer(config.scenes)
    calibration = read_calibration(config.encoder) if config.scenes.refine else None
    encoder = encoder_address(config.encoder)
    dimension = ImageTextEncoder.load(config.encoder).dimension
    with held(out):
        began = time.monotonic()
        store = EmbeddingStore.create(out, encoder, dimension)
        task = _Task(config=config, store=store, describer=describer, calibration=calibration)
        index = store.index()
        requests = _requests(task, places)
        asked = {site for site, request in requests.items() if config.refetch or site not in index or index[site].request != request}
        done = _made(task, _groups(config, places, asked), asked, len(places))
        entries = {site: Entry(key=key, shard=shard, request=requests[site]) for site, (key, shard) in done.found.items()}
        store.record(entries, without=done.failures)
        _tell(out, done, len(places) - len(asked), time.monotonic() - began, _spent(describer))
    return out


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What every actor is given."""

    config: EmbedConfig
    store: EmbeddingStore
    describer: Describer
    calibration: Calibration | None


@dataclass
class _Done:
    """What was made: (key, shard) by site, why sites failed, and how many vectors were computed."""

    found: dict[str, tuple[str, str]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    computed: int = 0


def _requests(task: _Task, places: Sequence[Place]) -> dict[str, str]:
    """By site, a digest of all that its vectors hang on but the files behind the tiles."""
    scenes = {name: value for name, value in to_json(task.config.scenes).items() if name not in _MACHINERY}
    shared = [scenes, task.describer.name, task.store.encoder]
    if task.calibration is not None:
        shared.append(to_json(task.calibration))
    common = hashlib.sha256(json.dumps(shared).encode()).hexdigest()
    return {place.site: hashlib.sha256(json.dumps([common, asdict(place)]).encode()).hexdigest() for place in places}


def _groups(config: EmbedConfig, places: Sequence[Place], asked: set[str]) -> Iterator[list[Place]]:
    """The sites that are asked for, by the groups of all sites, so that groups do not hang on what is done already."""
    for at in range(0, len(places), config.sites_per_shard):
        group = [place for place in places[at : at + config.sites_per_shard] if place.site in asked]
        if group:
            yield group


def _made(task: _Task, groups: Iterator[list[Place]], asked: set[str], total: int) -> _Done:
    """Embeds groups on the cluster."""
    done = _Done()
    items = [{"places": json.dumps([asdict(place) for place in group])} for group in groups]
    if not items:
        return done
    connect()
    most = min(task.config.workers, len(items))
    with Stage("embed", total, total - len(asked)) as stage:
        rows = dataset(items).map_batches(
            _Embedder,
            fn_constructor_args=(task, ray.put(task.store.keys())),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=most, initial_size=most),  # as many as the cluster has room for
            num_cpus=1,
            num_gpus=1 if task.config.gpu else 0,
        )
        for row in rows.iter_rows():
            result = json.loads(row["result"])
            done.found |= {site: (key, shard) for site, key, shard in result["found"]}
            done.failures |= result["failures"]
            done.computed += result["computed"]
            stage.advance(len(result["found"]) + len(result["failures"]))
    return done


def _spent(describer: Describer) -> dict[str, Any]:
    """What a vision model has cost: this run's requests, and all that the answers in its cache were paid for; nothing for a template."""
    if not isinstance(describer, EndpointDescriber):
        return {}
    return {"spent": asdict(describer.ledger.of_run()), "spent_in_all": asdict(describer.ledger.in_all())}


def _tell(out: Location, done: _Done, kept: int, seconds: float, spent: dict[str, Any]) -> None:
    """Writes failures and a summary; ValueError where no site has vectors."""
    failed = sorted(done.failures.items())
    columns = {"site": [site for site, _ in failed], "reason": [reason for _, reason in failed]}
    out.child("failures.parquet").write_table(pa.table(columns, schema=pa.schema([("site", pa.string()), ("reason", pa.string())])))
    told = {"sites": kept + len(done.found), "kept": kept, "computed": done.computed, "failed": len(failed), "seconds": seconds, **spent}
    out.child("summary.json").write_bytes((json.dumps(told, indent=1) + "\n").encode())
    print(f"embed: {json.dumps(told)}", flush=True)
    if not told["sites"]:
        raise ValueError(f"{out}: no site could be embedded ({failed[0][0]}: {failed[0][1]}), expected at least one")


class _Embedder:
    """Holds the encoder and makes the shard of a group of sites."""

    def __init__(self, task: _Task, known: Any) -> None:
        torch.set_num_threads(1)
        self.config, self.store, self.describer = task.config, task.store, task.describer
        self.known: dict[str, str] = ray.get(known)
        self.tiles = open_tiles(self.config.scenes)
        self.encoder = ImageTextEncoder.load(self.config.encoder).to("cuda" if self.config.gpu else "cpu")
        self.refinement = Refinement() if task.calibration is None else refinement_by(self.encoder, task.calibration)

    def __call__(self, item: dict[str, np.ndarray]) -> dict[str, list[str]]:
        places = [from_json(Place, place, "place") for place in json.loads(str(item["places"][0]))]
        made = pairs(places, self.tiles, self.describer, self.config.scenes, self.refinement)
        keys = {pair.site: content_key(self.store.encoder, pair.image, pair.text) for pair in made.pairs}
        content = {keys[pair.site]: pair for pair in made.pairs}
        missing = sorted(key for key in content if key not in self.known)
        shard = self._write(missing, [content[key] for key in missing]) if missing else ""
        if made.audit:
            name = hashlib.sha256(json.dumps([place.site for place in places]).encode()).hexdigest()[:32]
            write_audit(made.audit, Location.of(self.config.out).child("audit", f"{name}.parquet"))
        entries = [(site, key, self.known.get(key, shard)) for site, key in keys.items()]
        return {"result": [json.dumps({"found": entries, "failures": made.failures, "computed": len(missing)})]}

    def _write(self, keys: Sequence[str], content: Sequence[Pair]) -> str:
        """Computes and writes the vectors of some content."""
        images = self.encoder.images([pair.image for pair in content], self.config.batch).numpy()
        texts = self.encoder.texts([pair.text for pair in content], self.config.batch).numpy()
        return self.store.write(keys, images, texts)
