"""Whether this process lives, whether it can take documents, and which version it is."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.pending import pending_count

router = APIRouter(tags=["health"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """What these routes need."""

    ledger: Ledger
    executor: Executor
    admit: Callable[[int], None]
    waiting: Callable[[], int]  # requests that wait for a saga

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
