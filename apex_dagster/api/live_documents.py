"""`GET /documents` and `GET /documents/{document_id}`: what is live, whole versions only."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response

from apex_dagster.api.live_schemas import (
    DOCUMENT_PAGE_EXAMPLE,
    LIVE_DOCUMENT_EXAMPLE,
    NOT_LIVE_EXAMPLE,
    DocumentPage,
    LiveDocument,
)
from apex_dagster.api.pages import (
    ID_CHARS_MAX,
    LIMIT_DEFAULT,
    LINK_HEADER,
    NO_NUL,
    DocumentId,
    Limit,
    json_bytes,
    page_response,
)
from apex_dagster.api.problems import POSTGRES_DOWN, Problem, described, described_for_now
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.records import VersionRef
from apex_dagster.saga.ledger import Ledger
from apex_dagster.stores.reading import LiveHeading, LiveVersion

if TYPE_CHECKING:  # costs seconds, which nobody waits for at the start
    from apex_dagster.composition import Reading
    from apex_dagster.ingestion import read

router = APIRouter(tags=["documents"])


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveDocuments:
    """What these routes need. Its methods block."""

    reading: Future[Reading]
    ledger: Ledger
    calls: BoundedCalls

    def document(self, document_id: str, if_none_match: str | None) -> Response:
        """The live version; 304 without a body where the client has it. Raises Problem 404."""
        live = self._pointed_at(document_id)
        if live is None:
            raise _not_live(document_id)
        ref, etag = live
        if if_none_match and _names(if_none_match, etag):
            return Response(None, HTTPStatus.NOT_MODIFIED, _validators(etag))
        reading = self.reading.result()
        # What was shown of this very version before, whole, is what it is still.
        if (view := reading.views.find(ref)) is not None:
            return _shown(view, etag, cache="hit")
        found = reading.reader.read_document(document_id)
        if found is None:
            raise _not_live(document_id)
        view = json_bytes(content_of(found))
        reading.views.keep(found.ref, view)
        etag = etag_of(found.ref.version, found.version.content_hash)
        return _shown(view, etag, cache="miss")

    def page(self, after: str, collection: str | None, limit: int) -> list[dict[str, Any]]:
        """One more than `limit`, if there are."""
        found = self.reading.result().catalogue.list_live(
            after=after, collection=collection, limit=limit + 1
        )
        return [_heading(each) for each in found]

    def _pointed_at(self, document_id: str) -> tuple[VersionRef, str] | None:
        """The version that the pointer names now, and its ETag."""
        pointer = self.ledger.pointers([document_id]).get(document_id)
        if pointer is None or pointer["live_version"] is None:
            return None
        version, saga_id = pointer["live_version"], pointer["live_saga_id"]
        ref = VersionRef(document_id=document_id, version=version, saga_id=saga_id)
        return ref, etag_of(version, pointer["content_hash"])


@router.get(
    "/documents",
    summary="List live documents",
    response_class=Response,
    responses={
        200: {
            "model": DocumentPage,
            "description": "A page, in the order of document_id.",
            "headers": LINK_HEADER,
            "content": {"application/json": {"example": DOCUMENT_PAGE_EXAMPLE}},
        },
        422: described("A parameter cannot be used."),
        503: POSTGRES_DOWN,
    },
)
async def list_documents(
    request: Request,
    limit: Limit = LIMIT_DEFAULT,
    after: Annotated[
        str,
        Query(
            max_length=ID_CHARS_MAX,
            pattern=NO_NUL,
            description="`next` of the page before; begins with the first document without it.",
        ),
    ] = "",
    collection: Annotated[
        str | None,
        Query(pattern=NO_NUL, description="Only these. Costs all that are passed over."),
    ] = None,
) -> Response:
    """Live documents in the order of document_id, by pages. What is live while all of them are read
    is on exactly one."""
    live: LiveDocuments = request.app.state.live_documents
    items = await live.calls.run(partial(live.page, after, collection, limit))
    return page_response(request, "documents", items, limit=limit, cursor="document_id")


@router.get(
    "/documents/{document_id:path}",
    summary="Read a document",
    response_class=Response,
    responses={
        200: {
            "model": LiveDocument,
            "description": "The live version, whole.",
            "headers": {
                "X-Cache": {
                    "schema": {"type": "string", "enum": ["hit", "miss"]},
                    "description": "Whether Redis alone was asked for it, or all stores were. The"
                    " content is the same.",
                },
                "ETag": {"schema": {"type": "string"}, "description": "Of this version."},
            },
            "content": {"application/json": {"example": LIVE_DOCUMENT_EXAMPLE}},
        },
        304: {"description": "The version named in If-None-Match is the live one still."},
        404: described("No version of it is live.", NOT_LIVE_EXAMPLE),
        422: described("Nothing can have this id."),
        503: described_for_now(
            "PostgreSQL is down, or Neo4j or Qdrant is and it was not read lately, or no whole"
            " version was read in time. Redis may be down."
        ),
    },
)
async def read_document(
    request: Request,
    document_id: DocumentId,
    if_none_match: Annotated[str | None, Header(description="ETags of versions at hand.")] = None,
) -> Response:
    """The live version as all stores hold it, never a mixture, whatever is written meanwhile. Read
    again, it comes from Redis, once PostgreSQL has said that it is the live one still.

    A version that is replaced while it is read may be what comes back: it was live at one moment of
    the request.
    """
    live: LiveDocuments = request.app.state.live_documents
    return await live.calls.run(partial(live.document, document_id, if_none_match))


def etag_of(version: int, content_hash: str) -> str:
    """A version never changes, and its number is never used twice for one document."""
    return f'"{version}-{content_hash[:16]}"'


def content_of(found: read.LiveDocument) -> dict[str, Any]:
    """What `live_schemas.LiveDocument` describes."""
    live = found.version
    return {
        **_named(live),
        "metadata": live.metadata,
        "content_hash": live.content_hash,
        "chunks": live.chunks,
        "entities": found.graph.entities,
        "relations": found.graph.relations,
        "receipts": live.receipts,
    }


def _heading(live: LiveHeading) -> dict[str, Any]:
    return {**_named(live), "live_since": live.live_since}


def _named(live: LiveVersion | LiveHeading) -> dict[str, Any]:
    return {
        "document_id": live.ref.document_id,
        "version": live.ref.version,
        "saga_id": live.ref.saga_id,
        "title": live.title,
        "collection": live.collection,
    }


def _shown(view: bytes, etag: str, *, cache: str) -> Response:
    headers = _validators(etag) | {"X-Cache": cache}
    return Response(view, 200, headers, "application/json")


def _validators(etag: str) -> dict[str, str]:
    # A client may keep it, and has to ask whether it is the live version still.
    return {"ETag": etag, "Cache-Control": "no-cache"}


def _names(if_none_match: str, etag: str) -> bool:
    """Source: RFC 9110, 13.1.2; the comparison is the weak one."""
    named = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
    return "*" in named or etag in named


def _not_live(document_id: str) -> Problem:
    return Problem(
        HTTPStatus.NOT_FOUND,
        "not-live",
        "No version of the document is live: it was never ingested, or has not become live",
        document_id=document_id,
    )
