"""Runs a command that must not outlive whoever started it, nor leave anything behind.

    python -m apex_dagster.cli.tether COMMAND...

Standard input is the tether: the starter alone holds its other end, so it closes when the starter
ends in whatever way, SIGKILL included. Then, or when the command ends by itself, everything that
the command started is stopped, also what has moved to another process group.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

import psutil

POLL_S = 0.2
LEADER_TIMEOUT_S = 15.0  # dagster dev gives its own children five seconds each
REST_TIMEOUT_S = 10.0  # a run that is interrupted compensates its sagas
PR_SET_CHILD_SUBREAPER = 36


def main(command: Sequence[str]) -> int:
    """Run `command`; its exit code, negative for the signal that ended it."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # Not SIG_IGN, which the command would inherit and never see Ctrl-C again.
        signal.signal(number, lambda *_: None)
    adopt_orphans()
    leader = subprocess.Popen(list(command), stdin=subprocess.DEVNULL, process_group=0)
    while leader.poll() is None and not tether_is_gone():
        pass
    stop(leader)
    return leader.returncode


def tether_is_gone() -> bool:
    """Wait a moment for it."""
    readable, _, _ = select.select([0], [], [], POLL_S)
    return bool(readable) and not os.read(0, 1)


def stop(leader: subprocess.Popen[bytes]) -> None:
    """Ask the command to end, then what is left of it; then kill."""
    if leader.poll() is None:
        leader.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            leader.wait(LEADER_TIMEOUT_S)
    for number in (signal.SIGINT, signal.SIGKILL):
        rest = started_by(leader)
        for process in rest:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(number)
        psutil.wait_procs(rest, REST_TIMEOUT_S)
    leader.wait()


def started_by(leader: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """Our descendants, orphans among them where the system lets us adopt those; else the group."""
    found = {process.pid: process for process in psutil.Process().children(recursive=True)}
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getpgid(process.pid) == leader.pid:
                found[process.pid] = process
    return list(found.values())


def adopt_orphans() -> None:
    """On Linux, become the parent of descendants whose own parent has died."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
