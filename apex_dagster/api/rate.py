"""How many requests a client may send: against one that has run wild, rather than for fairness.

Counted in this process, so a request costs no round trip; several processes give a client as many
times the rate. A batch counts as one request, as the queue bounds what is in it.
"""

from __future__ import annotations

import math
import time
from http import HTTPStatus
from typing import Any

from limits import RateLimitItem, parse_many
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from apex_dagster.api.keys import OPEN_PATHS, client_of
from apex_dagster.api.problems import Problem, described_for_now, refuse, retry_after
from apex_dagster.errors import InvalidInput


def rate_of(setting: str) -> RateLimitItem:
    """`100/second` as a limit. Raises InvalidInput."""
    wrong = f"APEX_API_RATE: {setting!r} is no rate; use for example 100/second or 5000/minute"
    try:
        [rate] = parse_many(setting)
    except ValueError as error:
        raise InvalidInput(wrong) from error
    if rate.amount < 1:
        raise InvalidInput(wrong)
    return rate


class RateLimit:
    """Refuses what exceeds the rate (429), by the name that the request's key was made for, or by
    its address where keys are off. Health always answers."""

    def __init__(self, app: ASGIApp, rate: RateLimitItem) -> None:
        self._app, self._rate = app, rate
        self._limiter = SlidingWindowCounterRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            who = _who(HTTPConnection(scope))
            if not await self._limiter.hit(self._rate, who):
                await refuse(await self._refusal(who), scope, receive, send)
                return
        await self._app(scope, receive, send)

    async def _refusal(self, who: str) -> Problem:
        window = await self._limiter.get_window_stats(self._rate, who)
        return Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "rate",
            f"More than {self._rate} requests; send it again later, or raise APEX_API_RATE",
            headers=retry_after(math.ceil(window.reset_time - time.time())),
        )


def _who(request: HTTPConnection) -> str:
    address = request.client.host if request.client else ""
    return f"{client_of(request)} {'' if 'apex.key' in request.scope else address}"


def describe(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI description what a client is answered that exceeds the rate."""
    for path, operations in schema["paths"].items():
        for operation in operations.values():
            if path not in OPEN_PATHS:
                operation["responses"].setdefault(
                    "429", described_for_now("Exceeds APEX_API_RATE.")
                )
