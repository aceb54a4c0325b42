"""What a client is told of an outcome. These bytes are kept under an idempotency key."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

import orjson
from fastapi import Response

from apex_dagster.api.problems import MEDIA_TYPE, Problem, retry_after
from apex_dagster.ingestion.intake import Outcome
from apex_dagster.saga.submissions import Answer

COMPENSATED = "Document ingestion failed and was compensated"
FAILED = "Document ingestion failed and could not be undone in every store: an operator is needed"
CONFLICT = "Another version of the document is live than the one expected"
SUPERSEDED = "A version of the document that was submitted later is live already, or its deletion"
KEY_REUSED = "The idempotency key was used before, with another body: send a new key"
STILL_OPEN = "The document's saga has not ended yet and goes on: ask again with the same key"
UNEXPECTED = "an unexpected error; the server's log tells more"
STILL_OPEN_RETRY_S = 5


def answer_of(outcome: Outcome) -> Answer:
    """Status and body."""
    if outcome.verdict == "success":
        body = {
            "status": "success",
            "document_id": outcome.document_id,
            "saga_id": outcome.saga_id,
            "version": outcome.version,
            "published": outcome.published,
        }
        unchanged = {"unchanged": True} if outcome.unchanged else {}
        return Answer(status=HTTPStatus.OK, body=orjson.dumps(body | unchanged))
    problem = _problem_of(outcome)
    return Answer(status=problem.status, body=problem.body(instance_of(outcome)))


def instance_of(outcome: Outcome) -> str:
    """What a problem is about. Not the path that was asked for: another request may be told the
    same, as answers are kept."""
    saga_id, document_id = outcome.saga_id, outcome.document_id
    return f"/sagas/{saga_id}" if saga_id else f"/documents/{document_id}"


def response_of(answer: Answer) -> Response:
    """The answer on the wire."""
    if answer.status == HTTPStatus.OK:
        return Response(answer.body, answer.status, media_type="application/json")
    headers = {}
    if answer.status == HTTPStatus.SERVICE_UNAVAILABLE:
        headers = retry_after(STILL_OPEN_RETRY_S)
    return Response(answer.body, answer.status, headers, MEDIA_TYPE)


def _problem_of(outcome: Outcome) -> Problem:
    about: dict[str, Any] = {"document_id": outcome.document_id, "saga_id": outcome.saga_id}
    if outcome.verdict == "key_reused":
        return Problem(
            HTTPStatus.UNPROCESSABLE_ENTITY, "key-reused", KEY_REUSED, field="Idempotency-Key"
        )
    if outcome.verdict == "conflict":
        live = outcome.version
        return Problem(HTTPStatus.CONFLICT, "conflict", CONFLICT, **about, live_version=live)
    if outcome.verdict == "superseded":
        return Problem(HTTPStatus.CONFLICT, "superseded", SUPERSEDED, **about)
    if outcome.verdict == "still_open":
        return Problem(HTTPStatus.SERVICE_UNAVAILABLE, "still-open", STILL_OPEN, **about)
    failed = outcome.verdict == "failed"
    # What nobody foresaw may say anything, for example what was in the document or in a setting.
    reason = UNEXPECTED if outcome.error_class == "unexpected" else outcome.reason
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "not-undone" if failed else "compensated",
        FAILED if failed else COMPENSATED,
        **about,
        step=outcome.step,
        reason=reason,
        reason_class=outcome.error_class,
    )
