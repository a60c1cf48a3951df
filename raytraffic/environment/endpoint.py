"""The describer that asks a vision language model, many images at a time, and asks about none twice: answers are kept in a cache.

    export RAYTRAFFIC_VISION_URL=https://api.openai.com/v1 RAYTRAFFIC_VISION_MODEL=gpt-4o RAYTRAFFIC_VISION_KEY=...
    EndpointDescriber(Endpoint.from_environment(), cache="s3://bucket/descriptions").describe(scenes)

The cache is one file an answer, written as soon as it is there: a run that was stopped goes on where it was. The folder `account` in it
says what the answers have cost (raytraffic.environment.ledger).
"""

from __future__ import annotations

import hashlib
import json
import random
import threading
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from raytraffic.environment.chat import Answer, ChatFault, Endpoint, ask
from raytraffic.environment.describe import Description, Scene
from raytraffic.environment.ledger import Ledger
from raytraffic.environment.limits import Account, BudgetError, RateLimit, Spent, Usage
from raytraffic.environment.sentences import split_sentences
from raytraffic.environment.tiles import RgbImage
from raytraffic.files import Location

__all__ = ["EndpointDescriber"]

_AGAIN = ("busy", "lost", "unsound")
_PERHAPS_CHARGED = ("lost", "unsound")


class EndpointDescriber:
    """A Describer that asks `endpoint` and keeps answers in the folder `cache` (local or s3://).

    Rate limits, account and budget are those of this object in its process; a pickled copy starts anew. Processes that share a cache see
    each other's answers, but may both ask about an image that neither has an answer for yet. `run` names the account in the cache's ledger
    that this object and its copies share; without a name it is a new one.
    """

    def __init__(self, endpoint: Endpoint, cache: str, run: str | None = None) -> None:
        self.endpoint = endpoint
        self.cache = Location.of(cache)
        self.ledger = Ledger(self.cache.child("account"), run or uuid.uuid4().hex)
        self._process, self._writing = uuid.uuid4().hex, threading.Lock()
        largest = Usage(prompt_tokens=endpoint.max_prompt_tokens, completion_tokens=endpoint.max_tokens)
        self._account = Account(endpoint.prices, endpoint.budget, largest)
        self._limit = RateLimit(endpoint.requests_per_minute, endpoint.tokens_per_minute)

    def __repr__(self) -> str:
        return f"EndpointDescriber({self.endpoint!r}, cache={str(self.cache)!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        return EndpointDescriber, (self.endpoint, str(self.cache), self.ledger.run)

    @property
    def name(self) -> str:
        """See Describer: the model, and a digest of all that an answer depends on but the image."""
        return f"endpoint 1 ({self.endpoint.model}, {self.endpoint.question()})"

    @property
    def spent(self) -> Spent:
        """Requests, tokens and cost of this object so far; answers from the cache cost nothing."""
        return self._account.spent

    def describe(self, scenes: Sequence[Scene]) -> list[Description]:
        """See Describer; a scene without an image fails. Equal images are asked about once.

        Once the endpoint denies a request (wrong key, model or URL) no more are sent, and the scenes left fail for the same reason.
        ValueError for a key that is none, OSError where the cache cannot be written.
        """
        keys = [None if scene.image is None else self._cache_key(scene.image) for scene in scenes]
        images = {key: scene.image for key, scene in zip(keys, scenes, strict=True) if key is not None and scene.image is not None}
        denied = _Denied()
        with ThreadPoolExecutor(max_workers=self.endpoint.concurrency) as pool:
            outcomes = pool.map(lambda key: self._outcome(key, images[key], denied), images)
            found: dict[str | None, _Outcome] = dict(zip(images, outcomes, strict=True))
        found[None] = _Outcome(failure="it has no image")
        return [
            Description(site=scene.facts.site, describer=self.name, text=found[key].text, failure=found[key].failure)
            for key, scene in zip(keys, scenes, strict=True)
        ]

    def _cache_key(self, image: RgbImage) -> str:
        digest = hashlib.blake2b(f"{self.endpoint.question()}/{image.shape}/".encode(), digest_size=16)
        digest.update(image.tobytes())
        return digest.hexdigest()

    def _outcome(self, key: str, image: RgbImage, denied: _Denied) -> _Outcome:
        """From the cache, or else asked for; what will not change is kept there."""
        file = self.cache.child(key[:2], f"{key}.json")
        cached = _read(file)
        if cached is not None:
            return cached
        outcome, usage = self._asked(key, image, denied)
        if outcome.lasting:
            kept = {"text": outcome.text, "failure": outcome.failure, "model": self.endpoint.model, "usage": usage and vars(usage)}
            file.write_bytes((json.dumps(kept, ensure_ascii=False) + "\n").encode())
        return outcome

    def _asked(self, key: str, image: RgbImage, denied: _Denied) -> tuple[_Outcome, Usage | None]:
        """Asks until there is an answer, the attempts are used up, or it makes no sense to go on."""
        for attempt in range(1, self.endpoint.attempts + 1):
            if denied.reason is not None:
                return _Outcome(failure=denied.reason), None
            try:
                answer = self._once(image)
            except BudgetError as error:
                return _Outcome(failure=str(error)), None
            except ChatFault as fault:
                failure = f"{fault} (attempt {attempt} of {self.endpoint.attempts})"
                if fault.kind == "denied":
                    denied.reason = str(fault)
                if fault.kind not in _AGAIN:
                    return _Outcome(failure=str(fault), lasting=fault.kind == "refused"), fault.usage
                wait = self._wait(key, attempt) if fault.wait is None else fault.wait
                if wait > self.endpoint.max_wait_seconds:
                    return _Outcome(failure=f"{failure}; the next is {wait:.0f} s away"), None
                if fault.wait is not None:
                    self._limit.pause(wait)  # it holds for all who ask
                elif attempt < self.endpoint.attempts:
                    time.sleep(wait)
            else:
                return _of_answer(answer), answer.usage
        return _Outcome(failure=failure), None

    def _once(self, image: RgbImage) -> Answer:
        """One request within limits and budget."""
        reserved = self._account.reserve()
        expected = self._account.expected_tokens()
        try:
            self._limit.take(expected)
            answer = ask(self.endpoint, image)
        except ChatFault as fault:
            self._book(reserved, expected, fault.usage, perhaps_charged=fault.kind in _PERHAPS_CHARGED)
            raise
        except BaseException:
            self._account.release(reserved)
            raise
        self._book(reserved, expected, answer.usage, perhaps_charged=True)
        return answer

    def _book(self, reserved: float, expected: int, usage: Usage | None, *, perhaps_charged: bool) -> None:
        self._account.settle(reserved, usage, perhaps_charged=perhaps_charged)
        if usage is not None or not perhaps_charged:
            self._limit.correct(expected, 0 if usage is None else usage.total)
        with self._writing:  # of two threads the later one writes what both have spent
            self.ledger.write(self._process, self.spent)

    def _wait(self, key: str, attempt: int) -> float:
        """Seconds before the next attempt: they double, spread by up to a half so that those who failed together do not return together."""
        spread = random.Random(f"{self.endpoint.seed}/{key}/{attempt}").uniform(1.0, 1.5)
        return self.endpoint.first_wait_seconds * 2.0 ** (attempt - 1) * spread


@dataclass(frozen=True, kw_only=True)
class _Outcome:
    """A text or a failure, and whether asking again would bring the same."""

    text: str = ""
    failure: str | None = None
    lasting: bool = False


@dataclass
class _Denied:
    """Why the endpoint takes no request at all, once it said so; one of each call of `describe`, shared by its threads."""

    reason: str | None = None


def _of_answer(answer: Answer) -> _Outcome:
    """The text; of one that was cut off, its whole sentences."""
    if not answer.cut:
        return _Outcome(text=answer.text, lasting=True)
    sentences = split_sentences(answer.text)
    whole = sentences if sentences[-1].rstrip("\"'”’)*").endswith((".", "!", "?", "。", "！", "？")) else sentences[:-1]
    if not whole:
        return _Outcome(failure="an answer that was cut off at max_tokens within its first sentence", lasting=True)
    return _Outcome(text=" ".join(whole), lasting=True)


def _read(file: Location) -> _Outcome | None:
    """What the cache holds; None where there is nothing, or nothing sound: then it is asked for again."""
    try:
        kept = json.loads(file.read_bytes())
        outcome = _Outcome(text=kept["text"], failure=kept["failure"], lasting=True)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return outcome if isinstance(outcome.text, str) and bool(outcome.text) == (outcome.failure is None) else None
