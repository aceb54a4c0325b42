"""Named points in the engine where a test or an operator's drill makes it crash, fail or hang.

APEX_FAILPOINTS="written:qdrant_write=kill;pivoted=raise" arms points from the environment. The
actions: `kill` (SIGKILL to this very process), `stop` (SIGSTOP: whoever sends SIGCONT makes it a
zombie that goes on), `raise` (SimulatedCrash, which no handler of the
engine catches), `unavailable` and `reject` (the error classes of a store that is down or refuses),
`hang:SECONDS`, and `park` (wait until `release()`: what the thread was about to do happens late). A
trailing `*N` lets a point act N times only: `started:redis_write=unavailable*2`.

Points, in the order of a saga's life, `{step}` being a saga step: `opened`, `claimed`, `dispatched`
(claimed for a run that is not created yet), `extracted`,
`started:{step}`, `sending:{step}` (the lease was just looked at), `sent:{step}` (the store has it,
the caller was not told), `written:{step}`, `recorded:{step}`, `staged`, `pivoting` (in its
transaction, before the commit), `pivoted`, `publishing:{step}`, `publish_sent:{step}`,
`published:{step}`, `marked` (published everywhere, not yet recorded), `closed`; and `compensating`,
`undoing:{step}`, `undo_sent:{step}`, `undone:{step}`, `undo_recorded:{step}`, `closing` (in its
transaction, before the commit), `undone`; and, when it is tried again, `retrying` (in its
transaction, before the commit), `retried` (opened, not claimed); and `releasing`, `dropping` (in
their transactions, before the commit); and, when a file leaves the inbox, `sidecar_copied`,
`file_moved`.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from apex_dagster.errors import StoreRejected, StoreUnavailable

VARIABLE = "APEX_FAILPOINTS"


class SimulatedCrash(BaseException):
    """Stands for the death of the process: not an Exception, so nothing on the way handles it."""


class _Failpoints:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: dict[str, tuple[str, int | None]] = {}
        self._parked: dict[int, threading.Event] = {}  # by thread
        # Told of every point that is passed; `apex_dagster.simulation` stops processes there.
        self.observer: Callable[[str], None] | None = None
        self.arm(os.environ.get(VARIABLE, ""))

    def arm(self, text: str) -> None:
        """Replace all armed points by those in `text`; an empty text disarms."""
        armed: dict[str, tuple[str, int | None]] = {}
        for item in filter(None, (part.strip() for part in text.split(";"))):
            point, _, action = item.partition("=")
            action, _, times = action.partition("*")
            armed[point] = (action, int(times) if times else None)
        with self._lock:
            self._armed = armed

    def reach(self, point: str) -> None:
        """Do what is armed for `point`; costs two look-ups when nothing is."""
        if self.observer is not None:
            self.observer(point)
        if not self._armed:
            return
        with self._lock:
            action, times = self._armed.get(point, ("", None))
            if times is not None:
                if times <= 0:
                    return
                self._armed[point] = (action, times - 1)
        if action == "park":
            self._park()
        elif action:
            _act(action, point)

    def _park(self) -> None:
        released, thread = threading.Event(), threading.get_ident()
        with self._lock:
            self._parked[thread] = released
        released.wait()
        with self._lock:
            del self._parked[thread]

    def parked(self) -> set[int]:
        """Threads that wait at a point for `release`."""
        with self._lock:
            return {thread for thread, event in self._parked.items() if not event.is_set()}

    def release(self) -> None:
        """Let every parked thread go on."""
        with self._lock:
            for event in self._parked.values():
                event.set()


def _act(action: str, point: str) -> None:
    name, _, argument = action.partition(":")
    if name == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif name == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(0.2)  # another thread may take the signal, and this one run on for a moment
    elif name == "raise":
        raise SimulatedCrash(point)
    elif name == "unavailable":
        raise StoreUnavailable(point, "a failpoint says so")
    elif name == "reject":
        raise StoreRejected(point, "a failpoint says so")
    elif name == "hang":
        time.sleep(float(argument))
    else:
        raise ValueError(f"failpoint {point!r}: unknown action {action!r}")


_failpoints = _Failpoints()
reach, parked, release = _failpoints.reach, _failpoints.parked, _failpoints.release


@contextmanager
def armed(text: str) -> Iterator[None]:
    """Arm points of this process for the length of the block."""
    _failpoints.arm(text)
    try:
        yield
    finally:
        _failpoints.arm("")


@contextmanager
def observed(observer: Callable[[str], None]) -> Iterator[None]:
    """Tell `observer` of each point that this process passes, for the length of the block."""
    before, _failpoints.observer = _failpoints.observer, observer
    try:
        yield
    finally:
        _failpoints.observer = before
