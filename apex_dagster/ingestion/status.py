"""How documents stand: the newest saga of each, and what each store itself counts of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from apex_dagster.errors import ApexError
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.stores.protocol import Store

# One question to a store; more sagas than this are asked for in several.
REFS_A_REQUEST = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class DocumentStatus:
    """One document. A store's field is None where that store gave no answer."""

    saga: Saga  # the document's newest
    neo4j: int | None  # entities
    postgres: int | None  # chunks
    qdrant: int | None  # points
    redis: str | None  # the key of the cache entry; None also where there is no entry

    def as_json(self) -> dict[str, Any]:
        """One entry of `apex status --json`."""
        duration_ms = self.saga.duration_ms
        return {
            "document_id": self.saga.document_id,
            "version": self.saga.version,
            "status": self.saga.status.value,
            "neo4j": self.neo4j,
            "postgres": self.postgres,
            "qdrant": self.qdrant,
            "redis": self.redis,
            "duration_ms": None if duration_ms is None else round(duration_ms, 1),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusReport:
    """Documents by the arrival of their newest saga, and the stores that gave no answer."""

    documents: list[DocumentStatus]
    unanswered: Mapping[str, str]  # store -> why

    @property
    def by_status(self) -> Mapping[Status, int]:
        """How many documents there are of each saga status."""
        return Counter(document.saga.status for document in self.documents)

    @property
    def all_completed(self) -> bool:
        """Whether every document is in every store."""
        return not self.unanswered and set(self.by_status) <= {Status.COMPLETED}

    @property
    def needs_attention(self) -> bool:
        """Whether a store is down or a saga waits for an operator."""
        return bool(self.unanswered) or Status.FAILED in self.by_status

    def as_json(self) -> dict[str, Any]:
        """What `apex status --json` prints."""
        return {"documents": [document.as_json() for document in self.documents]}


def report_status(
    ledger: Ledger,
    stores: Mapping[str, Store],
    *,
    redis_prefix: str,
    limit: int = 1000,
    document_ids: Sequence[str] | None = None,
) -> StatusReport:
    """Ask the ledger for the `limit` newest sagas, one a document, and every store for its count.

    Raises StoreUnavailable when the ledger cannot be read; other stores that are down are named in
    the report.
    """
    sagas = ledger.newest_sagas(limit=limit, document_ids=document_ids)
    refs = [saga.ref for saga in sagas]
    with ThreadPoolExecutor(len(stores)) as pool:
        answers = dict(
            zip(stores, pool.map(lambda s: _count(s, refs), stores.values()), strict=True)
        )
    counts = {name: answer for name, answer in answers.items() if not isinstance(answer, str)}
    documents = [
        DocumentStatus(
            saga=saga,
            neo4j=_of(counts, "neo4j", saga),
            postgres=_of(counts, "postgres", saga),
            qdrant=_of(counts, "qdrant", saga),
            redis=_cache_key(saga, redis_prefix) if _of(counts, "redis", saga) else None,
        )
        for saga in sagas
    ]
    unanswered = {name: answer for name, answer in answers.items() if isinstance(answer, str)}
    return StatusReport(documents=documents, unanswered=unanswered)


def _count(store: Store, refs: Sequence[VersionRef]) -> dict[SagaId, int] | str:
    """Items by saga, or why the store gave no answer."""
    counts: dict[SagaId, int] = {}
    try:
        if not refs:
            store.ping()
        for start in range(0, len(refs), REFS_A_REQUEST):
            counts |= store.holdings(refs[start : start + REFS_A_REQUEST])
    except ApexError as error:
        return str(error)
    return counts


def _of(counts: Mapping[str, Mapping[SagaId, int]], store: str, saga: Saga) -> int | None:
    return counts[store].get(saga.saga_id, 0) if store in counts else None


def _cache_key(saga: Saga, prefix: str) -> str:
    """Where Redis keeps the entry: under the saga's key until it is published."""
    if saga.published_at is None:
        return f"{prefix}stage:{saga.saga_id}"
    return f"{prefix}doc:{saga.document_id}"
