"""The saga's durable record in PostgreSQL: every read and write of it, in batches.

A method that moves sagas returns those that it moved. The others have been moved by somebody else
since they were read (their epoch or status differs), and the caller has to let go of them.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, cast

import msgspec
import orjson
import psycopg
from psycopg.rows import DictRow, dict_row
from psycopg.types.json import Jsonb, set_json_loads
from psycopg_pool import ConnectionPool

from apex_dagster.errors import StoreConflict, StoreRejected, StoreUnavailable
from apex_dagster.records import Change, Publication, Removal, SagaId, VersionRef
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.lease import LeaseClock
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Move, Status
from apex_dagster.saga.wakeup import announce_ended
from apex_dagster.sql import check_not_hung_up, load_queries

_SQL = load_queries("apex_dagster.saga", "ledger.sql")
_SAGA_FIELDS = tuple(field.name for field in dataclasses.fields(Saga))

Detail = Mapping[str, Any]
Transaction = psycopg.Connection[DictRow]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivoted:
    """The outcome of a pivot, by saga. Those in none of the lists were held by somebody else."""

    completed: list[Saga] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)  # what the completed ones have to tell
    # What was decided last is no longer the version, or the deletion, that they build on.
    conflicts: list[Saga] = field(default_factory=list)
    superseded: list[Saga] = field(default_factory=list)  # that was submitted after them
    # That has not been published yet.
    blocked: list[Saga] = field(default_factory=list)

    def then(self, again: Pivoted) -> Pivoted:
        """Both, where `again` is what became of the blocked ones of this."""
        return Pivoted(
            completed=self.completed + again.completed,
            changes=self.changes + again.changes,
            conflicts=self.conflicts + again.conflicts,
            superseded=self.superseded + again.superseded,
            blocked=again.blocked,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """That a saga step was started or completed."""

    saga: Saga
    step: str
    detail: Detail = field(default_factory=dict)  # of a completed one: its receipt
    duration_ms: float | None = None


class Ledger:
    """Sagas and documents' pointers in schema `apex`. Safe to use from several threads.

    Raises StoreUnavailable when PostgreSQL cannot be reached and StoreConflict after a deadlock or
    serialization failure; in both cases the transaction has left nothing behind, except that a
    connection lost during COMMIT leaves its outcome open: claim again before deciding anything.
    """

    def __init__(
        self, postgres_url: str, *, lease_s: float = 60.0, timeout_s: float = 10.0
    ) -> None:
        self.lease_s = lease_s
        self.leases = LeaseClock(lease_s)
        self._pool = ConnectionPool(
            postgres_url,
            min_size=0,
            max_size=4,
            open=False,
            timeout=timeout_s,
            check=check_not_hung_up,
            configure=_configure,
            kwargs={
                # What is one statement is one transaction then, in one round trip instead of three.
                "autocommit": True,
                "row_factory": dict_row,
                "connect_timeout": max(2, int(timeout_s)),
                "tcp_user_timeout": int(timeout_s * 1000),
                # A pivot that is lost after publish removed the old version cannot be repaired.
                "options": "-c synchronous_commit=on"
                f" -c statement_timeout={int(timeout_s * 1000)}"
                " -c idle_in_transaction_session_timeout=60s",
                "application_name": "apex_ledger",
            },
            name="ledger",
        )

    def close(self) -> None:
        """Give up all connections."""
        self._pool.close()

    @contextmanager
    def transaction(self, *, single: bool = False) -> Iterator[Transaction]:
        """One transaction; committed at the end of the block, rolled back on an error.

        With `single` the block runs one statement only, which commits by itself.
        """
        try:
            self._pool.open()
            with (
                self._pool.connection() as connection,
                nullcontext() if single else connection.transaction(),
            ):
                yield cast("Transaction", connection)
        except (psycopg.errors.DeadlockDetected, psycopg.errors.SerializationFailure) as error:
            raise StoreConflict("ledger", str(error)) from error
        except psycopg.DataError as error:
            raise StoreRejected("ledger", str(error)) from error
        except (psycopg.OperationalError, psycopg.errors.QueryCanceled) as error:
            raise StoreUnavailable("ledger", str(error)) from error

    # -- moves -----------------------------------------------------------------------------------

    def advance(
        self,
        move: Move,
        sagas: Sequence[Saga],
        *,
        details: Mapping[SagaId, Detail] | None = None,
        step: str | None = None,
        duration_ms: float | None = None,
        owner: str | None = None,
        run_id: str | None = None,
        takeover: bool = False,
        tx: Transaction | None = None,
    ) -> list[Saga]:
        """Move sagas and append the event; with `owner`, give it a fresh lease.

        Returns the moved ones as they are now, in the order of saga_id.
        """
        if not sagas:
            return []
        if tx is None:
            with self.transaction(single=move not in _ENDS) as tx:
                return self.advance(
                    move,
                    sagas,
                    details=details,
                    step=step,
                    duration_ms=duration_ms,
                    owner=owner,
                    run_id=run_id,
                    takeover=takeover,
                    tx=tx,
                )
        found, asked_at = details or {}, self.leases.now()
        moved = _sagas(
            tx,
            "advance",
            saga_ids=[saga.saga_id for saga in sagas],
            epochs=[saga.epoch for saga in sagas],
            details=[_jsonb(found.get(saga.saga_id, {})) for saga in sagas],
            event=move.event,
            source=[status.value for status in move.source],
            target=move.target.value if move.target else None,
            epoch_step=int(move.raises_epoch),
            takeover=int(takeover),
            records=move.records or "",
            forgets_error=move.forgets_error,
            may_be_lost=move.may_be_lost,
            step=step,
            duration_ms=duration_ms,
            owner=owner,
            run_id=run_id,
            lease_s=self.lease_s,
        )
        if owner:
            self.leases.granted((saga.saga_id for saga in moved), asked_at=asked_at)
        if move in _ENDS:
            announce_ended(tx, [saga.saga_id for saga in moved])
        return moved

    def record_steps(self, move: Move, records: Sequence[StepRecord]) -> list[Saga]:
        """Make `move`, STEP_STARTED or STEP_COMPLETED, for several steps of sagas in one statement.

        Events stand in the audit log in the order of `records`. Returns the moved sagas as they are
        now, in the order of saga_id.
        """
        by_saga: dict[SagaId, list[StepRecord]] = {}
        for record in records:
            by_saga.setdefault(record.saga.saga_id, []).append(record)
        if not by_saga:
            return []
        in_order = [record for each in by_saga.values() for record in each]
        completes = move.records == "completed_step"
        with self.transaction(single=True) as tx:
            return _sagas(
                tx,
                "record_steps",
                event=move.event,
                may_be_lost=move.may_be_lost,
                saga_ids=list(by_saga),
                epochs=[each[0].saga.epoch for each in by_saga.values()],
                completed=[
                    _jsonb(
                        {record.step: dict(record.detail) for record in each} if completes else {}
                    )
                    for each in by_saga.values()
                ],
                record_sagas=[record.saga.saga_id for record in in_order],
                numbers=[n for each in by_saga.values() for n in range(1, len(each) + 1)],
                steps=[record.step for record in in_order],
                durations_ms=[record.duration_ms for record in in_order],
                details=[_jsonb(record.detail) for record in in_order],
            )

    def pivot(self, sagas: Sequence[Saga], *, steps: Sequence[str]) -> Pivoted:
        """Make versions live, and documents deleted, all in one transaction; what cannot be is that
        document's only.

        A saga must be in progress, at the epoch given, with all `steps` completed. What was decided
        last of its document must still be what it builds on, and published.
        """
        epochs = {saga.saga_id: saga.epoch for saga in sagas}
        with self.transaction() as tx:
            held = [
                saga
                for saga in _sagas(tx, "lock_sagas", saga_ids=sorted(epochs))
                if saga.status is Status.IN_PROGRESS
                and saga.epoch == epochs[saga.saga_id]
                and all(step in saga.completed_steps for step in steps)
            ]
            document_ids = sorted({saga.document_id for saga in held})
            rows = tx.execute(_SQL["lock_documents"], {"document_ids": document_ids}).fetchall()
            pointers = {row["document_id"]: row for row in rows}
            # Also where it builds on that very version: it may have been opened late, to restart.
            superseded = [
                s for s in held if (pointers[s.document_id]["head_arrival"] or 0) > s.arrival
            ]
            conflicts = [
                s
                for s in held
                if s not in superseded
                and pointers[s.document_id]["head_version"] != s.expected_version
            ]
            rest = [s for s in held if s not in superseded and s not in conflicts]
            blocked = [s for s in rest if pointers[s.document_id]["head_is_unpublished"]]
            able = [s for s in rest if s not in blocked]
            # A document has one pointer: of several sagas the one that arrived last has it.
            last = {s.document_id: s for s in sorted(able, key=lambda s: s.arrival)}
            superseded += [s for s in able if s is not last[s.document_id]]
            winners = [s for s in able if s is last[s.document_id]]
            completed = self._point_documents(tx, winners, pointers)
            reach("pivoting")
        return Pivoted(
            completed=completed,
            changes=[_replacing(s, pointers[s.document_id]) for s in completed],
            conflicts=conflicts,
            superseded=superseded,
            blocked=blocked,
        )

    def _point_documents(
        self, tx: Transaction, winners: Sequence[Saga], pointers: Mapping[str, DictRow]
    ) -> list[Saga]:
        """Complete the sagas, then move the pointers of those that really were completed."""
        replaced = {
            saga.saga_id: {"replaces_saga_id": pointers[saga.document_id]["head_saga_id"]}
            for saga in winners
        }
        completed = self.advance(states.COMPLETED, winners, details=replaced, tx=tx)
        live = [saga for saga in completed if not saga.deletes]
        content_hashes = {"content_hashes": [saga.content_hash for saga in live]}
        tx.execute(_SQL["point_documents"], _versions(live) | content_hashes)
        if buried := [saga for saga in completed if saga.deletes]:
            tx.execute(_SQL["bury_documents"], _versions(buried))
        return completed

    # -- ownership -------------------------------------------------------------------------------

    def owned(self, saga_ids: Sequence[str], *, owner: str) -> list[Saga]:
        """As `held`, without a wait for moves in flight, and with leases renewed only where less
        than half of one is to come."""
        remaining_s = (self.leases.remaining_s(SagaId(saga_id)) for saga_id in saga_ids)
        if any(seconds < self.lease_s / 2 for seconds in remaining_s):
            return self.held(saga_ids, owner=owner)
        rows = self._rows("sagas_of_owner", saga_ids=list(saga_ids), owner=owner)
        return [saga_of(row) for row in rows]

    def held(self, saga_ids: Sequence[str], *, owner: str) -> list[Saga]:
        """Those that `owner` still holds, in any status, with their leases renewed."""
        asked_at = self.leases.now()
        with self.transaction(single=True) as tx:
            held = _sagas(
                tx, "held_sagas", saga_ids=list(saga_ids), owner=owner, lease_s=self.lease_s
            )
        self.leases.granted((saga.saga_id for saga in held), asked_at=asked_at)
        return held

    def renew(self, owner: str) -> int:
        """Renew all leases of `owner`; how many there were."""
        asked_at = self.leases.now()
        rows = self._rows("renew_leases", owner=owner, lease_s=self.lease_s)
        self.leases.granted((row["saga_id"] for row in rows), asked_at=asked_at)
        return len(rows)

    def take_over(
        self,
        owner: str,
        *,
        limit: int = 50,
        statuses: Sequence[Status] = tuple(Status),
        among: Sequence[str] | None = None,
        dead_owner: str | None = None,
        run_id: str | None = None,
        left_at: datetime | None = None,
        again: bool = False,
    ) -> list[Saga]:
        """Claim sagas whose lease has run out, raising their epoch so that no one else moves them:
        those of `statuses` that have been left for longest, `limit` at most.

        The event notes since when nobody drives them: `left_at`, else the end of their leases.

        With `among`, only these, and whatever `dead_owner` holds of them even if its lease still
        runs: for an owner that is known to have ended. They come back in the status they had,
        pending ones excepted: those are in progress now. With `again`, what failed in those in
        progress is forgotten, for an owner who tries it once more.
        """
        with self.transaction() as tx:
            if among is None:
                named = [status.value for status in statuses]
                expired = _sagas(tx, "expired_sagas", limit=limit, statuses=named)
            else:
                expired = _sagas(tx, "expired_among", saga_ids=list(among), dead_owner=dead_owner)
            taken: list[Saga] = []
            for status, move in _TAKE_OVER.items():
                group = [saga for saga in expired if saga.status is status]
                # A saga that nobody ever claimed has not crashed anyone yet.
                takeover = status is not Status.PENDING
                if again and move is states.RESUMED:
                    move = states.RETRIED
                taken += self.advance(
                    move,
                    group,
                    details={s.saga_id: left_detail(left_at or s.lease_expires_at) for s in group},
                    owner=owner,
                    run_id=run_id,
                    takeover=takeover,
                    tx=tx,
                )
        return taken

    def lock(self, saga_ids: Sequence[str], *, tx: Transaction) -> list[Saga]:
        """These sagas, whose rows stay locked until the end of `tx`."""
        return _sagas(tx, "lock_sagas", saga_ids=list(saga_ids))

    # -- after the pivot, after the end ------------------------------------------------------------

    def changes(self, sagas: Sequence[Saga]) -> list[Change]:
        """What is to be published: those of the sagas whose version is the live one."""
        rows = self._rows("publications", saga_ids=[saga.saga_id for saga in sagas])
        return [_change(row) for row in rows]

    def close_published(
        self,
        sagas: Sequence[Saga],
        *,
        sweep_after_s: Sequence[float],
        duration_ms: float,
        details: Mapping[SagaId, Detail] | None = None,
        noting: Callable[[Transaction, Sequence[Saga]], None] = lambda tx, published: None,
    ) -> list[Saga]:
        """Set `published_at`, and schedule the removal of what was replaced. `noting` is called in
        the same transaction, with those that are published by it."""
        with self.transaction() as tx:
            published = self.advance(
                states.PUBLISHED, sagas, details=details, duration_ms=duration_ms, tx=tx
            )
            noting(tx, published)
            replaced = [s.replaces_saga_id for s in published if s.replaces_saga_id]
            _schedule_sweeps(tx, replaced, sweep_after_s, "superseded")
        return published

    def close_compensated(
        self,
        compensated: Sequence[Saga],
        failed: Sequence[Saga],
        *,
        sweep_after_s: Sequence[float],
        tx: Transaction,
    ) -> list[Saga]:
        """End sagas whose undos are over; schedule the sweeps of those that are compensated."""
        ended = self.advance(states.COMPENSATED, compensated, tx=tx)
        _schedule_sweeps(tx, [s.saga_id for s in ended], sweep_after_s, "compensated")
        return ended + self.advance(states.FAILED, failed, tx=tx)

    def quarantine(self, ended: Sequence[Saga], bad: Sequence[Saga], *, tx: Transaction) -> None:
        """Of sagas that `tx` has ended put `bad` into quarantine, and take the others out of it:
        they were there for an undo that has succeeded since."""
        ids = {saga.saga_id for saga in bad}
        others = [saga.saga_id for saga in ended if saga.saga_id not in ids]
        tx.execute(_SQL["quarantine"], {"saga_ids": sorted(ids)})
        tx.execute(_SQL["leave_quarantine"], {"saga_ids": others})

    def sweep_again(self, sagas: Sequence[Saga], *, grace_s: float) -> None:
        """Have those of the sagas swept soon that are dead or superseded: a store may have been
        written to on their behalf after it was swept.

        Those that are open or live are left alone: what ends them schedules their sweeps.
        """
        with self.transaction() as tx:
            now = _sagas(tx, "sagas_by_id", saga_ids=[saga.saga_id for saga in sagas])
            document_ids = [saga.document_id for saga in now]
            rows = tx.execute(_SQL["pointers"], {"document_ids": document_ids}).fetchall()
            live = {row[name] for row in rows for name in ("live_saga_id", "tombstone_saga_id")}
            dead = [s.saga_id for s in now if s.status is Status.COMPENSATED]
            replaced = [s.saga_id for s in now if s.published_at and s.saga_id not in live]
            _schedule_sweeps(tx, dead, [0.0], "compensated")
            _schedule_sweeps(tx, replaced, [grace_s], "superseded")

    # -- looking ---------------------------------------------------------------------------------

    def sagas(self, saga_ids: Sequence[str]) -> list[Saga]:
        """These sagas, in the order of saga_id; unknown ids are left out."""
        return [saga_of(row) for row in self._rows("sagas_by_id", saga_ids=list(saga_ids))]

    def sagas_of_run(self, run_id: str) -> list[Saga]:
        """The sagas a Dagster run drives or drove last, by arrival."""
        return [saga_of(row) for row in self._rows("sagas_of_run", run_id=run_id)]

    def overdue_sagas(self, *, bound_s: float, limit: int = 100) -> list[Saga]:
        """Open work whose lease ran out more than `bound_s` ago, the longest first."""
        rows = self._rows("overdue_sagas", bound_s=bound_s, limit=limit)
        return [saga_of(row) for row in rows]

    def waiting_sagas(self, *, limit: int = 10_000) -> list[Saga]:
        """Those that nobody drives because a store that they need was down, the longest first."""
        return [saga_of(row) for row in self._rows("waiting_sagas", limit=limit)]

    def list_sagas(
        self,
        *,
        statuses: Sequence[Status] | None = None,
        document_id: str | None = None,
        run_id: str | None = None,
        beyond: Saga | None = None,
        limit: int = 100,
    ) -> list[Saga]:
        """The newest sagas first; with `beyond`, those that follow it in that order."""
        rows = self._rows(
            "list_sagas",
            statuses=[status.value for status in statuses] if statuses else None,
            document_id=document_id,
            run_id=run_id,
            last_created_at=beyond.created_at if beyond else None,
            last_arrival=beyond.arrival if beyond else None,
            last_saga_id=beyond.saga_id if beyond else None,
            limit=limit,
        )
        return [saga_of(row) for row in rows]

    def newest_sagas(
        self, *, limit: int = 1000, document_ids: Sequence[str] | None = None
    ) -> list[Saga]:
        """The last saga of each document (of these documents), by arrival; of more than `limit`,
        those that arrived last."""
        ids = list(document_ids) if document_ids is not None else None
        return [saga_of(row) for row in self._rows("newest_sagas", limit=limit, document_ids=ids)]

    def pointers(self, document_ids: Sequence[str]) -> dict[str, DictRow]:
        """document_id -> live_version, live_saga_id, content_hash, tombstone_saga_id."""
        rows = self._rows("pointers", document_ids=list(document_ids))
        return {row["document_id"]: row for row in rows}

    def events(self, saga_id: str) -> list[DictRow]:
        """A saga's audit trail, oldest first."""
        return self._rows("events", saga_id=saga_id)

    def quarantined(self, *, limit: int = 100) -> list[DictRow]:
        """What waits in quarantine, oldest first."""
        return self._rows("list_quarantine", limit=limit)

    def unsettled_sources(self) -> list[DictRow]:
        """Dropped files that have not found their place yet, each with the newest sagas of its
        documents. `ended`: all of these have; `waits`: one is to be tried again."""
        return self._rows("unsettled_sources")

    def settle_source(self, source_uri: str, body_hash: str) -> None:
        """The file has found its place."""
        with self.transaction() as tx:
            values = {"source_uri": source_uri, "body_hash": body_hash}
            tx.execute(_SQL["settle_source"], values)

    def _rows(self, query: str, **values: object) -> list[DictRow]:
        with self.transaction(single=True) as tx:
            return tx.execute(_SQL[query], values).fetchall()


# After one of these whoever waits for a saga has its answer. A completed one counts once the stores
# were told, or could not be: a pivot alone is no news to wait for.
_ENDS = (states.PUBLISHED, states.PUBLISH_FAILED, states.COMPENSATED, states.FAILED)

_TAKE_OVER = {
    Status.PENDING: states.CLAIMED,
    Status.IN_PROGRESS: states.RESUMED,
    Status.COMPENSATING: states.COMPENSATION_RESUMED,
    Status.COMPLETED: states.PUBLISH_RESUMED,
}


def _configure(connection: psycopg.Connection[Any]) -> None:
    # Every saga that is read has three JSON columns; the standard library took longest of all.
    set_json_loads(msgspec.json.decode, connection)


def _jsonb(detail: Detail) -> Jsonb:
    return Jsonb(dict(detail), dumps=_json)


def _json(detail: Detail) -> bytes:
    """Written in a tenth of the time; what only the standard library writes is left to it."""
    try:
        return orjson.dumps(detail)
    except orjson.JSONEncodeError:
        return json.dumps(detail).encode()


def _schedule_sweeps(
    tx: Transaction,
    saga_ids: Sequence[SagaId],
    after_s: Sequence[float],
    reason: str,
) -> None:
    values = {"saga_ids": list(saga_ids), "delays_s": list(after_s), "reason": reason}
    tx.execute(_SQL["schedule_sweeps"], values)


def _sagas(tx: Transaction, query: str, **values: object) -> list[Saga]:
    return [saga_of(row) for row in tx.execute(_SQL[query], values).fetchall()]


def left_detail(left_at: datetime | None) -> dict[str, str]:
    """The part of a take-over's event that `bound.sql` reads."""
    return {"left_at": left_at.isoformat()} if left_at else {}


def saga_of(row: DictRow) -> Saga:
    """The saga in a row of `apex.saga_state`."""
    values = {field: row[field] for field in _SAGA_FIELDS}
    return Saga(**{**values, "status": Status(row["status"])})


def _versions(sagas: Sequence[Saga]) -> dict[str, list[Any]]:
    return {
        "document_ids": [saga.document_id for saga in sagas],
        "versions": [saga.version for saga in sagas],
        "saga_ids": [saga.saga_id for saga in sagas],
    }


def _replacing(saga: Saga, pointer: DictRow) -> Change:
    """What a saga that has moved this pointer, as it was before, has to tell the stores."""
    document_id, version = saga.document_id, pointer["live_version"]
    replaced = (
        VersionRef(document_id=document_id, version=version, saga_id=pointer["live_saga_id"])
        if version is not None
        else None
    )
    if saga.deletes:
        return Removal(ref=saga.ref, removed=replaced)
    return Publication(ref=saga.ref, replaced=replaced)


def _change(row: DictRow) -> Change:
    replaced = None
    if row["replaced_saga_id"]:
        replaced = VersionRef(
            document_id=row["document_id"],
            version=row["replaced_version"],
            saga_id=row["replaced_saga_id"],
        )
    ref = VersionRef(document_id=row["document_id"], version=row["version"], saga_id=row["saga_id"])
    if row["kind"] == "delete":
        return Removal(ref=ref, removed=replaced)
    return Publication(ref=ref, replaced=replaced)
