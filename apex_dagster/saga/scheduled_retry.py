"""Submissions that failed for a passing cause, tried again by themselves, later and later.

Only files are: nobody waits for them. Whoever sent a document over HTTP or from a shell was told
that it failed and was compensated, and must not find it live an hour later without having asked.

A retry is written down in the transaction that closes the saga, and goes in the one that opens its
successor, so that no crash loses or doubles it. The successor has the arrival of its predecessor:
whatever was submitted later overrules it, whenever it is tried. Nothing is opened while a store is
down; what waits for one has not been tried, so it costs no attempt.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

import structlog

from apex_dagster.records import SagaId
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.opening import (
    lock_documents,
    open_successors_of,
    used_up,
    with_payload,
)
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.wakeup import announce_pending
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

_SQL = load_queries("apex_dagster.saga", "scheduled_retry.sql")

# Trying the same document again cannot help, or must not happen by itself.
QUARANTINED = frozenset({"permanent", "unexpected", "crash_loop"})
# Another attempt may end otherwise: a store was down or busy, or the run that drove it has died.
HEALING = frozenset({"transient", "store_down", "unknown_outcome", "interrupted"})
# Somebody wanted it to end. A file goes into quarantine then, or it would be ingested all the same.
_UNWANTED = frozenset({"requested", "cancelled"})

_PENDING, _IN_PROGRESS = states.Status.PENDING, states.Status.IN_PROGRESS

Verdict = Literal["retry", "quarantine", "nothing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RetrySchedule:
    """How often a file is tried in all, and how long it waits in between."""

    attempts_max: int = 5  # the first one included
    delay_s: float = 15.0
    delay_s_max: float = 3600.0

    def delay_after_s(self, attempts: int) -> float:
        """Seconds to wait after so many attempts, at least 1: twice as long each time.

        Without jitter: those that failed together share their next batch, and admission keeps a
        store that has just come back from being met by all of them.
        """
        return min(self.delay_s_max, self.delay_s * 2.0 ** min(attempts - 1, 32))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tries:
    """Of the submission that a saga stands for."""

    count: int
    is_file: bool
    was_failed: bool  # an operator had to see to its undo


def settle_compensated(
    ledger: Ledger, tx: Transaction, closed: Sequence[Saga], schedule: RetrySchedule
) -> list[Saga]:
    """Say what follows for sagas that `tx` has compensated: schedules retries, and returns those
    that belong in quarantine."""
    if not closed:
        return []
    tries, lost = _tries(tx, closed), {saga.saga_id for saga in used_up(tx, closed)}
    verdicts = {
        s.saga_id: _verdict(s, tries[s.saga_id], schedule, out_of_restarts=s.saga_id in lost)
        for s in closed
    }
    again = [saga for saga in closed if verdicts[saga.saga_id] == "retry"]
    delays_s = {s.saga_id: schedule.delay_after_s(tries[s.saga_id].count) for s in again}
    if again:
        values = {"saga_ids": list(delays_s), "delays_s": list(delays_s.values())}
        tx.execute(_SQL["schedule_retries"], values)
        details = {
            saga_id: {"attempts": tries[saga_id].count, "delay_s": delay_s}
            for saga_id, delay_s in delays_s.items()
        }
        ledger.advance(states.RETRY_SCHEDULED, again, details=details, tx=tx)
    return [saga for saga in closed if verdicts[saga.saga_id] == "quarantine"]


def _verdict(
    saga: Saga, tries: Tries, schedule: RetrySchedule, *, out_of_restarts: bool
) -> Verdict:
    error_class = (saga.error or {}).get("class")
    if error_class in QUARANTINED:
        return "quarantine"
    # A pinned saga is somebody's request, which a file has joined: that one is asked for anew.
    if not tries.is_file or saga.pinned:
        return "nothing"
    if error_class in HEALING and not tries.was_failed:
        return "retry" if tries.count < schedule.attempts_max else "quarantine"
    stays = tries.was_failed or out_of_restarts or error_class in _UNWANTED
    return "quarantine" if stays else "nothing"


def count_due_retries(ledger: Ledger, *, limit: int) -> int:
    """How many wait that are due, `limit` at most."""
    with ledger.transaction(single=True) as tx:
        [row] = tx.execute(_SQL["count_due_retries"], {"limit": limit}).fetchall()
    return int(row["due"])


def waiting_retries(ledger: Ledger, saga_ids: Sequence[SagaId]) -> dict[SagaId, datetime]:
    """When those of the sagas are due that are to be tried again."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["waiting_retries"], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"]: row["due_at"] for row in rows}


def open_due_retries(ledger: Ledger, *, limit: int, postpone_s: float = 15.0) -> list[Saga]:
    """Open a successor for each submission whose time has come, `limit` at most.

    They wait for whoever drives pending sagas. What has been overruled meanwhile is not tried
    again, and its audit trail says why; where a later submission of the document, or the same
    content, is under way, the retry waits for `postpone_s` more to see how that ends.
    """
    with ledger.transaction() as tx:
        due = _sagas(tx, "due_retries", {"limit": limit})
        if not due:
            return []
        opened = _open_or_settle(ledger, tx, due, postpone_s)
        reach("retrying")
    for saga in opened:
        log.info("saga_retried", saga_id=saga.saga_id, predecessor=saga.predecessor_saga_id)
    return opened


def _open_or_settle(
    ledger: Ledger, tx: Transaction, due: Sequence[Saga], postpone_s: float
) -> list[Saga]:
    document_ids = sorted({saga.document_id for saga in due})
    lock_documents(tx, document_ids)
    scene = Scene.of(tx, due, document_ids)
    overruled, postponed, opened = dict[SagaId, str](), list[SagaId](), list[Saga]()
    # The last to arrive first: what it opens is a reason for those before it to wait.
    for saga in sorted(due, key=lambda saga: saga.arrival, reverse=True):
        if saga.saga_id not in scene.waiting:
            continue
        if reason := scene.overruled_by(saga):
            overruled[saga.saga_id] = reason
        elif scene.has_to_wait(saga):
            postponed.append(saga.saga_id)
        else:
            opened += open_successors_of(ledger, tx, [saga], run_id=None, same_arrival=True)
            scene.unsettled.extend(opened[-1:])
    _drop(ledger, tx, due, overruled)
    if postponed:
        values = {"saga_ids": postponed, "delay_s": postpone_s}
        tx.execute(_SQL["postpone_retries"], values)
    if opened:
        announce_pending(tx)
    return opened


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """How the documents of sagas stand that are to be tried once more, their rows being locked."""

    waiting: set[SagaId]  # the retries that nobody else has taken in hand
    kept: set[SagaId]  # what was submitted is still there
    asked_again: set[SagaId]  # those whose document shows what was sent again after them
    live: Mapping[str, Saga]  # by document; or the deletion, where that was the last
    unsettled: list[Saga]  # under way, being undone, or to be tried again

    @classmethod
    def of(cls, tx: Transaction, sagas: Sequence[Saga], document_ids: Sequence[str]) -> Scene:
        """To be called when the documents are locked."""
        ids, documents = [saga.saga_id for saga in sagas], {"document_ids": document_ids}
        return cls(
            waiting=_ids(tx, "waiting_retries", ids),
            kept=with_payload(tx, ids),
            asked_again=_ids(tx, "asked_again", ids),
            live={saga.document_id: saga for saga in _sagas(tx, "live_sagas", documents)},
            unsettled=_sagas(tx, "unsettled_sagas", documents),
        )

    def overruled_by(self, saga: Saga) -> str | None:
        """Why there is nothing left to try."""
        live = self.live.get(saga.document_id)
        if live is None:
            return None
        if live.arrival > saga.arrival and live.deletes:
            return f"the document was deleted by {live.saga_id}, which was submitted later"
        if live.arrival > saga.arrival:
            return f"version {live.version}, which was submitted later, is live"
        if saga.saga_id in self.asked_again:
            return f"version {live.version}, which is live, was submitted once more after it"
        if live.content_hash == saga.content_hash and not self._may_change_before(saga):
            return f"the same content is live already, as version {live.version}"
        return None

    def has_to_wait(self, saga: Saga) -> bool:
        """Whether the end of another one may spare this retry."""
        live = self.live.get(saga.document_id)
        if live and live.content_hash == saga.content_hash:
            return True  # and yet it is not overruled
        return any(
            other.arrival > saga.arrival or other.content_hash == saga.content_hash
            for other in self._rivals(saga)
            if other.status in (_PENDING, _IN_PROGRESS)
        )

    def later(self, saga: Saga) -> list[Saga]:
        """Submissions of the document that came after it, and may still become live."""
        return [other for other in self._rivals(saga) if other.arrival > saga.arrival]

    def _may_change_before(self, saga: Saga) -> bool:
        """Whether other content may become live that arrived before it. Only an earlier one is
        waited for, so no two retries wait for each other."""
        return any(
            other.arrival < saga.arrival and other.content_hash != saga.content_hash
            for other in self._rivals(saga)
        )

    def _rivals(self, saga: Saga) -> list[Saga]:
        return [
            other
            for other in self.unsettled
            if other.document_id == saga.document_id and other.saga_id != saga.saga_id
        ]


def _drop(
    ledger: Ledger, tx: Transaction, due: Sequence[Saga], overruled: Mapping[SagaId, str]
) -> None:
    if not overruled:
        return
    dropped = [saga for saga in due if saga.saga_id in overruled]
    details = {saga.saga_id: _overruled_error(saga, overruled[saga.saga_id]) for saga in dropped}
    ledger.advance(states.RETRY_DROPPED, dropped, details=details, tx=tx)
    tx.execute(_SQL["drop_retries"], {"saga_ids": list(overruled)})


def _overruled_error(saga: Saga, reason: str) -> dict[str, Any]:
    before = saga.error or {}
    message = f"not tried again, as {reason}; it had failed: {before.get('message')}"
    return {"class": "superseded", "step": before.get("step"), "message": message}


def _tries(tx: Transaction, sagas: Sequence[Saga]) -> dict[SagaId, Tries]:
    values = {"saga_ids": [saga.saga_id for saga in sagas]}
    rows = tx.execute(_SQL["tries"], values).fetchall()
    return {
        row["saga_id"]: Tries(
            count=row["tries"], is_file=row["is_file"], was_failed=row["was_failed"]
        )
        for row in rows
    }


def _ids(tx: Transaction, query: str, saga_ids: Sequence[SagaId]) -> set[SagaId]:
    rows = tx.execute(_SQL[query], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"] for row in rows}


def _sagas(tx: Transaction, query: str, values: Mapping[str, object]) -> list[Saga]:
    return [saga_of(row) for row in tx.execute(_SQL[query], values).fetchall()]
