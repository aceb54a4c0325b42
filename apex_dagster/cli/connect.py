"""Connections for commands that look at sagas or act on them. They start nothing: `apex up` does.

A command that only reads the ledger takes `connected_ledger`, which spares it the stores' drivers.
"""

from __future__ import annotations

import getpass
import logging
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from apex_dagster.embedded.stack import ALL, Stack, endpoints, outside_names
from apex_dagster.errors import InvalidInput, StoreRejected, StoreUnavailable
from apex_dagster.logs import configure_logs
from apex_dagster.saga.ledger import Ledger
from apex_dagster.settings import Endpoints, Settings

if TYPE_CHECKING:
    from apex_dagster.composition import Application

CONNECT_TIMEOUT_S = 5


def operator_name() -> str:
    """Who drives a saga that a command acts on, as the ledger keeps it."""
    return f"shell:{socket.gethostname()}:{os.getpid()}"


def person_name() -> str:
    """Who decides something with a command, as the audit trail keeps it."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = f"uid-{os.getuid()}"
    return f"{user}@{socket.gethostname()}"


@contextmanager
def connected_ledger(settings: Settings) -> Iterator[Ledger]:
    """The ledger, its schema being there. Raises StoreUnavailable, or StoreRejected without one."""
    url = known_endpoints(settings, ("postgres",)).postgres_url.get_secret_value()
    with warnings_on_stderr():
        check_postgres(url)
        ledger = Ledger(url)
        try:
            with schema_errors():
                yield ledger
        finally:
            ledger.close()


@contextmanager
def connected(settings: Settings) -> Iterator[Application]:
    """Everything, over servers that run already; the ledger is migrated."""
    from apex_dagster.composition import build

    servers = known_endpoints(settings)
    with warnings_on_stderr():
        check_postgres(servers.postgres_url.get_secret_value())
        with schema_errors():
            app = build(settings, servers)
        try:
            yield app
        finally:
            app.close()


def known_endpoints(settings: Settings, names: tuple[str, ...] = ALL) -> Endpoints:
    """Where the stores are. Raises StoreUnavailable for a named one that was never started."""
    stack, outside = Stack(settings.home), outside_names(settings)
    for name in names:
        if name not in outside and stack.servers[name].known() is None:
            raise StoreUnavailable(
                name, f"it has never been started in {settings.home}: run `apex up`"
            )
    embedded = stack.ensure(())
    known: dict[str, object] = {
        "postgres_url": embedded.postgres_url,
        "redis_url": embedded.redis_url,
    }
    if "neo4j" not in outside:
        known |= {
            name: getattr(embedded, name)
            for name in ("neo4j_uri", "neo4j_user", "neo4j_password", "neo4j_database")
        }
    if "qdrant" not in outside:
        known |= {"qdrant_url": embedded.qdrant_url, "qdrant_api_key": embedded.qdrant_api_key}
    for name in outside & {"postgres", "redis"}:
        del known[f"{name}_url"]
    # Every address is given now, so that nothing is left to be started.
    return endpoints(settings.model_copy(update=known))


def check_postgres(url: str) -> None:
    """Fail at once where a connection pool would keep trying for its whole time-out."""
    import psycopg

    try:
        psycopg.connect(url, connect_timeout=CONNECT_TIMEOUT_S).close()
    except psycopg.OperationalError as error:
        reason = " ".join(str(error).split())
        raise StoreUnavailable("postgres", f"{reason} (`apex doctor` says more)") from error
    except psycopg.ProgrammingError as error:
        # Not the driver's message: it may repeat the address, which holds a password.
        raise InvalidInput(
            "APEX_POSTGRES_URL is not an address: use postgresql://user:password@host:port/database"
        ) from error


@contextmanager
def schema_errors() -> Iterator[None]:
    """What a database without our schema, or that refuses it, says, as an error of ours."""
    import psycopg
    import sqlalchemy as sa

    try:
        yield
    except (psycopg.errors.UndefinedTable, psycopg.errors.InvalidSchemaName) as error:
        raise StoreRejected(
            "postgres", "the database holds no ledger, or an older one: run `apex migrate`"
        ) from error
    except sa.exc.OperationalError as error:
        raise StoreUnavailable("postgres", str(error.orig)) from error
    except sa.exc.DBAPIError as error:  # without SQLAlchemy's own text, which quotes the statement
        raise StoreRejected("postgres", f"while migrating: {error.orig}") from error


@contextmanager
def warnings_on_stderr() -> Iterator[None]:
    """Log warnings and worse to stderr; stdout is for what the command prints."""
    configure_logs(level=logging.WARNING)
    logger = logging.getLogger("apex_dagster")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.addHandler(handler)
    propagates, logger.propagate = logger.propagate, False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagates
