"""`POST /documents/ingest` and its batch form: answered when the saga has ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response

from apex_dagster.api.answers import response_of
from apex_dagster.api.batch import BATCH_PATH, BatchResponse
from apex_dagster.api.bodies import JSON, NDJSON, check_media_type, read_body, read_lines
from apex_dagster.api.keys import client_of
from apex_dagster.api.problems import described, described_for_now
from apex_dagster.api.schemas import (
    COMPENSATED_EXAMPLE,
    DOCUMENT_EXAMPLES,
    INGESTED_EXAMPLE,
    Ingested,
)
from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.intake import Intake
from apex_dagster.ingestion.request import KEY_CHARS_MAX, RequestRefused, read_request
from apex_dagster.saga.opening import Opening
from apex_dagster.saga.submissions import Answer

_LARGE_BYTES = 512 * 1024  # reading so much takes longer than others should wait for: a thread

router = APIRouter(tags=["documents"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Documents:
    """What these routes need."""

    intake: Intake
    extractor: Extractor
    executor: Executor
    body_bytes_max: int
    batch_documents_max: int
    patience_s: float  # of a batch's line with a full queue

    async def ingest(self, body: bytes, *, client: str, key: str | None = None) -> Answer:
        """Raises RequestRefused, QueueFull, StoreUnavailable."""
        call = partial(
            read_request, body, extractor=self.extractor, client=client, idempotency_key=key
        )
        return await self.intake.answer(await self.read(len(body), call))

    async def read(self, size_bytes: int, call: Callable[[], Opening]) -> Opening:
        """What `call` makes of a body of that size, without keeping others waiting for long."""
        if size_bytes < _LARGE_BYTES:
            return call()
        return await asyncio.get_running_loop().run_in_executor(self.executor, call)


INGESTED: dict[int | str, dict[str, Any]] = {
    200: {
        "model": Ingested,
        "description": "Live.",
        "content": {"application/json": {"example": INGESTED_EXAMPLE}},
    }
}
REFUSALS: dict[int | str, dict[str, Any]] = {
    409: described("Another version is live than expected, or one that was submitted later."),
    413: described("Larger than APEX_API_BODY_BYTES_MAX."),
    415: described("Another Content-Type."),
    422: described("A member cannot be used, or the key came with another body before."),
    429: described_for_now(
        "APEX_PENDING_MAX documents wait already, or the client exceeds APEX_API_RATE."
    ),
    500: described("All four stores are as they were before.", COMPENSATED_EXAMPLE),
    503: described_for_now("A store is down, or the saga has not ended within APEX_ANSWER_WAIT_S."),
}
KEY_PARAMETER = {
    "name": "Idempotency-Key",
    "in": "header",
    "description": "Send a request again with the same key and body, and it is answered as the"
    " first was. Kept for APEX_IDEMPOTENCY_KEEP_S.",
    "schema": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
}
_DOCUMENT = {"$ref": "#/components/schemas/Document"}


@router.post(
    "/documents/ingest",
    summary="Ingest a document",
    responses={**INGESTED, **REFUSALS},
    openapi_extra={
        "parameters": [KEY_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {JSON[0]: {"schema": _DOCUMENT, "examples": DOCUMENT_EXAMPLES}},
        },
    },
)
async def ingest(request: Request) -> Response:
    """Takes a document into all four stores, or into none, and answers when its saga has ended.

    A client that goes away changes nothing. Without a key, the same content sent again while it is
    under way waits for the same saga, and content that is live already is `unchanged`.
    """
    check_media_type(request, JSON)
    documents: Documents = request.app.state.documents
    body = await read_body(request, documents.body_bytes_max)
    key = request.headers.get("idempotency-key")
    return response_of(await documents.ingest(body, client=client_of(request), key=key))


@router.post(
    BATCH_PATH,
    summary="Ingest many documents, a line each",
    response_class=Response,
    responses={
        200: {
            "description": "One line for each document, in the order in which they end.",
            "content": {NDJSON[0]: {"schema": {"$ref": "#/components/schemas/Line"}}},
        },
        415: REFUSALS[415],
        422: described("An Idempotency-Key header; each line may have an idempotency_key."),
    },
    openapi_extra={
        "requestBody": {"required": True, "content": {NDJSON[0]: {"schema": _DOCUMENT}}}
    },
)
async def ingest_batch(request: Request) -> Response:
    """NDJSON in, NDJSON out, both as streams. Each document has a saga and an answer of its own.

    A full queue makes the rest wait. A line too long, or too many, ends the batch at that line.
    """
    check_media_type(request, NDJSON)
    if "idempotency-key" in request.headers:
        raise RequestRefused(
            "Idempotency-Key: is for one document; give each line an idempotency_key instead"
        )
    documents: Documents = request.app.state.documents
    return BatchResponse(
        read_lines(request, documents.body_bytes_max),
        partial(documents.ingest, client=client_of(request)),
        documents_max=documents.batch_documents_max,
        patience_s=documents.patience_s,
    )
