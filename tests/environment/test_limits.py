"""Rate limits and accounts: what holds over any minute, and for any order of requests."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytraffic.environment.limits import Account, BudgetError, Prices, RateLimit, Spent, Usage


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=60), st.floats(1, 600), st.floats(1000, 1e6))
def test_no_minute_has_more_requests_or_tokens_than_allowed(tokens: list[int], requests_a_minute: float, tokens_a_minute: float) -> None:
    clock = Clock()
    limit = RateLimit(requests_a_minute, tokens_a_minute, clock, clock.sleep)
    turns = []
    for used in tokens:
        limit.take(used)
        turns.append((clock.now, used))
    for start, _ in turns:
        within = [used for at, used in turns if start <= at < start + 60 - 1e-6]
        assert len(within) <= requests_a_minute + 1
        assert sum(within) - within[-1] <= tokens_a_minute + 1e-3, "the last may have begun just within the minute"


def test_a_single_limit_is_used_to_the_full() -> None:
    clock = Clock()
    limit = RateLimit(60, 1e9, clock, clock.sleep)
    for _ in range(11):
        limit.take(1)
    assert clock.now == pytest.approx(110.0)


def test_tokens_that_were_not_used_are_given_back_and_others_asked_for() -> None:
    clock = Clock()
    limit = RateLimit(1e9, 600, clock, clock.sleep)
    limit.take(100)
    limit.correct(expected=100, used=30)
    limit.take(10)
    assert clock.now == pytest.approx(103.0)
    limit.correct(expected=10, used=50)
    limit.take(1)
    assert clock.now == pytest.approx(108.0)


def test_a_pause_holds_everybody() -> None:
    clock = Clock()
    limit = RateLimit(1e9, 1e9, clock, clock.sleep)
    limit.pause(7.0)
    limit.pause(2.0)
    limit.take(1)
    assert clock.now == pytest.approx(107.0)


LARGEST = Usage(prompt_tokens=1000, completion_tokens=100)


@given(
    st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 100), st.sampled_from(["used", "lost", "busy", "unsent"]))),
    st.floats(0.001, 0.05),
)
def test_an_account_never_passes_its_budget(requests: list[tuple[int, int, str]], budget: float) -> None:
    prices = Prices(prompt=3.0, completion=12.0)
    account = Account(prices, budget, LARGEST)
    sent = 0
    for prompt, completed, fate in requests:
        try:
            reserved = account.reserve()
        except BudgetError:
            spent = account.spent
            assert spent.cost + spent.possible_cost + prices.of(LARGEST) > budget, "there was room for one more"
            break
        if fate == "unsent":
            account.release(reserved)
            continue
        sent += 1
        account.settle(
            reserved, Usage(prompt_tokens=prompt, completion_tokens=completed) if fate == "used" else None, perhaps_charged=fate == "lost"
        )
    spent = account.spent
    assert spent.cost + spent.possible_cost <= budget + 1e-12
    assert spent.requests == sent


def test_requests_under_way_count_against_the_budget() -> None:
    account = Account(Prices(prompt=1.0, completion=0.0), 0.0025, LARGEST)
    first, _ = account.reserve(), account.reserve()
    with pytest.raises(BudgetError, match=r"budget of 0.0025: 0.002 are spent or set aside, and one request may cost 0.001"):
        account.reserve()
    account.settle(first, Usage(prompt_tokens=100, completion_tokens=0))
    account.reserve()


def test_a_request_larger_than_said_makes_later_ones_set_more_aside() -> None:
    account = Account(Prices(prompt=1.0, completion=0.0), None, LARGEST)
    account.settle(account.reserve(), Usage(prompt_tokens=5000, completion_tokens=1))
    assert account.reserve() == pytest.approx(0.005)


def test_expected_tokens_are_the_mean_of_what_was_used() -> None:
    account = Account(Prices(), None, LARGEST)
    assert account.expected_tokens() == 1100
    for used in (200, 401):
        account.settle(account.reserve(), Usage(prompt_tokens=used, completion_tokens=0))
    account.settle(account.reserve(), None)
    assert account.expected_tokens() == 301


def test_threads_lose_nothing() -> None:
    account = Account(Prices(prompt=1.0, completion=1.0), None, LARGEST)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: account.settle(account.reserve(), Usage(prompt_tokens=3, completion_tokens=2)), range(500)))
    spent = account.spent
    assert spent == Spent(requests=500, prompt_tokens=1500, completion_tokens=1000, cost=pytest.approx(0.0025))


def test_a_negative_price_is_refused() -> None:
    with pytest.raises(ValueError, match=r"price of prompt: -1.0, expected a number of at least 0"):
        Prices(prompt=-1.0)
