"""Finishes what dead owners left: takes over expired leases and drives every saga to its end."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import structlog

from apex_dagster.saga.admission import Admission
from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.engine import SagaEngine
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.opening import waiting_restarts
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.scheduled_retry import count_due_retries, open_due_retries
from apex_dagster.saga.states import CLAIMED, Status

log = structlog.get_logger(__name__)


class Recovery:
    """Takes over sagas whose owner has been silent for longer than its lease.

    `resume` drives sagas in progress on from where their ledger rows say they are, and leaves
    them ended, or failed with an `error` for this class to compensate.
    """

    def __init__(
        self,
        engine: SagaEngine,
        compensation: Compensation,
        *,
        resume: Callable[[Sequence[Saga], str], None],
        takeovers_max: int,
    ) -> None:
        self._engine, self._compensation = engine, compensation
        self._resume, self._takeovers_max = resume, takeovers_max
        self._admission = Admission(engine.breakers)

    def recover(self, *, owner: str, limit: int = 50, singly_max: int = 5) -> list[Saga]:
        """Take over and finish up to `limit` sagas of each kind; all of them, as they are now.

        First those that hold something in stores which is not yet shown, or shown no more. Those in
        progress, `singly_max` of them, are driven one by one: a document that kills its worker must
        not take others with it. Last come those that nobody has begun, in batches: however many of
        them wait, the others do not wait for them.

        Probes stores that are down first, where it is time to: sagas that wait for one follow when
        it is back, and not before.
        """
        self._engine.breakers.probe()
        with self._engine.lease(owner):
            taken = self._take_over(owner, limit, Status.COMPLETED, Status.COMPENSATING)
            self._engine.publish([s for s in taken if s.status is Status.COMPLETED])
            undone = self._compensation.finish(
                [s for s in taken if s.status is Status.COMPENSATING]
            )
            self._go_on_with_restarts(undone, owner)
            begun = self._take_over(owner, singly_max, Status.IN_PROGRESS)
            for saga in begun:
                self._finish(saga, owner)
            fresh = self._take_over(owner, limit, Status.PENDING)
            for batch in _one_of_a_document(fresh):
                self._resume(batch, owner)
        return self._engine.ledger.sagas([saga.saga_id for saga in (*taken, *begun, *fresh)])

    def _take_over(self, owner: str, limit: int, *statuses: Status) -> list[Saga]:
        taken = self._engine.ledger.take_over(owner, limit=limit, statuses=statuses)
        for saga in taken:
            log.info("saga_taken_over", saga_id=saga.saga_id, takeovers=saga.takeovers)
        return taken

    def retry_due(self, *, limit: int = 50, owner: str | None = None) -> list[Saga]:
        """Try files again whose time has come, as many as may come in now and `limit` at most.

        Returns the sagas opened for that, as they are now: pending, for whoever drives such sagas
        (workers at once, recovery when their first lease has run out), or, with `owner`, driven
        here to their ends. None while a store is down: its return is waited for.
        """
        ledger = self._engine.ledger
        due = count_due_retries(ledger, limit=limit)
        granted = self._admission.grant(due) if due else 0
        if not granted:
            return []
        opened = open_due_retries(ledger, limit=granted)
        reach("retried")
        if owner is not None:
            self.drive(opened, owner=owner)
        return ledger.sagas([saga.saga_id for saga in opened])

    def drive(self, pending: Sequence[Saga], *, owner: str) -> None:
        """Claim sagas that wait for a driver and bring them to their ends, in as few batches as may
        be; those that somebody else has claimed are that one's."""
        with self._engine.lease(owner):
            claimed = self._engine.move(CLAIMED, pending, owner=owner)
            for batch in _one_of_a_document(claimed):
                self._resume(batch, owner)

    def _finish(self, saga: Saga, owner: str) -> None:
        if saga.error is None and saga.takeovers <= self._takeovers_max:
            self._resume([saga], owner)
            return
        crash_loop = Failure(
            error_class="crash_loop",
            step=saga.current_step,
            message=f"{saga.takeovers} owners died or fell silent while driving it",
        )
        undone = self._compensation.finish(
            self._compensation.begin([saga.saga_id], owner=owner, failure=crash_loop)
        )
        self._go_on_with_restarts(undone, owner)

    def _go_on_with_restarts(self, undone: Sequence[Saga], owner: str) -> None:
        """Finish what starts again because it had lost its pivot."""
        engine = self._engine
        for saga in waiting_restarts(engine.ledger, undone):
            self._resume(engine.move(CLAIMED, [saga], owner=owner), owner)


def _one_of_a_document(sagas: Sequence[Saga]) -> list[list[Saga]]:
    """Batches in which no document comes twice, in the order of arrival."""
    batches: list[dict[str, Saga]] = []
    for saga in sorted(sagas, key=lambda saga: saga.arrival):
        free = (batch for batch in batches if saga.document_id not in batch)
        batch = next(free, None)
        if batch is None:
            batches.append(batch := {})
        batch[saga.document_id] = saga
    return [list(batch.values()) for batch in batches]
