"""Contrastive training of an image-text encoder on one of its workers: pairs in, committed checkpoints, retrieval and an encoder out.

What a step sees is a function of (pairs, seed, step) alone: a run may be killed at any moment, go on at its newest checkpoint, and change
its number of workers on the way. The negatives of a pair are all other pairs of the step, whichever worker holds them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from raytraffic.checkpoint import committed
from raytraffic.config.environment import ContrastConfig
from raytraffic.environment.agreement import calibrate, read_calibration, write_calibration
from raytraffic.environment.contrastive import Retrieval, gathered_info_nce, info_nce, retrieval
from raytraffic.environment.encoder import ImageTextEncoder, encoder_address
from raytraffic.environment.places import open_tiles, read_places
from raytraffic.environment.sentences import split_sentences
from raytraffic.files import Location
from raytraffic.fit import Ema, Optimisation, optimiser, update
from raytraffic.resume import newest, prune, restore, save
from raytraffic.training.pairs import Pairs, make_part, missing_parts, read_pairs
from raytraffic.training.run import Worker
from raytraffic.training.settings import keep_settings

__all__ = ["ContrastRun", "calibrate_encoder", "check_contrast", "contrast_alone", "contrast_finished"]

#: Random numbers of the steps' texts; those of the passes' orders come before.
_CUTS = 2**32
#: What may differ when a run goes on.
_FREE = {"workers", "cpus_per_worker", "threads", "gpu", "keep", "max_failures", "out"}


def contrast_alone(config: ContrastConfig) -> Location:
    """Trains in this process, as `raytraffic contrast` does with one worker, and returns the encoder's folder; goes on where it was.

    Raises ValueError for more than one worker, settings of another run, and sources that are wrong or hold too few pairs.
    """
    if config.workers != 1:
        raise ValueError(f"workers: {config.workers}, expected 1 for a run in one process")
    check_contrast(config)
    if not contrast_finished(config):
        torch.set_num_threads(config.threads)
        for number, places in missing_parts(config):
            make_part(config, number, places)
        run = ContrastRun.start(config, Worker(device=torch.device("cuda" if config.gpu else "cpu")))
        run.loop()
        run.finish()
    calibrate_encoder(config)
    return Location.of(config.out).child("encoder")


def check_contrast(config: ContrastConfig) -> None:
    """Refuses wrong settings before any worker starts, and saves them with the run."""
    cities = {place.city for place in read_places(config.scenes)}
    unknown = [city for city in config.held_out if city not in cities]
    if unknown:
        raise ValueError(f"held_out: {unknown[0]!r}, expected some of {sorted(cities)}")
    open_tiles(config.scenes)
    _initial(config)
    keep_settings(Location.of(config.out), config, _FREE)


def contrast_finished(config: ContrastConfig) -> bool:
    """Whether a run has its encoder."""
    return committed(Location.of(config.out).child("encoder"))


def calibrate_encoder(config: ContrastConfig) -> None:
    """Fits on the held-out pairs of a finished run, once, which sentences agree with an image, and keeps it with the encoder.

    Where too few pairs are held out or the encoder cannot tell, it says so, and image statistics go on deciding.
    """
    folder = Location.of(config.out).child("encoder")
    if not config.held_out or read_calibration(folder) is not None:
        return
    _, held_out = read_pairs(config)
    encoder, address = ImageTextEncoder.load(folder), encoder_address(folder)
    try:
        found = calibrate(encoder, address, list(held_out.images), held_out.texts, kept=config.true_kept)
    except ValueError as error:
        print(f"contrast: agreement is not calibrated: {error}", flush=True)
        return
    write_calibration(folder, found)
    print(f"contrast: {json.dumps(asdict(found))}", flush=True)


@dataclass
class ContrastRun:
    """One worker's share of a run."""

    config: ContrastConfig
    worker: Worker
    pairs: Pairs
    held_out: Pairs
    encoder: ImageTextEncoder
    wrapped: nn.Module
    adam: torch.optim.Optimizer
    ema: Ema
    settings: Optimisation
    done: int
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def start(cls, config: ContrastConfig, worker: Worker) -> ContrastRun:
        """Builds everything and goes to the newest committed checkpoint."""
        pairs, held_out = read_pairs(config)
        encoder = _initial(config).to(worker.device).train()
        wrapped: nn.Module = encoder
        if worker.world > 1:
            wrapped = nn.parallel.DistributedDataParallel(encoder, [worker.device.index] if worker.device.type == "cuda" else None)
        settings = Optimisation(
            learning_rate=config.learning_rate,
            warmup=config.warmup,
            steps=max(1, config.steps),
            weight_decay=config.weight_decay,
            ema=config.ema,
        )
        adam = optimiser(encoder, settings)
        ema = Ema(encoder.named_parameters(), config.ema)
        found = newest(Location.of(config.out).child("checkpoints"))
        done = 0 if found is None else int(restore(found, encoder, adam, ema)["done"])
        rows = [row for row in _read_rows(config) if row["step"] <= done]
        return cls(config, worker, pairs, held_out, encoder, wrapped, adam, ema, settings, done, rows)

    def loop(self) -> None:
        """Trains to the end; a checkpoint and a measurement every `validate_every` steps."""
        losses: list[Tensor] = []
        clock = time.monotonic()
        while self.done < self.config.steps:
            losses.append(self.step())
            if self.done % self.config.validate_every == 0 or self.done == self.config.steps:
                loss = self._mean(torch.stack(losses))
                rate = len(losses) * self.config.batch / (time.monotonic() - clock)
                self._validate_and_save(loss, rate)
                losses, clock = [], time.monotonic()

    def step(self) -> Tensor:
        """Takes one step and returns this worker's part of its loss; FloatingPointError where it is not finite."""
        images, texts = self.pairs.some(self._chosen())
        texts = self._cut(texts)
        with torch.autocast(self.worker.device.type, dtype=torch.bfloat16, enabled=self.config.gpu):
            pixels, tokens = (some.to(self.worker.device) for some in (self.encoder.prepare(images), self.encoder.tokenise(texts)))
            image_features, text_features, scale = self.wrapped(pixels, tokens)
        loss_of = gathered_info_nce if self.worker.world > 1 else info_nce
        loss = loss_of(image_features.float(), text_features.float(), scale.float())
        loss.backward()
        update(self.encoder, self.adam, self.done, self.settings)
        self.encoder.clamp_temperature()
        self.done += 1
        self.ema.update(self.encoder.named_parameters(), self.done)
        return loss.detach()

    def finish(self) -> None:
        """Writes the encoder of averaged weights, and `retrieval.json` with what it reaches on held-out pairs."""
        out = Location.of(self.config.out)
        with self.ema.applied(self.encoder):
            found = self.measure()
            if found is not None:
                out.child("retrieval.json").write_bytes((json.dumps({"step": self.done, **asdict(found)}, indent=1) + "\n").encode())
            self.encoder.save(out.child("encoder"))

    def measure(self) -> Retrieval | None:
        """Retrieval among the held-out pairs with the weights as they are; None where there are none."""
        if not len(self.held_out):
            return None
        self.encoder.eval()
        images = self.encoder.images(list(self.held_out.images))
        texts = self.encoder.texts(self.held_out.texts)
        self.encoder.train()
        return retrieval(images, texts, self.held_out.texts)

    def _chosen(self) -> NDArray[np.int64]:
        """This worker's pairs of the next step: each pass goes once through the pairs in an order of its own, without what is left over."""
        steps_a_pass = len(self.pairs) // self.config.batch
        number, place = divmod(self.done, steps_a_pass)
        order = np.random.Generator(np.random.Philox(key=[self.config.seed, number])).permutation(len(self.pairs))
        each = self.config.batch // self.worker.world
        first = place * self.config.batch + self.worker.rank * each
        return order[first : first + each]

    def _cut(self, texts: Sequence[str]) -> list[str]:
        """This worker's texts of the next step, some of them one of their sentences only."""
        generator = np.random.Generator(np.random.Philox(key=[self.config.seed, _CUTS + self.done]))
        own = slice(self.worker.rank * len(texts), (self.worker.rank + 1) * len(texts))
        luck, places = generator.random((2, self.config.batch))[:, own]
        cut = luck < self.config.sentences
        return [_a_sentence(text, place) if alone else text for text, alone, place in zip(texts, cut, places, strict=True)]

    def _validate_and_save(self, loss: float, rate: float) -> None:
        out = Location.of(self.config.out)
        row = {"step": float(self.done), "loss": loss, "temperature": float(1 / self.encoder.scale.detach()), "pairs_per_second": rate}
        if self.worker.rank == 0:
            with self.ema.applied(self.encoder):
                found = self.measure()
            if found is not None:
                row |= {f"image_to_text@{k}": share for k, share in found.image_to_text.items()}
                row |= {f"text_to_image@{k}": share for k, share in found.text_to_image.items()}
            self.rows.append(row)
            out.child("metrics.json").write_bytes((json.dumps(self.rows, indent=1) + "\n").encode())
            print(f"contrast: {json.dumps(row)}", flush=True)
        folder = out.child("checkpoints")
        save(folder, self.encoder, self.adam, self.ema, self.done, {}, write=self.worker.rank == 0)
        if self.worker.rank == 0:
            prune(folder, self.config.keep, best=self.done)
        self.worker.report(row)

    def _mean(self, losses: Tensor) -> float:
        """Over steps and workers."""
        mean = losses.mean()
        if self.worker.world > 1:
            dist.all_reduce(mean)
        return float(mean) / self.worker.world


def _initial(config: ContrastConfig) -> ImageTextEncoder:
    """The encoder that training starts from; ValueError for `pretrained` beside a saved one."""
    if not committed(Location.of(config.encoder)):
        return ImageTextEncoder.create(config.encoder, config.pretrained, config.seed)
    if config.pretrained is not None:
        raise ValueError(f"pretrained: {config.pretrained!r}, expected none with the saved encoder {config.encoder!r}")
    return ImageTextEncoder.load(config.encoder)


def _a_sentence(text: str, place: float) -> str:
    """The sentence that lies at a share `place` in [0, 1) of all."""
    sentences = split_sentences(text)
    return sentences[int(place * len(sentences))]


def _read_rows(config: ContrastConfig) -> list[dict[str, Any]]:
    file = Location.of(config.out).child("metrics.json")
    return list(json.loads(file.read_bytes())) if file.exists() else []
