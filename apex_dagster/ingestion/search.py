"""Hybrid search: full text, embeddings and the graph, fused; live versions only.

One PostgreSQL snapshot gives the pointers and the full text. Qdrant and Neo4j are asked beside it,
and what they find counts only if the snapshot's pointer names that very version. More is asked for
until enough survives. A superseded version stays for a grace time longer than a search, so what the
snapshot names is there to be found.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import structlog

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.embed import Embedder
from apex_dagster.extraction.entities import EntityRecogniser
from apex_dagster.extraction.query_names import names_in
from apex_dagster.ingestion.fusion import Fused, Share, fuse
from apex_dagster.ingestion.rankers import GraphRanker, StoreRanker, VectorRanker
from apex_dagster.ingestion.ranking import TEXT, Outcome, Ranking
from apex_dagster.records import VersionRef
from apex_dagster.stores.searching import (
    Candidate,
    FoundChunk,
    SearchableGraph,
    SearchableText,
    SearchableVectors,
    SearchFilter,
    SearchSnapshot,
)

log = structlog.get_logger(__name__)

K_MAX = 100
QUERY_CHARS_MAX = 1000
FILTERS_MAX = 16

VECTOR, GRAPH = "vector", "graph"
RANKERS = (TEXT, VECTOR, GRAPH)
DEPTH_MIN = 100  # candidates of a ranker that are fused; those further down add next to nothing

# Beside other rankers, full text has a say on chunks only that hold half of the query, its words
# weighed by how rare they are. Ranks do not show that the best of its chunks share "home" with
# "boats cannot get home because the water froze". Over the judged questions 0.79 without, 0.85 with
# a half; 0.4 to 0.6 give 0.82 to 0.85.
TEXT_SCORE_MIN = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """What is looked for."""

    query: str
    k: int = 10
    wanted: SearchFilter = field(default_factory=SearchFilter)
    rankers: Sequence[str] = RANKERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A chunk of a version that was live at one moment of the search."""

    ref: VersionRef
    ordinal: int
    score: float
    chunk: FoundChunk
    shares: Mapping[str, Share]  # by ranker, of those that found it

    def as_json(self, *, explain: bool) -> dict[str, Any]:
        """Plain values."""
        content = {
            "document_id": self.ref.document_id,
            "version": self.ref.version,
            "saga_id": self.ref.saga_id,
            "ordinal": self.ordinal,
            **asdict(self.chunk),
            "score": self.score,
        }
        if explain:
            content["explanation"] = {name: asdict(share) for name, share in self.shares.items()}
        return content


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer to a search."""

    hits: tuple[Hit, ...]  # best first
    rankers: Mapping[str, Outcome]
    reading_ms: float  # for embedding the query and reading its names; seconds the first time
    took_ms: float  # for all else

    @property
    def degraded(self) -> dict[str, str]:
        """The rankers that did not answer, and why."""
        return {name: each.reason for name, each in self.rankers.items() if each.reason}

    def as_json(self, *, explain: bool) -> dict[str, Any]:
        """What `api/search_schemas.py` describes."""
        content: dict[str, Any] = {
            "hits": [hit.as_json(explain=explain) for hit in self.hits],
            "degraded": self.degraded,
        }
        if explain:
            content["explanation"] = {
                "rankers": {name: each.as_json() for name, each in self.rankers.items()},
                "reading_ms": round(self.reading_ms, 3),
                "took_ms": round(self.took_ms, 3),
            }
        return content


class Searcher:
    """Searches all live documents. Safe to use from several threads; models load at first use."""

    def __init__(
        self,
        *,
        text: SearchableText,
        vectors: SearchableVectors,
        graph: SearchableGraph,
        embedder: Embedder,
        recogniser: EntityRecogniser,
        embedding_dim: int,
        timeout_s: float,
    ) -> None:
        self._text, self._vectors, self._graph = text, vectors, graph
        self._embedder, self._recogniser = embedder, recogniser
        self._embedding_dim, self._timeout_s = embedding_dim, timeout_s

    def search(self, search: Search) -> Found:
        """The best `search.k` chunks; fewer where there are not so many.

        A ranker whose store is down, or slower than `timeout_s`, is left out and reported. Raises
        InvalidInput for a query that is blank, or too long, also for the embedding model;
        StoreUnavailable, StoreConflict or OutcomeUnknown when PostgreSQL cannot be asked, without
        which nobody knows what is live.
        """
        _check(search.query)
        began = time.monotonic()
        rankers, unread = self._read(search)
        read = time.monotonic()
        depth = max(DEPTH_MIN, search.k)
        with (
            self._text.search_snapshot() as snapshot,
            Ranking(snapshot, search.wanted, depth=depth, timeout_s=self._timeout_s) as ranking,
        ):
            query = search.query if TEXT in search.rankers else None
            outcomes = unread | ranking.rank(rankers, query)
            fused = fuse(_heard(outcomes))
            hits = tuple(_hits(fused, snapshot, search.k))
        found = Found(
            hits=hits,
            rankers={name: outcomes[name] for name in search.rankers},
            reading_ms=(read - began) * 1000,
            took_ms=(time.monotonic() - read) * 1000,
        )
        if found.degraded:
            log.warning("search_degraded", **found.degraded)
        return found

    def _read(self, search: Search) -> tuple[list[StoreRanker[Any]], dict[str, Outcome]]:
        """The rankers that understand the query, and why the others do not. Before the snapshot is
        taken: loading the models takes seconds, which no transaction should stay open for."""
        rankers: list[StoreRanker[Any]] = []
        unread: dict[str, Outcome] = {}
        if VECTOR in search.rankers:
            if self._embedder.dim == self._embedding_dim:
                rankers.append(self._vector_ranker(search.query))
            else:
                reason = (
                    f"embeddings here have {self._embedding_dim} floats, and those of"
                    f" {self._embedder.model} have {self._embedder.dim}"
                )
                unread[VECTOR] = Outcome(reason=reason)
        if GRAPH in search.rankers:
            try:
                names = names_in(search.query, self._recogniser)
            except InvalidInput as error:  # its model is not installed
                unread[GRAPH] = Outcome(reason=str(error))
            else:
                rankers.append(GraphRanker(graph=self._graph, names=names))
        return rankers, unread

    def _vector_ranker(self, query: str) -> VectorRanker:
        try:
            [embedding] = self._embedder.embed_texts([query])
        except InvalidInput as error:
            raise InvalidInput(f"query: {error}") from error
        return VectorRanker(
            vectors=self._vectors, embedding=embedding, embedding_model=self._embedder.model
        )


def _check(query: str) -> None:
    if not query.strip():
        raise InvalidInput("query: is blank")
    if len(query) > QUERY_CHARS_MAX:
        raise InvalidInput(
            f"query: has {len(query)} characters, more than {QUERY_CHARS_MAX}; ask a shorter one"
        )
    if "\0" in query or any("\ud800" <= character <= "\udfff" for character in query):
        raise InvalidInput("query: is no text: it holds a NUL, or bytes that are no UTF-8")


def _heard(outcomes: Mapping[str, Outcome]) -> dict[str, Sequence[Candidate]]:
    """By ranker, the candidates that it has a say on."""
    heard = {name: outcome.candidates for name, outcome in outcomes.items() if outcome.candidates}
    if TEXT in heard and len(heard) > 1:
        heard[TEXT] = [each for each in heard[TEXT] if each.score >= TEXT_SCORE_MIN]
    return heard


def _hits(fused: Sequence[Fused], snapshot: SearchSnapshot, k: int) -> Iterator[Hit]:
    """The first `k` that PostgreSQL has; it may have lost a chunk that the others still hold."""
    shown = 0
    for start in range(0, len(fused), k):
        some = fused[start : start + k]
        chunks = snapshot.chunks([each.chunk for each in some])
        for each in some:
            if shown < k and (chunk := chunks.get(each.chunk)) is not None:
                shown += 1
                yield Hit(
                    ref=each.chunk.ref,
                    ordinal=each.chunk.ordinal,
                    score=each.score,
                    chunk=chunk,
                    shares=each.shares,
                )
        if shown == k:
            return
