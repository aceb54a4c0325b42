"""Owners of sagas that are hit on the way: in a thread of this process, or in one to be killed."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from apex_dagster.composition import Application, build
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.saga.failpoints import armed, parked, release
from apex_dagster.saga.retry import RealPace, StillRunning
from apex_dagster.settings import Endpoints, Settings

T = TypeVar("T")

PATIENCE_S = 60.0  # on a machine that has much else to do

# Each child is forked from a process that has imported everything and has neither threads nor
# connections: 10 ms instead of seconds.
_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["apex_dagster.composition", __name__])


class Impatient(RealPace):
    """A call that is held up has reached its deadline, by a clock that jumps there.

    `is_held` looks at the call's thread. The call goes on behind the caller's back, as any call
    does that was given up; nothing here waits for a time-out, so a slow machine changes nothing.
    """

    def __init__(self, is_held: Callable[[threading.Thread], bool]) -> None:
        self._is_held, self._ahead_s = is_held, 0.0
        self.tries_again = False  # then only the attempt is over, as by a driver's own time-out

    def monotonic(self) -> float:
        return super().monotonic() + self._ahead_s

    def call_until(self, operation: Callable[[], T], deadline: float, name: str) -> T:
        future: Future[T] = Future()

        def run() -> None:
            try:
                future.set_result(operation())
            except BaseException as error:
                future.set_exception(error)

        thread = threading.Thread(target=run, name=f"call-{name}", daemon=True)
        thread.start()
        while thread.is_alive() and not future.done():
            if self._is_held(thread):
                if not self.tries_again:
                    self._ahead_s += max(0.0, deadline - self.monotonic())
                raise StillRunning(name)
            thread.join(0.002)
        return future.result()


def make_impatient(app: Application, is_held: Callable[[threading.Thread], bool]) -> Impatient:
    """Let this application give up calls as soon as they are held up."""
    pace = Impatient(is_held)
    for part in (app.engine, app.compensation):
        part._retry = dataclasses.replace(part._retry, pace=pace)
    return pace


class Owner:
    """Ingests in a thread. It ends, is parked at a point, or has given up a call that is parked."""

    def __init__(self, app: Application, submission: Submission, failpoints: str) -> None:
        self.error: Exception | None = None

        def ingest() -> None:
            try:
                app.ingestion.ingest([submission], owner="victim")
            except Exception as error:
                self.error = error

        self._thread = threading.Thread(target=ingest)
        with armed(failpoints):
            self._thread.start()
            wait_until(lambda: not self._thread.is_alive() or self.is_paused)

    @property
    def is_paused(self) -> bool:
        """Whether it stands still itself, or where it publishes to one store beside the others,
        rather than one of its calls."""
        still = [thread for thread in threading.enumerate() if thread.ident in parked()]
        return any(not thread.name.startswith("call-") for thread in still)

    def land(self) -> None:
        """What was held up happens now, to the end."""
        held = parked()
        threads = [t for t in threading.enumerate() if t.ident in held]
        release()
        for thread in [*threads, self._thread]:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), f"{thread.name} does not end"


def kill_owner(
    endpoints: Endpoints,
    settings: Mapping[str, Any],
    submissions: Sequence[Submission],
    failpoints: str,
) -> int | None:
    """Drive the submissions in a process of their own until it is killed; its exit code.

    Several are of one document, and meet: all are staged before the first is committed.
    """
    child = _forked.Process(
        target=_drive, args=(endpoints, dict(settings), list(submissions), failpoints)
    )
    child.start()
    child.join(PATIENCE_S)
    assert not child.is_alive(), "the child was not killed, and does not end"
    return child.exitcode


def _drive(
    endpoints: Endpoints,
    settings: Mapping[str, Any],
    submissions: Sequence[Submission],
    failpoints: str,
) -> None:
    ingestion = build(Settings(**settings), endpoints).ingestion
    staged = [_staged(ingestion, one) for one in submissions[:-1]]
    with armed("" if staged else failpoints):
        if not staged:
            ingestion.ingest(submissions, owner="victim")
            return
        staged.append(_staged(ingestion, submissions[-1]))
        for sagas in staged[:-1]:
            ingestion.commit(sagas, owner="victim")
    with armed(failpoints):
        ingestion.commit(staged[-1], owner="victim")


def _staged(ingestion: Any, submission: Submission) -> Any:
    opened = ingestion.open([submission], owner="victim")
    return ingestion.stage("redis_write", opened.alive).alive


def wait_until(condition: Callable[[], bool]) -> None:
    """Return when the condition holds."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come true"
        time.sleep(0.002)
