"""What reads give back, as OpenAPI shows it; like those of `schemas.py`, models that describe."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field


class LiveChunk(BaseModel):
    """A retrievable span."""

    ordinal: int = Field(ge=0, description="Without gaps.")
    text: str
    start: int = Field(ge=0, description="In the extracted text, in characters.")
    end: int = Field(ge=0)


class LiveEntity(BaseModel):
    """What the document says of an entity."""

    key: str = Field(description="Type and normalised name, which documents share.")
    type: str
    name: str
    description: str
    aliases: list[str]
    chunk_ordinals: list[int] = Field(description="Where it is mentioned.")
    mentions: int


class LiveRelation(BaseModel):
    """An edge between two of the entities."""

    source_key: str
    target_key: str
    type: str
    description: str
    weight: float
    chunk_ordinal: int | None


class LiveDocument(BaseModel):
    """One whole version. Embeddings are left out."""

    document_id: str
    version: int = Field(ge=1)
    saga_id: str = Field(description="The saga that made it live: GET /sagas/{saga_id}.")
    title: str
    collection: str
    metadata: dict[str, Any]
    content_hash: str = Field(description="sha256 of what was submitted.")
    chunks: list[LiveChunk]
    entities: list[LiveEntity]
    relations: list[LiveRelation]
    receipts: dict[str, dict[str, int]] = Field(
        description="By saga step, what its store took in of this version."
    )


class DocumentHeading(BaseModel):
    """A live document in a list."""

    document_id: str
    version: int = Field(ge=1)
    saga_id: str
    title: str
    collection: str
    live_since: datetime


class DocumentPage(BaseModel):
    """Live documents, in the order of document_id."""

    documents: list[DocumentHeading]
    next: str | None = Field(description="`after` of the next page; null on the last one.")


_SAGA_ID = "ingest_harbour-news-8_0f3c5a9d1b7e2460"

LIVE_DOCUMENT_EXAMPLE: dict[str, Any] = {
    "document_id": "harbour-news-8",
    "version": 1,
    "saga_id": _SAGA_ID,
    "title": "The harbour, again",
    "collection": "news",
    "metadata": {"source": "newsroom"},
    "content_hash": "9b1d0a3c5f7e2846" * 4,
    "chunks": [
        {
            "ordinal": 0,
            "text": "Halcyon Shipping is based in Port Amaranth.",
            "start": 0,
            "end": 43,
        }
    ],
    "entities": [
        {
            "key": "organization:halcyon shipping",
            "type": "organization",
            "name": "Halcyon Shipping",
            "description": "",
            "aliases": ["Halcyon"],
            "chunk_ordinals": [0],
            "mentions": 1,
        },
        {
            "key": "place:port amaranth",
            "type": "place",
            "name": "Port Amaranth",
            "description": "",
            "aliases": [],
            "chunk_ordinals": [0],
            "mentions": 1,
        },
    ],
    "relations": [
        {
            "source_key": "organization:halcyon shipping",
            "target_key": "place:port amaranth",
            "type": "BASED_IN",
            "description": "",
            "weight": 1.0,
            "chunk_ordinal": 0,
        }
    ],
    "receipts": {
        "neo4j_write": {"entities": 2, "relations": 1},
        "postgres_write": {"chunks": 1},
        "qdrant_write": {"points": 1},
        "redis_write": {"entries": 1},
    },
}

DOCUMENT_PAGE_EXAMPLE: dict[str, Any] = {
    "documents": [
        {
            "document_id": "harbour-news-8",
            "version": 1,
            "saga_id": _SAGA_ID,
            "title": "The harbour, again",
            "collection": "news",
            "live_since": "2026-03-01T08:15:30.123456Z",
        }
    ],
    "next": "harbour-news-8",
}

NOT_LIVE_EXAMPLE = {
    "type": "urn:apex:problem:not-live",
    "title": "Not Found",
    "status": 404,
    "detail": "No version of the document is live: it was never ingested, or has not become live",
    "document_id": "harbour-news-9",
}
