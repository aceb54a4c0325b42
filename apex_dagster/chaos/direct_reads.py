"""Reads that go to PostgreSQL directly: committed rows only. Exact there, says the design, so each
has to show one whole version that became live, and none goes back in time."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from apex_dagster.chaos.fingerprints import rows
from apex_dagster.chaos.history import Pivot
from apex_dagster.records import Chunk
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.chaos", "direct_reads.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class DirectRead:
    """What one statement returned for one document."""

    document_id: str
    began: float  # seconds since 1970
    ended: float
    versions: Mapping[int, str]  # version -> fingerprint of its rows


def direct_read(connection: psycopg.Connection[dict[str, Any]], document_id: str) -> DirectRead:
    """One statement, so one snapshot. Raises psycopg.OperationalError."""
    began = time.time()
    found = connection.execute(_SQL["committed"], {"document_id": document_id}).fetchall()
    versions = {row["version"] for row in found}
    return DirectRead(
        document_id=document_id,
        began=began,
        ended=time.time(),
        versions={
            version: _fingerprint([row for row in found if row["version"] == version])
            for version in versions
        },
    )


def violations(pivots: Iterable[Pivot], reads: Iterable[DirectRead]) -> list[str]:
    """What is wrong with the reads; nothing if each is in order, and none goes back in time."""
    lives = {(pivot.ref.document_id, pivot.ref.version): pivot for pivot in pivots}
    newest: dict[str, tuple[float, int]] = {}  # document -> end of the read, version
    found = []
    for read in sorted(reads, key=lambda read: read.began):
        for fault in _faults(read, lives):
            found.append(f"{read.document_id}, direct read {read.began:.6f}: {fault}")
        version = max(read.versions, default=0)
        ended, before = newest.get(read.document_id, (0.0, 0))
        if version < before and ended < read.began:
            found.append(
                f"{read.document_id}, direct read {read.began:.6f}: version {version or 'none'}"
                f" after version {before}"
            )
        if version > before:
            newest[read.document_id] = (read.ended, version)
    return found


def _faults(read: DirectRead, lives: Mapping[tuple[str, int], Pivot]) -> Iterator[str]:
    if len(read.versions) > 1:
        yield f"versions {sorted(read.versions)} are committed at once"
    for version, fingerprint in read.versions.items():
        pivot = lives.get((read.document_id, version))
        if pivot is None:
            yield f"version {version} is committed, which was never live"
        elif read.ended < pivot.began:
            yield f"version {version} is committed before it was live"
        elif fingerprint != pivot.content.get("postgres"):
            yield f"version {version} shows other content than was submitted"


def _fingerprint(found: Sequence[Mapping[str, Any]]) -> str:
    version = found[0]
    chunks = [
        Chunk(
            ordinal=row["ordinal"], text=row["text"], start=row["char_start"], end=row["char_end"]
        )
        for row in found
        if row["ordinal"] is not None
    ]
    if version["ingestion_status"] != "committed" or len(chunks) != version["chunk_count"]:
        return "half of it is committed"
    return rows(version["title"], version["content_hash"], chunks)
