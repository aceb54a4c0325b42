"""The process that keeps warm workers: `python -m apex_dagster.defs.instance.pool`, which
`apex worker` and `apex demo` start.

It takes runs from run launchers over its socket, and has sagas that wait for a driver made into
runs. One thread does everything, but for waiting for the ledger's notifications.
"""

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import structlog

from apex_dagster.defs.instance.pool_protocol import (
    POOL_TAG,
    address,
    receive_line,
    send_line,
    socket_path,
)
from apex_dagster.defs.instance.worker_pool import Pool
from apex_dagster.defs.instance.worker_process import WorkerProcess
from apex_dagster.embedded.stack import endpoints
from apex_dagster.logs import configure_logs
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.pending import pending_count
from apex_dagster.saga.wakeup import PENDING, Listener
from apex_dagster.settings import Settings

log = structlog.get_logger(__name__)

TURN_S = 1.0  # between two looks at what is due, when nothing happens
POLL_S = 1.0  # between two looks at the ledger, should a notification get lost
REQUEST_TIMEOUT_S = 1.0  # for a launcher to say what it wants
# At its end: for runs to come to theirs, then for those interrupted to undo what they did. Together
# less than what `apex demo` waits before it kills.
DRAIN_S, UNDO_S = 4.0, 8.0
SAGAS_WAIT = b"\0"  # any other byte is the number of a signal

_UNDER_WAY = [
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]


def main() -> int:
    """Serve until SIGINT or SIGTERM; 1 when another pool serves already."""
    configure_logs()
    settings = Settings()
    path = socket_path(settings)
    with contextlib.ExitStack() as stack:
        if not stack.enter_context(only_one(path)):
            print(f"a pool of workers listens on {path} already", file=sys.stderr)  # noqa: T201
            return 1
        instance = stack.enter_context(dg.DagsterInstance.get())
        pool = Pool(instance, settings)
        fail_runs_of_last_pool(instance, path.with_name("pool_id"), pool.pool_id)
        wake, wakes = socket.socketpair()
        stack.enter_context(wake_on_signals(wakes))
        server = stack.enter_context(listening(path))
        watch = threading.Thread(target=watch_ledger, args=(settings, wakes), daemon=True)
        watch.start()
        log.info("pool_started", socket=str(path), workers=settings.workers)
        serve(pool, server, wake)
        server.close()
        path.unlink(missing_ok=True)  # launchers start processes of their own from now on
        pool.stop(drain_s=DRAIN_S, undo_s=UNDO_S)
    return 0


def serve(pool: Pool, server: socket.socket, wake: socket.socket) -> None:
    """Answer launchers and workers, until a signal comes."""
    pool.selector.register(server, selectors.EVENT_READ)
    pool.selector.register(wake, selectors.EVENT_READ)
    while True:
        pool.turn()
        for key, _ in pool.selector.select(TURN_S):
            if isinstance(key.data, WorkerProcess):
                pool.hear(key.data)
            elif key.fileobj is server:
                answer_one(pool, server)
            else:
                bytes_ = wake.recv(1024)
                if SAGAS_WAIT in bytes_:
                    pool.sagas_wait()
                if bytes_.strip(SAGAS_WAIT):
                    return


def answer_one(pool: Pool, server: socket.socket) -> None:
    """One request, one answer. What a launcher does wrong is no reason to end."""
    try:
        connection, _ = server.accept()
        with connection:
            connection.settimeout(REQUEST_TIMEOUT_S)
            send_line(connection, pool.answer(receive_line(connection)))
    except (OSError, ValueError) as error:
        log.warning("request_not_answered", error=str(error))
    except Exception:  # Dagster's storage is down: whoever asked gets no answer
        log.exception("request_not_answered")


def watch_ledger(settings: Settings, wakes: socket.socket) -> None:
    """Say so whenever sagas wait, for the length of the process."""
    ledger = None
    while True:
        try:
            if ledger is None:
                url = endpoints(settings).postgres_url.get_secret_value()
                ledger, listener = Ledger(url), Listener(url, PENDING)
            if listener.wait(POLL_S) or pending_count(ledger):
                wakes.send(SAGAS_WAIT)
        except Exception as error:  # down, or not migrated yet: the workers see to that
            log.warning("ledger_not_watched", error=str(error))
            time.sleep(POLL_S)


def fail_runs_of_last_pool(instance: dg.DagsterInstance, path: Path, pool_id: str) -> None:
    """What a pool that was killed had under way, died with it."""
    with contextlib.suppress(FileNotFoundError):
        of_last = dg.RunsFilter(tags={POOL_TAG: path.read_text()}, statuses=_UNDER_WAY)
        for run in instance.get_runs(of_last):
            instance.report_run_failed(run, "The pool of workers that had the run has ended.")
    path.write_text(pool_id)


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[bool]:
    """Whether this is the only pool of its socket, for the length of the block."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name("lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


@contextlib.contextmanager
def listening(path: Path) -> Iterator[socket.socket]:
    """The socket, for its owner alone."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as server:
        before = os.umask(0o177)  # from the moment that it exists
        try:
            with address(path) as name:
                server.bind(name)
        finally:
            os.umask(before)
        server.listen(64)
        yield server


@contextlib.contextmanager
def wake_on_signals(wakes: socket.socket) -> Iterator[None]:
    """Have SIGINT and SIGTERM end the wait in `serve`, and nothing else."""
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    try:
        yield
    finally:
        signal.set_wakeup_fd(-1)


if __name__ == "__main__":
    sys.exit(main())
