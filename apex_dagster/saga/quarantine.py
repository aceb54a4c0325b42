"""Quarantine: where a document waits whose saga cannot succeed, until somebody lets it go.

Released, its submission gets one more saga, with the arrival that it had; that is refused where a
later submission of the document is live or under way. Dropped, what was submitted is erased, and
the reason stays. Each is one transaction, with an event in the saga's audit trail that says who,
and why.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime

import psycopg
import structlog
from psycopg.rows import DictRow

from apex_dagster.records import SagaId
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.opening import lock_documents, open_successors_of
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.scheduled_retry import Scene
from apex_dagster.saga.states import Status
from apex_dagster.saga.wakeup import announce_pending
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

_SQL = load_queries("apex_dagster.saga", "quarantine.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One document in quarantine, or one that was."""

    saga_id: SagaId
    document_id: str
    error_class: str
    step: str | None
    reason: str
    attempts: int
    source_uri: str | None
    created_at: datetime
    released_at: datetime | None
    dropped_at: datetime | None
    closed_by: str | None
    closed_because: str | None

    @property
    def is_open(self) -> bool:
        """Whether it waits for somebody."""
        return self.released_at is None and self.dropped_at is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Original:
    """What is known, and kept, of what was submitted."""

    document_id: str
    client: str | None  # "inbox", "shell", an API client's name
    body_hash: str | None  # sha256 hex of the file, or of the request's body
    source_uri: str | None
    name: str | None  # None where it was erased, as are the next three
    media_type: str | None
    collection: str | None
    source_bytes: int | None  # None also where it was extracted: then the next one is there
    extraction_bytes: int | None

    @property
    def is_erased(self) -> bool:
        """Whether nothing of it is kept in the ledger."""
        return self.source_bytes is None and self.extraction_bytes is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """What became of the wish to release one entry."""

    entry: Entry
    successor: Saga | None  # pending, for whoever drives such sagas
    refusal: str | None  # why there is none


@dataclass(frozen=True, slots=True, kw_only=True)
class Drop:
    """What became of the wish to drop one entry."""

    entry: Entry
    erased_bytes: int
    refusal: str | None


def entries(ledger: Ledger, names: Iterable[str]) -> list[Entry]:
    """Those of these sagas and documents, closed ones included, the newest last."""
    with ledger.transaction(single=True) as tx:
        return _entries(tx, "entries", names=list(names))


def open_entries(
    ledger: Ledger, *, error_class: str | None = None, step: str | None = None, limit: int = 1000
) -> list[Entry]:
    """Those that wait, the oldest first; with a class or a step only what failed so, or there."""
    with ledger.transaction(single=True) as tx:
        return _entries(tx, "open_entries", error_class=error_class, step=step, limit=limit)


def waiting_counts(ledger: Ledger) -> dict[tuple[str, str], int]:
    """("quarantine" or "retry", class of the error) -> documents that wait there."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["waiting_counts"]).fetchall()
    return {(row["place"], row["error_class"]): row["documents"] for row in rows}


def attempts(ledger: Ledger, saga_id: SagaId) -> list[Saga]:
    """All sagas of the submission that this one stands for, the first one first."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["attempts"], {"saga_id": saga_id}).fetchall()
    return [saga_of(row) for row in rows]


def original(ledger: Ledger, saga_id: SagaId) -> Original:
    """What is known of what was submitted for a saga."""
    with ledger.transaction(single=True) as tx:
        [row] = tx.execute(_SQL["original"], {"saga_id": saga_id}).fetchall()
    return Original(**row)


def payload(ledger: Ledger, saga_id: SagaId) -> tuple[bytes | None, bytes | None]:
    """(what was submitted, what was extracted from it): one of the two, or neither if erased."""
    with ledger.transaction(single=True) as tx:
        row: DictRow | None = tx.execute(_SQL["payload"], {"saga_id": saga_id}).fetchone()
    source, body = (row["source"], row["body"]) if row else (None, None)
    return (
        None if source is None else bytes(source),
        None if body is None else bytes(body),
    )


def release(
    ledger: Ledger,
    saga_ids: Sequence[SagaId],
    *,
    by: str,
    because: str | None = None,
    force: bool = False,
    dry_run: bool = False,
) -> list[Release]:
    """Give submissions in quarantine one more saga each, on the newest version; those released, or
    refused with the reason, the last to arrive first.

    With `force` it counts as submitted now, whatever came after it. With `dry_run` everything is
    looked at, and nothing done.
    """
    with ledger.transaction() as tx:
        sagas, found = _locked(ledger, tx, saga_ids)
        document_ids = sorted({saga.document_id for saga in sagas})
        lock_documents(tx, document_ids)
        scene = Scene.of(tx, sagas, document_ids)
        released = []
        for saga in sorted(sagas, key=lambda saga: saga.arrival, reverse=True):
            entry = found[saga.saga_id]
            refusal = _no_way_out(entry, saga) or _overruled(saga, scene, force=force)
            if refusal is None:
                successors = open_successors_of(
                    ledger, tx, [saga], run_id=None, same_arrival=not force
                )
                scene.unsettled.extend(successors)
                refusal = None if successors else _NOTHING_TO_DO
            if refusal is None:
                _note_release(ledger, tx, saga, successors[0], by, because, force)
            opened = successors[0] if refusal is None else None
            released.append(Release(entry=entry, successor=opened, refusal=refusal))
        announce_pending(tx)
        reach("releasing")
        if dry_run:
            raise psycopg.Rollback
    return released


def drop(
    ledger: Ledger, saga_ids: Sequence[SagaId], *, by: str, because: str, dry_run: bool = False
) -> list[Drop]:
    """Erase what was submitted, also the copies of earlier attempts; the entry, its reason and the
    audit trail stay. Files are deleted by `Inbox.settle`, on the machine that has them."""
    with ledger.transaction() as tx:
        sagas, found = _locked(ledger, tx, saga_ids)
        dropped = []
        for saga in sagas:
            entry, erased = found[saga.saga_id], 0
            refusal = _no_way_out(entry, saga)
            if refusal is None:
                erased = _erase(ledger, tx, saga, by, because)
            dropped.append(Drop(entry=entry, erased_bytes=erased, refusal=refusal))
        reach("dropping")
        if dry_run:
            raise psycopg.Rollback
    return dropped


_NOTHING_TO_DO = "the same content is live already, or under way: there is nothing to release"


def _locked(
    ledger: Ledger, tx: Transaction, saga_ids: Sequence[SagaId]
) -> tuple[list[Saga], dict[SagaId, Entry]]:
    """The sagas of these entries, locked, and the entries as they are under the lock."""
    sagas = ledger.lock(saga_ids, tx=tx)
    found = {e.saga_id: e for e in _entries(tx, "entries", names=list(saga_ids))}
    return [saga for saga in sagas if saga.saga_id in found], found


def _no_way_out(entry: Entry, saga: Saga) -> str | None:
    if not entry.is_open:
        how = "released" if entry.released_at else "dropped"
        return f"it was {how} already" + (f" by {entry.closed_by}" if entry.closed_by else "")
    if saga.status is not Status.COMPENSATED:
        return f"its undo has not ended: run `apex saga compensate {saga.saga_id}` first"
    return None


def _overruled(saga: Saga, scene: Scene, *, force: bool) -> str | None:
    if saga.saga_id not in scene.kept:
        return "what was submitted is not kept any more"
    live = scene.live.get(saga.document_id)
    if force:
        return None
    if live is not None and live.arrival > saga.arrival:
        if live.deletes:
            return (
                f"the document was deleted by {live.saga_id}, which was submitted later. Drop this "
                "one, or use --force to have its content live again"
            )
        return (
            f"version {live.version} of the document is live, and was submitted later. Drop this "
            "one, or use --force to have its content replace that"
        )
    if later := scene.later(saga):
        return (
            f"{later[0].saga_id}, which was submitted later, is under way. Wait for its end, or "
            "use --force to have this content replace it"
        )
    live_version = live.version if live else None
    if saga.pinned and saga.expected_version != live_version:
        expected = saga.expected_version or "none"
        return (
            f"it was to replace version {expected}, and version {live_version or 'none'} is live. "
            "Use --force to have it replace that"
        )
    return None


def _note_release(
    ledger: Ledger,
    tx: Transaction,
    saga: Saga,
    successor: Saga,
    by: str,
    because: str | None,
    force: bool,
) -> None:
    tx.execute(_SQL["release_entry"], {"saga_id": saga.saga_id, "by": by, "because": because})
    detail = {"by": by, "because": because, "forced": force, "successor": successor.saga_id}
    ledger.advance(states.QUARANTINE_RELEASED, [saga], details={saga.saga_id: detail}, tx=tx)
    log.info("quarantine_released", saga_id=saga.saga_id, by=by, successor=successor.saga_id)


def _erase(ledger: Ledger, tx: Transaction, saga: Saga, by: str, because: str) -> int:
    values = {"saga_id": saga.saga_id, "by": by, "because": because}
    erased = tx.execute(_SQL["erase_payloads"], values).fetchall()
    tx.execute(_SQL["drop_entry"], values)
    tx.execute(_SQL["unsettle_sources"], values)
    bytes_ = sum(row["bytes"] for row in erased)
    detail = {"by": by, "because": because, "erased": sorted(row["saga_id"] for row in erased)}
    ledger.advance(states.QUARANTINE_DROPPED, [saga], details={saga.saga_id: detail}, tx=tx)
    log.info("quarantine_dropped", saga_id=saga.saga_id, by=by, because=because, bytes=bytes_)
    return int(bytes_)


def _entries(tx: Transaction, query: str, **values: object) -> list[Entry]:
    names = [field.name for field in fields(Entry)]
    rows = tx.execute(_SQL[query], values).fetchall()
    return [Entry(**{name: row[name] for name in names}) for row in rows]
