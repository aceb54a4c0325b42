"""Reads through the project see one whole version, whatever is written meanwhile."""

from __future__ import annotations

import logging
import os

import pytest

from apex_dagster.chaos.history import violations
from apex_dagster.composition import Application
from apex_dagster.errors import IncompleteVersion
from apex_dagster.ingestion.read import DocumentReader
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.stores.neo4j_store import Neo4jStore
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster.stores.qdrant_store import QdrantStore
from apex_dagster.stores.redis_store import RedisStore
from apex_dagster_tests.applications import BuildApplication
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.contents import edition, seen, submitted
from apex_dagster_tests.ingestion.load import Load, SlowSnapshots

# `APEX_TEST_HISTORY_S=600 pytest apex_dagster_tests/ingestion/test_read.py` for longer.
HISTORY_S = float(os.environ.get("APEX_TEST_HISTORY_S", "10"))


def fingerprints(app: Application, document_id: str) -> dict[str, str]:
    document = app.reader.read_document(document_id)
    assert document is not None
    assert document.snapshots == 1
    return {store: part.fingerprint for store, part in seen(document).items()}


def slow_reader(app: Application, *, delay_s_max: float) -> DocumentReader:
    """Most of what can go wrong does so between its snapshot and its other questions."""
    neo4j, postgres, qdrant, redis = app.stores.values()
    assert isinstance(neo4j, Neo4jStore)
    assert isinstance(postgres, PostgresStore)
    assert isinstance(qdrant, QdrantStore)
    assert isinstance(redis, RedisStore)
    return DocumentReader(
        snapshots=SlowSnapshots(postgres, delay_s_max=delay_s_max),
        graphs=neo4j,
        points=qdrant,
        cache=redis,
        timeout_s=app.settings.read_timeout_s,
    )


def test_a_document_comes_back_from_all_four_stores(app: Application, unique: str) -> None:
    one = edition(unique, 2, shared=unique)
    app.ingestion.ingest([one], owner="test")
    assert fingerprints(app, unique) == submitted(one)


def test_no_live_version_reads_as_none(app: Application, unique: str) -> None:
    assert app.reader.read_document(unique) is None
    with armed("sent:redis_write=reject"):
        app.ingestion.ingest([submission(unique)], owner="test")
    assert app.reader.read_document(unique) is None


@pytest.mark.parametrize(
    ("point", "shown"),
    [("staged", 1), ("pivoted", 2), ("published:neo4j_write", 2), ("published:qdrant_write", 2)],
)
def test_the_pivot_alone_decides_what_is_read(
    app: Application, unique: str, point: str, shown: int
) -> None:
    editions = {number: edition(unique, number, shared=unique) for number in (1, 2)}
    app.ingestion.ingest([editions[1]], owner="test")
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([editions[2]], owner="crashed")
    assert fingerprints(app, unique) == submitted(editions[shown])


def test_a_cache_miss_takes_nothing_away(app: Application, unique: str) -> None:
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    app.stores["redis"].discard([saga.ref])
    document = app.reader.read_document(unique)
    assert document is not None
    assert document.cached is None
    assert len(document.points.texts) == len(document.version.chunks) == 3


@pytest.mark.parametrize("store", ["neo4j", "qdrant", "postgres"])
def test_a_version_that_is_not_whole_is_never_shown(
    app: Application, unique: str, store: str
) -> None:
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    if store == "postgres":  # its own removal refuses what the pointer names
        with app.ledger.transaction() as tx:
            tx.execute("DELETE FROM apex.chunks WHERE ordinal = 1")
    else:
        app.stores[store].discard([saga.ref])
    with pytest.raises(IncompleteVersion, match=store):
        app.reader.read_document(unique)


def test_readers_see_only_whole_versions_that_were_live_while_they_read(
    build_application: BuildApplication, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    # The grace is longer than a read may take: that is what makes one snapshot enough.
    times = {"lease_s": 0.5, "grace_s": 4.0, "read_timeout_s": 3.0}
    patience = {"step_attempts": 5, "undo_attempts": 8}  # Neo4j resolves deadlocks by errors
    app, reading = build_application(**times, **patience), build_application(**times)
    slow = [slow_reader(reading, delay_s_max=1.5) for _ in range(10)]
    document_ids = [f"{unique}-{index}" for index in range(5)]
    load = Load(app, document_ids, shared=unique)
    with caplog.at_level(logging.WARNING, "apex_dagster.ingestion.read"):
        load.run([reading.reader, *slow], writers=3, seconds=HISTORY_S)
    pivots = load.pivots()
    print(f"{len(load.reads)} reads, {len(pivots)} versions, {dict(load.counts)}")
    assert violations(pivots, load.reads) == []
    assert not [text for text in caplog.messages if "shows" in text]  # nothing was removed early
    assert len(pivots) > len(document_ids)
