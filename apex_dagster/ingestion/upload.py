"""A document that is still to be extracted, as a request brings it: a text, or a file → an opening.

Whoever drives its saga extracts it, as with a file that was dropped into the inbox.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

import orjson

from apex_dagster.errors import DocumentRejected, TerminalError
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.extract import Extractor
from apex_dagster.extraction.parse import CSV, JSON, JSONL, PARQUET, TSV, media_type
from apex_dagster.extraction.prepared import (
    Refused,
    given_collection,
    given_metadata,
    given_text,
    load_object,
    own_id,
)
from apex_dagster.ingestion.request import (
    RequestRefused,
    checked_key,
    checked_version,
    read_request,
)
from apex_dagster.records import Document
from apex_dagster.saga.opening import Opening

FILE_NAME_CHARS_MAX = 255
# What a form may say of its file; all of it is text.
FIELDS = ("document_id", "collection", "metadata", "idempotency_key", "expected_version")
_PREPARED = ("chunks", "embeddings", "entities", "relations")
# A document of these is many, or none that is left to be extracted.
_ROWS = "a document a row: drop it into the inbox, or send its rows to /documents/ingest/batch"
_ELSEWHERE = {
    CSV: _ROWS,
    TSV: _ROWS,
    PARQUET: _ROWS,
    JSONL: "a document a line: send it to /documents/ingest/batch",
    JSON: "a document as JSON: send it to /documents/ingest",
}


class UnreadType(TerminalError):
    """A file of a type that is not read, or not here."""


def read_text(
    body: bytes, *, extractor: Extractor, client: str, idempotency_key: str | None = None
) -> Opening:
    """The opening of a JSON body with a text. Raises RequestRefused."""
    try:
        fields = load_object(body)
        if given_text(fields) is None:
            raise RequestRefused("text: is missing; send the document's text")
    except Refused as refused:
        raise RequestRefused(refused.reason) from refused
    for name in _PREPARED:
        if fields.get(name) is not None:
            raise RequestRefused(f"{name}: is extracted here; send your own to /documents/ingest")
    return read_request(body, extractor=extractor, client=client, idempotency_key=idempotency_key)


def read_file(
    file_name: str,
    content: bytes,
    fields: Mapping[str, str],
    *,
    stated_type: str | None,
    client: str,
    idempotency_key: str | None = None,
) -> Opening:
    """The opening of a file and what its form says of it: `FIELDS`, as texts.

    Raises RequestRefused, and UnreadType for a type that is not read.
    """
    if not content:
        raise RequestRefused("file: is empty")
    try:
        document = _typed(_document(file_name, content, fields, stated_type))
        hash_of_content = content_hash(document)
    except Refused as refused:
        raise RequestRefused(refused.reason) from refused
    key, expected = _key(fields, idempotency_key), _expected_version(fields)
    return Opening(
        document=document,
        content_hash=hash_of_content,
        body_hash=_request_hash(document, hash_of_content, expected),
        client=client,
        idempotency_key=key,
        expected_version=expected,
    )


def _document(
    file_name: str, content: bytes, fields: Mapping[str, str], stated_type: str | None
) -> Document:
    name = PurePosixPath(file_name.replace("\\", "/")).name
    if not 0 < len(name) <= FILE_NAME_CHARS_MAX or not name.isprintable():
        raise RequestRefused(
            f"file: its name must be 1 to {FILE_NAME_CHARS_MAX} printable characters"
        )
    said = {"document_id": fields.get("document_id", name)}
    document_id = own_id(said)
    if document_id is None:
        raise RequestRefused(
            "document_id: must be 1 to 200 printable characters; without one it is the file's name"
        )
    return Document(
        document_id=document_id,
        name=name,
        content=content,
        media_type=stated_type,
        collection=given_collection(fields) or "default",
        metadata=_metadata(fields),
    )


def _typed(document: Document) -> Document:
    """With the type that it is read as, which its name may say as well as its sender."""
    try:
        kind = media_type(document)
    except DocumentRejected as rejected:
        raise UnreadType(f"file: {rejected.reason}") from rejected
    if kind in _ELSEWHERE:
        raise UnreadType(f"file: {document.name} is {_ELSEWHERE[kind]}")
    return dataclasses.replace(document, media_type=kind)


def _metadata(fields: Mapping[str, str]) -> Mapping[str, Any]:
    if "metadata" not in fields:
        return {}
    try:
        stated = orjson.loads(fields["metadata"])
    except orjson.JSONDecodeError as error:
        raise RequestRefused(f"metadata: is not valid JSON: {error}") from error
    return given_metadata({"metadata": stated})


def _key(fields: Mapping[str, str], header: str | None) -> str | None:
    stated = fields.get("idempotency_key")
    if stated is not None and header not in (None, stated):
        raise RequestRefused("idempotency_key: is not the one in the header; send one of them")
    if stated is not None:
        return checked_key(stated, "idempotency_key")
    return None if header is None else checked_key(header, "Idempotency-Key")


def _expected_version(fields: Mapping[str, str]) -> int | None:
    stated = fields.get("expected_version")
    if stated is None:
        return None
    return checked_version(
        int(stated) if stated.isascii() and stated.isdigit() and len(stated) < 20 else stated
    )


def _request_hash(document: Document, hash_of_content: str, expected: int | None) -> str:
    """Of what the form says, as its bytes differ each time: the same file has another boundary."""
    said = [document.document_id, document.name, hash_of_content, expected]
    return hashlib.sha256(orjson.dumps(said)).hexdigest()
