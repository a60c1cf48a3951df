"""Admission by a clock that the tests turn: who waits longer than allowed is refused at once, and told when to come back."""

from __future__ import annotations

import pytest

from raytraffic.serving.admission import Admission, Busy


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    """A clock at some time."""
    return Clock()


def admission(clock: Clock, most_requests: int = 8) -> Admission:
    """Lets in what waits at most 2 s."""
    return Admission(most_wait_s=2.0, most_requests=most_requests, now=clock)


def measured(clock: Clock, rate: float = 10.0) -> Admission:
    """One that has done 10 s of work at a rate, and is idle."""
    one = admission(clock)
    one.enter(10 * rate)
    clock.seconds += 10
    one.progress(10 * rate)
    one.leave()
    return one


def test_nothing_is_known_before_any_work_is_done(clock: Clock) -> None:
    one = admission(clock)
    assert one.rate() is None and one.wait_s() == 0
    one.enter(1e9)
    clock.seconds += 100
    one.enter(1e9)
    assert one.rate() is None and one.waiting == 2e9 and one.requests == 2


def test_the_rate_is_that_of_busy_time(clock: Clock) -> None:
    one = measured(clock, rate=10.0)
    assert one.rate() == pytest.approx(10.0)
    clock.seconds += 3600  # idle: nothing is learnt from it
    assert one.rate() == pytest.approx(10.0)
    one.enter(100)
    clock.seconds += 5
    one.progress(100)
    assert one.rate() is not None and 10 < float(one.rate() or 0) < 20


def test_the_past_is_forgotten(clock: Clock) -> None:
    one = measured(clock, rate=10.0)
    for _ in range(20):
        one.enter(1000)
        clock.seconds += 10
        one.progress(1000)
        one.leave()
    assert one.rate() == pytest.approx(100.0, rel=0.01)


def test_who_would_wait_too_long_is_refused(clock: Clock) -> None:
    one = measured(clock, rate=10.0)
    one.enter(15)  # 1.5 s
    one.enter(15)  # waits 1.5 s
    with pytest.raises(Busy) as busy:
        one.enter(1)  # would wait 3 s
    assert busy.value.retry_after_s == pytest.approx(1.0) and "try again in 1.0 s" in str(busy.value)
    assert one.waiting == 30 and one.requests == 2
    clock.seconds += 1
    one.progress(10)
    one.enter(1)


def test_a_large_request_enters_an_idle_server(clock: Clock) -> None:
    one = measured(clock, rate=10.0)
    one.enter(1e6)
    with pytest.raises(Busy):
        one.check()


def test_requests_are_counted(clock: Clock) -> None:
    one = admission(clock, most_requests=2)
    one.enter(0)
    one.enter(0)
    with pytest.raises(Busy) as busy:
        one.check()
    assert busy.value.retry_after_s == 0.5
    one.leave()
    one.check()


def test_what_leaves_undone_waits_no_more(clock: Clock) -> None:
    one = measured(clock, rate=10.0)
    one.enter(1000)
    one.leave(undone=1000)
    assert one.waiting == 0 and one.requests == 0
    one.enter(5)
    assert one.wait_s() == pytest.approx(0.5)


def test_an_empty_server_owes_nothing(clock: Clock) -> None:
    one = measured(clock)
    one.enter(0.1 + 0.2)
    one.progress(0.1)
    one.leave(undone=0.1)
    assert one.waiting == 0
