"""How sagas come into being: a durable row for each document, before anything else is written."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

from psycopg.rows import DictRow
from psycopg.types.json import Jsonb

from apex_dagster.records import Document, SagaId
from apex_dagster.saga import states
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "opening.sql")

RESTARTS_MAX = (
    10  # of a submission that finds another version live; each time somebody else has won
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One document of a batch that wants a saga. `document.content` is stored until extracted."""

    document: Document
    content_hash: str  # of what becomes the version; decides whether anything is new
    body_hash: str  # sha256 hex of what was sent: the dropped file, the request's body
    client: str
    idempotency_key: str | None = None
    body: bytes | None = None  # a packed extraction, for documents that come with one


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an opening led to."""

    saga: Saga
    # "opened": a new saga. "joined": the same content is under way in an open saga.
    # "unchanged": the same content is live already, so `saga` is the one that made it live.
    disposition: str


def open_sagas(
    ledger: Ledger, openings: Sequence[Opening], *, run_id: str | None = None
) -> list[Opened]:
    """Make a durable row for each document before anything is written anywhere.

    One transaction. At most one opening of a document in a batch; answers in the order given.
    """
    by_document = {opening.document.document_id: opening for opening in openings}
    if len(by_document) != len(openings):
        raise ValueError("a batch opens at most one saga of a document")
    document_ids = sorted(by_document)
    with ledger.transaction() as tx:
        pointers, rivals = _lock_documents(tx, document_ids)
        opened = {}
        fresh: list[_NewSaga] = []
        for document_id in document_ids:
            opening, pointer = by_document[document_id], pointers[document_id]
            known = _known_saga(opening.content_hash, pointer, rivals.get(document_id, []))
            if known is None:
                fresh.append(_NewSaga.of(document_id, opening, pointer))
            elif isinstance(known, Saga):
                opened[document_id] = Opened(saga=known, disposition="joined")
            else:
                saga = _sagas(tx, "saga_by_id", saga_id=known)[0]
                opened[document_id] = Opened(saga=saga, disposition="unchanged")
        for saga in _insert_sagas(ledger, tx, fresh, run_id):
            opened[saga.document_id] = Opened(saga=saga, disposition="opened")
        _insert_extractions(tx, [(opened[new.document_id].saga, new.opening) for new in fresh])
        _insert_submissions(tx, [(opened[i].saga, by_document[i]) for i in document_ids], run_id)
    return [opened[opening.document.document_id] for opening in openings]


def open_successors(
    ledger: Ledger, sagas: Sequence[Saga], *, run_id: str | None, same_arrival: bool = False
) -> list[Saga]:
    """A new saga, on the newest version, for each compensated one, with the same extraction.

    Unique for (predecessor, run): the ops of one re-executed run share them, whichever comes
    first. None for content that has become live, or is under way, in another saga meanwhile.
    With `same_arrival` it stands for the same submission, which later ones overrule; without, for
    somebody's wish to have this content now.
    """
    with ledger.transaction() as tx:
        return _open_successors(ledger, tx, sagas, run_id, same_arrival)


def restart(ledger: Ledger, tx: Transaction, losers: Sequence[Saga]) -> list[Saga]:
    """Open a successor for each saga that lost its pivot, in the transaction that closes it.

    It waits, without an owner, for whoever claims it first: the loser's own owner, or recovery once
    its lease has run out. None for a submission that has been restarted `RESTARTS_MAX` times.
    """
    if not losers:
        return []
    _lock_documents(tx, sorted({saga.document_id for saga in losers}))
    starts = _count_starts(tx, losers)
    again = [s for s in losers if starts[s.document_id, s.arrival] <= RESTARTS_MAX]
    # One by one: several may be of one document, and each takes the next version of it. The last
    # to arrive first: of two with the same content only one starts again.
    return [
        successor
        for saga in sorted(again, key=lambda saga: saga.arrival, reverse=True)
        for successor in _open_successors(ledger, tx, [saga], saga.run_id, same_arrival=True)
    ]


def waiting_restarts(ledger: Ledger, losers: Sequence[Saga]) -> list[Saga]:
    """The successors of these that nobody has claimed yet, by arrival."""
    if not losers:
        return []
    with ledger.transaction() as tx:
        return _sagas(tx, "waiting_restarts", saga_ids=[saga.saga_id for saga in losers])


def used_up_restarts(ledger: Ledger, losers: Sequence[Saga]) -> list[Saga]:
    """Those that have no restart left: their submissions have lost too often."""
    if not losers:
        return []
    with ledger.transaction() as tx:
        starts = _count_starts(tx, losers)
    return [s for s in losers if starts[s.document_id, s.arrival] > RESTARTS_MAX]


def _count_starts(tx: Transaction, sagas: Sequence[Saga]) -> dict[tuple[str, int], int]:
    values = {
        "document_ids": [saga.document_id for saga in sagas],
        "arrivals": [saga.arrival for saga in sagas],
    }
    rows = tx.execute(_SQL["count_starts"], values).fetchall()
    return {(row["document_id"], row["arrival"]): row["starts"] for row in rows}


def _open_successors(
    ledger: Ledger,
    tx: Transaction,
    sagas: Sequence[Saga],
    run_id: str | None,
    same_arrival: bool,
) -> list[Saga]:
    document_ids = sorted({saga.document_id for saga in sagas})
    pointers, rivals = _lock_documents(tx, document_ids)
    ids = [saga.saga_id for saga in sagas]
    existing = _sagas(tx, "successors", saga_ids=ids, run_id=run_id)
    taken = {saga.predecessor_saga_id for saga in existing}
    missing = [
        saga
        for saga in sagas
        if saga.saga_id not in taken
        and not _known_saga(
            saga.content_hash,
            pointers[saga.document_id],
            rivals.get(saga.document_id, []),
        )
    ]
    new = [
        _NewSaga.of(
            saga.document_id,
            None,
            pointers[saga.document_id],
            predecessor=saga,
            arrival=saga.arrival if same_arrival else None,
        )
        for saga in missing
    ]
    inserted = _insert_sagas(ledger, tx, new, run_id)
    for saga in inserted:
        values = {
            "saga_id": saga.saga_id,
            "predecessor_saga_id": saga.predecessor_saga_id,
            "run_id": run_id,
        }
        tx.execute(_SQL["copy_extraction"], values)
        tx.execute(_SQL["copy_submissions"], values)
    return [*existing, *inserted]


def _lock_documents(
    tx: Transaction, document_ids: list[str]
) -> tuple[dict[str, DictRow], dict[str, list[Saga]]]:
    """Pointers and open sagas of the documents, whose rows stay locked until the end."""
    values = {"document_ids": document_ids}
    tx.execute(_SQL["ensure_documents"], values)
    rows = tx.execute(_SQL["lock_documents"], values).fetchall()
    rivals: dict[str, list[Saga]] = {}
    for saga in _sagas(tx, "open_sagas_of_documents", **values):
        rivals.setdefault(saga.document_id, []).append(saga)
    return {row["document_id"]: row for row in rows}, rivals


def _insert_sagas(
    ledger: Ledger, tx: Transaction, new: Sequence[_NewSaga], run_id: str | None
) -> list[Saga]:
    if not new:
        return []
    versions = {
        "document_ids": [n.document_id for n in new],
        "versions": [n.version for n in new],
    }
    sagas = _sagas(
        tx,
        "insert_sagas",
        saga_ids=[n.saga_id for n in new],
        expected_versions=[n.expected_version for n in new],
        content_hashes=[n.content_hash for n in new],
        predecessors=[n.predecessor_saga_id for n in new],
        arrivals=[n.arrival for n in new],
        run_id=run_id,
        lease_s=ledger.lease_s,
        **versions,
    )
    tx.execute(_SQL["count_versions"], versions)
    # In the audit log as well: what must be live follows from its events alone.
    details = {s.saga_id: {"document_id": s.document_id, "version": s.version} for s in sagas}
    return ledger.advance(states.OPENED, sagas, details=details, run_id=run_id, tx=tx)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewSaga:
    """A saga about to be inserted."""

    saga_id: SagaId
    document_id: str
    version: int
    expected_version: int | None
    content_hash: str
    opening: Opening | None
    predecessor_saga_id: SagaId | None
    arrival: int | None  # None: it arrives now

    @classmethod
    def of(
        cls,
        document_id: str,
        opening: Opening | None,
        pointer: DictRow,
        predecessor: Saga | None = None,
        arrival: int | None = None,
    ) -> _NewSaga:
        source = predecessor or opening
        assert source is not None
        return cls(
            saga_id=SagaId(f"ingest_{document_id}_{secrets.token_hex(8)}"),
            document_id=document_id,
            version=pointer["last_version"] + 1,
            expected_version=pointer["live_version"],
            content_hash=source.content_hash,
            opening=opening,
            predecessor_saga_id=predecessor.saga_id if predecessor else None,
            arrival=arrival,
        )


def _known_saga(
    content_hash: str, pointer: DictRow, rivals: Sequence[Saga]
) -> Saga | SagaId | None:
    """The open saga to join, the id of the saga that made this content live, or None."""
    for rival in rivals:
        if rival.content_hash == content_hash:
            return rival
    # With another saga open, equality with the live version proves nothing: A, then B in flight,
    # then A again has to end with A.
    if not rivals and pointer["live_saga_id"] and pointer["content_hash"] == content_hash:
        return cast(SagaId, pointer["live_saga_id"])
    return None


def _insert_extractions(tx: Transaction, opened: Sequence[tuple[Saga, Opening | None]]) -> None:
    rows = [(saga, opening) for saga, opening in opened if opening is not None]
    documents = [opening.document for _, opening in rows]
    columns = {
        "saga_ids": [saga.saga_id for saga, _ in rows],
        "names": [document.name for document in documents],
        "media_types": [document.media_type for document in documents],
        "collections": [document.collection for document in documents],
        "metadata": [Jsonb(dict(document.metadata)) for document in documents],
        "source_uris": [document.source_uri for document in documents],
        "sources": [
            opening.document.content if opening.body is None else None for _, opening in rows
        ],
        "bodies": [opening.body for _, opening in rows],
    }
    tx.execute(_SQL["insert_extractions"], columns)


def _insert_submissions(
    tx: Transaction, opened: Sequence[tuple[Saga, Opening]], run_id: str | None
) -> None:
    columns = {
        "clients": [opening.client for _, opening in opened],
        "idempotency_keys": [opening.idempotency_key for _, opening in opened],
        "body_hashes": [opening.body_hash for _, opening in opened],
        "document_ids": [saga.document_id for saga, _ in opened],
        "saga_ids": [saga.saga_id for saga, _ in opened],
        "source_uris": [opening.document.source_uri for _, opening in opened],
        "run_id": run_id,
    }
    tx.execute(_SQL["insert_submissions"], columns)


def _sagas(tx: Transaction, query: str, **values: object) -> list[Saga]:
    return [saga_of(row) for row in tx.execute(_SQL[query], values).fetchall()]
