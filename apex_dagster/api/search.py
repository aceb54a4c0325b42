"""`POST /search`: what is live, by full text, embeddings and the graph."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus

from fastapi import APIRouter, Request, Response
from pydantic import ValidationError

from apex_dagster.api.bodies import JSON, check_media_type, read_body
from apex_dagster.api.pages import json_bytes
from apex_dagster.api.problems import POSTGRES_DOWN, Problem, described
from apex_dagster.api.search_schemas import (
    SEARCH_ANSWER_EXAMPLE,
    SEARCH_EXAMPLES,
    SearchAnswer,
    SearchRequest,
)
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion.search import Search, Searcher
from apex_dagster.stores.searching import SearchFilter

BODY_BYTES_MAX = 128 * 1024  # a query, and as many and as long filters as there may be

router = APIRouter(tags=["search"])


@dataclass(frozen=True, slots=True, kw_only=True)
class Searches:
    """What this route needs."""

    searcher: Future[Searcher]
    calls: BoundedCalls

    def search(self, asked: SearchRequest) -> bytes:
        """The answer's JSON. Blocks. Raises Problem 422 for a query of too many tokens, and what
        the searcher raises without PostgreSQL."""
        wanted = SearchFilter(collection=asked.collection, metadata=asked.filters)
        search = Search(query=asked.query, k=asked.k, wanted=wanted)
        try:
            found = self.searcher.result().search(search)
        except InvalidInput as error:
            raise _invalid("query", str(error)) from error
        return json_bytes(found.as_json(explain=asked.explain))


@router.post(
    "/search",
    summary="Search live documents",
    response_class=Response,
    responses={
        200: {
            "model": SearchAnswer,
            "description": "The best chunks of live versions; perhaps none.",
            "content": {"application/json": {"example": SEARCH_ANSWER_EXAMPLE}},
        },
        413: described("Larger than a search can be."),
        415: described("Another Content-Type."),
        422: described("A member cannot be used."),
        503: POSTGRES_DOWN,
    },
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                JSON[0]: {
                    "schema": {"$ref": "#/components/schemas/SearchRequest"},
                    "examples": SEARCH_EXAMPLES,
                }
            },
        }
    },
)
async def search(request: Request) -> Response:
    """Three rankers, fused by reciprocal rank: PostgreSQL's full text, Qdrant's embeddings, and
    what Neo4j has around the entities that the query names.

    Only versions are found that were live at one moment of the search. When Neo4j or Qdrant is
    down, or slower than APEX_SEARCH_TIMEOUT_S, the other rankers answer and `degraded` says so. The
    first search after a start takes seconds, while models are loaded.
    """
    check_media_type(request, JSON)
    asked = read_search(await read_body(request, BODY_BYTES_MAX, refusal=_too_large))
    searches: Searches = request.app.state.searches
    content = await searches.calls.run(partial(searches.search, asked))
    return Response(content, 200, media_type="application/json")


def read_search(body: bytes) -> SearchRequest:
    """Raises Problem 422 with the first member at fault."""
    try:
        return SearchRequest.model_validate_json(body)
    except ValidationError as error:
        fault = error.errors(include_input=False, include_url=False)[0]
        field = str(fault["loc"][0]) if fault["loc"] else None
        raise _invalid(field, f"{field or 'the body'}: {fault['msg']}") from None


def _invalid(field: str | None, detail: str) -> Problem:
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail, field=field)


def _too_large(bytes_max: int) -> Problem:
    detail = f"A search may have {bytes_max} bytes: send a shorter query, or fewer filters"
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", detail, bytes_max=bytes_max)
