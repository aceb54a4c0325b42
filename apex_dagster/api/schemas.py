"""What goes in and comes out, as OpenAPI shows it.

These models describe; they do not validate. A request is read by the rules that files are read by
(`extraction/prepared.py`), which is also many times faster for lists of numbers.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from apex_dagster.extraction.prepared import (
    COLLECTION_CHARS_MAX,
    DOCUMENT_ID_CHARS_MAX,
    NAME_CHARS_MAX,
)
from apex_dagster.ingestion.request import KEY_CHARS_MAX, VERSION_MAX


class Chunk(BaseModel):
    """A retrievable span, with its embedding unless `embeddings` holds it or it is to be made."""

    text: str
    embedding: list[float] | None = Field(
        None, description="APEX_EMBEDDING_DIM numbers, finite and not all zero."
    )


class Entity(BaseModel):
    """Something the document names. Documents share an entity by its type and name."""

    name: str = Field(min_length=1, max_length=NAME_CHARS_MAX)
    type: str = Field("thing", min_length=1, max_length=NAME_CHARS_MAX)
    description: str = ""
    aliases: list[str] = []


class Relation(BaseModel):
    """An edge between two of the entities, named by name, alias, id or key."""

    source: str
    target: str
    type: str = Field("RELATED_TO", description="Made upper snake case; 100 characters at most.")
    description: str = ""
    weight: float = Field(1.0, gt=0, lt=1e9)


class Document(BaseModel):
    """A document. What it states is taken as it is; what is missing is extracted from its text, so
    one with chunks, embeddings and entities costs no extraction. Other members are ignored."""

    document_id: str = Field(
        min_length=1, max_length=DOCUMENT_ID_CHARS_MAX, description="Printable characters."
    )
    title: str | None = Field(None, description="Default: the text's heading, or document_id.")
    collection: str = Field("default", min_length=1, max_length=COLLECTION_CHARS_MAX)
    metadata: dict[str, Any] = Field({}, description="JSON values, 16 levels deep at most.")
    text: str | None = Field(None, description="Needed where neither chunks nor embeddings are.")
    chunks: list[Chunk | str] | None = None
    embeddings: list[list[float]] | None = Field(
        None, description="One for each chunk; without chunks and text, chunks without text."
    )
    embedding_model: str = Field("given", description="Vectors of two models are not comparable.")
    entities: list[Entity | str] | None = Field(
        None, description="[] states that there are none; left out, they are extracted."
    )
    relations: list[Relation] = []
    idempotency_key: str | None = Field(
        None, min_length=1, max_length=KEY_CHARS_MAX, description="As the header of that name."
    )
    expected_version: int | None = Field(
        None,
        ge=0,
        le=VERSION_MAX,
        description="The version that this one may replace, 0 for none; another is a 409.",
    )


class Text(BaseModel):
    """A text: all else is extracted from it. Other members are ignored."""

    document_id: str = Field(
        min_length=1, max_length=DOCUMENT_ID_CHARS_MAX, description="Printable characters."
    )
    text: str
    title: str | None = Field(None, description="Default: the text's heading, or document_id.")
    collection: str = Field("default", min_length=1, max_length=COLLECTION_CHARS_MAX)
    metadata: dict[str, Any] = Field({}, description="JSON values, 16 levels deep at most.")
    idempotency_key: str | None = Field(None, min_length=1, max_length=KEY_CHARS_MAX)
    expected_version: int | None = Field(None, ge=0, le=VERSION_MAX)


class Ingested(BaseModel):
    """The document is live with this content."""

    status: str = Field("success", pattern="^success$")
    document_id: str
    saga_id: str
    version: int = Field(ge=1, description="Not reused; gaps are normal.")
    published: bool = Field(
        description="Whether each store shows it to those who read it directly. Reads through the"
        " project do in either case."
    )
    unchanged: bool = Field(False, description="It was live already; nothing was written.")


class Problem(BaseModel):
    """Problem details (RFC 9457)."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = Field(
        None, description="The path asked for, or the saga or document that it is about."
    )
    field: str | None = Field(None, description="The member or header at fault.")
    document_id: str | None = None
    saga_id: str | None = None
    step: str | None = Field(None, description="The saga step that failed.")
    reason: str | None = Field(None, description="What it said.")
    reason_class: str | None = None
    live_version: int | None = None
    depth: int | None = Field(None, description="Documents that wait.")
    store: str | None = None
    bytes_max: int | None = None
    documents_max: int | None = None
    scope: str | None = Field(None, description="What the API key lacks.")


class Line(BaseModel):
    """One line of a batch's answer."""

    line: int = Field(ge=1, description="Of the request, blank ones not counted.")
    status: int = Field(description="What the document alone would have been answered with.")
    answer: Ingested | Problem


TEXT_EXAMPLE: dict[str, Any] = {
    "document_id": "harbour-news-9",
    "text": "Halcyon Shipping has moved its office to Port Amaranth, says Ada Brandt.",
    "metadata": {"source": "newsroom"},
}

# All but the file are texts, so no model describes it.
FORM_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["file"],
    "properties": {
        "file": {
            "type": "string",
            "format": "binary",
            "description": "txt, md, html, pdf, docx, pptx, xlsx, odt, epub, eml, rtf and more, by"
            " its type or else its name. Tables and JSON are not read here.",
        },
        "document_id": {
            "type": "string",
            "minLength": 1,
            "maxLength": DOCUMENT_ID_CHARS_MAX,
            "description": "Default: the file's name.",
        },
        "collection": {"type": "string", "minLength": 1, "maxLength": COLLECTION_CHARS_MAX},
        "metadata": {"type": "string", "description": "A JSON object."},
        "idempotency_key": {"type": "string", "minLength": 1, "maxLength": KEY_CHARS_MAX},
        "expected_version": {"type": "string", "pattern": "^[0-9]{1,10}$"},
    },
}

DOCUMENT_EXAMPLES: dict[str, Any] = {
    "text": {
        "summary": "A text: chunks, entities and embeddings are extracted",
        "value": {
            "document_id": "harbour-news-7",
            "title": "The harbour",
            "text": "Halcyon Shipping has moved its office to Port Amaranth, says Ada Brandt.",
            "metadata": {"source": "newsroom"},
        },
    },
    "prepared": {
        "summary": "Chunks, entities and relations of one's own",
        "value": {
            "document_id": "harbour-news-8",
            "title": "The harbour, again",
            "collection": "news",
            "chunks": [{"text": "Halcyon Shipping is based in Port Amaranth."}],
            "entities": [
                {"name": "Halcyon Shipping", "type": "organization", "aliases": ["Halcyon"]},
                {"name": "Port Amaranth", "type": "place"},
            ],
            "relations": [{"source": "Halcyon", "target": "Port Amaranth", "type": "BASED_IN"}],
            "expected_version": 0,
        },
    },
}

INGESTED_EXAMPLE = {
    "status": "success",
    "document_id": "harbour-news-7",
    "saga_id": "ingest_harbour-news-7_0f3c5a9d1b7e2460",
    "version": 1,
    "published": True,
}

COMPENSATED_EXAMPLE = {
    "type": "urn:apex:problem:compensated",
    "title": "Internal Server Error",
    "status": 500,
    "detail": "Document ingestion failed and was compensated",
    "instance": "/sagas/ingest_harbour-news-7_0f3c5a9d1b7e2460",
    "document_id": "harbour-news-7",
    "saga_id": "ingest_harbour-news-7_0f3c5a9d1b7e2460",
    "step": "qdrant_write",
    "reason": "qdrant is unavailable: connection refused",
    "reason_class": "store_down",
}
