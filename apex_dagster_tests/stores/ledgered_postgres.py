"""PostgreSQL for the tests of its adapter: the ledger's part, and a way past the adapter."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import psycopg
from psycopg import sql

from apex_dagster.records import (
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
)
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster_tests.stores.corpus import staged_version

DIM = 384


class LedgerRows:
    """Writes of the ledger's rows what a store looks at, without the rest of the ledger."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def open(self, ref: VersionRef, status: str = "in_progress") -> None:
        """A saga that may stage, unless it has been completed."""
        self.connection.execute(
            "INSERT INTO apex.documents (document_id) VALUES (%s) ON CONFLICT DO NOTHING",
            [ref.document_id],
        )
        # Two statements: DO UPDATE watches one unique index, and threads that open the same saga at
        # once meet in the other.
        self.connection.execute(
            "INSERT INTO apex.saga_state"
            " (saga_id, kind, document_id, version, content_hash, status)"
            " VALUES (%s, 'ingest', %s, %s, %s, %s) ON CONFLICT DO NOTHING",
            [ref.saga_id, ref.document_id, ref.version, ref.saga_id, status],
        )
        self.connection.execute(
            "UPDATE apex.saga_state SET status = %s WHERE saga_id = %s AND status <> 'completed'",
            [status, ref.saga_id],
        )

    def pivot(self, ref: VersionRef) -> None:
        """Complete the saga; the pointer moves forward only."""
        self.open(ref)
        self.connection.execute(
            "UPDATE apex.saga_state SET status = 'completed' WHERE saga_id = %s", [ref.saga_id]
        )
        self.connection.execute(
            "UPDATE apex.documents SET live_version = %s, live_saga_id = %s,"
            " tombstone_version = NULL, tombstone_saga_id = NULL"
            " WHERE document_id = %s AND coalesce(live_version, tombstone_version, 0) < %s",
            [ref.version, ref.saga_id, ref.document_id, ref.version],
        )

    def forget(self, ref: VersionRef) -> None:
        """As a delete saga leaves it: nothing is live."""
        self.connection.execute(
            "UPDATE apex.documents SET live_version = NULL, live_saga_id = NULL"
            " WHERE live_saga_id = %s",
            [ref.saga_id],
        )

    def bury(self, ref: VersionRef) -> None:
        """As the pivot of a deletion leaves it."""
        self.open(ref)
        self.connection.execute(
            "UPDATE apex.documents SET live_version = NULL, live_saga_id = NULL,"
            " tombstone_version = %s, tombstone_saga_id = %s"
            " WHERE document_id = %s AND coalesce(live_version, tombstone_version, 0) < %s",
            [ref.version, ref.saga_id, ref.document_id, ref.version],
        )

    def compensate(self, ref: VersionRef) -> None:
        self.connection.execute(
            "UPDATE apex.saga_state SET status = 'compensating'"
            " WHERE saga_id = %s AND status = 'in_progress'",
            [ref.saga_id],
        )


class LedgeredStore(PostgresStore):
    """Does before each call what the saga engine does in the ledger, so that a suite which knows no
    ledger can run. The store's own checks are all in force."""

    def __init__(self, url: str, ledger_url: str, **options: float) -> None:
        super().__init__(url, embedding_dim=DIM, **options)  # type: ignore[arg-type]
        self._ledger_url = ledger_url

    @contextmanager
    def _ledger(self) -> Iterator[LedgerRows]:
        with psycopg.connect(self._ledger_url, autocommit=True) as connection:
            yield LedgerRows(connection)

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        with self._ledger() as ledger:
            for version in batch:
                ledger.open(version.ref)
        return super().stage(batch)

    def publish(self, batch: Sequence[Publication]) -> None:
        with self._ledger() as ledger:
            for publication in batch:
                ledger.pivot(publication.ref)
        super().publish(batch)

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        with self._ledger() as ledger:
            for ref in batch:
                ledger.compensate(ref)
        return super().revert(batch)

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        with self._ledger() as ledger:
            for removal in batch:
                ledger.bury(removal.ref)
        return super().remove(batch)

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        with self._ledger() as ledger:
            for removal in batch:
                ledger.open(removal.ref)
        return super().read_back(batch)

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        with self._ledger() as ledger:
            for ref in batch:
                ledger.forget(ref)
        return super().discard(batch)


class PostgresProbe:
    """The tables, by a connection of the test's own."""

    def __init__(self, connection: psycopg.Connection) -> None:
        self.connection = connection

    def totals(self) -> Mapping[str, int]:
        tables = ("document_versions", "chunks")
        return {table: self.count(sql.SQL("TRUE"), table=table) for table in tables}

    def count(self, condition: sql.Composable, *, table: str) -> int:
        query = sql.SQL("SELECT count(*) FROM apex.{} WHERE {}")
        row = self.connection.execute(query.format(sql.Identifier(table), condition)).fetchone()
        assert row
        return int(row[0])

    def statuses(self, ref: VersionRef) -> Mapping[str, int]:
        rows = self.connection.execute(
            "SELECT ingestion_status FROM apex.document_versions WHERE saga_id = %(saga_id)s"
            " UNION ALL SELECT ingestion_status FROM apex.chunks WHERE saga_id = %(saga_id)s",
            {"saga_id": ref.saga_id},
        )
        return Counter(status for (status,) in rows)

    def alterations(self, ref: VersionRef) -> Iterable[Callable[[], None]]:
        half = "('[' || repeat('0.5,', vector_dims(embedding) - 1) || '0.5]')::halfvec"
        version, chunk = "document_versions WHERE", "chunks WHERE ordinal = 3 AND"
        for table, change in (
            (version, "title = title || ' '"),
            (version, "metadata = metadata || '{\"pages\": 1.0}'"),
            (version, "collection = 'another'"),
            (version, "content_hash = 'x'"),
            (version, "embedding_model = 'x'"),
            (version, "chunk_count = 7"),
            (version, f"embedding = {half}"),
            (version, "ingestion_status = 'superseded'"),
            (chunk, "text = text || chr(8203)"),
            (chunk, "char_start = char_start + 1"),
            (chunk, "char_end = char_end + 1"),
            (chunk, "ingestion_status = 'superseded'"),
            (chunk, f"embedding = {half}"),
            (chunk, "ordinal = 99"),
        ):
            yield lambda table=table, change=change: self.alter(table, change, ref)
        yield lambda: self.remove_last_chunk(ref)

    def alter(self, table: str, change: str, ref: VersionRef) -> None:
        name, _, condition = table.partition(" WHERE")
        statement = f"UPDATE apex.{name} SET {change} WHERE {condition} saga_id = %s"
        assert self.connection.execute(statement, [ref.saga_id]).rowcount == 1

    def remove_last_chunk(self, ref: VersionRef) -> None:
        statement = "DELETE FROM apex.chunks WHERE saga_id = %s AND ordinal = 7"
        assert self.connection.execute(statement, [ref.saga_id]).rowcount == 1


def unique_version() -> StagedVersion:
    return staged_version(f"t{uuid.uuid4().hex[:12]}", vocabulary=uuid.uuid4().hex[:8])


def compensate(url: str, ref: VersionRef) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        LedgerRows(connection).compensate(ref)


def waiting_for_locks(connection: psycopg.Connection) -> int:
    row = connection.execute(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    ).fetchone()
    assert row
    return int(row[0])


def wait_until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "the condition never held"
        time.sleep(0.02)
