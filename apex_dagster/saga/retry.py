"""Calls that may fail for a while: full-jitter retries, and a deadline that ends hung calls."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

import structlog
import tenacity

from apex_dagster.errors import OutcomeUnknown, TransientError

log = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryPolicy:
    """How often and how long a call is tried."""

    attempts: int
    timeout_s: float  # for all attempts together
    base_s: float = 0.1
    delay_s_max: float = 5.0


def call_with_retry(operation: Callable[[], T], policy: RetryPolicy, *, name: str) -> T:
    """Call `operation` until it returns, fails for good, or attempts or time are used up.

    Only TransientError is retried. Raises the last one, or OutcomeUnknown when a call was still
    running at the deadline: its write may land later, which staging by inserts makes harmless.
    The wait after attempt n is uniform in [0, min(delay_s_max, base_s * 2**(n - 1))] seconds.
    Source: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
    """
    deadline = time.monotonic() + policy.timeout_s
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(TransientError),
        stop=tenacity.stop_after_attempt(policy.attempts)
        | tenacity.stop_before_delay(policy.timeout_s),
        wait=tenacity.wait_random_exponential(multiplier=policy.base_s, max=policy.delay_s_max),
        before_sleep=lambda state: _log_retry(name, state),
        reraise=True,
    )
    return retrying(lambda: _call_until(operation, deadline, policy.timeout_s, name))


def _call_until(operation: Callable[[], T], deadline: float, timeout_s: float, name: str) -> T:
    """Run in a thread of its own: no driver can be trusted to come back from a frozen server."""
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
        raise OutcomeUnknown(name, after_s=timeout_s) from None


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
