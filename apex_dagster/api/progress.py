"""`GET /sagas/{saga_id}/events`: a saga's moves as they happen, as server-sent events.

Each stream asks the ledger now and then, less often while nothing happens, and stops with the end
of the saga or as soon as the client has gone. A saga takes a second or so; to listen for each move
of each would cost every saga a notification.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.sse import KEEPALIVE_COMMENT, format_sse_event

from apex_dagster.api.pages import json_bytes
from apex_dagster.api.problems import (
    POSTGRES_DOWN,
    Problem,
    described,
    described_for_now,
    retry_after,
)
from apex_dagster.api.saga_schemas import PROGRESS_EXAMPLE, UNKNOWN_SAGA_EXAMPLE
from apex_dagster.api.sagas import SagaIdPath, event_of, summary_of, unknown_saga
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.errors import ApexError
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga

router = APIRouter(tags=["sagas"])

STREAMS_MAX = 64  # each asks the ledger up to four times a second
_ASK_EVERY_S, _ASK_EVERY_S_MAX = 0.25, 1.0
_HEARTBEAT_S = 15.0  # proxies close what is silent for a minute, often for half of one
_ENDED = "ended"


@dataclass(kw_only=True)
class Progress:
    """What this route needs, and how many clients follow a saga."""

    ledger: Ledger
    calls: BoundedCalls
    heartbeat_s: float = _HEARTBEAT_S
    streams: int = field(default=0, init=False)

    def look(self, saga_id: str, after: int) -> tuple[Saga, list[dict[str, Any]]]:
        """The saga, and its moves beyond number `after`. Blocks. Raises Problem 404."""
        if not (found := self.ledger.sagas([saga_id])):
            raise unknown_saga(saga_id)
        # Read after the saga: its last move is among them if it is over.
        return found[0], [event_of(e) for e in self.ledger.events(saga_id) if e["seq"] > after]


@router.get(
    "/sagas/{saga_id:path}/events",
    summary="Follow a saga",
    response_class=Response,
    responses={
        200: {
            "description": "Its moves so far and from now on, each as the event that it is in the"
            " audit trail; then `ended`, with the saga, and the end of the stream.",
            "content": {
                "text/event-stream": {"schema": {"type": "string"}, "example": PROGRESS_EXAMPLE}
            },
        },
        204: {"description": "Last-Event-ID names its end: there is nothing to come back for."},
        404: described("No saga has this id.", UNKNOWN_SAGA_EXAMPLE),
        422: described("Nothing can have this id."),
        429: described_for_now(f"{STREAMS_MAX} clients follow sagas already."),
        503: POSTGRES_DOWN,
    },
)
async def follow_saga(
    request: Request,
    saga_id: SagaIdPath,
    last_event_id: Annotated[
        str | None, Header(description="Of the last event that was seen; browsers send it.")
    ] = None,
) -> Response:
    """Every move of a saga as it happens, as server-sent events, until the saga has ended."""
    progress: Progress = request.app.state.progress
    if progress.streams >= STREAMS_MAX:
        raise Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "streams",
            f"{STREAMS_MAX} clients follow sagas already; GET /sagas/{{saga_id}} tells as much",
            headers=retry_after(1),
        )
    seen, _, ended = (last_event_id or "").partition("-")
    after = int(seen) if seen.isascii() and seen.isdigit() and len(seen) < 10 else 0
    saga, moves = await progress.calls.run(partial(progress.look, saga_id, after))
    if ended == _ENDED and saga.is_over and not moves:
        return Response(None, HTTPStatus.NO_CONTENT)
    return StreamingResponse(
        _events(request, progress, saga, moves, after),
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        media_type="text/event-stream",
    )


async def _events(
    request: Request, progress: Progress, saga: Saga, moves: list[dict[str, Any]], after: int
) -> AsyncIterator[bytes]:
    progress.streams += 1
    try:
        wait_s, sent_at = _ASK_EVERY_S, time.monotonic()
        while True:
            for move in moves:
                after = move["seq"]
                yield _event(str(after), move["event"], move)
            if saga.is_over:
                yield _event(f"{after}-{_ENDED}", _ENDED, summary_of(saga))
                return
            wait_s = _ASK_EVERY_S if moves else min(2 * wait_s, _ASK_EVERY_S_MAX)
            sent_at = time.monotonic() if moves else sent_at
            if time.monotonic() - sent_at >= progress.heartbeat_s:
                yield KEEPALIVE_COMMENT
                sent_at = time.monotonic()
            await asyncio.sleep(wait_s)
            if await request.is_disconnected():
                return
            try:
                look = partial(progress.look, saga.saga_id, after)
                saga, moves = await progress.calls.run(look)
            except (ApexError, Problem):  # the ledger is down: the client asks again from here on
                return
    finally:
        progress.streams -= 1


def _event(event_id: str, name: str, value: Any) -> bytes:
    return format_sse_event(data_str=json_bytes(value).decode(), event=name, id=event_id)
