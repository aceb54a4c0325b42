"""Servers and processes of a run, to be killed, frozen and started again."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import orjson
import psutil

from apex_dagster.embedded import process
from apex_dagster.embedded.stack import Stack
from apex_dagster.errors import ServerNotStarted

READY = b'"ready"\n'

_KILLED_WITHIN_S = 30.0
_STOPPED_WITHIN_S = 20.0


class Victim(Protocol):
    """What a disturbance is done to. One thread at a time."""

    def kill(self) -> None:
        """SIGKILL; return when it is gone."""
        ...

    def start(self) -> None:
        """Start it again; return when it is in service."""
        ...

    def freeze(self) -> None:
        """SIGSTOP: connections stay open and nothing answers."""
        ...

    def thaw(self) -> None:
        """SIGCONT."""
        ...


class Server:
    """One embedded server."""

    def __init__(self, home: Path, name: str) -> None:
        self._stack, self._name = Stack(home), name

    def kill(self) -> None:
        victim = self._os_process()
        victim.kill()
        process.wait_ended(victim, _KILLED_WITHIN_S)

    def start(self) -> None:
        """Raises ServerNotStarted also where another program has taken its port meanwhile."""
        server = self._stack.servers[self._name]
        before = server.known()
        self._stack.ensure([self._name])
        after = server.known()
        if before and after and before.port != after.port:
            reason = f"another program took its port {before.port} while it was down"
            raise ServerNotStarted(self._name, reason, process.tail(server.log))

    def freeze(self) -> None:
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    def _os_process(self) -> psutil.Process:
        server = self._stack.servers[self._name]
        found = process.find(server.known(), server.directory)
        if found is None:
            raise ServerNotStarted(self._name, "it ended by itself", process.tail(server.log))
        return found

    def _signal_all(self, number: int) -> None:
        parent = self._os_process()
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)


class Child:
    """A Python process of ours that talks in JSON lines, and ends when its standard input does."""

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        *,
        log: Path,
        ready: bytes | None = READY,
        environment: Mapping[str, str] | None = None,
        folder: Path | None = None,
    ) -> None:
        """`arguments`: a module and its own. `ready`: how the line begins that says so; None: it
        says nothing, and nobody waits for it. `environment` and `folder`: ours by default."""
        self.name, self._arguments, self._log, self._ready = name, arguments, log, ready
        self._environment, self._folder = environment, folder
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._in_service = threading.Event()
        self.held_down = False  # by a disturbance: not to be started by anybody else

    def spawn(self) -> None:
        """Start it, without waiting."""
        self._in_service.clear()
        if self._ready is None:
            self._in_service.set()
        self._lines = queue.Queue()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self._environment,
                cwd=self._folder,
                start_new_session=True,  # Ctrl-C is for the run, which then ends its children
            )
        reader = threading.Thread(
            target=self._read, args=[self._process, self._lines], name=self.name, daemon=True
        )
        reader.start()

    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def children(self) -> list[psutil.Process]:
        """What it has started, the oldest first."""
        if self._process is None or not self.is_running():
            return []
        with contextlib.suppress(psutil.NoSuchProcess):
            return sorted(psutil.Process(self._process.pid).children(), key=lambda c: c.pid)
        return []

    def say(self, message: Mapping[str, Any]) -> bool:
        """Send one line; False if the process has ended."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(orjson.dumps(message) + b"\n")
            self._process.stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    def hear(self, timeout_s: float) -> dict[str, Any] | None:
        """The next line; None once the process has ended. Raises TimeoutError."""
        try:
            line = self._lines.get(timeout=timeout_s)
        except queue.Empty:
            raise TimeoutError from None
        if not line:
            self._lines.put(b"")  # for whoever asks again
            return None
        message: dict[str, Any] = orjson.loads(line)
        return message

    def kill(self) -> None:
        self.held_down = True
        if self._process is not None:
            self._process.kill()
            self._process.wait(_KILLED_WITHIN_S)

    def start(self) -> None:
        """Returns when it has said that it is ready, or after a minute: its stores may be down."""
        self.held_down = False
        if not self.is_running():
            self.spawn()
        self._in_service.wait(60.0)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """Close its input, and kill it if that is not enough."""
        if self._process is None:
            return
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_STOPPED_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(_KILLED_WITHIN_S)

    def _signal(self, number: int) -> None:
        if self._process is not None and self._process.poll() is None:
            os.kill(self._process.pid, number)

    def _read(self, source: subprocess.Popen[bytes], lines: queue.Queue[bytes]) -> None:
        assert source.stdout is not None
        for line in source.stdout:
            if not line.endswith(b"\n"):
                break  # killed in the middle of it
            if self._ready is not None and line.startswith(self._ready):
                self._in_service.set()
            else:
                lines.put(line)
        lines.put(b"")
        source.wait()


def say_ready() -> None:
    """Tell the parent that this process is in service."""
    sys.stdout.buffer.write(READY)
    sys.stdout.buffer.flush()


def wait_for_end_of_input(over: threading.Event) -> None:
    """Our input is held open by whoever started us."""
    sys.stdin.buffer.read()
    over.set()
