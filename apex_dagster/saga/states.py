"""The statuses of a saga, and the one table of moves between them.

    pending -> in_progress -> completed       pivot passed; publish is open work still
                  | (a new lease resumes it, epoch + 1)
                  v
             compensating -> compensated      every store as before the saga; final
                  \\-> failed -> compensating   an undo used up its retries, its store being up: an
                                              operator is needed

`compensating` never returns to `in_progress`: its undo may have removed what a later step needs.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Literal


class Status(StrEnum):
    """Exactly these; the ledger checks the same list."""

    PENDING = "pending"
    IN_PROGRESS = "in_progress"
    COMPLETED = "completed"
    COMPENSATING = "compensating"
    COMPENSATED = "compensated"
    FAILED = "failed"


OPEN = frozenset({Status.PENDING, Status.IN_PROGRESS, Status.COMPENSATING})
ENDED = frozenset({Status.COMPLETED, Status.COMPENSATED, Status.FAILED})


@dataclass(frozen=True, slots=True, kw_only=True)
class Move:
    """One kind of change to a saga: a conditional UPDATE and one audit event."""

    event: str
    source: frozenset[Status]
    target: Status | None = None  # None: the status stays
    raises_epoch: bool = False  # the owner changes: whoever held the saga before is fenced off
    # Which column keeps the event's detail besides the audit log.
    records: Literal["completed_step", "undone_step", "error"] | None = None
    forgets_error: bool = False  # what failed is tried again
    # It need not be on disk before the work goes on: a crash of PostgreSQL that loses it leaves a
    # saga whose step or publish recovery repeats, and no store is told anything because of it
    # before a later move is on disk, and with that one all before it.
    may_be_lost: bool = False


def _move(event: str, source: set[Status], target: Status | None = None, **more: object) -> Move:
    return Move(event=event, source=frozenset(source), target=target, **more)  # type: ignore[arg-type]


OPENED = _move("saga_opened", {Status.PENDING})
CLAIMED = _move("saga_claimed", {Status.PENDING}, Status.IN_PROGRESS, raises_epoch=True)
RESUMED = _move("saga_resumed", {Status.IN_PROGRESS}, raises_epoch=True)
RETRIED = _move("saga_retried", {Status.IN_PROGRESS}, raises_epoch=True, forgets_error=True)

STEP_STARTED = _move("step_started", {Status.IN_PROGRESS})
STEP_COMPLETED = _move(
    "step_completed", {Status.IN_PROGRESS}, records="completed_step", may_be_lost=True
)
STEP_FAILED = _move("step_failed", {Status.IN_PROGRESS}, records="error")

COMPLETED = _move("saga_completed", {Status.IN_PROGRESS}, Status.COMPLETED, forgets_error=True)
PUBLISH_RESUMED = _move("publish_resumed", {Status.COMPLETED}, raises_epoch=True)
PUBLISH_FAILED = _move("publish_failed", {Status.COMPLETED})
PUBLISHED = _move("saga_published", {Status.COMPLETED}, may_be_lost=True)
# A store's copy was not what it has to be, or of a saga that has ended was left; it is put right.
RESTORED = _move("version_restored", {Status.COMPLETED})
REMOVED = _move("leftovers_removed", {Status.COMPLETED, Status.COMPENSATED})
# A deletion, after its pivot: one store has removed the document, or the ledger what it kept of it.
STORE_CLEARED = _move("store_cleared", {Status.COMPLETED})

COMPENSATION_STARTED = _move(
    "compensation_started",
    {Status.IN_PROGRESS, Status.FAILED},
    Status.COMPENSATING,
    raises_epoch=True,
    records="error",
)
COMPENSATION_RESUMED = _move("compensation_resumed", {Status.COMPENSATING}, raises_epoch=True)
STEP_UNDONE = _move("step_undone", {Status.COMPENSATING}, records="undone_step")
UNDO_FAILED = _move("undo_failed", {Status.COMPENSATING}, records="undone_step")
# A store is down that an undo or a publish needs: the saga is nobody's until the store is back.
WAITED = _move("saga_waits", {Status.COMPENSATING, Status.COMPLETED})
COMPENSATED = _move("saga_compensated", {Status.COMPENSATING}, Status.COMPENSATED)
FAILED = _move("saga_failed", {Status.COMPENSATING}, Status.FAILED)

# What becomes of a compensated saga's submission. The saga itself has ended, and stays as it is.
RETRY_SCHEDULED = _move("retry_scheduled", {Status.COMPENSATED})
RETRY_DROPPED = _move("retry_dropped", {Status.COMPENSATED}, records="error")
QUARANTINE_RELEASED = _move("quarantine_released", {Status.COMPENSATED})
QUARANTINE_DROPPED = _move("quarantine_dropped", {Status.COMPENSATED})

MOVES = (
    OPENED,
    CLAIMED,
    RESUMED,
    RETRIED,
    STEP_STARTED,
    STEP_COMPLETED,
    STEP_FAILED,
    COMPLETED,
    PUBLISH_RESUMED,
    PUBLISH_FAILED,
    PUBLISHED,
    RESTORED,
    REMOVED,
    STORE_CLEARED,
    COMPENSATION_STARTED,
    COMPENSATION_RESUMED,
    STEP_UNDONE,
    UNDO_FAILED,
    WAITED,
    COMPENSATED,
    FAILED,
    RETRY_SCHEDULED,
    RETRY_DROPPED,
    QUARANTINE_RELEASED,
    QUARANTINE_DROPPED,
)
