"""A table → its documents, one a row, in the form of JSON documents (`prepared.py`).

Which column is what, a mapping says, or else its name does: `document_id` or `id`; `title`;
`text`, `content` or `body`; what is left, and holds one value a cell, is metadata.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.parse import CSV, PARQUET, TSV, media_type
from apex_dagster.extraction.prepared import (
    DOCUMENT_ID_CHARS_MAX,
    TEXT_FIELDS,
    Refused,
    kind_of,
    optional_list,
    optional_text,
    own_id,
)
from apex_dagster.extraction.split import number_parts
from apex_dagster.extraction.table import Table, read_table
from apex_dagster.records import Document

ID_FIELDS = ("document_id", "id")
ROLES = ("id", "title", "text", "metadata")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """Which columns of a table hold what. None: whichever has the usual name."""

    id: str | None = None
    title: str | None = None
    text: tuple[str, ...] | None = None  # joined by blank lines, in this order
    metadata: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A document that a file holds; with `rejection` one that cannot be used, for its sender."""

    document: Document
    rejection: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    number: int  # from 1, below the header
    fields: Mapping[str, Any]  # of the JSON document
    fault: str | None

    def content(self) -> bytes:
        return orjson.dumps(self.fields, option=orjson.OPT_SORT_KEYS)


def is_table(document: Document) -> bool:
    """Whether each row of this file is a document."""
    try:
        return media_type(document) in (CSV, TSV, PARQUET)
    except DocumentRejected:
        return False


def row_documents(document: Document, columns: Columns) -> list[Part]:
    """The rows of a table that are not empty, in order.

    A row becomes `<id>#<its own id, or its number from 1>`. A row that cannot be used becomes a
    part with a rejection, alone. Raises Refused where no row can be used.
    """
    table = read_table(document.content, media_type(document))
    rows = list(_rows(table, _chosen(table, columns)))
    documents = number_parts(document, ((r.number, own_id(r.fields), r.content()) for r in rows))
    return [
        Part(
            document=replace(part, name="row.json"),
            rejection=f"row {row.number}: {row.fault}" if row.fault else None,
        )
        for row, part in zip(rows, documents, strict=True)
    ]


def read_columns(stated: Any) -> Columns:
    """The mapping {"id": "…", "title": "…", "text": "…" or ["…"], "metadata": ["…"]}, all optional.

    Raises Refused, with the member at fault.
    """
    if not isinstance(stated, dict):
        raise Refused(f"columns: expected an object, not {kind_of(stated)}")
    if unknown := sorted(set(stated) - set(ROLES)):
        raise Refused(f"columns.{unknown[0]}: is unknown; use {', '.join(ROLES)}")
    text = stated.get("text")
    texts = {"text": [text]} if isinstance(text, str) else stated
    return Columns(
        id=optional_text(stated, "id", "columns"),
        title=optional_text(stated, "title", "columns"),
        text=_names(texts, "text"),
        metadata=_names(stated, "metadata"),
    )


def _names(stated: Mapping[str, Any], role: str) -> tuple[str, ...] | None:
    names = optional_list(stated, role, "columns")
    if names is None:
        return None
    if not all(isinstance(name, str) for name in names):
        raise Refused(f"columns.{role}: must hold names of columns only")
    if role == "text" and not names:
        raise Refused("columns.text: names no column; name one, or leave it out")
    return tuple(names)


def _chosen(table: Table, stated: Columns) -> Columns:
    """The columns to be read, all of them there. Raises Refused."""
    usual = {name.casefold(): name for name in table.names} | {n: n for n in table.names}
    text = stated.text or _first(usual, TEXT_FIELDS)
    if not text:
        raise Refused(
            f"no column is called {', '.join(TEXT_FIELDS[:-1])} or {TEXT_FIELDS[-1]}, there are"
            f" {_listed(table)}: name the text's in the file's .meta.json as columns.text"
        )
    own = stated.id or next(iter(_first(usual, ID_FIELDS)), None)
    title = stated.title or usual.get("title")
    used = {own, title, *text}
    metadata = stated.metadata
    if metadata is None:
        rest = (name for name in table.names if name not in used)
        metadata = tuple(name for name in rest if table.is_scalar(name))
    chosen = Columns(id=own, title=title, text=text, metadata=metadata)
    _check_names(table, chosen)
    return chosen


def _first(usual: Mapping[str, str], fields: Sequence[str]) -> tuple[str, ...]:
    return tuple(usual[field] for field in fields if field in usual)[:1]


def _check_names(table: Table, chosen: Columns) -> None:
    singles = [("id", chosen.id), ("title", chosen.title)]
    several = [("text", n) for n in chosen.text or ()] + [
        ("metadata", n) for n in chosen.metadata or ()
    ]
    for role, name in (*singles, *several):
        if name is not None and name not in table.names:
            raise Refused(
                f"columns.{role}: there is no column {name!r}, but {_listed(table)}: correct it"
                " in the file's .meta.json"
            )


def _listed(table: Table) -> str:
    names = [repr(name) for name in table.names[:20]]
    return ", ".join(names) + (", …" if len(table.names) > 20 else "")


def _rows(table: Table, columns: Columns) -> Iterator[_Row]:
    """Each row with what its document states; members that are absent are left out."""
    count = len(table.frame)
    ids = table.texts(columns.id) if columns.id else [None] * count
    titles = table.texts(columns.title) if columns.title else [None] * count
    texts = [table.texts(name) for name in columns.text or ()]
    metadata = {name: table.values(name) for name in columns.metadata or ()}
    first: dict[str, int] = {}
    for at, number in enumerate(table.frame.index.tolist()):
        own = (ids[at] or "").strip()
        text = "\n\n".join(part for column in texts if (part := column[at]) is not None)
        about = {name: v for name, cells in metadata.items() if (v := cells[at]) is not None}
        fields = {"document_id": own, "title": titles[at], "text": text, "metadata": about}
        fields = {name: value for name, value in fields.items() if value}
        fault = table.faults.get(number) or _fault(fields, columns, first)
        yield _Row(number=number, fields=fields, fault=fault)
        if own:
            first.setdefault(own, number)


def _fault(fields: Mapping[str, Any], columns: Columns, first: Mapping[str, int]) -> str | None:
    """Why a row cannot be used, with the fix. `first`: own id → the row that has it already."""
    own = fields.get("document_id", "")
    if "text" not in fields:
        named = " or ".join(repr(name) for name in columns.text or ())
        return f"it has no text in column {named}: write one there, or remove the row"
    if own and own_id(fields) is None:
        return (
            f"column {columns.id!r} must hold 1 to {DOCUMENT_ID_CHARS_MAX} printable characters:"
            " shorten or correct it"
        )
    if own in first:
        return (
            f"row {first[own]} has {own!r} in column {columns.id!r} as well: give each row an id"
            " of its own"
        )
    return None
