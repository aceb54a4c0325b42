"""`GET /sagas` and `GET /sagas/{saga_id}`: what became of documents, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response

from apex_dagster.api.answers import UNEXPECTED
from apex_dagster.api.pages import (
    ID_CHARS_MAX,
    LIMIT_DEFAULT,
    LINK_HEADER,
    NO_NUL,
    Limit,
    json_bytes,
    page_response,
)
from apex_dagster.api.problems import POSTGRES_DOWN, Problem, described
from apex_dagster.api.saga_schemas import (
    SAGA_PAGE_EXAMPLE,
    SAGA_STORY_EXAMPLE,
    UNKNOWN_SAGA_EXAMPLE,
    SagaPage,
    SagaStory,
)
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.ingestion.explain import StepStory, story_of
from apex_dagster.ingestion.request import RequestRefused
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status

router = APIRouter(tags=["sagas"])

SAGA_ID_CHARS_MAX = ID_CHARS_MAX + 64  # it holds the document's, and a few characters more
SagaIdPath = Annotated[str, Path(min_length=1, max_length=SAGA_ID_CHARS_MAX, pattern=NO_NUL)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sagas:
    """What these routes need. Its methods block."""

    ledger: Ledger
    calls: BoundedCalls

    def story(self, saga_id: str) -> bytes:
        """The saga's story as JSON. Raises Problem 404."""
        if not (found := self.ledger.sagas([saga_id])):
            raise unknown_saga(saga_id)
        story = story_of(self.ledger, found[0])
        return json_bytes(
            {
                "saga": summary_of(story.saga),
                "steps": [_step(step) for step in story.steps],
                "events": [event_of(event) for event in story.events],
                "what_now": story.what_now,
            }
        )

    def page(
        self,
        *,
        statuses: list[Status] | None,
        document_id: str | None,
        run_id: str | None,
        after: str | None,
        limit: int,
    ) -> list[dict[str, Any]]:
        """One more than `limit`, if there are. Raises RequestRefused."""
        last = self.ledger.sagas([after]) if after else []
        if after and not last:
            raise RequestRefused("after: no saga has this id; use `next` of the page before")
        found = self.ledger.list_sagas(
            statuses=statuses,
            document_id=document_id,
            run_id=run_id,
            beyond=last[0] if last else None,
            limit=limit + 1,
        )
        return [summary_of(saga) for saga in found]


@router.get(
    "/sagas",
    summary="List sagas",
    response_class=Response,
    responses={
        200: {
            "model": SagaPage,
            "description": "A page, the newest first.",
            "headers": LINK_HEADER,
            "content": {"application/json": {"example": SAGA_PAGE_EXAMPLE}},
        },
        422: described("A parameter cannot be used."),
        503: POSTGRES_DOWN,
    },
)
async def list_sagas(
    request: Request,
    limit: Limit = LIMIT_DEFAULT,
    after: Annotated[
        str | None,
        Query(
            max_length=SAGA_ID_CHARS_MAX,
            pattern=NO_NUL,
            description="`next` of the page before; begins with the newest saga without it.",
        ),
    ] = None,
    status: Annotated[
        list[Status] | None, Query(description="Only these; may be given several times.")
    ] = None,
    document_id: Annotated[
        str | None, Query(pattern=NO_NUL, description="Only those of one document.")
    ] = None,
    run_id: Annotated[
        str | None, Query(pattern=NO_NUL, description="Only those that a Dagster run drove last.")
    ] = None,
) -> Response:
    """Sagas by pages, the newest first. Those that are opened meanwhile are on none of the pages
    that follow."""
    sagas: Sagas = request.app.state.sagas
    call = partial(
        sagas.page,
        statuses=status,
        document_id=document_id,
        run_id=run_id,
        after=after,
        limit=limit,
    )
    items = await sagas.calls.run(call)
    return page_response(request, "sagas", items, limit=limit, cursor="saga_id")


@router.get(
    "/sagas/{saga_id:path}",  # it holds the document's id, which may hold slashes
    summary="Tell a saga's story",
    response_class=Response,
    responses={
        200: {
            "model": SagaStory,
            "description": "The saga, its steps and its audit trail.",
            "content": {"application/json": {"example": SAGA_STORY_EXAMPLE}},
        },
        404: described("No saga has this id.", UNKNOWN_SAGA_EXAMPLE),
        422: described("Nothing can have this id."),
        503: POSTGRES_DOWN,
    },
)
async def show_saga(
    request: Request,
    saga_id: SagaIdPath,
) -> Response:
    """How far a saga came, what each store said, what was undone, and every move that it made."""
    sagas: Sagas = request.app.state.sagas
    content = await sagas.calls.run(partial(sagas.story, saga_id))
    return Response(content, media_type="application/json")


def unknown_saga(saga_id: str) -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "unknown-saga", "No saga has this id", saga_id=saga_id)


def summary_of(saga: Saga) -> dict[str, Any]:
    return {
        "saga_id": saga.saga_id,
        "document_id": saga.document_id,
        "version": saga.version,
        "status": saga.status.value,
        "expected_version": saga.expected_version,
        "content_hash": saga.content_hash,
        "run_id": saga.run_id,
        "predecessor_saga_id": saga.predecessor_saga_id,
        "error": _error(saga.error) if saga.error else None,
        "created_at": saga.created_at,
        "ended_at": saga.ended_at,
        "published_at": saga.published_at,
        "duration_ms": saga.duration_ms,
    }


def _error(error: Mapping[str, Any]) -> dict[str, Any]:
    # As an answer to an ingestion: what nobody foresaw may say anything.
    message = UNEXPECTED if error["class"] == "unexpected" else error["message"]
    return {"step": error.get("step"), "message": message, "reason_class": error["class"]}


def _step(story: StepStory) -> dict[str, Any]:
    undo = story.undo
    return {
        "step": story.step,
        "state": story.state,
        "receipt": story.receipt,
        "duration_ms": story.duration_ms,
        "undo": undo
        and {
            "removed": undo.get("removed"),
            "skipped": undo.get("skipped"),
            "failed": "error" in undo,
        },
    }


def event_of(event: Mapping[str, Any]) -> dict[str, Any]:
    names = ("seq", "at", "event", "step", "status", "epoch", "duration_ms")
    return {name: event[name] for name in names}
