"""Servers of a test's own, to stop, kill and freeze. The shared ones are never touched."""

from __future__ import annotations

import contextlib
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import psutil

from apex_dagster.embedded import process
from apex_dagster.embedded.server import EmbeddedServer
from apex_dagster.embedded.stack import Stack
from apex_dagster.settings import Endpoints

FIELDS = {
    "neo4j": ("neo4j_uri", "neo4j_user", "neo4j_password", "neo4j_database"),
    "postgres": ("postgres_url",),
    "qdrant": ("qdrant_url", "qdrant_api_key"),
    "redis": ("redis_url",),
}


@dataclass(frozen=True, kw_only=True)
class PrivateServer:
    """One running server of a kind, with its own data."""

    name: str
    home: Path
    endpoints: Endpoints  # of the shared stack, but for this store

    @classmethod
    def start_new(cls, name: str, home: Path, shared: Endpoints) -> PrivateServer:
        own = Stack(home).ensure([name])
        fields = {field: getattr(own, field) for field in FIELDS[name]}
        return cls(name=name, home=home, endpoints=replace(shared, **fields))

    @property
    def server(self) -> EmbeddedServer:
        return Stack(self.home).servers[self.name]

    @property
    def os_process(self) -> psutil.Process:
        """The running server's process."""
        found = process.find(self.server.known(), self.server.directory)
        assert found is not None, f"the private {self.name} does not run"
        return found

    def start(self) -> None:
        """Start it again, on its port and with its data."""
        port = self.port
        Stack(self.home).ensure([self.name])
        assert self.port == port, f"another program took port {port} meanwhile"

    def stop(self) -> None:
        """Shut it down as `apex down` does."""
        self.server.stop()

    def kill(self) -> None:
        """SIGKILL; returns when the process is gone."""
        victim = self.os_process
        victim.kill()
        assert process.wait_ended(victim, timeout_s=10)

    def freeze(self) -> None:
        """SIGSTOP the server and its children: connections stay open and nothing answers."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal_all(signal.SIGCONT)

    @property
    def port(self) -> int:
        state = self.server.known()
        assert state is not None
        return state.port

    def _signal_all(self, number: int) -> None:
        parent = self.os_process
        for member in [parent, *parent.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                member.send_signal(number)
