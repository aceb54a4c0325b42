"""Proof of the audit log: anchors over its hash chains, and what the events alone imply.

An anchor hashes the heads of the chains that have grown since the last one, and chains to it. What
it cannot show is a rewrite of everything, anchors included; a hash of it that was noted elsewhere,
such as in a log, does (`verify_ledger(noted_anchor=...)`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

import structlog
from psycopg.rows import DictRow, dict_row

from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga.ledger import Ledger, Transaction
from apex_dagster.saga.states import MOVES
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

ANCHOR_EVERY_S = 60.0
DIFFERENCES_MAX = 1000  # of one kind; who has more has read enough

_SQL = load_queries("apex_dagster.saga", "audit.sql")
# check: where its differences are
_CHECKS: Mapping[str, str] = {
    "broken_events": "saga_event",
    "broken_heads": "saga_state",
    "broken_anchors": "audit_anchor",
    "lost_heads": "saga_event",
    "missing_anchor": "audit_anchor",
    "renamed_sagas": "saga_state",
    "misplaced_pointers": "documents",
    "misplaced_originals": "quarantine",
    "kept_originals": "extraction",
    "misplaced_receipts": "deletion_receipt",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """One anchor as it was made."""

    anchor_seq: int  # 1 for the first
    head_count: int  # chains that had grown since the one before
    anchored_at: datetime
    hash: str  # sha256 hex


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """Something that is not as the audit log says."""

    document_id: str | None  # None where it concerns no single document, or nobody knows any more
    saga_id: SagaId | None
    place: str  # a table of the ledger, or a store
    expected: str
    found: str
    # In a store: "missing", "altered", "orphaned" (no saga of the ledger has written it),
    # "superseded", or "dead" (of a saga that was compensated). Else "ledger".
    kind: str = "ledger"
    stray_saga_id: SagaId | None = None  # whose items they are, where orphaned beside saga_id's

    def __str__(self) -> str:
        about = " ".join(
            part
            for part in (self.document_id, f"({self.saga_id})" if self.saga_id else None)
            if part
        )
        subject = f"{about or 'the audit log'} in {self.place}"
        return f"{subject}: expected {self.expected}; found {self.found}"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerAudit:
    """What was looked at in the ledger, and what is wrong with it."""

    sagas: int
    events: int
    anchors: int
    differences: list[Difference]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a saga and its document's pointer stand. Equal places: nothing moved in between."""

    event_seq: int
    live_saga_id: SagaId | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveVersion:
    """What must be live and published, by the events."""

    ref: VersionRef
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadVersion:
    """What no store may hold."""

    ref: VersionRef
    place: Place
    status: str  # "compensated", or "completed" for a superseded version


def anchor(ledger: Ledger, *, every_s: float = ANCHOR_EVERY_S) -> Anchor | None:
    """Anchor the chains that have grown. None if none has, or the last anchor is younger than
    `every_s`."""
    with ledger.transaction() as tx:
        tx.execute(_SQL["allow_long_reads"])
        tx.execute(_SQL["lock_anchors"])
        last = tx.execute(_SQL["last_anchor"], {"every_s": every_s}).fetchone()
        assert last is not None
        row = None if last["is_recent"] else tx.execute(_SQL["insert_anchor"], last).fetchone()
    if row is None:
        return None
    made = Anchor(**row)
    log.info("audit_anchored", anchor_seq=made.anchor_seq, heads=made.head_count, hash=made.hash)
    return made


def verify_ledger(ledger: Ledger, *, noted_anchor: str | None = None) -> LedgerAudit:
    """Recompute all chains and anchors, and what follows from them; changes nothing.

    `noted_anchor` is the hash of an anchor that has to be there. At most `DIFFERENCES_MAX`
    differences of each kind are returned. Time grows with the number of events, memory does not.
    """
    moves = [
        (move.event, source.value, (move.target or source).value, int(move.raises_epoch))
        for move in MOVES
        for source in move.source
    ]
    names = ("events", "sources", "targets", "epoch_steps")
    columns = zip(*moves, strict=True)
    values = {name: list(column) for name, column in zip(names, columns, strict=True)}
    values |= {"limit": DIFFERENCES_MAX, "hash": noted_anchor}  # type: ignore[dict-item]
    with _snapshot(ledger) as tx:
        counts = tx.execute(_SQL["count_all"]).fetchone()
        assert counts is not None
        differences = [
            Difference(place=place, **row)
            for check, place in _CHECKS.items()
            for row in tx.execute(_SQL[check], values).fetchall()
        ]
    return LedgerAudit(differences=differences, **counts)


def count_versions(
    ledger: Ledger, *, limit: int | None = None, document_ids: Sequence[str] | None = None
) -> int:
    """How many versions `live_versions` and `dead_versions` will name, at most."""
    values = {"limit": limit, "document_ids": _listed(document_ids)}
    with _snapshot(ledger) as tx:
        row = tx.execute(_SQL["count_versions"], values).fetchone()
    assert row is not None
    return int(row["versions"])


def live_versions(
    ledger: Ledger, *, page: int, document_ids: Sequence[str] | None = None
) -> Iterator[list[LiveVersion]]:
    """All versions that must be live, `page` at a time, from one snapshot."""
    for rows in _pages(ledger, "live_versions", page, document_ids=_listed(document_ids)):
        yield [LiveVersion(ref=_ref(row), place=_place(row)) for row in rows]


def dead_versions(
    ledger: Ledger,
    *,
    page: int,
    sweeps: int,
    limit: int | None = None,
    document_ids: Sequence[str] | None = None,
) -> Iterator[list[DeadVersion]]:
    """All versions of which nothing may be left, or the `limit` newest, from one snapshot.

    `sweeps` is how many a superseded version has ahead until the first of them has removed it.
    """
    values = {"sweeps": sweeps, "limit": limit, "document_ids": _listed(document_ids)}
    for rows in _pages(ledger, "dead_versions", page, **values):
        yield [DeadVersion(ref=_ref(row), place=_place(row), status=row["status"]) for row in rows]


def places(ledger: Ledger, saga_ids: Sequence[SagaId]) -> dict[SagaId, Place]:
    """Where these sagas stand now."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["places"], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"]: _place(row) for row in rows}


def busy_documents(ledger: Ledger, document_ids: Sequence[str]) -> set[str]:
    """Those of which a saga is under way, or not published yet."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["busy_documents"], {"document_ids": list(document_ids)}).fetchall()
    return {row["document_id"] for row in rows}


def known_sagas(ledger: Ledger, saga_ids: Sequence[SagaId]) -> set[SagaId]:
    """Those that there are."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["known_sagas"], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"] for row in rows}


@contextmanager
def _snapshot(ledger: Ledger) -> Iterator[Transaction]:
    with ledger.transaction() as tx:
        tx.execute(_SQL["begin_verification"])
        tx.execute(_SQL["allow_long_reads"])
        yield tx


def _pages(
    ledger: Ledger, query: LiteralString, page: int, **values: object
) -> Iterator[list[DictRow]]:
    with (
        _snapshot(ledger) as tx,
        tx.cursor(name="audit", row_factory=dict_row) as cursor,
    ):
        cursor.execute(_SQL[query], values)
        while rows := cursor.fetchmany(page):
            yield rows


def _listed(document_ids: Sequence[str] | None) -> list[str] | None:
    return None if document_ids is None else list(document_ids)


def _ref(row: DictRow) -> VersionRef:
    return VersionRef(
        document_id=row["document_id"], version=row["version"], saga_id=row["saga_id"]
    )


def _place(row: DictRow) -> Place:
    return Place(event_seq=row["event_seq"], live_saga_id=row["live_saga_id"])
