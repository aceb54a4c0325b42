"""PostgreSQL's part of a search: one moment of the pointers, full text over what is live at it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from apex_dagster.errors import OutcomeUnknown
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.sql import load_queries
from apex_dagster.stores.postgres_connection import STORE, BoundedConnection
from apex_dagster.stores.searching import (
    Candidate,
    ChunkRef,
    FoundChunk,
    LiveMark,
    SearchFilter,
)

_SQL = load_queries("apex_dagster.stores", "search.sql")

# Terms are taken to find chunks, the rarest first, while they are in no more chunks than this in
# all; the others of the query then only help to rank them. A word that half the corpus has would
# have every chunk of it ranked. Over 200,000 chunks five words, three of them in nearly all, took
# 0.1 s where 20,000 took 0.8 s.
SCANNED_CHUNKS_MAX = 5_000
TERMS_MAX = 32  # the rarest of a query; each is looked at in every chunk that is found

ONE_OCCURRENCE = 0.1 / 1.6449340668482264  # ts_rank of a word that stands in a text once

# What websearch_to_tsquery reads as an operator: a quote, or a minus before a word. "or" is a word
# of questions, and any of the words will do as it is.
_OPERATOR = re.compile(r'"|(?:^|\s)-\w')


class PostgresSnapshot:
    """Over a connection in a REPEATABLE READ, READ ONLY transaction."""

    def __init__(self, connection: BoundedConnection) -> None:
        self._connection = connection
        connection.execute(_SQL["take_snapshot"])

    def rank_text(
        self, query: str, wanted: SearchFilter, *, limit: int, timeout_s: float
    ) -> list[Candidate]:
        """Live chunks with any of the query's words, best first; quotes and minus as
        websearch_to_tsquery has them. A chunk with each of its words once has the score 1."""
        try:
            # A savepoint: a statement that is cancelled must not take the snapshot with it.
            with self._connection.transaction():
                self._bound(timeout_s)
                rows = self._ranked(query, wanted, limit)
                self._bound(None)
        except psycopg.errors.QueryCanceled as error:
            raise OutcomeUnknown(STORE, after_s=timeout_s) from error
        return [
            Candidate(chunk=ChunkRef(ref=_ref(*ref), ordinal=ordinal), score=score)
            for *ref, ordinal, score in rows
        ]

    def live(
        self, refs: Collection[VersionRef], wanted: SearchFilter
    ) -> dict[VersionRef, LiveMark]:
        """Those of `refs` that the pointers name."""
        found = {
            "document_ids": [ref.document_id for ref in refs],
            "versions": [ref.version for ref in refs],
            "saga_ids": [ref.saga_id for ref in refs],
        }
        rows = self._connection.execute(_SQL["live"], found | _filter(wanted)).fetchall()
        return {
            _ref(*ref): LiveMark(embedding_model=model, passes=passes)
            for *ref, model, passes in rows
        }

    def passing(self, wanted: SearchFilter, *, limit: int) -> list[SagaId] | None:
        """The live versions that pass the filter; None if there are more than `limit`."""
        values = _filter(wanted) | {"limit": limit + 1}
        rows = self._connection.execute(_SQL["passing"], values).fetchall()
        return [row[0] for row in rows] if len(rows) <= limit else None

    def chunks(self, wanted: Sequence[ChunkRef]) -> dict[ChunkRef, FoundChunk]:
        """Those of `wanted` that are there."""
        by_place = {(chunk.ref.saga_id, chunk.ordinal): chunk for chunk in wanted}
        values = {
            "saga_ids": [saga_id for saga_id, _ in by_place],
            "ordinals": [ordinal for _, ordinal in by_place],
        }
        rows = self._connection.execute(_SQL["chunks"], values).fetchall()
        return {
            by_place[saga_id, ordinal]: FoundChunk(
                text=text,
                start=start,
                end=end,
                title=title,
                collection=collection,
                metadata=metadata,
            )
            for saga_id, ordinal, text, start, end, title, collection, metadata in rows
        }

    def _ranked(self, query: str, wanted: SearchFilter, limit: int) -> list[tuple[Any, ...]]:
        values = {"query": query, "count_max": SCANNED_CHUNKS_MAX}
        counts: dict[str, int] = dict(
            self._connection.execute(_SQL["count_terms"], values).fetchall()
        )
        [(chunks,)] = self._connection.execute(_SQL["count_chunks"]).fetchall()
        present = sorted((term for term in counts if counts[term]), key=lambda t: (counts[t], t))
        terms = present[:TERMS_MAX]
        if not terms:
            return []
        weights = {term: _rareness(count, chunks) for term, count in counts.items()}
        ranking = {
            "terms": terms,
            "weights": [weights[term] for term in terms],
            "whole": ONE_OCCURRENCE * sum(weights.values()),  # with words that no chunk has
            "any_of": " | ".join(_finding(terms, counts)),
            "strict": query if _OPERATOR.search(query) else None,
            "limit": limit,
        }
        return self._connection.execute(_SQL["rank_text"], ranking | _filter(wanted)).fetchall()

    def _bound(self, timeout_s: float | None) -> None:
        """For the statements that follow; None for the connection's own bound."""
        if timeout_s is None:
            self._connection.execute("SET LOCAL statement_timeout TO DEFAULT")
            return
        milliseconds = max(1, math.ceil(timeout_s * 1000))
        setting = "SELECT set_config('statement_timeout', %s, true)"
        self._connection.execute(setting, [str(milliseconds)])


def _finding(terms: Sequence[str], counts: Mapping[str, int]) -> list[str]:
    """Those of `terms`, the rarest first, that chunks are found by; at least one."""
    scanned = list(accumulate(counts[term] for term in terms))
    return [
        term
        for term, chunks in zip(terms, scanned, strict=True)
        if term == terms[0] or chunks <= SCANNED_CHUNKS_MAX
    ]


def _rareness(having: int, chunks: int) -> float:
    """Inverse document frequency, always above 0.

    Source: S. Robertson, H. Zaragoza, "The Probabilistic Relevance Framework: BM25 and Beyond",
    2009; with 1 added, as Lucene does.
    """
    return math.log(1 + (max(chunks, having) - having + 0.5) / (having + 0.5))


def _filter(wanted: SearchFilter) -> dict[str, object]:
    return {"collection": wanted.collection, "metadata": Jsonb(dict(wanted.metadata))}


def _ref(document_id: str, version: int, saga_id: SagaId) -> VersionRef:
    return VersionRef(document_id=document_id, version=version, saga_id=saga_id)
