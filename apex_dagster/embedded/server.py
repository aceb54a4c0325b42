"""What the four embedded servers have in common: start once, find again, check, stop."""

from __future__ import annotations

import secrets
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

from filelock import FileLock

from apex_dagster.embedded import ports, process
from apex_dagster.embedded.process import Launch, ServerState
from apex_dagster.errors import ServerNotStarted

Phase = Literal["downloading", "preparing", "starting", "ready"]

START_ATTEMPTS = 3  # another program may take the port between our look and the server's bind


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a server that is being started does now."""

    server: str
    phase: Phase
    done: int = 0  # bytes of a download
    total: int = 0


OnProgress = Callable[[Progress], None]


class NotReady(Exception):
    """The server does not answer yet; the reason is its message."""


class WrongServer(Exception):
    """Something answers on the port that is not the server we started, or not with our password."""


class EmbeddedServer(ABC):
    """One server below APEX_HOME. Objects hold no process: the state file does."""

    name: ClassVar[str]
    stop_signal: ClassVar[int] = signal.SIGTERM
    start_timeout_s: ClassVar[float] = 60.0
    stop_timeout_s: ClassVar[float] = 20.0

    def __init__(self, home: Path) -> None:
        self.directory = home.resolve() / self.name
        self.data = self.directory / "data"
        self.log = self.directory / "server.log"
        self.state_path = self.directory / "state.json"
        self.password_path = self.directory / "password"

    @abstractmethod
    def prepare(self, state: ServerState, report: OnProgress) -> Launch:
        """Bring data directory and configuration into shape; safe to repeat."""

    @abstractmethod
    def probe(self, state: ServerState) -> str:
        """The version of the server that answers. Raises NotReady or WrongServer."""

    @abstractmethod
    def address(self, state: ServerState) -> str:
        """Where it listens, for people: without the password."""

    def finish(self, state: ServerState) -> None:  # noqa: B027  nothing to do for most
        """What can only be created in a running server; safe to repeat."""

    def ensure(self, report: OnProgress) -> ServerState:
        """Start the server, or adopt the one that runs. Raises ServerNotStarted."""
        if running := self.running():
            return running
        self.make_directory()
        with self.lock():
            if running := self.running():
                return running
            return self._start(report)

    def running(self) -> ServerState | None:
        """The state of the running server; None when it is down or not ready yet."""
        state = process.read_state(self.state_path)
        if state is None or not state.ready:
            return None
        return state if self._is_alive(state) else None

    def known(self) -> ServerState | None:
        """The state of the server's last start, whether or not it still runs."""
        return process.read_state(self.state_path)

    def stop(self) -> bool:
        """Stop the server; False when nothing ran."""
        if not self.directory.exists():
            return False
        with self.lock():
            return self._stop()

    def lock(self) -> FileLock:
        """Held while the server is started or stopped, by whichever process does it."""
        return FileLock(self.directory / "start.lock", mode=0o600)

    def make_directory(self) -> None:
        self.directory.parent.mkdir(parents=True, exist_ok=True)
        self.directory.mkdir(mode=0o700, exist_ok=True)

    def password(self) -> str:
        """The server's password, made on first use."""
        try:
            return self.password_path.read_text()
        except FileNotFoundError:
            self.make_directory()
            process.write_private(self.password_path, secrets.token_urlsafe(24))
            return self.password_path.read_text()

    def _start(self, report: OnProgress) -> ServerState:
        # A start that was cut off may have left a server that holds the data directory.
        self._stop()
        for _ in range(START_ATTEMPTS):
            known = self.known()
            port = ports.choose(known.port if known else None)
            state = ServerState(port=port, identity=secrets.token_hex(8))
            report(Progress(server=self.name, phase="preparing"))
            launch = self.prepare(state, report)
            report(Progress(server=self.name, phase="starting"))
            child = process.start_detached(launch, directory=self.directory, log=self.log)
            state = replace(state, pid=child.pid, created_at=child.create_time())
            process.write_state(self.state_path, state)
            if self._wait_ready(state, report):
                self.finish(state)
                state = replace(state, ready=True)
                process.write_state(self.state_path, state)
                report(Progress(server=self.name, phase="ready"))
                return state
        raise self._not_started(f"another program took its port {START_ATTEMPTS} times")

    def _wait_ready(self, state: ServerState, report: OnProgress) -> bool:
        """True when the server answers; False when it ended because its port was taken."""
        deadline = time.monotonic() + self.start_timeout_s
        reason = "no answer"
        while time.monotonic() < deadline:
            if not self._is_alive(state):
                self._stop()  # waits until it has let go of its port
                if not ports.is_free(state.port):
                    return False
                raise self._not_started("it ended during its start")
            try:
                self.probe(state)
                return True
            except NotReady as error:
                reason = str(error)
            except WrongServer as error:
                self._stop()
                raise self._not_started(str(error)) from error
            report(Progress(server=self.name, phase="starting"))
            time.sleep(0.05)
        self._stop()
        raise self._not_started(f"not ready within {self.start_timeout_s:g} s: {reason}")

    def _is_alive(self, state: ServerState) -> bool:
        found = process.find(state, self.directory)
        return found is not None and process.is_alive(found)

    def _stop(self) -> bool:
        state = self.known()
        found = process.find(state, self.directory)
        strays = [found] if found else list(process.find_strays(self.directory))
        for stray in strays:
            process.stop(stray, signal_number=self.stop_signal, timeout_s=self.stop_timeout_s)
        if state is not None:
            stopped = replace(state, pid=None, created_at=None, ready=False)
            process.write_state(self.state_path, stopped)
        return bool(strays)

    def _not_started(self, reason: str) -> ServerNotStarted:
        return ServerNotStarted(self.name, reason, process.tail(self.log))
