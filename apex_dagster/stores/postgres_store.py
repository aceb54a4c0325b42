"""PostgreSQL's part: document_versions and chunks of schema `apex`, beside the ledger.

It is the one store that sees the ledger's rows, so here staging, undo and removal are exact: each
checks the saga or the pointer in its own transaction. `documents`, the pointer, is the ledger's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast
from uuid import UUID

import numpy as np
from pgvector import HalfVector
from pgvector.psycopg.halfvec import register_halfvec_info
from psycopg import sql
from psycopg.types import TypeInfo

from apex_dagster.errors import StageMissing, StoreRejected
from apex_dagster.records import (
    Chunk,
    Extraction,
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
    item_ids,
)
from apex_dagster.sql import load_queries
from apex_dagster.stores.contents import (
    Contents,
    Items,
    expected_in_postgres,
    halves,
    items_in_postgres,
)
from apex_dagster.stores.fitness import (
    Fault,
    embedding_fault,
    metadata_fault,
    metadata_json,
    refuse_unfit,
    text_fault,
)
from apex_dagster.stores.postgres_connection import STORE, BoundedConnection, BoundedPool
from apex_dagster.stores.postgres_search import PostgresSnapshot
from apex_dagster.stores.reading import LiveHeading, LiveVersion

_SQL = load_queries("apex_dagster.stores", "postgres.sql")
_CHUNK_TYPES = ["uuid", "text", "text", "int4", "text", "int4", "int4", "int4", "text", "halfvec"]
_ANY_STATUS = ["staged", "committed", "superseded"]
_INDEX_TIMEOUT_S = 3600.0


class PostgresStore:
    """Documents and chunks with full text and half-precision embeddings."""

    name = STORE

    def __init__(
        self, url: str, *, embedding_dim: int, timeout_s: float = 30.0, pool_size: int = 4
    ) -> None:
        self._embedding_dim = embedding_dim
        self._pool = BoundedPool(url, timeout_s=timeout_s, size=pool_size)

    def prepare(self) -> None:
        """Create the index on document embeddings of this dimension, unless it is there.

        Raises StoreRejected when the schema is missing or pgvector is older than 0.7.
        """
        index = f"document_versions_embedding_{self._embedding_dim}"
        with self._pool.connection(timeout_s=_INDEX_TIMEOUT_S) as connection:
            _know_halfvec(connection)
            connection.execute(_SQL["lock_index"])
            exists = connection.execute(_SQL["index_exists"], {"index": f"apex.{index}"}).fetchone()
            if exists != (True,):
                create = sql.SQL(_SQL["create_index"])
                dim = sql.Literal(self._embedding_dim)
                connection.execute(create.format(index=sql.Identifier(index), dim=dim))

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        """As the protocol says. A saga that may no longer stage gets a receipt of 0 chunks."""
        refuse_unfit(STORE, batch, self._fault)
        by_saga = {version.ref.saga_id: version for version in batch}
        with self._pool.connection() as connection:
            _know_halfvec(connection)
            inserted = _insert_versions(connection, [by_saga[s] for s in sorted(by_saga)])
            _copy_chunks(connection, [by_saga[saga_id] for saga_id in inserted])
            held = {s: len(by_saga[s].extraction.chunks) for s in inserted}
            if len(inserted) < len(by_saga):
                held |= _counts(connection, "staged_counts", saga_ids=list(by_saga))
        return [_receipt(v.ref.saga_id, held.get(v.ref.saga_id, 0)) for v in batch]

    def publish(self, batch: Sequence[Publication]) -> None:
        """As the protocol says. Only the saga that the document's pointer names is committed."""
        with self._pool.connection() as connection:
            pointers = _lock_pointers(connection, [p.ref for p in batch])
            current = [p for p in batch if not _is_overtaken(p.ref, pointers)]
            wanted = {p.ref.saga_id for p in current}
            old = {p.replaced.saga_id for p in current if p.replaced}
            there = _lock_versions(connection, wanted | old)
            live = wanted & there & {saga_id for saga_id, _ in pointers.values()}
            retired = {p.replaced.saga_id for p in current if p.replaced and p.ref.saga_id in live}
            _mark(connection, live, source="staged", target="committed")
            _mark(connection, retired - live, source="committed", target="superseded")
        if missing := sorted(wanted - there):
            raise StageMissing(STORE, missing)  # the others are published, which is safe to repeat

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, ["staged"])

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, _ANY_STATUS)

    def restore(self, batch: Sequence[StagedVersion]) -> None:
        """As the protocol says, in one transaction. Only versions that the pointers name."""
        with self._pool.connection() as connection:
            _know_halfvec(connection)
            pointers = _lock_pointers(connection, [version.ref for version in batch])
            live = {saga_id for saga_id, _ in pointers.values()}
            wanted = {v.ref.saga_id: v for v in batch if v.ref.saga_id in live}
            _lock_versions(connection, set(wanted))
            chunk_ids = [chunk_id for v in wanted.values() for chunk_id in _chunk_ids(v)]
            doomed = {"saga_ids": sorted(wanted), "chunk_ids": chunk_ids}
            connection.execute(_SQL["delete_copies"], doomed)
            connection.execute(_SQL["delete_versions"], doomed | {"statuses": _ANY_STATUS})
            inserted = _insert_versions(connection, [wanted[s] for s in sorted(wanted)])
            _copy_chunks(connection, [wanted[saga_id] for saga_id in inserted])
            _mark(connection, set(inserted), source="staged", target="committed")

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        removed = {removal.ref.saga_id: 0 for removal in batch}
        with self._pool.connection() as connection:
            pointers = _lock_pointers(connection, [removal.ref for removal in batch])
            rows = connection.execute(_SQL["older_sagas"], _removal_columns(batch)).fetchall()
            live = {saga_id for saga_id, _ in pointers.values()}
            older = {saga_id: deletion for saga_id, deletion in rows if saga_id not in live}
            _lock_versions(connection, set(older))
            doomed = {"saga_ids": sorted(older), "statuses": _ANY_STATUS}
            for saga_id, count in _counts(connection, "delete_chunks", **doomed).items():
                removed[older[saga_id]] += count
            connection.execute(_SQL["delete_versions"], doomed)
        return removed

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        with self._pool.connection() as connection:
            rows = connection.execute(_SQL["count_older"], _removal_columns(batch)).fetchall()
        paths = ("versions", "chunks", "full_text")
        shown = {row[0]: dict(zip(paths, row[1:], strict=True)) for row in rows}
        return {removal.ref.saga_id: shown[removal.ref.saga_id] for removal in batch}

    def digest(self, document_id: str, version: int) -> str | None:
        with self._pool.connection() as connection:
            cursor = connection.execute(
                _SQL["digest"], {"document_id": document_id, "version": version}
            )
            row = cursor.fetchone()
        return None if row is None else cast("str | None", row[0])

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        with self._pool.connection() as connection:
            counts = _counts(connection, "holdings", saga_ids=[ref.saga_id for ref in refs])
        return {ref.saga_id: counts.get(ref.saga_id, 0) for ref in refs}

    def contents(self, document_ids: Sequence[str]) -> Contents:
        with self._pool.connection() as connection:
            _know_halfvec(connection)
            connection.execute(_SQL["read_snapshot"])
            wanted = {"document_ids": list(document_ids)}
            versions = _rows(connection, "version_contents", wanted)
            chunks = _rows(connection, "chunk_contents", wanted)
        return {
            saga_id: items_in_postgres(
                next(iter(versions.get(saga_id, [])), None), chunks.get(saga_id, [])
            )
            for saga_id in versions.keys() | chunks.keys()
        }

    def inventory(self, *, page: int) -> Iterator[list[VersionRef]]:
        after = ""
        while True:
            with self._pool.connection() as connection:
                rows = connection.execute(_SQL["inventory"], {"after": after, "limit": page})
                refs = [VersionRef(document_id=d, version=v, saga_id=s) for s, d, v in rows]
            if not refs:
                return
            yield refs
            after = refs[-1].saga_id

    def expected(self, version: StagedVersion) -> Items:
        return expected_in_postgres(version)

    def read_live(self, document_id: str) -> LiveVersion | None:
        """The version that the pointer names, as it is at one moment; None where none is live."""
        with self._pool.connection() as connection:
            connection.execute(_SQL["read_snapshot"])
            pointer = connection.execute(_SQL["read_pointer"], {"document_id": document_id})
            if (row := pointer.fetchone()) is None:
                return None
            saga_id, version, title, collection, metadata, content_hash, receipts = row
            chunks = connection.execute(_SQL["read_chunks"], {"saga_id": saga_id}).fetchall()
        return LiveVersion(
            ref=VersionRef(document_id=document_id, version=version, saga_id=saga_id),
            title=title,
            collection=collection,
            metadata=metadata,
            content_hash=content_hash,
            chunks=tuple(Chunk(ordinal=o, text=t, start=s, end=e) for o, t, s, e in chunks),
            receipts=receipts,
        )

    def list_live(
        self, *, after: str = "", collection: str | None = None, limit: int
    ) -> list[LiveHeading]:
        """Live versions by document_id, those beyond `after`, as they are at one moment."""
        wanted = {"after": after, "collection": collection, "limit": limit}
        with self._pool.connection() as connection:
            rows = connection.execute(_SQL["list_live"], wanted).fetchall()
        return [
            LiveHeading(
                ref=VersionRef(document_id=document_id, version=version, saga_id=saga_id),
                title=title,
                collection=collection,
                live_since=live_since,
            )
            for document_id, version, saga_id, title, collection, live_since in rows
        ]

    @contextmanager
    def search_snapshot(self) -> Iterator[PostgresSnapshot]:
        """One moment of all tables, for the length of the block."""
        with self._pool.connection() as connection:
            connection.execute(_SQL["read_snapshot"])
            yield PostgresSnapshot(connection)

    def ping(self) -> None:
        with self._pool.connection() as connection:
            connection.execute("SELECT 1")

    def close(self) -> None:
        self._pool.close()

    def _remove(self, batch: Sequence[VersionRef], statuses: list[str]) -> Mapping[SagaId, int]:
        """Remove these sagas' rows of these statuses; never those of a saga that a pointer names,
        which are still `staged` between the pivot and its publish."""
        with self._pool.connection() as connection:
            pointers = _lock_pointers(connection, batch)
            live = {saga_id for saga_id, _ in pointers.values()}
            removable = {ref.saga_id for ref in batch} - live
            _lock_versions(connection, removable)
            doomed = {"saga_ids": sorted(removable), "statuses": statuses}
            removed = _counts(connection, "delete_chunks", **doomed)
            connection.execute(_SQL["delete_versions"], doomed)
        return {ref.saga_id: removed.get(ref.saga_id, 0) for ref in batch}

    def _fault(self, extraction: Extraction) -> Fault:
        names = (
            extraction.document_id,
            extraction.title,
            extraction.collection,
            extraction.content_hash,
            extraction.embedding_model,
        )
        return (
            embedding_fault(extraction, self._embedding_dim, np.float16)
            or text_fault(names, nul_allowed=False)
            or text_fault((chunk.text for chunk in extraction.chunks), nul_allowed=False)
            or metadata_fault(extraction.metadata, nul_allowed=False)
        )


_Pointers = Mapping[str, tuple[SagaId | None, int | None]]


def _insert_versions(
    connection: BoundedConnection, versions: Sequence[StagedVersion]
) -> list[SagaId]:
    extractions = [version.extraction for version in versions]
    columns = {
        "saga_ids": [version.ref.saga_id for version in versions],
        "document_ids": [version.ref.document_id for version in versions],
        "versions": [version.ref.version for version in versions],
        "titles": [extraction.title for extraction in extractions],
        "collections": [extraction.collection for extraction in extractions],
        "metadata": [metadata_json(extraction.metadata) for extraction in extractions],
        "content_hashes": [extraction.content_hash for extraction in extractions],
        "embedding_models": [extraction.embedding_model for extraction in extractions],
        "embeddings": [HalfVector(extraction.document_embedding()) for extraction in extractions],
        "chunk_counts": [len(extraction.chunks) for extraction in extractions],
    }
    return [row[0] for row in connection.execute(_SQL["insert_versions"], columns)]


def _copy_chunks(connection: BoundedConnection, versions: Sequence[StagedVersion]) -> None:
    if not versions:
        return
    with connection.cursor() as cursor, cursor.copy(_SQL["copy_chunks"]) as copy:
        copy.set_types(_CHUNK_TYPES)
        for version in versions:
            for row in _chunk_rows(version):
                copy.write_row(row)


def _chunk_rows(version: StagedVersion) -> Iterator[tuple[Any, ...]]:
    ref, chunks = version.ref, version.extraction.chunks
    halves = version.extraction.embeddings.astype(np.float16)
    for chunk_id, chunk, half in zip(_chunk_ids(version), chunks, halves, strict=True):
        owner = (chunk_id, ref.saga_id, ref.document_id, ref.version, "staged")
        yield (*owner, chunk.ordinal, chunk.start, chunk.end, chunk.text, HalfVector(half))


def _chunk_ids(version: StagedVersion) -> Sequence[UUID]:
    chunks = version.extraction.chunks
    return item_ids(version.ref.saga_id, "chunk", (chunk.ordinal for chunk in chunks))


def _lock_pointers(connection: BoundedConnection, refs: Sequence[VersionRef]) -> _Pointers:
    document_ids = [ref.document_id for ref in refs]
    rows = connection.execute(_SQL["lock_pointers"], {"document_ids": document_ids})
    return {document_id: (saga_id, version) for document_id, saga_id, version in rows}


def _removal_columns(batch: Sequence[Removal]) -> dict[str, object]:
    refs = [removal.ref for removal in batch]
    return {
        "deletions": [ref.saga_id for ref in refs],
        "document_ids": [ref.document_id for ref in refs],
        "versions": [ref.version for ref in refs],
    }


def _is_overtaken(ref: VersionRef, pointers: _Pointers) -> bool:
    _, decided = pointers.get(ref.document_id, (None, None))
    return decided is not None and decided > ref.version


def _lock_versions(connection: BoundedConnection, saga_ids: set[SagaId]) -> set[SagaId]:
    rows = connection.execute(_SQL["lock_versions"], {"saga_ids": sorted(saga_ids)})
    return {row[0] for row in rows}


def _mark(
    connection: BoundedConnection, saga_ids: set[SagaId], *, source: str, target: str
) -> None:
    if saga_ids:
        change = {"saga_ids": sorted(saga_ids), "source": source, "target": target}
        connection.execute(_SQL["mark_versions"], change)
        connection.execute(_SQL["mark_chunks"], change)


def _counts(connection: BoundedConnection, query: str, **parameters: object) -> dict[SagaId, int]:
    return dict(connection.execute(_SQL[query], parameters).fetchall())


def _rows(
    connection: BoundedConnection, query: str, values: Mapping[str, object]
) -> dict[SagaId, list[dict[str, Any]]]:
    """Rows by saga, their vectors as the bytes of their floats."""
    cursor = connection.execute(_SQL[query], values)
    names = [column.name for column in cursor.description or ()]
    rows: dict[SagaId, list[dict[str, Any]]] = {}
    for values_of_row in cursor.fetchall():
        row = dict(zip(names, values_of_row, strict=True))
        row["embedding"] = halves(row["embedding"].to_numpy())
        rows.setdefault(row["saga_id"], []).append(row)
    return rows


def _know_halfvec(connection: BoundedConnection) -> None:
    """Teach the connection pgvector's type; its number differs between databases."""
    if connection.adapters.types.get("halfvec") is None:
        info = TypeInfo.fetch(connection, "halfvec")
        if info is None:
            raise StoreRejected(STORE, "the database has no pgvector, or one older than 0.7")
        register_halfvec_info(connection, info)


def _receipt(saga_id: SagaId, chunks: int) -> Receipt:
    return Receipt(store=STORE, saga_id=saga_id, items={"chunks": chunks})
