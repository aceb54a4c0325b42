"""A warm worker: a process that executes one run after another, as the pool tells it.

    python -m apex_dagster.defs.instance.worker FD POOL_PID POOL_ID

FD is its end of a socket to the pool, which sends {"run": id}, or {"dispatch": id} for a run of
sagas that wait, which the worker makes first. It answers with {"event": "ready"}, {"event":
"claimed"} once it has made such a run, and {"event": "done", "rss_bytes": ...}.
"""

import contextlib
import ctypes
import itertools
import os
import signal
import socket
import sys

import dagster as dg
import psutil
import structlog
from dagster._cli.api import _execute_run_command_body
from dagster._utils.interrupts import capture_interrupts

from apex_dagster.composition import Application
from apex_dagster.defs.instance.dispatch import JOB, create_dispatched_run
from apex_dagster.defs.instance.event_log import BufferedEventLogStorage
from apex_dagster.defs.instance.pool_protocol import EndOfTalk, receive_line, send_line
from apex_dagster.defs.origin import reconstructable_job
from apex_dagster.defs.resources import resources_from_environment
from apex_dagster.errors import ApexError

log = structlog.get_logger(__name__)

EVENTS_LATE_S = 0.25  # how far behind the UI may be
_PR_SET_PDEATHSIG = 1


def main(fd: int, pool_pid: int, pool_id: str) -> None:
    """Serve until the pool closes the socket, or ends."""
    ignore_interrupts()
    end_with(pool_pid)
    pool = socket.socket(fileno=fd)
    with dg.DagsterInstance.get() as instance:
        events = instance.event_log_storage
        if isinstance(events, BufferedEventLogStorage):
            events.buffer(late_s=EVENTS_LATE_S)
        app = warm_up()
        send_line(pool, {"event": "ready"})
        with contextlib.suppress(OSError, EndOfTalk):
            while True:
                order = receive_line(pool)
                if "run" in order:
                    execute(instance, order["run"])
                elif dispatched(instance, app, order["dispatch"], pool_id):
                    send_line(pool, {"event": "claimed"})
                    execute(instance, order["dispatch"])
                send_line(pool, {"event": "done", "rss_bytes": psutil.Process().memory_info().rss})


def warm_up() -> Application:
    """Do before the first run what would make it slow: import the jobs, connect to the stores."""
    reconstructable_job(JOB).get_definition()
    with dg.build_resources(resources_from_environment()) as resources:
        app: Application = resources.sagas.application()
    return app


def execute(instance: dg.DagsterInstance, run_id: str) -> None:
    """Execute the run. However that ends, it is over in Dagster's eyes afterwards."""
    with capture_interrupts():
        # What Dagster's own launchers have their processes call; it raises nothing.
        _execute_run_command_body(run_id, instance, lambda event: None, False)
    run = instance.get_run_by_id(run_id)
    if run is not None and not run.is_finished:
        instance.report_run_failed(run, "The worker could not execute the run.")


def dispatched(instance: dg.DagsterInstance, app: Application, run_id: str, pool_id: str) -> bool:
    """Whether there is a run to execute now."""
    try:
        return create_dispatched_run(instance, app, run_id=run_id, pool_id=pool_id)
    except ApexError as error:  # the ledger is down: the pool tries again
        log.warning("not_dispatched", run_id=run_id, error=str(error))
    except Exception:
        log.exception("not_dispatched", run_id=run_id)
    return False


def ignore_interrupts() -> None:
    """Between two runs: an interrupt that comes when its run has just ended is for nobody."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # Not SIG_IGN, under which the handler that Dagster puts back could not be told apart.
        signal.signal(number, lambda *_: None)


def end_with(pool_pid: int) -> None:
    """Have the system interrupt us when the pool dies: a run is undone, then the socket is found
    closed. Elsewhere than on Linux a run goes on to its end first."""
    if sys.platform == "linux":
        # Linux sends it at the end of each thread of the pool, as children are handed on from one
        # to the next; a second interrupt would be one of the undoing.
        interrupt_once = itertools.chain([signal.SIGINT], itertools.repeat(None))

        def pool_died(*_: object) -> None:
            if number := next(interrupt_once):
                signal.raise_signal(number)

        signal.signal(signal.SIGUSR1, pool_died)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGUSR1, 0, 0, 0)
    if os.getppid() != pool_pid:  # it died before we asked
        sys.exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
