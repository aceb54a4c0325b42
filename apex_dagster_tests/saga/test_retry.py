"""When a call is tried again, and when that ends."""

from __future__ import annotations

import threading

import pytest

from apex_dagster.errors import OutcomeUnknown, StoreRejected, StoreUnavailable
from apex_dagster.saga.retry import RealPace, RetryPolicy, call_with_retry


class Slow(RealPace):
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def sleep(self, delay_s: float) -> None:
        self.now_s += delay_s


class Broken:
    """Fails each time, and counts."""

    def __init__(self, error: Exception) -> None:
        self.error, self.calls = error, 0

    def __call__(self) -> None:
        self.calls += 1
        raise self.error


def policy(attempts: int, timeout_s: float) -> RetryPolicy:
    return RetryPolicy(attempts=attempts, timeout_s=timeout_s, base_s=1.0, pace=Slow())


def test_no_attempt_begins_after_the_deadline_although_some_are_left() -> None:
    for _ in range(20):  # the waits are random
        patience, broken = policy(1000, 7.0), Broken(StoreUnavailable("it", "is down"))
        with pytest.raises(StoreUnavailable):
            call_with_retry(broken, patience, name="it")
        assert patience.pace.monotonic() < 7.0
        assert 1 < broken.calls < 1000


def test_attempts_end_before_the_deadline_does() -> None:
    broken = Broken(StoreUnavailable("it", "is down"))
    with pytest.raises(StoreUnavailable):
        call_with_retry(broken, policy(3, 1e9), name="it")
    assert broken.calls == 3


def test_what_will_never_heal_is_not_tried_again() -> None:
    broken = Broken(StoreRejected("it", "no"))
    with pytest.raises(StoreRejected):
        call_with_retry(broken, policy(3, 1e9), name="it")
    assert broken.calls == 1


def test_a_call_that_hangs_is_given_up_at_the_deadline_and_not_repeated() -> None:
    calls, go_on = [], threading.Event()

    def hang() -> None:
        calls.append(1)
        go_on.wait(60)

    try:
        with pytest.raises(OutcomeUnknown):
            call_with_retry(hang, RetryPolicy(attempts=5, timeout_s=0.05), name="it")
        assert len(calls) == 1
    finally:
        go_on.set()
