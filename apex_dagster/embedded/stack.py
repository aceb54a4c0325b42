"""The four embedded servers together: started at once, found again, stopped.

Stack(home).ensure()    what runs is adopted, what does not is started
endpoints(settings)     the same, but for stores that the settings name elsewhere
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from types import MappingProxyType

from pydantic import SecretStr

from apex_dagster.embedded import neo4j
from apex_dagster.embedded.neo4j import Neo4j
from apex_dagster.embedded.postgres import Postgres
from apex_dagster.embedded.process import ServerState
from apex_dagster.embedded.qdrant import Qdrant
from apex_dagster.embedded.redis import Redis
from apex_dagster.embedded.server import EmbeddedServer, NotReady, OnProgress, Progress, WrongServer
from apex_dagster.errors import InvalidInput
from apex_dagster.settings import Endpoints, Settings

SERVERS: Mapping[str, type[EmbeddedServer]] = MappingProxyType(
    {server.name: server for server in (Neo4j, Postgres, Qdrant, Redis)}
)
ALL = tuple(SERVERS)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """One embedded server as `apex doctor` shows it."""

    name: str
    up: bool
    address: str | None  # without password; None before the first start
    version: str | None  # as the server itself says
    pid: int | None
    data_dir: Path
    problem: str | None = None  # why it is not up


class Stack:
    """The embedded servers of one APEX_HOME. Holds no process: the state files do."""

    def __init__(self, home: Path) -> None:
        self.home = home.resolve()
        self.neo4j = Neo4j(self.home)
        self.postgres = Postgres(self.home)
        self.qdrant = Qdrant(self.home)
        self.redis = Redis(self.home)
        self.servers: dict[str, EmbeddedServer] = {
            server.name: server for server in (self.neo4j, self.postgres, self.qdrant, self.redis)
        }

    def ensure(
        self, names: Collection[str] = ALL, on_progress: OnProgress | None = None
    ) -> Endpoints:
        """Start or adopt the named servers; return when all of them answer.

        Raises ServerNotStarted for the first that does not come up, once all have been tried.
        Costs less than a millisecond a server when they are up.
        """
        if unknown := set(names) - set(ALL):
            raise InvalidInput(f"no server is named {', '.join(sorted(unknown))}: {', '.join(ALL)}")
        down = [self.servers[name] for name in ALL if name in names and not self.is_up(name)]
        if down:
            start_all(down, on_progress or ignore)
        return self._endpoints()

    def down(self, names: Collection[str] = ALL) -> list[str]:
        """Stop the named servers; the names of those that ran."""
        servers = [self.servers[name] for name in names]
        with ThreadPoolExecutor(len(servers)) as pool:
            stopped = list(pool.map(lambda server: server.stop(), servers))
        return [server.name for server, ran in zip(servers, stopped, strict=True) if ran]

    def status(self) -> list[ServerStatus]:
        """Ask each server; takes up to 5 s for one that hangs."""
        with ThreadPoolExecutor(len(self.servers)) as pool:
            return list(pool.map(server_status, self.servers.values()))

    def is_up(self, name: str) -> bool:
        """Whether the server's process runs and was ready; it is not asked."""
        return self.servers[name].running() is not None

    def _endpoints(self) -> Endpoints:
        states = {name: server.known() for name, server in self.servers.items()}
        return Endpoints(
            neo4j_uri=self.neo4j.url(s) if (s := states["neo4j"]) else "",
            neo4j_user=neo4j.USER,
            neo4j_password=SecretStr(self.neo4j.password() if states["neo4j"] else ""),
            postgres_url=SecretStr(self.postgres.url(s) if (s := states["postgres"]) else ""),
            qdrant_url=self.qdrant.url(s) if (s := states["qdrant"]) else "",
            qdrant_api_key=SecretStr(self.qdrant.password()) if states["qdrant"] else None,
            redis_url=SecretStr(self.redis.url(s) if (s := states["redis"]) else ""),
        )


def endpoints(settings: Settings, on_progress: OnProgress | None = None) -> Endpoints:
    """Where the stores are: outside where the settings say so, else embedded and started.

    Raises ServerNotStarted, and InvalidInput for an outside Neo4j without a password.
    """
    outside = outside_names(settings)
    embedded = Stack(settings.home).ensure([n for n in ALL if n not in outside], on_progress)
    if "neo4j" in outside and settings.neo4j_password is None:
        raise InvalidInput("APEX_NEO4J_URI is set without APEX_NEO4J_PASSWORD: set both")
    neo4j_uri, user, password, database = (
        (settings.neo4j_uri, settings.neo4j_user, settings.neo4j_password, settings.neo4j_database)
        if "neo4j" in outside
        else (embedded.neo4j_uri, embedded.neo4j_user, embedded.neo4j_password, "neo4j")
    )
    assert neo4j_uri is not None
    assert password is not None
    return Endpoints(
        neo4j_uri=neo4j_uri,
        neo4j_user=user,
        neo4j_password=password,
        neo4j_database=database,
        postgres_url=settings.postgres_url or embedded.postgres_url,
        qdrant_url=settings.qdrant_url or embedded.qdrant_url,
        qdrant_api_key=settings.qdrant_api_key if settings.qdrant_url else embedded.qdrant_api_key,
        redis_url=settings.redis_url or embedded.redis_url,
    )


def outside_names(settings: Settings) -> set[str]:
    """The stores that the settings name an outside server for."""
    addresses = {
        "neo4j": settings.neo4j_uri,
        "postgres": settings.postgres_url,
        "qdrant": settings.qdrant_url,
        "redis": settings.redis_url,
    }
    return {name for name, address in addresses.items() if address is not None}


def start_all(servers: Sequence[EmbeddedServer], on_progress: OnProgress) -> None:
    """Start servers at once. On Ctrl-C, downloads and waiting end at the next report."""
    interrupted = Event()

    def report(progress: Progress) -> None:
        if interrupted.is_set():
            raise InterruptedError
        on_progress(progress)

    with ThreadPoolExecutor(len(servers)) as pool:
        starts = [pool.submit(server.ensure, report) for server in servers]
        try:
            wait(starts)
        except KeyboardInterrupt:
            interrupted.set()
            raise
    for start in starts:
        start.result()


def server_status(server: EmbeddedServer) -> ServerStatus:
    """Ask one embedded server what it is."""
    state, version, problem = server.known(), None, None
    running = server.running()
    if state is None:
        problem = "it has never been started"
    elif running is None:
        # A stop takes the pid out of the state file; a crash cannot.
        problem = "it is stopped" if state.pid is None else f"it ended by itself: see {server.log}"
    else:
        try:
            version = server.probe(running)
        except (NotReady, WrongServer) as error:
            problem = f"it runs and does not answer: {error}"
    return ServerStatus(
        name=server.name,
        up=problem is None,
        address=server.address(state) if state else None,
        version=version,
        pid=running.pid if running else None,
        data_dir=server.data,
        problem=problem,
    )


def ignore(progress: Progress) -> None:
    """For callers who want no progress."""


__all__ = ["ALL", "ServerState", "ServerStatus", "Stack", "endpoints", "outside_names"]
