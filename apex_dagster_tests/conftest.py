"""The fixtures all tests share: real servers, once a session, and names of one's own in them.

stack               Endpoints of four running servers, shared by all tests and xdist workers
postgres_database   address of a fresh, migrated database, dropped afterwards
endpoints           `stack` with that database
qdrant_collection   an unused collection name, deleted afterwards
redis_prefix        an unused key prefix, deleted afterwards
unique              a token for document ids and entity names, as Neo4j has one database
private_server      starts a server of a test's own, to stop, kill or freeze
app                 the application over them (apex_dagster_tests/applications.py)
"""

from __future__ import annotations

import hashlib
import os
import secrets
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from pydantic import SecretStr

from apex_dagster.settings import Endpoints
from apex_dagster_tests.servers import PrivateServer
from apex_dagster_tests.simulation.seeds import FIXED, TODAY

pytest_plugins = ["apex_dagster_tests.applications"]

ROOT = pytest.StashKey[Path]()
WATCHDOG = pytest.StashKey[subprocess.Popen[bytes]]()

PrivateServerFactory = Callable[[str], PrivateServer]


def pytest_addoption(parser: pytest.Parser) -> None:
    """For whoever runs a few tests again and again: starting four servers takes longer."""
    parser.addoption(
        "--servers-home",
        type=Path,
        help="Use the servers of this folder, which are started if need be and stay up: end them "
        "with `APEX_HOME=FOLDER apex down`.",
    )


def pytest_report_header() -> str:
    """What a day's seeds have found can be found again: `apex simulate --seed SEED`."""
    return f"simulation: seeds {FIXED[0]} to {FIXED[-1]} and, today, {TODAY[0]} to {TODAY[-1]}"


def pytest_configure(config: pytest.Config) -> None:
    """Choose a folder for this session's servers and start what removes them at its end."""
    worker_input = getattr(config, "workerinput", None)
    if worker_input is not None:  # an xdist worker; the controller has done this
        config.stash[ROOT] = Path(worker_input["servers_root"])
        return
    root = Path(tempfile.mkdtemp(prefix="apex-tests-"))
    root.chmod(0o711)  # PostgreSQL runs as another account if we are root
    config.stash[ROOT] = root
    config.stash[WATCHDOG] = subprocess.Popen(
        [sys.executable, "-m", "apex_dagster_tests.watchdog", str(root)],
        stdin=subprocess.PIPE,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: pytest.FixtureRequest) -> None:
    """Tell an xdist worker where the servers are."""
    node.workerinput["servers_root"] = str(node.config.stash[ROOT])  # type: ignore[attr-defined]


def pytest_unconfigure(config: pytest.Config) -> None:
    """Runs after Ctrl-C as well; after kill -9 the watchdog notices by itself."""
    if watchdog := config.stash.get(WATCHDOG, None):
        watchdog.communicate(timeout=120)


@pytest.fixture(scope="session")
def servers_root(pytestconfig: pytest.Config) -> Path:
    """Each folder in here is the APEX_HOME of some servers; all are removed with the session."""
    return pytestconfig.stash[ROOT]


@pytest.fixture(scope="session")
def stack_home(pytestconfig: pytest.Config, servers_root: Path) -> Path:
    """The APEX_HOME of the servers that all tests share."""
    kept: Path | None = pytestconfig.getoption("--servers-home")
    return kept or servers_root / "shared"


@pytest.fixture(scope="session")
def stack(stack_home: Path) -> Endpoints:
    """Four real servers, started once a session whichever worker asks first."""
    from apex_dagster.embedded.stack import Stack

    return Stack(stack_home).ensure()


@pytest.fixture(scope="session")
def migrated_template(stack: Endpoints, servers_root: Path) -> str:
    """Name of a database with the newest schema, made once a session, for others to be cloned
    from: a clone takes 50 ms, the migrations far longer."""
    from apex_dagster.migrations.migrate import migrate

    template = f"migrated_{migrations_digest()}"
    with FileLock(servers_root / "template.lock"):
        if not database_exists(stack, template):
            unfinished = f"{template}_unfinished"
            run_sql(stack, f"DROP DATABASE IF EXISTS {unfinished}")
            run_sql(stack, f"CREATE DATABASE {unfinished}")
            migrate(stack.postgres_database(unfinished).get_secret_value())
            run_sql(stack, f"ALTER DATABASE {unfinished} RENAME TO {template}")
    return template


@pytest.fixture
def postgres_database(stack: Endpoints, migrated_template: str, unique: str) -> Iterator[str]:
    """The address, password included, of a migrated database that is this test's own."""
    with own_database(stack, migrated_template, unique) as servers:
        yield servers.postgres_url.get_secret_value()


@pytest.fixture
def endpoints(stack: Endpoints, postgres_database: str) -> Endpoints:
    """The shared servers, with a PostgreSQL database of this test's own."""
    return replace(stack, postgres_url=SecretStr(postgres_database))


@pytest.fixture
def unique() -> str:
    """Twelve characters a-z0-9 that no other test has."""
    return "t" + secrets.token_hex(6)[1:]


@pytest.fixture
def qdrant_collection(stack: Endpoints, unique: str) -> Iterator[str]:
    """A collection name nobody uses; the collection is deleted if the test created it."""
    with own_qdrant_collection(stack, f"test_{unique}") as name:
        yield name


@pytest.fixture
def redis_prefix(stack: Endpoints, unique: str) -> Iterator[str]:
    """A key prefix nobody uses; its keys are deleted."""
    with own_key_prefix(stack, f"test:{unique}:") as prefix:
        yield prefix


@pytest.fixture
def private_server(stack: Endpoints, servers_root: Path) -> Iterator[PrivateServerFactory]:
    """`private_server("qdrant")` starts a Qdrant of the test's own; it is stopped afterwards."""
    started: list[PrivateServer] = []

    def start(name: str) -> PrivateServer:
        home = servers_root / f"private-{os.getpid()}-{secrets.token_hex(4)}"
        started.append(PrivateServer.start_new(name, home, stack))
        return started[-1]

    yield start
    for server in started:
        server.server.stop()


@contextmanager
def own_database(stack: Endpoints, template: str, token: str) -> Iterator[Endpoints]:
    """The servers, with a database that is dropped at the end."""
    name = f"test_{token}"
    run_sql(stack, f"CREATE DATABASE {name} TEMPLATE {template}")
    yield replace(stack, postgres_url=stack.postgres_database(name))
    run_sql(stack, f"DROP DATABASE {name} WITH (FORCE)")


@contextmanager
def own_qdrant_collection(stack: Endpoints, name: str) -> Iterator[str]:
    """The name of a collection that is deleted at the end, if it was created."""
    from qdrant_client import QdrantClient

    assert stack.qdrant_api_key is not None
    yield name
    # As `api_key` it would be announced by a warning on every plain-HTTP loopback address.
    headers = {"api-key": stack.qdrant_api_key.get_secret_value()}
    client = QdrantClient(url=stack.qdrant_url, headers=headers, check_compatibility=False)
    client.delete_collection(name)
    client.close()


@contextmanager
def own_key_prefix(stack: Endpoints, prefix: str) -> Iterator[str]:
    """A prefix whose keys are deleted at the end."""
    import redis

    yield prefix
    with redis.Redis.from_url(stack.redis_url.get_secret_value()) as client:
        if keys := list(client.scan_iter(match=f"{prefix}*", count=1000)):
            client.delete(*keys)


def run_sql(stack: Endpoints, statement: str) -> None:
    """Outside a transaction, on the maintenance database; the statements hold no foreign text."""
    import psycopg

    url = stack.postgres_database("postgres").get_secret_value()
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def migrations_digest() -> str:
    """Servers that are kept may hold a template of other migrations."""
    from importlib.resources import files

    digest = hashlib.sha256()
    for entry in sorted(files("apex_dagster.migrations.versions").iterdir(), key=lambda e: e.name):
        if entry.is_file():
            digest.update(entry.read_bytes())
    return digest.hexdigest()[:16]


def database_exists(stack: Endpoints, name: str) -> bool:
    import psycopg

    url = stack.postgres_database("postgres").get_secret_value()
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", [name]).fetchone()
    return row is not None
