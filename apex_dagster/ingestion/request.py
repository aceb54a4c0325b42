"""A document as a request states it: JSON → an opening, checked, and packed where it is whole.

The JSON form is that of files (`extraction/prepared.py`), with two members about the request:

    {"document_id": "…", …, "idempotency_key": "…", "expected_version": 3}
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import Any

import orjson

from apex_dagster.errors import DocumentRejected, InvalidInput
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.extract import Extractor
from apex_dagster.extraction.prepared import DOCUMENT_ID_CHARS_MAX, Refused, load_object, own_id
from apex_dagster.ingestion.codec import pack
from apex_dagster.records import Document
from apex_dagster.saga.opening import Opening

KEY_CHARS_MAX = 255
VERSION_MAX = 2**31 - 1
_ABOUT_THE_REQUEST = ("idempotency_key", "expected_version")
_FIELD = re.compile(r"^([A-Za-z_-]+(?:\[\d+\])?(?:\.[a-z_]+)?): ")


class RequestRefused(InvalidInput):
    """A request that cannot be used as it is. `field` is the member at fault, where one is."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        match = _FIELD.match(reason)
        self.field = match[1] if match else None


def read_request(
    body: bytes, *, extractor: Extractor, client: str, idempotency_key: str | None = None
) -> Opening:
    """The opening that `body` asks for. A document that is whole is packed here; one that leaves
    something to be extracted is kept as it came, and extracted by whoever drives its saga.

    Raises RequestRefused.
    """
    try:
        fields = load_object(body)
        key = _key(fields, idempotency_key)
        document = _document(body, fields)
        extraction = extractor.given(document, fields)
        hash_of_content = extraction.content_hash if extraction else content_hash(document)
    except Refused as refused:
        raise RequestRefused(refused.reason) from refused
    except DocumentRejected as rejected:
        raise RequestRefused(rejected.reason) from rejected
    return Opening(
        document=document,
        content_hash=hash_of_content,
        body_hash=hashlib.sha256(body).hexdigest(),
        client=client,
        idempotency_key=key,
        expected_version=_expected_version(fields),
        body=pack(extraction) if extraction else None,
    )


def _document(body: bytes, fields: Mapping[str, Any]) -> Document:
    document_id = own_id(fields)
    if document_id is None:
        raise RequestRefused(
            "document_id: is missing; send a text of 1 to"
            f" {DOCUMENT_ID_CHARS_MAX} printable characters"
            if fields.get("document_id") is None
            else f"document_id: must be 1 to {DOCUMENT_ID_CHARS_MAX} printable characters"
        )
    # What is said of the request is no part of the content: another key makes no new version.
    if any(name in fields for name in _ABOUT_THE_REQUEST):
        body = orjson.dumps({n: v for n, v in fields.items() if n not in _ABOUT_THE_REQUEST})
    collection = fields.get("collection")
    return Document(
        document_id=document_id,
        name=f"{document_id}.json",
        content=body,
        # Anything else is refused when the content is read.
        collection=collection if isinstance(collection, str) else "default",
    )


def _key(fields: Mapping[str, Any], header: str | None) -> str | None:
    stated = fields.get("idempotency_key")
    if stated is None:
        return None if header is None else checked_key(header, "Idempotency-Key")
    key = checked_key(stated, "idempotency_key")
    if header is not None and header != key:
        raise RequestRefused("idempotency_key: is not the one in the header; send one of them")
    return key


def checked_key(value: Any, name: str) -> str:
    """Raises RequestRefused."""
    if isinstance(value, str) and 0 < len(value) <= KEY_CHARS_MAX and value.isprintable():
        return value
    raise RequestRefused(f"{name}: must be 1 to {KEY_CHARS_MAX} printable characters")


def _expected_version(fields: Mapping[str, Any]) -> int | None:
    value = fields.get("expected_version")
    return None if value is None else checked_version(value)


def checked_version(value: Any) -> int:
    """Raises RequestRefused."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= VERSION_MAX:
        raise RequestRefused(
            f"expected_version: must be a whole number from 0 to {VERSION_MAX}; 0 means that no"
            " version is live"
        )
    return value
