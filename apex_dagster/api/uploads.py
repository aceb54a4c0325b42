"""`POST /documents`: a text or a file, extracted by whoever drives its saga."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterator
from functools import partial
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from fastapi import APIRouter, Request, Response
from starlette.datastructures import FormData, Headers, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from apex_dagster.api.answers import response_of
from apex_dagster.api.bodies import JSON, check_media_type, read_body
from apex_dagster.api.documents import INGESTED, KEY_PARAMETER, REFUSALS, Documents
from apex_dagster.api.keys import client_of
from apex_dagster.api.problems import Problem, described
from apex_dagster.api.schemas import FORM_SCHEMA, TEXT_EXAMPLE
from apex_dagster.ingestion.request import RequestRefused
from apex_dagster.ingestion.upload import FIELDS, UnreadType, read_file, read_text
from apex_dagster.saga.opening import Opening

router = APIRouter(tags=["documents"])

FORM: Final = ("multipart/form-data",)
_FIELD_BYTES_MAX: Final = 1024 * 1024  # of what is said of a file


@router.post(
    "/documents",
    summary="Ingest a text or a file",
    responses={
        **INGESTED,
        400: described("A form that cannot be read."),
        **REFUSALS,
        403: described("A form that a page of another site has made a browser send."),
        415: described("Another Content-Type, or a file of a type that is not read."),
    },
    openapi_extra={
        "parameters": [KEY_PARAMETER],
        "requestBody": {
            "required": True,
            "content": {
                JSON[0]: {
                    "schema": {"$ref": "#/components/schemas/Text"},
                    "example": TEXT_EXAMPLE,
                },
                FORM[0]: {"schema": FORM_SCHEMA},
            },
        },
    },
)
async def upload(request: Request) -> Response:
    """Takes a text, or a file (txt, md, html, pdf, docx and more), into all four stores, or into
    none; chunks, entities and embeddings are extracted from it. Answered when its saga has ended.
    """
    check_media_type(request, JSON + FORM)
    documents: Documents = request.app.state.documents
    is_form = request.headers["content-type"].lower().startswith(FORM[0])
    if is_form:
        _check_origin(request.headers)
    body = await read_body(request, documents.body_bytes_max)
    client, key = client_of(request), request.headers.get("idempotency-key")
    if is_form:
        read = await _file_reader(request.headers, body, client, key)
    else:
        extractor = documents.extractor
        read = partial(read_text, body, extractor=extractor, client=client, idempotency_key=key)
    try:
        opening = await documents.read(len(body), read)
    except UnreadType as error:
        unsupported = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
        raise Problem(unsupported, "media-type", str(error), field="file") from error
    return response_of(await documents.intake.answer(opening))


async def _file_reader(
    headers: Headers, body: bytes, client: str, key: str | None
) -> Callable[[], Opening]:
    """What makes an opening of a form. Raises Problem 400, and RequestRefused."""
    form = await _form(headers, body)
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise RequestRefused("file: is missing; send one as a part of that name")
        return partial(
            read_file,
            file.filename or "",
            await file.read(),
            dict(_fields(form)),
            stated_type=file.content_type,
            client=client,
            idempotency_key=key,
        )
    finally:
        await form.close()


def _fields(form: FormData) -> Iterator[tuple[str, str]]:
    for name in FIELDS:
        value = form.get(name)
        if isinstance(value, UploadFile):
            raise RequestRefused(f"{name}: expected a text, not a file")
        if value is not None:
            yield name, value


async def _form(headers: Headers, body: bytes) -> FormData:
    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        headers, whole(), max_files=1, max_fields=len(FIELDS) * 2, max_part_size=_FIELD_BYTES_MAX
    )
    try:
        return await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        message = getattr(error, "message", "it has no boundary, or a part that cannot be read")
        raise Problem(
            HTTPStatus.BAD_REQUEST, "form", f"The form cannot be read: {message}"
        ) from error


def _check_origin(headers: Headers) -> None:
    """A page of another site may make a browser send a form without asking; the browser then says
    where the page is from."""
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != headers.get("host"):
        raise Problem(
            HTTPStatus.FORBIDDEN, "origin", "Origin: is another site's; send the file from here"
        )
