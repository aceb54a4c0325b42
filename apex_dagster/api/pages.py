"""Lists by pages: where each begins is said by the last item of the one before (a keyset), so what
is added or removed meanwhile neither hides nor repeats anything else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any

import orjson
from fastapi import Path, Query, Request, Response

LIMIT_DEFAULT, LIMIT_MAX = 50, 200
ID_CHARS_MAX = 512  # as in apex.documents
NO_NUL = r"^[^\x00]*$"  # PostgreSQL has no text with one

DocumentId = Annotated[
    str,
    Path(
        min_length=1,
        max_length=ID_CHARS_MAX,
        pattern=NO_NUL,
        description="May hold slashes; percent-encode `?`, `#`, `%` and the like.",
    ),
]
Limit = Annotated[int, Query(ge=1, le=LIMIT_MAX, description="Items to a page.")]

LINK_HEADER = {
    "Link": {
        "schema": {"type": "string"},
        "description": 'The next page as `<…>; rel="next"`; left out on the last one.',
    }
}


def page_response(
    request: Request, name: str, items: Sequence[dict[str, Any]], *, limit: int, cursor: str
) -> Response:
    """The first `limit` of `items`, as member `name`. With more than that, `next` and the header
    Link tell where the next page begins: beyond the last item's member `cursor`."""
    shown = items[:limit]
    next_after = shown[-1][cursor] if len(items) > limit else None
    headers = {}
    if next_after is not None:
        url = request.url.include_query_params(after=next_after)
        headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return Response(json_bytes({name: shown, "next": next_after}), 200, headers, "application/json")


def json_bytes(value: Any) -> bytes:
    """JSON of plain values and records. Integers of more than 64 bits, which metadata may hold, are
    left to the standard library, which takes ten times as long for all."""
    try:
        return orjson.dumps(value, option=orjson.OPT_UTC_Z)
    except orjson.JSONEncodeError:
        return json.dumps(value, default=asdict, ensure_ascii=False).encode()
