"""What one saga did, step by step, and what a person can do about it now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.scheduled_retry import QUARANTINED, waiting_retries
from apex_dagster.saga.states import Status

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")


@dataclass(frozen=True, slots=True, kw_only=True)
class StepStory:
    """One saga step: how far it got, and how its undo went."""

    step: str
    state: str  # "not started", "started", "completed"; "undone" or "undo failed" after it
    receipt: Mapping[str, Any] | None  # items the store said it holds, by kind
    duration_ms: float | None  # of the write, for the whole batch it was part of
    undo: Mapping[str, Any] | None  # {"removed": n}, {"skipped": why} or {"error": what}


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaStory:
    """A saga with all that is known of it."""

    saga: Saga
    steps: Sequence[StepStory]
    events: Sequence[Mapping[str, Any]]  # the audit trail, oldest first
    what_now: str


def story_of(ledger: Ledger, saga: Saga) -> SagaStory:
    """The story of a saga as it was read; of one under way the trail may go further already."""
    events = ledger.events(saga.saga_id)
    due_at = waiting_retries(ledger, [saga.saga_id]).get(saga.saga_id)
    return SagaStory(
        saga=saga,
        steps=steps_of(saga, events),
        events=events,
        what_now=what_now(saga, now=datetime.now(UTC), due_at=due_at),
    )


def steps_of(saga: Saga, events: Sequence[Mapping[str, Any]]) -> list[StepStory]:
    """The four steps in their order; `events` is the saga's audit trail, oldest first."""
    durations = {e["step"]: e["duration_ms"] for e in events if e["event"] == "step_completed"}
    started = {e["step"] for e in events if e["event"] == "step_started"}
    return [
        StepStory(
            step=step,
            state=_state(saga, step, started),
            receipt=saga.completed_steps.get(step),
            duration_ms=durations.get(step),
            undo=saga.undone_steps.get(step),
        )
        for step in STEPS
    ]


def _state(saga: Saga, step: str, started: set[str]) -> str:
    if step in saga.undone_steps and step in started:
        return "undone" if saga.undone(step) else "undo failed"
    if step in saga.completed_steps:
        return "completed"
    return "started" if step in started else "not started"


def what_now(saga: Saga, *, now: datetime, due_at: datetime | None = None) -> str:
    """What an operator can do, in a sentence or two. `now` only words the advice: whether a lease
    has run out is decided by the database's clock when it is taken over. `due_at`: when it is to be
    tried again, if it is."""
    if saga.status is Status.COMPLETED and saga.published_at is not None:
        if saga.deletes:
            return (
                "Nothing: the document is in no store any more; "
                f"`apex receipt show {saga.saga_id}` tells what was removed."
            )
        return "Nothing: the version went live in all four stores."
    if saga.status is Status.COMPENSATED:
        return _after_compensation(saga, due_at)
    if saga.status is Status.FAILED:
        return (
            "An undo used up its retries although its store is up. Correct what it names, then run "
            f"`apex saga compensate {saga.saga_id}`: undos that succeeded are not repeated."
        )
    if saga.is_waiting:
        return (
            f"Wait: it needs {' and '.join(saga.waits_for or ())}, which was down. It goes on by "
            "itself when the store is back, while Dagster runs; `apex saga recover` looks now."
        )
    if _is_held(saga, now):
        return (
            f"Wait: {saga.lease_owner or 'whoever opened it'} drives it, and renews its lease, "
            f"which runs until {_clock(saga.lease_expires_at)}." + _or_compensate(saga)
        )
    return (
        "Its owner is silent and its lease has run out. The recovery sensor finishes it while "
        "Dagster runs; `apex saga recover` does so now." + _or_compensate(saga)
    )


def is_abandoned(saga: Saga, *, now: datetime) -> bool:
    """Whether it has work left and nobody who does it."""
    unfinished = saga.status in (Status.PENDING, Status.IN_PROGRESS, Status.COMPENSATING) or (
        saga.status is Status.COMPLETED and saga.published_at is None
    )
    return unfinished and not _is_held(saga, now)


def _is_held(saga: Saga, now: datetime) -> bool:
    return saga.lease_expires_at is not None and saga.lease_expires_at > now


def _after_compensation(saga: Saga, due_at: datetime | None) -> str:
    done = "Every store is as it was before. "
    if due_at is not None:
        return done + (
            f"Wait: the file is tried again by itself, not before {_clock(due_at)} and only while "
            "all stores are up; `apex saga recover` does so then where Dagster does not run."
        )
    error_class = (saga.error or {}).get("class")
    if saga.deletes and error_class != "superseded":
        return done + "Delete the document once more."
    if error_class == "superseded":
        return done + "Nothing: what is live overrules it."
    if error_class in QUARANTINED:
        return done + (
            "Correct the document and submit it again; or mend the fault it met, then run "
            f"`apex quarantine release {saga.saga_id}`."
        )
    return done + (
        f"`apex quarantine show {saga.saga_id}` tells whether it waits there; else submit it again."
    )


def _or_compensate(saga: Saga) -> str:
    if saga.status not in (Status.PENDING, Status.IN_PROGRESS):
        return ""
    return f" To give it up instead: `apex saga compensate {saga.saga_id}`."


def _clock(at: datetime | None) -> str:
    return f"{at:%H:%M:%S} UTC" if at else "?"
