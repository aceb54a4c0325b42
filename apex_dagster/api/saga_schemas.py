"""What is told of sagas, as OpenAPI shows it; like those of `schemas.py`, models that describe."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, Field

from apex_dagster.saga.states import Status


class SagaError(BaseModel):
    """Why the saga cannot go on, or could not."""

    step: str | None = None
    message: str
    reason_class: str = Field(
        description="`permanent`, `store_down`, `version_conflict` and others."
    )


class SagaSummary(BaseModel):
    """One document's way into all four stores, or into none."""

    saga_id: str
    document_id: str
    version: int = Field(ge=1, description="What it makes live, if it completes.")
    status: Status
    expected_version: int | None = Field(None, description="Live when the saga was opened.")
    content_hash: str
    run_id: str | None = Field(
        None, description="The Dagster run that drives it, or drove it last."
    )
    predecessor_saga_id: str | None = Field(None, description="Whose submission it tries again.")
    error: SagaError | None = None
    created_at: datetime
    ended_at: datetime | None = Field(None, description="Completed: when its version became live.")
    published_at: datetime | None = Field(None, description="When every store showed it by itself.")
    duration_ms: float | None = Field(None, description="From created_at to ended_at.")


class SagaPage(BaseModel):
    """Sagas, the newest first."""

    sagas: list[SagaSummary]
    next: str | None = Field(None, description="`after` of the next page; null on the last one.")


class SagaUndo(BaseModel):
    """How the undo of a step went."""

    removed: int | None = Field(None, description="Items that its store has removed.")
    skipped: str | None = Field(None, description="Why there was nothing to undo.")
    failed: bool = Field(description="`apex saga show` tells what it said.")


class SagaStep(BaseModel):
    """One store's part of a saga."""

    step: str
    state: Literal["not started", "started", "completed", "undone", "undo failed"]
    receipt: dict[str, int | str] | None = Field(
        None,
        description="What its store took in, by kind; of a deletion, what it held: `version`,"
        " `items` and `digest`.",
    )
    duration_ms: float | None = Field(
        None, description="Of the write of the batch that it was part of."
    )
    undo: SagaUndo | None = None


class SagaEvent(BaseModel):
    """One entry of the append-only audit trail."""

    seq: int = Field(ge=1, description="Without gaps.")
    at: datetime
    event: str
    step: str | None = None
    status: Status = Field(description="Of the saga, after the event.")
    epoch: int = Field(ge=0, description="Rises with every change of owner.")
    duration_ms: float | None = None


class SagaStory(BaseModel):
    """A saga with its steps and its audit trail."""

    saga: SagaSummary
    steps: list[SagaStep] = Field(description="In their order.")
    events: list[SagaEvent] = Field(description="The oldest first.")
    what_now: str = Field(description="What somebody can do about it, in a sentence or two.")


_SUMMARY: dict[str, Any] = {
    "saga_id": "ingest_harbour-news-7_0f3c5a9d1b7e2460",
    "document_id": "harbour-news-7",
    "version": 3,
    "status": "compensated",
    "expected_version": 2,
    "content_hash": "9b1d0a3c5f7e2846" * 4,
    "run_id": "5ad1b1b6-4b5a-4c0e-9a53-6c1f7f2f0d11",
    "predecessor_saga_id": None,
    "error": {
        "step": "qdrant_write",
        "message": "qdrant is unavailable: connection refused",
        "reason_class": "store_down",
    },
    "created_at": "2026-03-01T08:15:30.123456Z",
    "ended_at": "2026-03-01T08:15:31.623456Z",
    "published_at": None,
    "duration_ms": 1500.0,
}

SAGA_PAGE_EXAMPLE: dict[str, Any] = {"sagas": [_SUMMARY], "next": _SUMMARY["saga_id"]}

SAGA_STORY_EXAMPLE: dict[str, Any] = {
    "saga": _SUMMARY,
    "steps": [
        {
            "step": "neo4j_write",
            "state": "undone",
            "receipt": {"entities": 2, "relations": 1},
            "duration_ms": 12.5,
            "undo": {"removed": 3, "skipped": None, "failed": False},
        },
        {
            "step": "redis_write",
            "state": "not started",
            "receipt": None,
            "duration_ms": None,
            "undo": None,
        },
    ],
    "events": [
        {
            "seq": 1,
            "at": "2026-03-01T08:15:30.123456Z",
            "event": "saga_opened",
            "step": None,
            "status": "pending",
            "epoch": 0,
            "duration_ms": None,
        }
    ],
    "what_now": "Every store is as it was before. Send the document again.",
}

UNKNOWN_SAGA_EXAMPLE = {
    "type": "urn:apex:problem:unknown-saga",
    "title": "Not Found",
    "status": 404,
    "detail": "No saga has this id",
    "saga_id": "ingest_harbour-news-7_0000000000000000",
}

PROGRESS_EXAMPLE = """event: step_completed
data: {"seq":5,"event":"step_completed","step":"neo4j_write","status":"in_progress"}
id: 5

event: ended
data: {"saga_id":"ingest_harbour-news-7_0f3c5a9d1b7e2460","status":"completed"}
id: 14-ended
"""
