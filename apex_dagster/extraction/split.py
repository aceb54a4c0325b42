"""One file → its documents: each line of a jsonl file, each object of a JSON array."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace

import orjson

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.decode import decode
from apex_dagster.extraction.parse import JSON, JSONL, media_type
from apex_dagster.extraction.prepared import own_id
from apex_dagster.records import Document


def split_documents(document: Document) -> list[Document]:
    """The documents that a file holds, in order; for most files, the one given.

    A line of jsonl, or an object in a JSON array, becomes `<id>#<its own document_id, or line or
    position from 1>`; when two claim one id, the later one goes by its number. A single JSON
    object that states a usable document_id takes that id. Nothing is judged here: a line that is
    broken becomes a document that `Extractor.extract` will reject, alone.
    """
    try:
        kind = media_type(document)
    except DocumentRejected:
        return [document]
    if kind == JSONL:
        lines = jsonl_lines(document.content)
        return number_parts(document, ((n, stated_id(parsed(line)), line) for n, line in lines))
    if kind == JSON:
        return split_json(document)
    return [document]


def split_json(document: Document) -> list[Document]:
    value = parsed(decode(document.content))
    if isinstance(value, list):
        parts = enumerate(value, 1)
        return number_parts(document, ((n, stated_id(v), orjson.dumps(v)) for n, v in parts))
    if (stated := stated_id(value)) is not None:
        return [replace(document, document_id=stated)]
    return [document]


def jsonl_lines(content: bytes) -> Iterator[tuple[int, bytes]]:
    # Not str.splitlines: it also splits at U+2028, which may stand inside a JSON string.
    for number, line in enumerate(decode(content).split("\n"), 1):
        if line.strip():
            yield number, line.strip().encode(errors="replace")


def number_parts(
    document: Document, parts: Iterable[tuple[int, str | None, bytes]]
) -> list[Document]:
    """`parts`: the number of each, its own id if it states a usable one, and its content."""
    documents: dict[str, Document] = {}
    for number, stated, content in parts:
        name = f"{document.document_id}#{stated or number}"
        if name in documents:
            name = f"{document.document_id}#{number}"
        while name in documents:  # a line's own id may be another line's number
            name += "+"
        documents[name] = replace(
            document, document_id=name, content=content, name="line.json", media_type=JSON
        )
    return list(documents.values())


def stated_id(value: object) -> str | None:
    return own_id(value) if isinstance(value, dict) else None


def parsed(content: bytes | str) -> object:
    try:
        return orjson.loads(content)
    except orjson.JSONDecodeError:
        return None
