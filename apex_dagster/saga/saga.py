"""A saga as the ledger last showed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from apex_dagster.errors import ApexError, ErrorClass
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga.states import ENDED, Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Saga:
    """One row of `apex.saga_state`. `epoch` fences: every move names the epoch it was read with."""

    saga_id: SagaId
    kind: str
    document_id: str
    status: Status
    current_step: str | None  # that which was moved last
    started_steps: Sequence[str]  # those whose store may hold something; several may be under way
    completed_steps: Mapping[str, Any]  # saga step -> receipt
    undone_steps: Mapping[
        str, Any
    ]  # saga step -> {"removed": n}, {"skipped": why}, {"error": what}
    version: int
    expected_version: int | None  # live, or the deletion that was last, when it was opened
    content_hash: str
    pinned: bool  # whoever submitted it named `expected_version`; a conflict ends it for good
    arrival: int
    epoch: int
    takeovers: int
    lease_owner: str | None
    lease_expires_at: datetime | None
    predecessor_saga_id: SagaId | None
    replaces_saga_id: SagaId | None
    run_id: str | None
    error: Mapping[str, Any] | None
    waits_for: Sequence[str] | None  # stores that were down when it was given back
    created_at: datetime
    ended_at: datetime | None
    published_at: datetime | None

    @property
    def deletes(self) -> bool:
        """Whether it removes its document, rather than making a version of it live."""
        return self.kind == "delete"

    @property
    def ref(self) -> VersionRef:
        """What the stores know it by."""
        return VersionRef(document_id=self.document_id, version=self.version, saga_id=self.saga_id)

    @property
    def duration_ms(self) -> float | None:
        """From opening to its end; None while it is open."""
        if self.ended_at is None:
            return None
        return (self.ended_at - self.created_at).total_seconds() * 1000

    def may_hold(self, step: str) -> bool:
        """Whether the step's store may hold something of this saga. A ledger row precedes every
        write, so a step that was never started has written nothing; nor has one that never got
        through to its store, unless an earlier owner tried as well. Those of a deletion look only.
        """
        if self.deletes:
            return False
        if step in self.completed_steps:
            return True
        if step not in self.started_steps:
            return False
        error = self.error or {}
        known = error.get("step") == step and error.get("nothing_written", False)
        return self.takeovers > 0 or not known

    def undone(self, step: str) -> bool:
        """Whether the step's undo has succeeded, or had nothing to do."""
        return step in self.undone_steps and "error" not in self.undone_steps[step]

    @property
    def is_waiting(self) -> bool:
        """Whether it is nobody's, and left alone until the stores in `waits_for` are up."""
        return bool(self.waits_for) and self.lease_owner is None and not self.is_over

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do by itself; a failed one waits for an operator."""
        if self.status is Status.COMPLETED:
            return self.published_at is not None
        return self.status in ENDED

    def stores_awaited(self, steps: Sequence[str], *, waits_max: int) -> list[str]:
        """The stores that keep the undo of `steps` from its end, if it is worth waiting for them;
        none where another reason does, or where they have come and gone too often."""
        left = [self.undone_steps.get(step, {}) for step in steps if not self.undone(step)]
        if not all(undo.get("waits_for") and undo["waits"] <= waits_max for undo in left):
            return []
        return sorted({undo["waits_for"] for undo in left})


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a saga cannot go on: kept in the ledger, shown to whoever asks."""

    error_class: ErrorClass | str  # or "version_conflict", "crash_loop", "interrupted", "requested"
    step: str | None
    message: str
    nothing_written: bool = False  # by the step: its store was never reached

    @classmethod
    def of(
        cls, error: BaseException, step: str | None, *, nothing_written: bool = False
    ) -> Failure:
        """The failure that an exception stands for."""
        known = isinstance(error, ApexError)
        error_class = getattr(error, "error_class", "permanent") if known else "unexpected"
        message = str(error) if known else f"{type(error).__name__}: {error}"
        return cls(
            error_class=error_class, step=step, message=message, nothing_written=nothing_written
        )

    def as_detail(self) -> dict[str, Any]:
        """The form in the ledger."""
        detail = {"class": self.error_class, "step": self.step, "message": self.message}
        return detail | ({"nothing_written": True} if self.nothing_written else {})


def log_fields(saga: Saga) -> dict[str, Any]:
    """What a line of the log says of a saga."""
    return {
        "saga_id": saga.saga_id,
        "document_id": saga.document_id,
        "version": saga.version,
        "run_id": saga.run_id,
        "status": saga.status.value,
    }
