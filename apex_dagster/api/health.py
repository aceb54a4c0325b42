"""Whether this process lives, whether it can take documents, and which version it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4

from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.pending import pending_count

router = APIRouter(tags=["health"])
_METRICS_TYPE = CONTENT_TYPE_PLAIN_0_0_4.partition(";")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What these routes need."""

    ledger: Ledger
    executor: Executor
    admit: Callable[[int], None]
    waiting: Callable[[], int]  # requests that wait for a saga
    metrics: Callable[[], bytes]

    def depth(self) -> int:
        """Documents that wait to be driven. Raises StoreUnavailable, and what `admit` raises."""
        depth = pending_count(self.ledger)
        self.admit(0)
        return depth


@router.get("/healthz", summary="Whether the process answers")
async def healthz() -> JSONResponse:
    """Asks nobody."""
    return JSONResponse({"status": "ok"})


@router.get(
    "/readyz",
    summary="Whether documents can be taken in",
    responses={503: {"description": "The ledger or a store is down."}},
)
async def readyz(request: Request) -> JSONResponse:
    """Asks the ledger, and what is known of the stores."""
    health: Health = request.app.state.health
    loop = asyncio.get_running_loop()
    depth = await loop.run_in_executor(health.executor, health.depth)
    ready: dict[str, Any] = {"status": "ready", "depth": depth, "waiting": health.waiting()}
    return JSONResponse(ready)


@router.get("/version", summary="The version of apex_dagster")
async def show_version() -> JSONResponse:
    """As installed."""
    return JSONResponse({"version": version("apex-dagster")})


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "As `apex metrics` prints them.", "content": {_METRICS_TYPE: {}}},
        503: {"description": "The ledger is down."},
    },
)
async def show_metrics(request: Request) -> Response:
    """Read from the ledger at this moment: the same figures whichever process is asked."""
    health: Health = request.app.state.health
    loop = asyncio.get_running_loop()
    text = await loop.run_in_executor(health.executor, health.metrics)
    return Response(text, media_type=CONTENT_TYPE_PLAIN_0_0_4)
