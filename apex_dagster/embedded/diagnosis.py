"""What is wrong with the four stores, embedded or outside, and what to do about it."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import SecretStr

from apex_dagster.embedded.stack import ALL, ServerStatus, Stack, outside_names, server_status
from apex_dagster.settings import Settings

TIMEOUT_S = 5
QDRANT_MIN = (1, 18)  # the first with update_mode, without which a late write could harm


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One store as `apex doctor` shows it."""

    store: str
    kind: Literal["embedded", "outside"]
    up: bool
    address: str | None  # without password
    version: str | None  # as the server itself says
    pid: int | None = None
    data_dir: Path | None = None
    problem: str | None = None
    fix: str | None = None


class Unusable(Exception):
    """The server answers, but not as we need it."""


def diagnose(settings: Settings) -> list[Diagnosis]:
    """Ask all four at once; nothing is started. Takes about 5 s where a server hangs."""
    stack, outside = Stack(settings.home), outside_names(settings)

    def one(name: str) -> Diagnosis:
        if name in outside:
            return diagnose_outside(name, settings)
        return diagnose_embedded(server_status(stack.servers[name]))

    with ThreadPoolExecutor(len(ALL)) as pool:
        return list(pool.map(one, ALL))


def diagnose_embedded(status: ServerStatus) -> Diagnosis:
    """What to do about an embedded server."""
    fix = None
    if status.problem:
        # One that runs and does not answer has to be stopped first: `up` would leave it alone.
        fix = "apex up" if status.pid is None else "apex down && apex up"
    return Diagnosis(
        store=status.name,
        kind="embedded",
        up=status.up,
        address=status.address,
        version=status.version,
        pid=status.pid,
        data_dir=status.data_dir,
        problem=status.problem,
        fix=fix,
    )


def diagnose_outside(name: str, settings: Settings) -> Diagnosis:
    """Log in to an outside server as the stores would."""
    ask, variable, address = OUTSIDE[name](settings)
    version = problem = fix = None
    try:
        version = ask()
    except Unusable as error:
        problem, fix = str(error), f"upgrade the server that {variable} names, or unset it"
    except Exception as error:  # whatever a driver says: the reader has to see it
        problem = f"{type(error).__name__}: {error}".strip()
        fix = f"check {variable} and that the server accepts connections from here"
    return Diagnosis(
        store=name,
        kind="outside",
        up=problem is None,
        address=without_password(address),
        version=version,
        problem=problem,
        fix=fix,
    )


def without_password(address: str) -> str:
    """Scheme, host, port and path of an address."""
    parts = urlsplit(address)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


Question = tuple[Callable[[], str], str, str]  # how to ask, the variable, the address


def ask_neo4j(settings: Settings) -> Question:
    uri, password = settings.neo4j_uri or "", settings.neo4j_password

    def ask() -> str:
        from neo4j import GraphDatabase

        if password is None:
            raise Unusable("APEX_NEO4J_URI is set without APEX_NEO4J_PASSWORD")
        auth = (settings.neo4j_user, password.get_secret_value())
        with GraphDatabase.driver(
            uri, auth=auth, connection_timeout=TIMEOUT_S, max_transaction_retry_time=0
        ) as driver:
            records, _, _ = driver.execute_query(
                "CALL dbms.components()", database_=settings.neo4j_database
            )
        return f"{records[0]['versions'][0]} {records[0]['edition']}"

    return ask, "APEX_NEO4J_URI", uri


def ask_postgres(settings: Settings) -> Question:
    url = reveal(settings.postgres_url)

    def ask() -> str:
        import psycopg

        with psycopg.connect(url, connect_timeout=TIMEOUT_S) as connection:
            row = connection.execute(
                "SELECT current_setting('server_version'), (SELECT default_version"
                " FROM pg_available_extensions WHERE name = 'vector')"
            ).fetchone()
        assert row is not None
        version, vector = row
        if vector is None:
            raise Unusable(f"PostgreSQL {version} has no pgvector to install")
        return f"{version}, pgvector {vector}"

    return ask, "APEX_POSTGRES_URL", url


def ask_qdrant(settings: Settings) -> Question:
    url, key = settings.qdrant_url or "", settings.qdrant_api_key

    def ask() -> str:
        headers = {"api-key": key.get_secret_value()} if key else {}
        request = urllib.request.Request(url.rstrip("/") + "/", headers=headers)  # noqa: S310
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as response:  # noqa: S310
            version = str(json.load(response)["version"])
        if tuple(int(part) for part in version.split(".")[:2]) < QDRANT_MIN:
            raise Unusable(f"Qdrant {version} is older than 1.18, which brought update_mode")
        return version

    return ask, "APEX_QDRANT_URL", url


def ask_redis(settings: Settings) -> Question:
    url = reveal(settings.redis_url)

    def ask() -> str:
        import redis

        with redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            return str(client.info("server")["redis_version"])

    return ask, "APEX_REDIS_URL", url


def reveal(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""


OUTSIDE: dict[str, Callable[[Settings], Question]] = {
    "neo4j": ask_neo4j,
    "postgres": ask_postgres,
    "qdrant": ask_qdrant,
    "redis": ask_redis,
}
