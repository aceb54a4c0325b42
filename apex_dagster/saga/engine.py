"""Sagas forward: stage in every store, pivot, publish. Batches throughout, one outcome a saga.

The order around every write is: ledger row "started", write, ledger row "completed". A crash in
between leaves a row that says the write may have happened, and whoever takes the saga over repeats
or undoes it; both are harmless, because stores insert by saga and undo by saga.

Publishing goes to all stores at the same time, and so does staging if it is configured to be
`at_once`: ids derive from the saga, so no write needs the outcome of another, and the "started"
rows of all precede the first of them. The first step that is asked for then brings all others with
it, and those find nothing left to do. A crash leaves any of the stores written, which is what
undoing is ready for: it looks at every step that was started, last to first.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import structlog

from apex_dagster.errors import (
    ApexError,
    CompensationFailed,
    LeaseLost,
    OutcomeUnknown,
    StageMissing,
    StoreRejected,
    TransientError,
)
from apex_dagster.records import Change, Publication, Removal, SagaId
from apex_dagster.saga import states
from apex_dagster.saga.breaker import Breakers, hand_back
from apex_dagster.saga.conclusion import Conclusion, keep_receipts
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import Ledger, Pivoted, StepRecord
from apex_dagster.saga.removal import Seal, removals
from apex_dagster.saga.retry import RetryPolicy, call_with_retry
from apex_dagster.saga.saga import Failure, Saga, log_fields
from apex_dagster.saga.states import Status
from apex_dagster.saga.step import SagaStep, store_of

log = structlog.get_logger(__name__)

T = TypeVar("T")

# A dead saga is swept at once and twice more, as a late write of it may land at any time.
SWEEP_AGAIN_S = (3600.0, 86400.0)

# Before each try to publish what stands in the way of a pivot: whoever made it live is about to.
_UNBLOCK_WAITS_S = (0.0, 0.1, 0.3, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staging:
    """What became of a batch in one or more steps. Sagas in neither list belong to others now."""

    alive: list[Saga]
    failed: list[Saga]  # still in progress, `error` says why; to be compensated


@dataclass(frozen=True, slots=True, kw_only=True)
class Commit:
    """What became of a batch at the pivot and after it."""

    completed: list[Saga]  # `published_at` is None where publishing is still open work
    failed: list[Saga]  # could not pivot; to be compensated


@dataclass(frozen=True, slots=True, kw_only=True)
class _Written:
    """What one store made of a batch; receipts and failures together cover it."""

    step: str
    receipts: Mapping[SagaId, Mapping[str, Any]]
    failures: Mapping[SagaId, Failure]
    duration_ms: float


class SagaEngine:
    """Drives sagas through `steps` in order. Holds no state of its own: the ledger has it all."""

    def __init__(
        self,
        ledger: Ledger,
        steps: Sequence[SagaStep],
        *,
        breakers: Breakers,
        retry: RetryPolicy,
        lease_s: float,
        grace_s: float,
        staging: Literal["in_order", "at_once"] = "in_order",
        seal: Seal | None = None,
    ) -> None:
        self.ledger, self.steps, self.breakers = ledger, tuple(steps), breakers
        self.step_names = tuple(step.name for step in steps)
        self._retry, self._lease_s, self._grace_s = retry, lease_s, grace_s
        # What a request to a store may take. Leases shorter than two of these are for tests.
        self._request_s = min(retry.timeout_s, lease_s / 2)
        self._at_once = staging == "at_once"
        self._conclusion = Conclusion(self, seal=seal)

    @contextmanager
    def lease(self, owner: str) -> Iterator[None]:
        """Renew the leases of `owner` in the background for the length of the block."""
        stop = threading.Event()

        def keep() -> None:
            while not stop.wait(self._lease_s / 3):
                try:
                    self.ledger.renew(owner)
                except ApexError as error:  # the next turn may succeed; an expired lease is safe
                    log.warning("lease_not_renewed", owner=owner, error=str(error))

        thread = threading.Thread(target=keep, name=f"lease-{owner}", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    # -- stage -----------------------------------------------------------------------------------

    def stage_through(self, last_step: str, sagas: Sequence[Saga]) -> Staging:
        """Run `last_step` and whatever is missing before it in order, or all steps at once.

        Each step is one write for the batch. Only an error that will never heal splits it, until
        the document at fault is alone.
        """
        wanted = self.steps[: self.step_names.index(last_step) + 1]
        alive, failed = list(sagas), list[Saga]()
        for steps in [self.steps] if self._at_once else [(step,) for step in wanted]:
            staging = self._run_steps(steps, alive)
            alive, failed = staging.alive, failed + staging.failed
        return Staging(alive=sorted(alive, key=lambda saga: saga.arrival), failed=failed)

    def _run_steps(self, steps: Sequence[SagaStep], sagas: Sequence[Saga]) -> Staging:
        todo = [step for step in steps if _lacking(step, sagas)]
        started = self._recorded(
            states.STEP_STARTED,
            [
                StepRecord(saga=saga, step=each.name)
                for each in todo
                for saga in _lacking(each, sagas)
            ],
        )
        written = self._retry.pace.run_all(
            [partial(self._write, step, _lacking(step, started)) for step in todo]
        )
        held = {saga.saga_id: saga for saga in [*sagas, *started]}
        held |= {saga.saga_id: saga for saga in self._completed(written, held)}
        # Of a saga that failed in several stores the first is told; all of them are undone.
        failures = {k: v for outcome in reversed(written) for k, v in outcome.failures.items()}
        unwell = [held[saga_id] for saga_id in sorted(failures)]
        failed = self.fail(unwell, failures)
        self._sweep_late_writes(unwell, failed)
        for step in todo:
            reach(f"recorded:{step.name}")
        going = [saga for saga in held.values() if saga.saga_id not in failures]
        alive = [saga for saga in going if not any(_lacking(step, [saga]) for step in steps)]
        return Staging(alive=alive, failed=failed)

    def _completed(self, written: Sequence[_Written], held: Mapping[SagaId, Saga]) -> list[Saga]:
        records = [
            StepRecord(
                saga=held[saga_id],
                step=outcome.step,
                detail=receipt,
                duration_ms=outcome.duration_ms,
            )
            for outcome in written
            for saga_id, receipt in outcome.receipts.items()
        ]
        completed = self._recorded(states.STEP_COMPLETED, records)
        recorded = {record.saga.saga_id: record.saga for record in records}
        self._sweep_late_writes(list(recorded.values()), completed)
        return completed

    def _write(self, step: SagaStep, sagas: Sequence[Saga]) -> _Written:
        begun = time.perf_counter()
        receipts, failures = self._stage(step, sagas)
        duration_ms = (time.perf_counter() - begun) * 1000
        reach(f"written:{step.name}")
        return _Written(
            step=step.name, receipts=receipts, failures=failures, duration_ms=duration_ms
        )

    def _recorded(self, move: states.Move, records: Sequence[StepRecord]) -> list[Saga]:
        if not records:
            return []
        return self.retried(lambda: self.ledger.record_steps(move, records), move.event)

    def _stage(
        self, step: SagaStep, sagas: Sequence[Saga], untouched: bool = True
    ) -> tuple[dict[SagaId, Mapping[str, Any]], dict[SagaId, Failure]]:
        """Receipts and failures by saga; those in neither belong to others now.

        `untouched`: no attempt so far can have left anything of the batch in the store.
        """
        if not sagas:
            return {}, {}

        def write() -> dict[SagaId, Mapping[str, Any]]:
            nonlocal untouched
            reach(f"started:{step.name}")
            self.assure_leases(sagas)
            reach(f"sending:{step.name}")
            before, untouched = untouched, False
            try:
                receipts = self._stage_or_look(step, sagas)
                reach(f"sent:{step.name}")
            except ApexError as error:
                untouched = before and error.nothing_written
                raise
            return receipts

        try:
            self.breakers.refuse(store_of(step.name))
            return call_with_retry(write, self._retry, name=step.name), {}
        except LeaseLost as lost:
            if not untouched:
                self._sweep_late_writes([s for s in sagas if s.saga_id in lost.saga_ids], [])
            rest = [saga for saga in sagas if saga.saga_id not in lost.saga_ids]
            return self._stage(step, rest, untouched)
        except TransientError as error:
            self.breakers.note(store_of(step.name), error)
            # A call that was given up may be before its request still, and send it yet.
            over = untouched and not isinstance(error, OutcomeUnknown)
            failure = Failure.of(error, step.name, nothing_written=over)
            return {}, {saga.saga_id: failure for saga in sagas}
        except Exception as error:  # a refusal, or a surprise: find out which document it is
            failure = Failure.of(error, step.name, nothing_written=untouched)
            bad = sagas if len(sagas) == 1 else _culprits(error, sagas)
            failures = {saga.saga_id: failure for saga in bad}
            rest = [saga for saga in sagas if saga.saga_id not in failures]
            # The parts: what is left without the culprits, or two halves if none is known.
            middle = 0 if bad else len(rest) // 2
            left = self._stage(step, rest[:middle], untouched)
            right = self._stage(step, rest[middle:], untouched)
            return left[0] | right[0], failures | left[1] | right[1]

    def _stage_or_look(
        self, step: SagaStep, sagas: Sequence[Saga]
    ) -> dict[SagaId, Mapping[str, Any]]:
        """Stage versions; of what deletions will remove only see what is there."""
        versions = [saga.ref for saga in sagas if not saga.deletes]
        deletions = [saga for saga in sagas if saga.deletes]
        staged = step.stage(versions) if versions else []
        receipts: dict[SagaId, Mapping[str, Any]] = {r.saga_id: dict(r.items) for r in staged}
        if deletions:
            receipts |= step.inventory(removals(self.ledger, deletions))
        return receipts

    def fail(self, sagas: Sequence[Saga], failures: Mapping[SagaId, Failure]) -> list[Saga]:
        """Record why sagas cannot go on. They stay in progress until they are compensated."""
        failed: list[Saga] = []
        for step in sorted({failures[saga.saga_id].step or "" for saga in sagas}):
            group = [s for s in sagas if (failures[s.saga_id].step or "") == step]
            details = {s.saga_id: failures[s.saga_id].as_detail() for s in group}
            # Only a saga step that has started may become current_step.
            started = step if step in self.step_names else None
            failed += self.move(states.STEP_FAILED, group, details=details, step=started)
        for saga in failed:
            log.warning("saga_step_failed", **log_fields(saga), error=saga.error)
        return failed

    # -- pivot and publish -----------------------------------------------------------------------

    def commit(self, sagas: Sequence[Saga], *, owner: str) -> Commit:
        """Make the versions live, then tell the stores. After the pivot there is no way back."""
        reach("staged")
        pivoted = self._pivot_unblocked(sagas, owner=owner)
        reach("pivoted")
        failed = self._fail_at_pivot(pivoted.conflicts, _conflict)
        failed += self._fail_at_pivot(pivoted.superseded, _superseded)
        failed += self._fail_at_pivot(pivoted.blocked, _blocked)
        completed = self._with_unknown_outcomes(sagas, pivoted.completed, owner=owner)
        self._report_lost(sagas, completed + failed)
        published = self.publish(completed, known=pivoted.changes)
        return Commit(completed=published, failed=failed)

    def _pivot_unblocked(self, sagas: Sequence[Saga], *, owner: str) -> Pivoted:
        """Pivot; where the version to be replaced is not published yet, see to that and try again.

        Several may want to replace the same one, and take that work out of each other's hands.
        """
        pivoted = self._pivot(sagas)
        for wait_s in _UNBLOCK_WAITS_S:
            if not pivoted.blocked:
                break
            self._retry.pace.sleep(wait_s)
            self._finish_predecessors(pivoted.blocked, owner=owner)
            pivoted = pivoted.then(self._pivot(pivoted.blocked))
        return pivoted

    def _pivot(self, sagas: Sequence[Saga]) -> Pivoted:
        if not sagas:
            return Pivoted()
        return self.retried(lambda: self.ledger.pivot(sagas, steps=self.step_names), "pivot")

    def _fail_at_pivot(
        self, sagas: Sequence[Saga], failure_of: Callable[[Saga], Failure]
    ) -> list[Saga]:
        return self.fail(sagas, {saga.saga_id: failure_of(saga) for saga in sagas})

    def _with_unknown_outcomes(
        self, sagas: Sequence[Saga], completed: Sequence[Saga], *, owner: str
    ) -> list[Saga]:
        """Add sagas whose pivot was committed although its answer was lost.

        A repeated pivot waits for their row locks, so by now the first one has ended either way.
        """
        known = {saga.saga_id for saga in completed}
        rest = [saga.saga_id for saga in sagas if saga.saga_id not in known]
        if not rest:
            return list(completed)
        held = self.retried(lambda: self.ledger.held(rest, owner=owner), "held")
        return [*completed, *(saga for saga in held if saga.status is Status.COMPLETED)]

    def _finish_predecessors(self, blocked: Sequence[Saga], *, owner: str) -> None:
        """Publish what was decided last, taking that work over from whoever has it."""
        if not blocked:
            return
        pointers = self.ledger.pointers([saga.document_id for saga in blocked])
        heads = [row["live_saga_id"] or row["tombstone_saga_id"] for row in pointers.values()]
        live = self.ledger.sagas([saga_id for saga_id in heads if saga_id])
        unpublished = [saga for saga in live if saga.published_at is None]
        self.publish(self.move(states.PUBLISH_RESUMED, unpublished, owner=owner))

    def publish(self, completed: Sequence[Saga], *, known: Sequence[Change] = ()) -> list[Saga]:
        """Mark versions live in every store, and remove what was deleted; forward only, safe to
        repeat.

        `known`: what of it has this moment been decided. Returns all of `completed`; those with
        `published_at` None stay open work for recovery.
        """
        if not completed:
            return []
        begun = time.perf_counter()
        live = [*known, *self._live(completed, known)]
        published_by_step = self._retry.pace.run_all(
            [partial(self._publish_in, step, live, completed) for step in self.steps]
        )
        reach("marked")
        everywhere = frozenset.intersection(*published_by_step)
        unfinished = {publication.ref.saga_id for publication in live} - everywhere
        done = [saga for saga in completed if saga.saga_id not in unfinished]
        receipts = self._conclusion.conclude([saga for saga in done if saga.deletes])
        done = [saga for saga in done if not saga.deletes or saga.saga_id in receipts]
        duration_ms = (time.perf_counter() - begun) * 1000
        sweep_after_s = tuple(self._grace_s + more for more in (0.0, *SWEEP_AGAIN_S))
        published = self.retried(
            lambda: self.ledger.close_published(
                done,
                sweep_after_s=sweep_after_s,
                duration_ms=duration_ms,
                details={s: {"receipt_sha256": r.sha256} for s, r in receipts.items()},
                noting=partial(keep_receipts, receipts),
            ),
            "close_published",
        )
        reach("closed")
        self._sweep_late_writes(done, published)
        closed = {saga.saga_id for saga in published}
        for saga in published:
            log.info("saga_completed", **log_fields(saga), duration_ms=saga.duration_ms)
        return [*published, *(saga for saga in completed if saga.saga_id not in closed)]

    def _live(self, completed: Sequence[Saga], known: Sequence[Change]) -> Sequence[Change]:
        """Those not `known` that are the last word still. What is not any more was published by
        whoever replaced it, or it could not have been."""
        pivoted = {publication.ref.saga_id for publication in known}
        rest = [saga for saga in completed if saga.saga_id not in pivoted]
        if not rest:
            return []
        return self.retried(lambda: self.ledger.changes(rest), "changes")

    def _publish_in(
        self, step: SagaStep, publications: Sequence[Change], sagas: Sequence[Saga]
    ) -> frozenset[SagaId]:
        published = self._publish_step(step, publications, sagas)
        reach(f"published:{step.name}")
        return frozenset(publication.ref.saga_id for publication in published)

    def _publish_step(
        self, step: SagaStep, publications: Sequence[Change], sagas: Sequence[Saga]
    ) -> list[Change]:
        """Those that the step has published; the others are logged, and tried again by recovery."""
        if not publications:
            return []
        ids = {publication.ref.saga_id for publication in publications}
        held = [saga for saga in sagas if saga.saga_id in ids]

        def write() -> Mapping[SagaId, int]:
            self.assure_leases(held)
            return self._tell(step, publications)

        try:
            self.breakers.refuse(store_of(step.name))
            removed = call_with_retry(write, self._retry, name=step.name)
            self._note_cleared(step, [s for s in held if s.saga_id in removed], removed)
            return list(publications)
        except LeaseLost as lost:  # whoever has them now publishes them
            self._sweep_late_writes([s for s in held if s.saga_id in lost.saga_ids], [])
            rest = [p for p in publications if p.ref.saga_id not in lost.saga_ids]
            return self._publish_step(step, rest, sagas)
        except Exception as error:
            if len(publications) > 1 and not isinstance(error, TransientError):
                parts = [self._publish_step(step, [one], sagas) for one in publications]
                return [publication for part in parts for publication in part]
            self.report_unpublished(step, held, error)
            return []

    def _tell(self, step: SagaStep, changes: Sequence[Change]) -> Mapping[SagaId, int]:
        """Publish versions, remove deleted documents; items removed by deletion."""
        if publications := [change for change in changes if isinstance(change, Publication)]:
            self._publish_or_restage(step, publications)
        deleted = [change for change in changes if isinstance(change, Removal)]
        if not deleted:
            return {}
        reach(f"removing:{step.name}")
        removed = step.remove(deleted)
        reach(f"removed:{step.name}")
        return removed

    def _note_cleared(
        self, step: SagaStep, deletions: Sequence[Saga], removed: Mapping[SagaId, int]
    ) -> None:
        details = {saga_id: {"removed": count} for saga_id, count in removed.items()}
        self.move(states.STORE_CLEARED, deletions, step=step.name, details=details)

    def _publish_or_restage(self, step: SagaStep, publications: Sequence[Publication]) -> None:
        reach(f"publishing:{step.name}")
        try:
            step.publish(publications)
        except StageMissing as missing:  # a cache entry that has expired since it was staged
            step.stage([p.ref for p in publications if p.ref.saga_id in missing.saga_ids])
            step.publish(publications)
        reach(f"publish_sent:{step.name}")

    def report_unpublished(self, step: SagaStep, sagas: Sequence[Saga], error: Exception) -> None:
        """Note that a store could not be told, and log it; while it is down, they wait for it."""
        failure = Failure.of(error, step.name).as_detail()
        details = {saga.saga_id: failure for saga in sagas}
        noted = self.move(states.PUBLISH_FAILED, sagas, details=details)
        self._sweep_late_writes(sagas, noted)  # a call that was given up may land yet
        for saga in noted:
            log.error("publish_failed", **log_fields(saga), step_name=step.name, error=failure)
        if store := self.breakers.note(store_of(step.name), error):
            self.wait(sagas, [store])

    def wait(self, sagas: Sequence[Saga], stores: Sequence[str]) -> None:
        """Leave sagas to recovery, for when these stores, which are down, are up again."""
        if not sagas:
            return
        for saga in self.retried(lambda: hand_back(self.ledger, sagas, stores), "hand_back"):
            log.warning("saga_waits", **log_fields(saga), stores=list(stores))

    # -- leases ------------------------------------------------------------------------------------

    def assure_leases(self, sagas: Sequence[Saga]) -> None:
        """Raise LeaseLost for those that others drive by now. To be called before a request to a
        store, so that no request outlasts its lease: one that might is preceded by a renewal."""
        short = [s for s in sagas if self.ledger.leases.remaining_s(s.saga_id) < self._request_s]
        for owner in sorted({saga.lease_owner or "" for saga in short}):
            mine = {saga.saga_id: saga for saga in short if (saga.lease_owner or "") == owner}
            held = self.ledger.held(list(mine), owner=owner)
            kept = [saga for saga in held if saga.epoch == mine[saga.saga_id].epoch]
            if lost := self._report_lost(list(mine.values()), kept):
                raise LeaseLost(owner, [saga.saga_id for saga in lost])

    def _sweep_late_writes(self, written: Sequence[Saga], moved: Sequence[Saga]) -> None:
        """Have swept what was written for sagas that turn out to be somebody else's: those of
        `written` that are not among `moved`."""
        if lost := self._report_lost(written, moved):
            again = partial(self.ledger.sweep_again, lost, grace_s=self._grace_s)
            self.retried(again, "sweep_again")

    def _report_lost(self, sagas: Sequence[Saga], moved: Sequence[Saga]) -> list[Saga]:
        """Say which of `sagas` the ledger did not let this owner move."""
        known = {saga.saga_id for saga in moved}
        lost = [saga for saga in sagas if saga.saga_id not in known]
        for saga in lost:
            log.warning("lease_lost", **log_fields(saga), lease_owner=saga.lease_owner)
        return lost

    # -- the ledger, with retries ----------------------------------------------------------------

    def move(self, move: states.Move, sagas: Sequence[Saga], **more: Any) -> list[Saga]:
        """`Ledger.advance`, repeated after a transient error.

        Safe: a move that was committed although its answer was lost is refused when repeated if
        it changed status or epoch (then the saga is let go, and recovery finds it), and only
        logged twice if it did not.
        """
        if not sagas:
            return []
        return self.retried(lambda: self.ledger.advance(move, sagas, **more), move.event)

    def retried(self, operation: Callable[[], T], name: str) -> T:
        """`operation`, repeated after transient errors as patiently as a saga step."""
        return call_with_retry(operation, self._retry, name=name)


# The class of a saga that may start again on the newest version.
VERSION_CONFLICT = "version_conflict"


def _conflict(saga: Saga) -> Failure:
    base = f"version {saga.expected_version}" if saga.expected_version else "no version"
    message = f"it builds on {base}, but another one has been decided meanwhile"
    return Failure(error_class=VERSION_CONFLICT, step="pivot", message=message)


def _superseded(saga: Saga) -> Failure:
    message = "a version that was submitted later is live already, or the document was deleted"
    return Failure(error_class="superseded", step="pivot", message=message)


def _blocked(saga: Saga) -> Failure:
    message = "the version it replaces is live but could not be published yet; try again later"
    return Failure(error_class="transient", step="pivot", message=message)


def _culprits(error: Exception, sagas: Sequence[Saga]) -> list[Saga]:
    named = set(error.document_ids) if isinstance(error, StoreRejected) else set()
    return [saga for saga in sagas if saga.document_id in named]


def _lacking(step: SagaStep, sagas: Sequence[Saga]) -> list[Saga]:
    return [saga for saga in sagas if step.name not in saga.completed_steps]


def alert_compensation_failed(saga: Saga) -> CompensationFailed:
    """Log at critical that a saga waits for an operator; returns the error that says so."""
    failures = {
        step: detail["error"] for step, detail in saga.undone_steps.items() if "error" in detail
    }
    error = CompensationFailed(saga.saga_id, failures)
    log.critical("compensation_failed", **log_fields(saga), failures=failures)
    return error
