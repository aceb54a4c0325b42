"""Calls that block, away from the event loop, each answered in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus
from typing import TypeVar

from apex_dagster.api.problems import RETRY_AFTER_S, Problem, retry_after

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class BoundedCalls:
    """Calls on the threads of `executor`. Those that wait for a thread when their time is over are
    never made; one that has begun ends by the time-outs of its own."""

    executor: Executor
    bound_s: float

    async def run(self, call: Callable[[], T]) -> T:
        """What the call returns or raises; Problem 503 when that takes longer than `bound_s`."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self.bound_s):
                return await loop.run_in_executor(self.executor, call)
        except TimeoutError:
            raise Problem(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "unavailable",
                f"No answer within {self.bound_s:g} s; ask again later",
                headers=retry_after(RETRY_AFTER_S),
            ) from None
