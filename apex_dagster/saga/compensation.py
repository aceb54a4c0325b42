"""Sagas backward: undo what was staged, last step first, and close.

Failure hook, sensors, recovery and operators all call the same functions. The claim in the ledger
(`begin`) lets one of them through and makes every other call a no-op.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any, Literal

import structlog

from apex_dagster.errors import LeaseLost, TransientError, Unavailable
from apex_dagster.records import SagaId
from apex_dagster.saga import states
from apex_dagster.saga.engine import (
    SWEEP_AGAIN_S,
    VERSION_CONFLICT,
    SagaEngine,
    alert_compensation_failed,
)
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import left_detail
from apex_dagster.saga.opening import restart
from apex_dagster.saga.retry import RetryPolicy, call_with_retry
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.scheduled_retry import RetrySchedule, settle_compensated
from apex_dagster.saga.states import Status
from apex_dagster.saga.step import SagaStep, store_of

log = structlog.get_logger(__name__)

# An undo that found its store down so often, though it was back in between, needs somebody.
_WAITS_MAX = 10


class Compensation:
    """Undoes sagas that will not be completed."""

    def __init__(
        self,
        engine: SagaEngine,
        *,
        retry: RetryPolicy,
        order: Literal["lifo", "parallel"],
        schedule: RetrySchedule,
    ) -> None:
        self._engine, self._retry, self._order = engine, retry, order
        self._schedule = schedule

    def compensate(
        self, saga_ids: Sequence[str], *, owner: str, failure: Failure | None = None
    ) -> list[Saga]:
        """Begin, undo every step and close; the sagas that this call has ended."""
        with self._engine.lease(owner):
            return self.finish(self.begin(saga_ids, owner=owner, failure=failure))

    def begin(
        self,
        saga_ids: Sequence[str],
        *,
        owner: str,
        failure: Failure | None = None,
        dead_owners: Sequence[str] = (),
        left_at: datetime | None = None,
    ) -> list[Saga]:
        """Claim sagas for compensation, fencing off whoever held them.

        Takes those pending, in progress or failed, those already claimed by `owner`, and those
        whose compensation was left by an owner that is silent. `failure` is the reason for sagas
        that have none yet.

        With `dead_owners`, whose runs have ended, takes only what they or nobody holds, and waits
        for no lease of theirs: whoever holds another of the sagas is alive, and will end it. What
        lost its pivot in such a run is not restarted: it ends as the rest of the run does.
        `left_at` is when those runs ended.
        """
        ledger = self._engine.ledger
        found = ledger.sagas(saga_ids)
        if dead_owners:
            found = [s for s in found if s.lease_owner in (None, owner, *dead_owners)]
        mine = [s for s in found if s.status is Status.COMPENSATING and s.lease_owner == owner]
        left = [
            s.saga_id for s in found if s.status is Status.COMPENSATING and s.lease_owner != owner
        ]
        mine += [
            saga
            for dead_owner in dead_owners or (None,)
            for saga in ledger.take_over(owner, among=left, dead_owner=dead_owner, left_at=left_at)
            if saga.status is Status.COMPENSATING
        ]
        pending = [saga for saga in found if saga.status is Status.PENDING]
        ready = [saga for saga in found if saga.status in states.COMPENSATION_STARTED.source]
        ready += self._engine.move(states.CLAIMED, pending, owner=owner)
        reason = (failure or _REQUESTED).as_detail()
        known = {s.saga_id: s.error for s in ready if not (dead_owners and _lost_its_pivot(s))}
        started = self._engine.move(
            states.COMPENSATION_STARTED,
            ready,
            details={
                saga.saga_id: {**(known.get(saga.saga_id) or reason), **left_detail(left_at)}
                for saga in ready
            },
            owner=owner,
        )
        reach("compensating")
        return sorted(mine + started, key=lambda saga: saga.saga_id)

    def undo(self, step_name: str, sagas: Sequence[Saga]) -> list[Saga]:
        """Undo one step of each saga; a failure is recorded and does not stop the others."""
        step = next(step for step in self._engine.steps if step.name == step_name)
        todo = [saga for saga in sagas if not saga.undone(step_name)]
        idle = [saga for saga in todo if not saga.may_hold(step_name)]
        busy = [saga for saga in todo if saga.may_hold(step_name)]
        skipped = self._engine.move(
            states.STEP_UNDONE,
            idle,
            step=step_name,
            details={saga.saga_id: {"skipped": "the step wrote nothing"} for saga in idle},
        )
        begun = time.perf_counter()
        removed, errors = self._revert(step, busy)
        duration_ms = (time.perf_counter() - begun) * 1000
        reach(f"undone:{step_name}")
        undone = self._engine.move(
            states.STEP_UNDONE,
            [saga for saga in busy if saga.saga_id in removed],
            step=step_name,
            duration_ms=duration_ms,
            details=removed,
        )
        failed = self._engine.move(
            states.UNDO_FAILED,
            [saga for saga in busy if saga.saga_id in errors],
            step=step_name,
            duration_ms=duration_ms,
            details=errors,
        )
        reach(f"undo_recorded:{step_name}")
        before = [saga for saga in sagas if saga.undone(step_name)]
        return sorted(before + skipped + undone + failed, key=lambda saga: saga.saga_id)

    def undo_all(self, sagas: Sequence[Saga]) -> list[Saga]:
        """Undo every step: last in, first out, or all stores at once when so configured."""
        if self._order == "parallel":
            with ThreadPoolExecutor(len(self._engine.steps)) as pool:
                list(pool.map(lambda step: self.undo(step.name, sagas), self._engine.steps))
            epochs = {saga.saga_id: saga.epoch for saga in sagas}
            now = self._engine.ledger.sagas(list(epochs))
            return [saga for saga in now if saga.epoch == epochs[saga.saga_id]]
        for step in reversed(self._engine.steps):
            sagas = self.undo(step.name, sagas)
        return list(sagas)

    def close(self, sagas: Sequence[Saga]) -> list[Saga]:
        """End sagas: `compensated`, or `failed` where an undo did not succeed. Those it ended.

        Where a store is down that an undo needs, the saga stays open: it is given back, and
        recovery goes on with it when the store is up. Failed ones raise an alert and wait in
        quarantine for an operator; so do documents that another attempt cannot help, and files that
        were tried often enough. From the same moment on, so that no crash leaves a submission to
        whoever sent it, what lost its pivot to another version has a successor, and a file that
        failed for a passing cause a time when it is tried again.
        """
        names = self._engine.step_names
        done = [saga for saga in sagas if all(saga.undone(name) for name in names)]
        left = [saga for saga in sagas if saga not in done]
        failed = left[:]
        for stores, waiting in self._awaited(left).items():
            self._engine.wait(waiting, stores)
            failed = [saga for saga in failed if saga not in waiting]
        ended = call_with_retry(
            lambda: self._end(done, failed), self._retry, name="close_compensated"
        )
        for saga in ended:
            if saga.status is Status.FAILED:
                alert_compensation_failed(saga)
            else:
                log.info(
                    "saga_compensated",
                    saga_id=saga.saga_id,
                    document_id=saga.document_id,
                    run_id=saga.run_id,
                    error=saga.error,
                    duration_ms=saga.duration_ms,
                )
        return ended

    def _end(self, done: Sequence[Saga], failed: Sequence[Saga]) -> list[Saga]:
        ledger, sweep_after_s = self._engine.ledger, (0.0, *SWEEP_AGAIN_S)
        with ledger.transaction() as tx:
            ended = ledger.close_compensated(done, failed, sweep_after_s=sweep_after_s, tx=tx)
            closed = [saga for saga in ended if saga.status is Status.COMPENSATED]
            restart(ledger, tx, [saga for saga in closed if _lost_its_pivot(saga)])
            bad = settle_compensated(ledger, tx, closed, self._schedule)
            bad += [saga for saga in ended if saga.status is Status.FAILED]
            ledger.quarantine(ended, bad, tx=tx)
            reach("closing")
        return ended

    def _awaited(self, sagas: Sequence[Saga]) -> dict[tuple[str, ...], list[Saga]]:
        """Those whose undo waits for stores, by these stores."""
        groups: dict[tuple[str, ...], list[Saga]] = {}
        for saga in sagas:
            stores = saga.stores_awaited(self._engine.step_names, waits_max=_WAITS_MAX)
            if stores:
                groups.setdefault(tuple(stores), []).append(saga)
        return groups

    def finish(self, sagas: Sequence[Saga]) -> list[Saga]:
        """Undo and close sagas that are compensating already."""
        ended = self.close(self.undo_all(sagas))
        reach("undone")
        return ended

    def _revert(
        self, step: SagaStep, sagas: Sequence[Saga]
    ) -> tuple[dict[SagaId, dict[str, Any]], dict[SagaId, dict[str, Any]]]:
        """What was removed, and what went wrong, by saga; those in neither belong to others now."""
        if not sagas:
            return {}, {}

        def write() -> Mapping[SagaId, int]:
            reach(f"undoing:{step.name}")
            self._engine.assure_leases(sagas)
            removed = step.undo([saga.ref for saga in sagas])
            reach(f"undo_sent:{step.name}")
            return removed

        breakers, store = self._engine.breakers, store_of(step.name)
        try:
            breakers.refuse(store)
            removed = call_with_retry(write, self._retry, name=f"undo {step.name}")
            return {s.saga_id: {"removed": removed.get(s.saga_id, 0)} for s in sagas}, {}
        except LeaseLost as lost:
            return self._revert(step, [s for s in sagas if s.saga_id not in lost.saga_ids])
        except Exception as error:
            if len(sagas) > 1 and not isinstance(error, TransientError):
                parts = [self._revert(step, [saga]) for saga in sagas]
                return (
                    {k: v for part in parts for k, v in part[0].items()},
                    {k: v for part in parts for k, v in part[1].items()},
                )
            message = Failure.of(error, step.name).message
            # A store that answers a ping but not this is slow: a later try may succeed.
            down = breakers.note(store, error) or (
                store if isinstance(error, TransientError) else None
            )
            tried = not isinstance(error, Unavailable)
            return {}, {
                saga.saga_id: {"error": message} | _wait(saga, step.name, down, tried)
                for saga in sagas
            }


def _wait(saga: Saga, step: str, store: str | None, tried: bool) -> dict[str, Any]:
    """What is recorded of an undo that waits for `store`; nothing where that is not down."""
    if store is None:
        return {}
    waits = saga.undone_steps.get(step, {}).get("waits", 0) + int(tried)
    return {"waits_for": store, "waits": waits}


def _lost_its_pivot(saga: Saga) -> bool:
    return (saga.error or {}).get("class") == VERSION_CONFLICT


_REQUESTED = Failure(error_class="requested", step=None, message="compensation was requested")
