"""A warm worker as the pool sees it: a child process, and a socket to tell it what to do."""

import contextlib
import itertools
import os
import signal
import socket
import subprocess
import sys
import time
from typing import Any

from apex_dagster.defs.instance.pool_protocol import receive_line, send_line

MODULE = "apex_dagster.defs.instance.worker"
_numbers = itertools.count(1)


class WorkerProcess:
    """One worker, from its start to its end. Starts busy: with getting ready."""

    def __init__(self, pool_id: str) -> None:
        self.number = next(_numbers)
        self.socket, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-m", MODULE, str(theirs.fileno()), str(os.getpid()), pool_id],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C is for the pool, which ends its workers in good order
            )
        self.ready = self.retired = self.replaced = False
        self.run_id: str | None = None
        self.runs = 0
        self.interrupted_at: float | None = None  # by time.monotonic()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        """Whether it waits for a run, and may be given one."""
        return self.ready and self.run_id is None and not self.retired

    def order(self, what: str, run_id: str) -> None:
        """Tell it to "run" or "dispatch". If it is dead, its socket says so to who reads it."""
        self.run_id, self.interrupted_at = run_id, None
        with contextlib.suppress(OSError):
            send_line(self.socket, {what: run_id})

    def heard(self) -> dict[str, Any] | None:
        """What it says, once its socket is readable; None when it has ended."""
        try:
            return receive_line(self.socket)
        except (OSError, ValueError):
            return None

    def interrupt(self) -> None:
        """As Ctrl-C would: the run it has fails, and its hook undoes what the run left open."""
        self.interrupted_at = self.interrupted_at or time.monotonic()
        self._process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self._process.kill()

    def retire(self) -> None:
        """Let it end after the run that it has."""
        self.retired = True
        if self.run_id is None:
            self.socket.shutdown(socket.SHUT_WR)

    def bury(self, timeout_s: float = 5.0) -> int:
        """Reap it; what it ended with, negative for a signal. Kills what only closed its socket."""
        self.socket.close()
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
