"""`DELETE /documents/{document_id}`: answered when the removal is over, or with where to look."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from apex_dagster.access.receipt_key import receipt_file
from apex_dagster.api.answers import instance_of
from apex_dagster.api.keys import client_of
from apex_dagster.api.pages import DocumentId
from apex_dagster.api.problems import MEDIA_TYPE, Problem, described, described_for_now
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.ingestion.intake import Intake, Outcome
from apex_dagster.ingestion.request import KEY_CHARS_MAX, checked_key
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.opening import deletion
from apex_dagster.saga.removal import find_receipt
from apex_dagster.saga.submissions import Answer

router = APIRouter(tags=["documents"])

UNKNOWN = "Nothing was ever submitted under this id"
COMPENSATED = "Deletion failed and was compensated: the document is as it was"
SUPERSEDED = "A version of the document that was submitted later is live"
KEY_REUSED = "The idempotency key was used before, for something else: send a new key"


class Deletion(BaseModel):
    """The document is deleted: no read finds it any more."""

    status: str = Field(pattern="^(deleted|removing)$", description="removing: the stores go on.")
    document_id: str
    saga_id: str
    version: int | None = Field(None, description="A later version makes it live again.")
    receipt: dict[str, Any] | None = Field(
        None, description="What each store held, removed, and shows still. No content."
    )
    signature: dict[str, str] | None = Field(
        None, description="Of the receipt: algorithm, fingerprint, public_key, signature; base64."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletions:
    """What the route needs. The intake puts outcomes into the words of `answer_of`."""

    intake: Intake
    ledger: Ledger
    calls: BoundedCalls

    async def delete(self, document_id: str, *, client: str, key: str | None) -> Response:
        """Raises RequestRefused, QueueFull, StoreUnavailable."""
        wanted = deletion(document_id, client=client, idempotency_key=key)
        answer = await self.intake.answer(wanted)
        if answer.status not in (HTTPStatus.OK, HTTPStatus.ACCEPTED):
            return Response(answer.body, answer.status, media_type=MEDIA_TYPE)
        told: dict[str, Any] = orjson.loads(answer.body)
        # The answer that is kept under a key tells of the deletion; how far its removal is now,
        # its receipt.
        found = await self.calls.run(partial(find_receipt, self.ledger, told["saga_id"]))
        if found is not None:
            body = {**told, "status": "deleted", **receipt_file(found)}
            return Response(orjson.dumps(body), HTTPStatus.OK, media_type="application/json")
        location = {"Location": f"/sagas/{quote(told['saga_id'])}"}
        going_on = orjson.dumps({**told, "status": "removing"})
        return Response(going_on, HTTPStatus.ACCEPTED, location, "application/json")


def answer_of(outcome: Outcome) -> Answer:
    """What is kept under an idempotency key."""
    if outcome.verdict in ("success", "still_open"):
        about = {"document_id": outcome.document_id, "saga_id": outcome.saga_id}
        version = {"version": outcome.version} if outcome.version else {}
        status = HTTPStatus.OK if outcome.verdict == "success" else HTTPStatus.ACCEPTED
        return Answer(status=status, body=orjson.dumps({**about, **version}))
    problem = _problem_of(outcome)
    return Answer(status=problem.status, body=problem.body(instance_of(outcome)))


def _problem_of(outcome: Outcome) -> Problem:
    about: dict[str, Any] = {"document_id": outcome.document_id, "saga_id": outcome.saga_id}
    if outcome.verdict == "unknown":
        return Problem(HTTPStatus.NOT_FOUND, "unknown", UNKNOWN, **about)
    if outcome.verdict == "key_reused":
        return Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "key-reused", KEY_REUSED, field="Idempotency-Key"
        )
    if outcome.verdict == "superseded":
        return Problem(HTTPStatus.CONFLICT, "superseded", SUPERSEDED, **about)
    reason = None if outcome.error_class == "unexpected" else outcome.reason
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "compensated",
        COMPENSATED,
        **about,
        step=outcome.step,
        reason=reason,
        reason_class=outcome.error_class,
    )


_EXAMPLE = {
    "status": "deleted",
    "document_id": "harbour-news-7",
    "saga_id": "delete_harbour-news-7_1d7f0a9b3c5e2468",
    "version": 2,
    "receipt": {
        "form": "apex_dagster deletion receipt 1",
        "document_id": "harbour-news-7",
        "saga_id": "delete_harbour-news-7_1d7f0a9b3c5e2468",
        "version": 2,
        "requested_at": "2026-03-01T08:00:00.101Z",
        "deleted_at": "2026-03-01T08:00:00.153Z",
        "cleared_at": "2026-03-01T08:00:00.201Z",
        "removed_saga_id": "ingest_harbour-news-7_0f3c5a9d1b7e2460",
        "stores": {"qdrant": {"held": {"version": 1, "items": 3}, "removed": 3}},
        "erased": {"extractions": 1},
        "read_back": {"qdrant": {"vectors": 0}},
    },
    "signature": None,
}


@router.delete(
    "/documents/{document_id:path}",
    summary="Delete a document",
    response_class=Response,
    responses={
        200: {
            "model": Deletion,
            "description": "Nothing of it is left in any store; deleted before: the same receipt.",
            "content": {"application/json": {"example": _EXAMPLE}},
        },
        202: {
            "model": Deletion,
            "description": "The removal goes on by itself. Send the same again to see its receipt.",
            "headers": {"Location": {"schema": {"type": "string"}, "description": "Of the saga."}},
        },
        404: described("Nothing was ever submitted under this id."),
        409: described("A version that was submitted later is live."),
        422: described("Nothing can have this id, or the key was used for something else."),
        429: described_for_now("APEX_PENDING_MAX documents wait already."),
        500: described("Every store is as it was before."),
        503: described_for_now("A store is down."),
    },
    openapi_extra={
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "Send the request again with the same key, and it leads to the same"
                " deletion, whatever was submitted since. Kept for APEX_IDEMPOTENCY_KEEP_S.",
                "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
            }
        ]
    },
)
async def delete_document(
    request: Request,
    document_id: DocumentId,
) -> Response:
    """Removes a document from all four stores, with all that is kept of it, for good.

    A saga like any other: reads find nothing from one moment on, and a client that goes away
    changes nothing. What is submitted later makes the document live again. Deleting what is deleted
    answers with the receipt that there is.
    """
    deletions: Deletions = request.app.state.deletions
    key = request.headers.get("idempotency-key")
    if key is not None:
        checked_key(key, "Idempotency-Key")
    return await deletions.delete(document_id, client=client_of(request), key=key)
