"""What may be asked of a paid service and when: requests and tokens a minute, and an account of tokens and money that stops at a budget.

All of it holds for one process: n workers with one each ask n times as often and may spend n times the budget.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

__all__ = ["Account", "BudgetError", "Prices", "RateLimit", "Spent", "Usage"]


class BudgetError(Exception):
    """One more request could cost more than what is left of the budget."""


@dataclass(frozen=True, kw_only=True)
class Usage:
    """Tokens of a request and of its answer."""

    prompt_tokens: int
    completion_tokens: int

    @property
    def total(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a million tokens cost, in any one currency."""

    prompt: float = 0.0
    completion: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"price of {name}: {value}, expected a number of at least 0")

    def of(self, usage: Usage) -> float:
        """The cost of so many tokens."""
        return (self.prompt * usage.prompt_tokens + self.completion * usage.completion_tokens) / 1e6


@dataclass(frozen=True, kw_only=True)
class Spent:
    """An account at one moment.

    requests         sent, those that failed included
    cost             of the tokens that answers reported
    possible_cost    at most, of requests whose answer was lost or told no usage: they may have been charged
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    possible_cost: float = 0.0

    def __add__(self, other: Spent) -> Spent:
        """Two accounts as one."""
        return Spent(**{name: value + getattr(other, name) for name, value in vars(self).items()})


class Account:
    """Adds up what requests used; safe among threads.

    `largest` is what one request may use at most: it is set aside before a request is sent, so that the budget holds whatever comes
    back. Where a request uses more tokens than that, later ones are taken to need as many.
    """

    def __init__(self, prices: Prices, budget: float | None, largest: Usage) -> None:
        self._prices = prices
        self._budget = math.inf if budget is None else budget
        self._largest = largest
        self._spent = Spent()
        self._answers = 0
        self._set_aside = 0.0
        self._lock = threading.Lock()

    @property
    def spent(self) -> Spent:
        """What was used so far."""
        with self._lock:
            return self._spent

    def expected_tokens(self) -> int:
        """Of one request: the mean so far, and at first the most."""
        with self._lock:
            used = self._spent.prompt_tokens + self._spent.completion_tokens
            return math.ceil(used / self._answers) if self._answers else self._largest.total

    def reserve(self) -> float:
        """Sets the cost of one request aside and returns it; BudgetError where the budget has no room for it."""
        with self._lock:
            cost = self._prices.of(self._largest)
            taken = self._spent.cost + self._spent.possible_cost + self._set_aside
            if taken + cost > self._budget:
                raise BudgetError(f"budget of {self._budget:g}: {taken:.6g} are spent or set aside, and one request may cost {cost:.6g}")
            self._set_aside += cost
            return cost

    def settle(self, reserved: float, usage: Usage | None, *, perhaps_charged: bool = False) -> None:
        """Books a request that was sent: its `usage`, or, where that is not known, nothing or perhaps all that was reserved."""
        with self._lock:
            self._set_aside -= reserved
            before = replace(self._spent, requests=self._spent.requests + 1)
            if usage is None:
                self._spent = replace(before, possible_cost=before.possible_cost + (reserved if perhaps_charged else 0.0))
                return
            self._answers += 1
            self._spent = replace(
                before,
                prompt_tokens=before.prompt_tokens + usage.prompt_tokens,
                completion_tokens=before.completion_tokens + usage.completion_tokens,
                cost=before.cost + self._prices.of(usage),
            )
            self._largest = Usage(
                prompt_tokens=max(self._largest.prompt_tokens, usage.prompt_tokens),
                completion_tokens=max(self._largest.completion_tokens, usage.completion_tokens),
            )

    def release(self, reserved: float) -> None:
        """Gives back what was set aside for a request that was not sent."""
        with self._lock:
            self._set_aside -= reserved


class RateLimit:
    """Gives requests their turns, evenly spaced; safe among threads. `clock` and `sleep` are those of `time` but in tests."""

    def __init__(
        self,
        requests_per_minute: float,
        tokens_per_minute: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._per_request = 60 / requests_per_minute
        self._per_token = 60 / tokens_per_minute
        self._clock, self._sleep = clock, sleep
        self._lock = threading.Lock()
        self._request_at = self._token_at = -math.inf

    def take(self, tokens: int) -> None:
        """Waits for the turn of a request that is expected to use so many tokens."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._request_at, self._token_at)
            self._request_at = turn + self._per_request
            self._token_at = turn + tokens * self._per_token
        if turn > now:
            self._sleep(turn - now)

    def correct(self, expected: int, used: int) -> None:
        """Tells how many tokens a request used after all."""
        with self._lock:
            self._token_at += (used - expected) * self._per_token

    def pause(self, seconds: float) -> None:
        """Nobody's turn comes within so many seconds from now."""
        with self._lock:
            self._request_at = max(self._request_at, self._clock() + seconds)
