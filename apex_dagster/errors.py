"""Every error the project raises on purpose; its class says what to do next.

ApexError
├── TransientError          the same call may succeed later: retry
│   ├── StoreUnavailable        refused, shutting down, no connection to be had: the store is down
│   ├── Unavailable             a store is known to be down: not tried, nothing new is admitted
│   ├── StoreConflict           deadlock, serialization failure, two writers created one key
│   ├── QueueFull               too many documents wait already: come back later
│   ├── IncompleteVersion       a read found no whole version in time: read again, or repair
│   └── OutcomeUnknown          no answer in time: the write may have landed, or may land yet
├── TerminalError           it never will: compensate and report
│   ├── DocumentRejected        this document is unreadable, empty, too large, malformed
│   └── StoreRejected           the store refuses what it was given: wrong dimension, invalid value
├── LeaseLost               others drive these sagas now: let go of them
├── StageMissing            a publish found nothing staged: stage again, then publish
├── CompensationFailed      an undo used up its retries: an operator is needed
├── InvalidInput            a caller's argument or setting cannot be used; the message says what can
└── ServerNotStarted        an embedded server did not come up; the message ends with its log
"""

from collections.abc import Sequence
from typing import Literal

ErrorClass = Literal["transient", "store_down", "unknown_outcome", "permanent"]


class ApexError(Exception):
    """Base of all errors raised by this project."""

    # Whether the raiser knows that the failed call has left nothing in its store and never will:
    # the connection was refused, or a transaction ended before its commit was sent. False: unknown.
    nothing_written: bool = False


class TransientError(ApexError):
    """The same call may succeed later."""

    error_class: ErrorClass = "transient"


class StoreUnavailable(TransientError):
    """The store cannot be reached; the driver's own error is `__cause__`."""

    error_class: ErrorClass = "store_down"

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"{store} is unavailable: {detail}")
        self.store = store


class Unavailable(TransientError):
    """Not even tried: a store is known to be down, or only just back. `retry_after_s`, at least 1,
    is when another attempt makes sense."""

    error_class: ErrorClass = "store_down"
    nothing_written = True

    def __init__(self, store: str, reason: str, *, retry_after_s: float) -> None:
        super().__init__(f"{store} is unavailable, retry after {retry_after_s:.0f} s ({reason})")
        self.store, self.reason, self.retry_after_s = store, reason, retry_after_s


class StoreConflict(TransientError):
    """Two writers met; the loser's transaction left nothing behind and may be repeated."""

    def __init__(self, store: str, detail: str) -> None:
        super().__init__(f"{store} reported a conflict between two writers: {detail}")
        self.store = store


class QueueFull(TransientError):
    """`depth` documents wait for their saga to be driven, as many as may."""

    def __init__(self, *, depth: int, retry_after_s: float) -> None:
        super().__init__(f"{depth} documents wait already; come back in {retry_after_s:g} s")
        self.depth, self.retry_after_s = depth, retry_after_s


class OutcomeUnknown(TransientError):
    """No answer within the time-out. Repeating is safe, because staging only inserts."""

    error_class: ErrorClass = "unknown_outcome"

    def __init__(self, store: str, *, after_s: float) -> None:
        super().__init__(f"{store} gave no answer within {after_s:g} s")
        self.store, self.after_s = store, after_s


class TerminalError(ApexError):
    """Repeating the call cannot help."""

    error_class: ErrorClass = "permanent"


class DocumentRejected(TerminalError):
    """The document itself cannot be ingested; `reason` is for its sender."""

    def __init__(self, document_id: str, reason: str) -> None:
        super().__init__(f"document {document_id!r} was rejected: {reason}")
        self.document_id, self.reason = document_id, reason


class StoreRejected(TerminalError):
    """The store refuses the write. `document_ids` names the culprits where the store can tell them
    from the rest of the batch; empty where it cannot, and the batch has to be split to find out."""

    def __init__(self, store: str, detail: str, *, document_ids: Sequence[str] = ()) -> None:
        super().__init__(f"{store} refused the write: {detail}")
        self.store, self.document_ids = store, tuple(document_ids)


class LeaseLost(ApexError):
    """Somebody else drives these sagas since their leases ran out."""

    def __init__(self, owner: str | None, saga_ids: Sequence[str]) -> None:
        super().__init__(f"{owner} has lost its lease of {', '.join(saga_ids)}")
        self.saga_ids = tuple(saga_ids)


class StageMissing(ApexError):
    """Nothing is staged for these sagas (a cache entry that expired, a lost volume)."""

    def __init__(self, store: str, saga_ids: Sequence[str]) -> None:
        super().__init__(f"{store} holds nothing staged for {', '.join(saga_ids)}")
        self.store, self.saga_ids = store, tuple(saga_ids)


class CompensationFailed(ApexError):
    """Some undo used up its retries; `failures` maps saga step to what it said last."""

    def __init__(self, saga_id: str, failures: dict[str, str]) -> None:
        steps = "; ".join(f"{step}: {detail}" for step, detail in failures.items())
        super().__init__(f"saga {saga_id} could not be undone ({steps})")
        self.saga_id, self.failures = saga_id, failures


class IncompleteVersion(TransientError):
    """A read found no whole version of the document within its tries: reads were too slow, it was
    replaced each time, or a store has lost part of it."""

    def __init__(self, document_id: str, detail: str) -> None:
        super().__init__(f"no whole version of document {document_id!r} could be read: {detail}")
        self.document_id = document_id


class InvalidInput(ApexError):
    """An argument or setting cannot be used; the message names the field, the limit and the fix."""


class ServerNotStarted(ApexError):
    """An embedded server did not come up."""

    def __init__(self, server: str, reason: str, log_tail: str) -> None:
        super().__init__(f"{server} did not start: {reason}\n--- end of its log ---\n{log_tail}")
        self.server = server
