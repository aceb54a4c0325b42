"""Reading what was sent, bounded: whole bodies, and lines as they come in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from http import HTTPStatus

from fastapi import Request

from apex_dagster.api.problems import Problem

JSON = ("application/json",)
NDJSON = ("application/x-ndjson", "application/ndjson", "application/jsonl")


def check_media_type(request: Request, accepted: Collection[str]) -> None:
    """Raises Problem 415. A page of another site can make a browser send text/plain or a form to a
    loopback address without asking, but none of these types."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type not in accepted:
        raise Problem(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "media-type",
            f"Content-Type: must be {' or '.join(accepted)}",
            field="Content-Type",
        )


async def read_body(
    request: Request, bytes_max: int, *, refusal: Callable[[int], Problem] | None = None
) -> bytes:
    """The whole body. Raises Problem 413 as soon as it is known to be too large."""
    refused = refusal or too_large
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > bytes_max:
        raise refused(bytes_max)
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > bytes_max:
            raise refused(bytes_max)
        parts.append(part)
    return b"".join(parts)


async def read_lines(request: Request, bytes_max: int) -> AsyncIterator[bytes]:
    """The lines of a body as they come in, blank ones left out. Raises Problem 413 for a line that
    is too long; where the next one begins is not known then."""
    rest = bytearray()
    async for part in request.stream():
        *lines, tail = part.split(b"\n")
        for line in lines:
            rest += line
            if len(rest) > bytes_max:
                raise too_large(bytes_max)
            if whole := bytes(rest).strip():
                yield whole
            rest.clear()
        rest += tail
        if len(rest) > bytes_max:
            raise too_large(bytes_max)
    if whole := bytes(rest).strip():
        yield whole


def too_large(bytes_max: int) -> Problem:
    return Problem(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
        "too-large",
        f"A document may have {bytes_max} bytes: split it, or raise APEX_API_BODY_BYTES_MAX",
        bytes_max=bytes_max,
    )
