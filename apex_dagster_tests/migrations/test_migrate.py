from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import psycopg
import pytest

from apex_dagster.migrations.migrate import migrate
from apex_dagster_tests.conftest import run_sql

TABLES = {
    "alembic_version",
    "alert",
    "api_key",
    "audit_anchor",
    "audit_head",
    "breaker",
    "chunks",
    "deletion_receipt",
    "document_versions",
    "documents",
    "extraction",
    "quarantine",
    "retry",
    "saga_event",
    "saga_state",
    "submission",
    "sweep",
}
# The address comes on standard input: it holds a password, and a command line is public.
MIGRATE_IN_A_PROCESS = """
import sys
from apex_dagster.migrations.migrate import migrate
print("ready", flush=True)
migrate(sys.stdin.read())
"""


@pytest.fixture
def url(stack, unique) -> Iterator[str]:
    """The address of an empty database."""
    run_sql(stack, f"CREATE DATABASE empty_{unique}")
    yield stack.postgres_database(f"empty_{unique}").get_secret_value()
    run_sql(stack, f"DROP DATABASE empty_{unique} WITH (FORCE)")


@pytest.fixture
def connection(url) -> Iterator[psycopg.Connection]:
    with psycopg.connect(url, autocommit=True) as connection:
        yield connection


def tables(connection: psycopg.Connection) -> set[str]:
    rows = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'apex'")
    return {name for (name,) in rows}


def test_an_empty_database_gets_every_table(url, connection):
    migrate(url)
    assert tables(connection) == TABLES


def test_migrating_again_changes_nothing(url, connection):
    migrate(url)
    connection.execute("INSERT INTO apex.documents (document_id) VALUES ('kept')")
    migrate(url)
    assert connection.execute("SELECT document_id FROM apex.documents").fetchall() == [("kept",)]


def test_four_processes_at_once_migrate_once(url, connection):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MIGRATE_IN_A_PROCESS],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [process.stdout.readline() for process in processes] == ["ready\n"] * 4
    for process in processes:
        process.stdin.write(url)
        process.stdin.close()
    errors = [process.stderr.read() for process in processes]
    assert [process.wait(60) for process in processes] == [0, 0, 0, 0], errors
    assert tables(connection) == TABLES
    [versions] = connection.execute("SELECT count(*) FROM apex.alembic_version").fetchone()
    assert versions == 1


def test_a_failed_migration_leaves_nothing(url, connection):
    connection.execute("CREATE SCHEMA apex")
    connection.execute("CREATE TABLE apex.chunks ()")  # in the way of the last table but one
    with pytest.raises(Exception, match="already exists"):
        migrate(url)
    assert tables(connection) == {"chunks"}


@pytest.mark.parametrize("statement", ["UPDATE apex.saga_event SET event = 'x'",
                                       "DELETE FROM apex.saga_event",
                                       "TRUNCATE apex.saga_event"])  # fmt: skip
def test_the_audit_log_is_append_only(url, connection, statement):
    migrate(url)
    connection.execute(
        "INSERT INTO apex.saga_event VALUES ('s', 1, 'opened', NULL, 'pending', 0, 1.5, '{}',"
        " now(), apex.event_hash('', 's', 1, 'opened', NULL, 'pending', 0, 1.5, '{}', now()))"
    )
    with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
        connection.execute(statement)
    [events] = connection.execute("SELECT count(*) FROM apex.saga_event").fetchone()
    assert events == 1


@pytest.mark.parametrize("verb", ["UPDATE {} SET anchor_seq = 2", "DELETE FROM {}", "TRUNCATE {}"])
def test_anchors_and_their_heads_are_append_only(url, connection, verb):
    migrate(url)
    connection.execute("INSERT INTO apex.audit_anchor VALUES (1, '1', 1, now(), '')")
    connection.execute("INSERT INTO apex.audit_head VALUES ('s', 1, '', 1)")
    for table in ("apex.audit_head", "apex.audit_anchor"):
        cascade = " CASCADE" if verb.startswith("TRUNCATE") else ""
        with pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"):
            connection.execute(verb.format(table) + cascade)
