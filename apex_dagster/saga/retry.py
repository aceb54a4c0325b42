"""Calls that may fail for a while: full-jitter retries, and a deadline that ends hung calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import structlog
import tenacity

from apex_dagster.errors import OutcomeUnknown, TransientError

log = structlog.get_logger(__name__)

T = TypeVar("T")


class StillRunning(Exception):
    """A call has not come back by its deadline, and goes on."""


class Pace(Protocol):
    """Time as retries see it: real in every process, virtual in `apex_dagster.simulation`."""

    def monotonic(self) -> float:
        """Seconds since some moment."""
        ...

    def sleep(self, delay_s: float) -> None:
        """Return after `delay_s`."""
        ...

    def call_until(self, operation: Callable[[], T], deadline: float, name: str) -> T:
        """What `operation` returns or raises; StillRunning if that takes until `deadline`."""
        ...

    def run_all(self, operations: Sequence[Callable[[], T]]) -> list[T]:
        """All of them at the same time; their results in order. Returns, or raises what one of them
        raised, when the last has ended."""
        ...


class RealPace:
    """The clock of this process, and a thread for each call."""

    def monotonic(self) -> float:
        return time.monotonic()

    def sleep(self, delay_s: float) -> None:
        time.sleep(delay_s)

    def call_until(self, operation: Callable[[], T], deadline: float, name: str) -> T:
        """In a thread of its own: no driver can be trusted to come back from a frozen server."""
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(operation())
            except BaseException as error:  # SimulatedCrash has to reach the caller's thread too
                future.set_exception(error)

        threading.Thread(target=run, name=f"call-{name}", daemon=True).start()
        try:
            return future.result(timeout=max(0.0, deadline - time.monotonic()))
        except FutureTimeout:
            if future.done():
                raise
            raise StillRunning(name) from None

    def run_all(self, operations: Sequence[Callable[[], T]]) -> list[T]:
        if len(operations) < 2:
            return [operation() for operation in operations]
        with ThreadPoolExecutor(len(operations), thread_name_prefix="at-once") as pool:
            futures = [pool.submit(operation) for operation in operations]
        return [future.result() for future in futures]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a call is tried."""

    attempts: int
    timeout_s: float  # for all attempts together
    base_s: float = 0.1
    delay_s_max: float = 5.0
    pace: Pace = field(default_factory=RealPace, compare=False)


def call_with_retry(operation: Callable[[], T], policy: RetryPolicy, *, name: str) -> T:
    """Call `operation` until it returns, fails for good, or attempts or time are used up.

    Only TransientError is retried. Raises the last one, or OutcomeUnknown when a call was still
    running at the deadline: its write may land later, which staging by inserts makes harmless.
    The wait after attempt n is uniform in [0, min(delay_s_max, base_s * 2**(n - 1))] seconds.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    pace = policy.pace
    deadline = pace.monotonic() + policy.timeout_s

    def enough(state: tenacity.RetryCallState) -> bool:
        late = pace.monotonic() + state.upcoming_sleep >= deadline
        return late or state.attempt_number >= policy.attempts

    def attempt() -> T:
        try:
            return pace.call_until(operation, deadline, name)
        except StillRunning:
            raise OutcomeUnknown(name, after_s=policy.timeout_s) from None

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=enough,
        wait=tenacity.wait_random_exponential(multiplier=policy.base_s, max=policy.delay_s_max),
        sleep=pace.sleep,
        before_sleep=lambda state: _log_retry(name, state),
        reraise=True,
    )
    return retrying(attempt)


def _log_retry(name: str, state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    wait_s = state.next_action.sleep if state.next_action else 0.0
    log.warning(
        "retrying",
        operation=name,
        attempt=state.attempt_number,
        wait_s=round(wait_s, 3),
        error=str(error),
    )
