"""What `POST /search` takes and gives. The request is validated by its model; the answer is not."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from apex_dagster.api.pages import NO_NUL
from apex_dagster.extraction.prepared import COLLECTION_CHARS_MAX
from apex_dagster.ingestion.search import FILTERS_MAX, K_MAX, QUERY_CHARS_MAX

_TEXT_CHARS_MAX = 1000

Key = Annotated[str, Field(min_length=1, max_length=_TEXT_CHARS_MAX, pattern=NO_NUL)]
Scalar = (
    bool
    | int
    | Annotated[float, Field(allow_inf_nan=False)]
    | Annotated[str, Field(max_length=_TEXT_CHARS_MAX, pattern=NO_NUL)]
)


class SearchRequest(BaseModel):
    """What to look for. Other members than these are refused, so that a misspelt filter is no
    search without one."""

    model_config = ConfigDict(extra="forbid", strict=True)

    query: str = Field(
        min_length=1,
        max_length=QUERY_CHARS_MAX,
        pattern=NO_NUL,
        description="A question, names or words; 256 tokens of the embedding model at most. For"
        ' full text, "words in quotes" and -words have to hold.',
    )
    k: int = Field(10, ge=1, le=K_MAX, description="Chunks to give back at most.")
    collection: str | None = Field(
        None, min_length=1, max_length=COLLECTION_CHARS_MAX, pattern=NO_NUL
    )
    filters: dict[Key, Scalar] = Field(
        {},
        max_length=FILTERS_MAX,
        description="Metadata: each key has to have exactly this value, of its type: 7 is not"
        ' "7", and no list that holds 7.',
    )
    explain: bool = Field(False, description="Tell what each ranker did, and its part of scores.")


class Share(BaseModel):
    """What one ranker adds to a hit's score."""

    rank: float = Field(description="Among its candidates, from 1; a mean where scores are equal.")
    score: float = Field(description="Its own: a similarity, words found, entities mentioned.")
    rrf: float = Field(description="1 / (60 + rank), which is what it adds.")


class SearchHit(BaseModel):
    """A chunk of a live version."""

    document_id: str
    version: int = Field(ge=1)
    saga_id: str
    ordinal: int = Field(ge=0, description="Which chunk.")
    text: str
    start: int = Field(ge=0, description="In the extracted text, in characters.")
    end: int = Field(ge=0)
    title: str
    collection: str
    metadata: dict[str, Any]
    score: float = Field(description="Compares hits of one answer only.")
    explanation: dict[str, Share] | None = Field(
        None, description="With `explain`: by ranker, of those that found it."
    )


class Ranker(BaseModel):
    """How a ranker fared."""

    answered: bool
    reason: str | None = Field(None, description="Why it did not answer.")
    took_ms: float
    candidates: int = Field(description="Live chunks that pass the filters, 100 or `k` at most.")


class Explanation(BaseModel):
    """What became of a search."""

    rankers: dict[str, Ranker]
    reading_ms: float = Field(description="Embedding the query and reading names in it.")
    took_ms: float = Field(description="All else.")


class SearchAnswer(BaseModel):
    """The best chunks, the best first."""

    hits: list[SearchHit]
    degraded: dict[str, str] = Field(
        description="By ranker (text, vector, graph), why it is missing from this answer."
    )
    explanation: Explanation | None = Field(None, description="With `explain`.")


SEARCH_EXAMPLES: dict[str, Any] = {
    "question": {"summary": "A question", "value": {"query": "Who moved to Port Amaranth?"}},
    "filters": {
        "summary": "Words of one collection, filtered by metadata, explained",
        "value": {
            "query": "Halcyon Shipping -ferry",
            "k": 5,
            "collection": "news",
            "filters": {"source": "newsroom", "year": 2026, "checked": True},
            "explain": True,
        },
    },
}

SEARCH_ANSWER_EXAMPLE: dict[str, Any] = {
    "hits": [
        {
            "document_id": "harbour-news-8",
            "version": 1,
            "saga_id": "ingest_harbour-news-8_0f3c5a9d1b7e2460",
            "ordinal": 0,
            "text": "Halcyon Shipping is based in Port Amaranth.",
            "start": 0,
            "end": 43,
            "title": "The harbour, again",
            "collection": "news",
            "metadata": {"source": "newsroom"},
            "score": 0.03279,
            "explanation": {
                "text": {"rank": 1.0, "score": 1.02, "rrf": 0.016393},
                "graph": {"rank": 1.0, "score": 2.4, "rrf": 0.016393},
            },
        }
    ],
    "degraded": {"vector": "qdrant cannot be reached at present"},
    "explanation": {
        "rankers": {
            "text": {"answered": True, "reason": None, "took_ms": 2.1, "candidates": 1},
            "vector": {
                "answered": False,
                "reason": "qdrant cannot be reached at present",
                "took_ms": 3.0,
                "candidates": 0,
            },
            "graph": {"answered": True, "reason": None, "took_ms": 8.4, "candidates": 1},
        },
        "reading_ms": 14.2,
        "took_ms": 12.9,
    },
}
