"""What the API answers, as its description (`/openapi.json`) has it. Times are texts, ISO 8601."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict


class Ingested(TypedDict):
    """The document is live with this content."""

    status: str  # "success"
    document_id: str
    saga_id: str
    version: int
    published: bool
    unchanged: NotRequired[bool]  # it was live already


class DocumentHeading(TypedDict):
    """A live document in a list."""

    document_id: str
    version: int
    saga_id: str
    title: str
    collection: str
    live_since: str


class LiveDocument(TypedDict):
    """One whole version."""

    document_id: str
    version: int
    saga_id: str
    title: str
    collection: str
    metadata: dict[str, Any]
    content_hash: str
    chunks: list[dict[str, Any]]
    entities: list[dict[str, Any]]
    relations: list[dict[str, Any]]
    receipts: dict[str, dict[str, int]]


class SagaSummary(TypedDict):
    """One document's way into all four stores, or into none."""

    saga_id: str
    document_id: str
    version: int
    status: str
    expected_version: int | None
    content_hash: str
    run_id: str | None
    predecessor_saga_id: str | None
    error: dict[str, Any] | None
    created_at: str
    ended_at: str | None
    published_at: str | None
    duration_ms: float | None


class SagaMove(TypedDict):
    """One entry of a saga's audit trail."""

    seq: int
    at: str
    event: str
    step: str | None
    status: str
    epoch: int
    duration_ms: float | None


class SagaStory(TypedDict):
    """A saga, its steps and its audit trail."""

    saga: SagaSummary
    steps: list[dict[str, Any]]
    events: list[SagaMove]
    what_now: str
