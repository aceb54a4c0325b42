"""Operations of a ledger with drawn values, done by two ledgers at once."""

from __future__ import annotations

import random
from collections.abc import Callable

from apex_dagster.records import Document, SagaId
from apex_dagster.saga import states
from apex_dagster.saga.extractions import extraction_bodies, store_extractions, submitted_documents
from apex_dagster.saga.ledger import _SQL, Ledger, StepRecord
from apex_dagster.saga.opening import (
    Opening,
    deletion,
    open_sagas,
    open_successors,
    restart,
    used_up_restarts,
    waiting_restarts,
)
from apex_dagster.saga.removal import (
    DeletionReceipt,
    erase_earlier,
    insert_receipts,
    kept_of_earlier,
    removals,
)
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.scheduled_retry import (
    RetrySchedule,
    count_due_retries,
    open_due_retries,
    settle_compensated,
)
from apex_dagster.saga.states import MOVES, STEP_STARTED, Status
from apex_dagster.saga.sweeps import due_sweeps, finish_sweeps
from apex_dagster_tests.simulation.twin_ledgers import LEASE_S, TwinLedgers

_STEPS = ("neo4j_write", "qdrant_write")
_OWNERS = ("a", "b", "c")
_RUNS = ("run-1", "run-2", None)


class LedgerPlayer:
    """Draws an operation and its values, and lets both ledgers do it."""

    def __init__(self, twins: TwinLedgers, draw: random.Random) -> None:
        self._twins, self._draw = twins, draw
        self._remembered: dict[tuple[SagaId, int], Saga] = {}  # as it was at some epoch
        self.operations: dict[str, Callable[[], object]] = {
            name.removeprefix("_do_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("_do_")
        }

    # -- what is drawn -------------------------------------------------------------------------

    def _all(self) -> list[Saga]:
        ids = list(self._twins.database.tables.sagas)
        now, _ = self._twins.both("sagas", lambda ledger: ledger.sagas(ids))
        for saga in now:
            self._remembered.setdefault((saga.saga_id, saga.epoch), saga)
        return list(now)

    def _some(self, *statuses: Status, stale: bool = True) -> list[Saga]:
        """Up to three, of different documents; now and then as they once were."""
        found = [saga for saga in self._all() if not statuses or saga.status in statuses]
        if stale and self._draw.random() < 0.25:
            found = list(self._remembered.values())
        self._draw.shuffle(found)
        chosen = {saga.document_id: saga for saga in found[: self._draw.randint(1, 3)]}
        return list(chosen.values())

    def _ids(self) -> list[str]:
        return [*(saga.saga_id for saga in self._some()), "ingest_nothing"]

    def _owner(self) -> str:
        return self._draw.choice(_OWNERS)

    def _both(self, what: str, operation: Callable[[Ledger], object]) -> object:
        return self._twins.both(what, operation)[0]

    # -- the life of a saga ----------------------------------------------------------------------

    def _do_open(self) -> None:
        document_ids = self._draw.sample(("d1", "d2", "d3"), self._draw.randint(1, 3))
        openings = [
            deletion(document_id, client="c")
            if self._draw.random() < 0.3
            else self._opening(document_id)
            for document_id in document_ids
        ]
        run_id = self._draw.choice(_RUNS)
        self._both("open_sagas", lambda ledger: open_sagas(ledger, openings, run_id=run_id))

    def _opening(self, document_id: str) -> Opening:
        content = self._draw.choice(("x", "y", "z"))
        document = Document(
            document_id=document_id,
            name="n.txt",
            content=content.encode(),
            metadata={"k": [1]},
            source_uri=self._draw.choice((None, "inbox:n.txt")),
        )
        body = self._draw.choice((None, b"packed"))
        return Opening(
            document=document, content_hash=content, body_hash="h", client="c", body=body
        )

    def _do_claim(self) -> None:
        sagas, owner, run_id = self._some(Status.PENDING), self._owner(), self._draw.choice(_RUNS)
        self._both(
            "claim",
            lambda ledger: ledger.advance(states.CLAIMED, sagas, owner=owner, run_id=run_id),
        )

    def _do_stage(self) -> None:
        sagas, steps = self._some(Status.IN_PROGRESS), self._draw.choice((_STEPS, _STEPS[:1]))
        details = {saga.saga_id: {"chunks": 3} for saga in sagas}

        def stage(ledger: Ledger) -> object:
            return [
                (
                    ledger.advance(states.STEP_STARTED, sagas, step=step),
                    ledger.advance(states.STEP_COMPLETED, sagas, step=step, details=details),
                )
                for step in steps
            ]

        self._both("stage", stage)

    def _do_record_steps(self) -> None:
        sagas = self._some(Status.IN_PROGRESS)
        steps = [step for step in _STEPS if self._draw.random() < 0.8]
        move = self._draw.choice((states.STEP_STARTED, states.STEP_COMPLETED))
        records = [
            StepRecord(saga=saga, step=step, detail={"chunks": self._draw.randint(0, 3)})
            for step in steps
            for saga in sagas
            if self._draw.random() < 0.9
        ]
        self._both("record steps", lambda ledger: ledger.record_steps(move, records))

    def _do_fail(self) -> None:
        sagas = self._some(Status.IN_PROGRESS)
        error_class = self._draw.choice(
            ("version_conflict", "permanent", "transient", "store_down", "requested")
        )
        failure = Failure(error_class=error_class, step="qdrant_write", message="no")
        details = {saga.saga_id: failure.as_detail() for saga in sagas}
        self._both(
            "fail", lambda ledger: ledger.advance(states.STEP_FAILED, sagas, details=details)
        )

    def _do_look_at_deletions(self) -> None:
        deletions = [saga for saga in self._some() if saga.deletes]
        for what, look in {
            "removals": lambda ledger: removals(ledger, deletions),
            "kept_of_earlier": lambda ledger: kept_of_earlier(ledger, deletions),
        }.items():
            self._both(what, look)

    def _do_erase_earlier(self) -> None:
        deletions = [saga for saga in self._some(Status.COMPLETED) if saga.deletes]
        self._both("erase_earlier", lambda ledger: erase_earlier(ledger, deletions))

    def _do_insert_receipts(self) -> None:
        receipts = [
            DeletionReceipt(saga_id=saga.saga_id, document_id=saga.document_id, body=b"{}")
            for saga in self._some(stale=False)
            if saga.deletes
        ]

        def insert(ledger: Ledger) -> None:
            with ledger.transaction() as tx:
                insert_receipts(tx, receipts)

        self._both("insert_receipts", insert)

    def _do_pivot(self) -> None:
        sagas = self._some(Status.IN_PROGRESS)
        self._both("pivot", lambda ledger: ledger.pivot(sagas, steps=_STEPS))

    def _do_publications(self) -> None:
        sagas = self._some(Status.COMPLETED)
        self._both("changes", lambda ledger: ledger.changes(sagas))

    def _do_close_published(self) -> None:
        sagas, after_s = self._some(Status.COMPLETED), (250.0, 1000.0)

        def close(ledger: Ledger) -> object:
            return ledger.close_published(sagas, sweep_after_s=after_s, duration_ms=1.5)

        self._both("close_published", close)

    def _do_compensate(self) -> None:
        sagas = self._some(Status.IN_PROGRESS, Status.FAILED)
        details = {s.saga_id: s.error or {"class": "requested"} for s in sagas}
        move, owner = states.COMPENSATION_STARTED, self._owner()
        self._both(
            "compensate", lambda ledger: ledger.advance(move, sagas, details=details, owner=owner)
        )

    def _do_undo(self) -> None:
        sagas, step = self._some(Status.COMPENSATING), self._draw.choice(_STEPS)
        move = self._draw.choice((states.STEP_UNDONE, states.UNDO_FAILED))
        details = {saga.saga_id: {"removed": 1} for saga in sagas}
        self._both("undo", lambda ledger: ledger.advance(move, sagas, step=step, details=details))

    def _do_close_compensated(self) -> None:
        done, failed = self._some(Status.COMPENSATING), self._some(Status.COMPENSATING)
        failed = [saga for saga in failed if saga not in done]
        schedule = RetrySchedule(attempts_max=3, delay_s=250.0, delay_s_max=1000.0)

        def close(ledger: Ledger) -> object:
            with ledger.transaction() as tx:
                ended = ledger.close_compensated(done, failed, sweep_after_s=(0.0,), tx=tx)
                closed = [saga for saga in ended if saga.status is Status.COMPENSATED]
                losers = [s for s in closed if (s.error or {}).get("class") == "version_conflict"]
                restarted = restart(ledger, tx, losers)
                bad = settle_compensated(ledger, tx, closed, schedule)
                ledger.quarantine(ended, bad, tx=tx)
                return ended, restarted, bad

        self._both("close_compensated", close)

    def _do_retry(self) -> None:
        self._twins.pass_time(LEASE_S)
        limit = self._draw.randint(1, 4)
        self._both("count_due_retries", lambda ledger: count_due_retries(ledger, limit=limit))
        self._both(
            "open_due_retries",
            lambda ledger: open_due_retries(ledger, limit=limit, postpone_s=250.0),
        )

    def _do_open_successors(self) -> None:
        sagas, run_id = self._some(Status.COMPENSATED, stale=False), self._draw.choice(_RUNS)
        same_arrival = self._draw.random() < 0.5

        def succeed(ledger: Ledger) -> object:  # those that exist already come in any order
            found = open_successors(ledger, sagas, run_id=run_id, same_arrival=same_arrival)
            return sorted(found, key=lambda saga: saga.saga_id)

        self._both("open_successors", succeed)

    def _do_any_move(self) -> None:
        # A version that becomes live beside the pivot is nothing that may happen.
        move = self._draw.choice([m for m in MOVES if m.target is not Status.COMPLETED])
        sagas, step = self._some(), self._draw.choice((None, *_STEPS))
        if move is STEP_STARTED or move.records in ("completed_step", "undone_step"):
            step = step or _STEPS[0]
        owner = self._draw.choice((None, *_OWNERS))
        self._both(
            f"any move: {move.event}",
            lambda ledger: ledger.advance(move, sagas, step=step, owner=owner, takeover=True),
        )

    # -- owners, sweeps, extractions -------------------------------------------------------------

    def _do_time_passes(self) -> None:
        self._twins.pass_time(2 * LEASE_S)

    def _do_take_over(self) -> None:
        """Of these statuses all: which are left longest is a matter of microseconds on one side."""
        owner, statuses = self._owner(), self._draw.sample(list(Status), self._draw.randint(1, 2))
        self._both("take_over", lambda ledger: ledger.take_over(owner, statuses=statuses))

    def _do_take_over_among(self) -> None:
        owner, ids = self._owner(), self._ids()
        dead, run_id = self._draw.choice((None, *_OWNERS)), self._draw.choice(_RUNS)
        again = self._draw.random() < 0.5
        self._both(
            "take_over among",
            lambda ledger: ledger.take_over(
                owner, among=ids, dead_owner=dead, run_id=run_id, again=again
            ),
        )

    def _do_held(self) -> None:
        owner, ids = self._owner(), self._ids()

        def held(ledger: Ledger) -> object:  # the statement promises no order
            return sorted(ledger.held(ids, owner=owner), key=lambda saga: saga.saga_id)

        self._both("held", held)

    def _do_renew(self) -> None:
        owner = self._owner()
        self._both("renew", lambda ledger: ledger.renew(owner))

    def _do_sweep(self) -> None:
        limit = self._draw.randint(1, 4)

        def due(ledger: Ledger) -> object:  # of several due at one moment either may come first
            sweeps = due_sweeps(ledger, limit=1000)
            return sorted(sweeps, key=lambda sweep: (sweep.ref, sweep.due_at))

        real, model = self._twins.both("due_sweeps", due)
        finish_sweeps(self._twins.real, real[:limit])
        finish_sweeps(self._twins.model, model[:limit])

    def _do_sweep_of_any(self) -> None:
        """Also of a saga that is live or in progress: it must not become due."""
        ids = [saga.saga_id for saga in self._some()]
        values = {"saga_ids": ids, "delays_s": [0.0, 1000.0], "reason": "superseded"}

        def schedule(ledger: Ledger) -> None:
            with ledger.transaction() as tx:
                tx.execute(_SQL["schedule_sweeps"], values)

        self._both("schedule_sweeps", schedule)

    def _do_sweep_again(self) -> None:
        sagas = self._some()
        self._both("sweep_again", lambda ledger: ledger.sweep_again(sagas, grace_s=250.0))

    def _do_store_extractions(self) -> None:
        sagas = self._some(Status.IN_PROGRESS, Status.COMPENSATING)
        bodies = {saga.saga_id: self._draw.randbytes(4) for saga in sagas}
        self._both("store_extractions", lambda ledger: store_extractions(ledger, sagas, bodies))

    def _do_look(self) -> None:
        ids, run_id = self._ids(), self._draw.choice(_RUNS[:2])
        losers = self._some(Status.COMPENSATED, stale=False)

        def by_arrival(sagas: list[Saga]) -> list[Saga]:  # a successor may share its arrival
            return sorted(sagas, key=lambda saga: (saga.arrival, saga.saga_id))

        for what, look in {
            "submitted_documents": lambda ledger: submitted_documents(ledger, ids),
            "extraction_bodies": lambda ledger: extraction_bodies(ledger, ids),
            "sagas_of_run": lambda ledger: by_arrival(ledger.sagas_of_run(run_id)),
            "pointers": lambda ledger: ledger.pointers(["d1", "d2", "d4"]),
            "waiting_restarts": lambda ledger: by_arrival(waiting_restarts(ledger, losers)),
            "used_up_restarts": lambda ledger: used_up_restarts(ledger, losers),
        }.items():
            self._both(what, look)


# How often an operation is drawn; 1 where nothing else is said.
WEIGHTS = {
    "claim": 3.0,
    "stage": 5.0,
    "pivot": 6.0,
    "close_published": 3.0,
    "erase_earlier": 3.0,
    "open": 2.0,
    "compensate": 2.0,
    "close_compensated": 3.0,
    "retry": 2.0,
    "store_extractions": 3.0,
}
