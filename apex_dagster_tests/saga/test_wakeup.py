"""Whoever waits is woken by the commit that he waits for, and by nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from apex_dagster.composition import Application
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.wakeup import ENDED, PENDING, Listener, announce_pending
from apex_dagster_tests.documents import submission


@pytest.fixture
def ended(postgres_database: str) -> Iterator[Listener]:
    """Listens from now on to sagas that end."""
    listener = Listener(postgres_database, ENDED)
    assert listener.wait(0) is None  # the first time, everything may be news
    yield listener
    listener.close()


def test_a_saga_is_announced_once_its_version_is_published(
    app: Application, ended: Listener, unique: str
) -> None:
    [opened] = app.ingestion.open([submission(unique)], owner="me").alive
    assert ended.wait(0.1) == []
    app.ingestion.commit(app.ingestion.extract([opened]).alive, owner="me")
    assert ended.wait(10) == [opened.saga_id]
    assert ended.wait(0.1) == []


def test_a_saga_that_is_undone_is_announced(app: Application, ended: Listener, unique: str) -> None:
    with armed("started:qdrant_write=unavailable"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="me")
    assert saga.status == "compensated"
    assert ended.wait(10) == [saga.saga_id]


def test_a_version_that_could_not_be_published_is_announced_twice(
    app: Application, ended: Listener, unique: str
) -> None:
    """Its caller gets an answer now; it is published later."""
    [opened] = app.ingestion.open([submission(unique)], owner="me").alive
    staged = app.ingestion.stage("redis_write", [opened]).alive
    publish = app.stores["redis"].publish
    app.stores["redis"].publish = refuse  # type: ignore[method-assign]
    [saga] = app.ingestion.commit(staged, owner="me").completed
    assert (saga.status, saga.published_at) == ("completed", None)
    assert ended.wait(10) == [saga.saga_id]
    app.stores["redis"].publish = publish  # type: ignore[method-assign]
    app.engine.publish([saga])
    assert ended.wait(10) == [saga.saga_id]


def test_who_waits_is_not_woken_by_what_is_rolled_back(
    app: Application, postgres_database: str
) -> None:
    listener = Listener(postgres_database, PENDING)
    assert listener.wait(0) is None
    with app.ledger.transaction() as tx, tx.transaction():
        announce_pending(tx)
        raise psycopg.Rollback
    assert listener.wait(0.2) == []
    with app.ledger.transaction() as tx:
        announce_pending(tx)
        announce_pending(tx)
    assert listener.wait(10) == [""]
    listener.close()


def test_a_lost_connection_is_made_again_and_said(ended: Listener, postgres_database: str) -> None:
    with psycopg.connect(postgres_database, autocommit=True) as other:
        other.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE application_name = %s AND datname = current_database()",
            [f"listen_{ENDED}"],
        )
        assert ended.wait(10) is None  # lost
        assert ended.wait(10) is None  # made again: something may have been missed
        other.execute("SELECT pg_notify(%s, 'a')", [ENDED])
        assert ended.wait(10) == ["a"]


def refuse(publications: object) -> None:
    raise ValueError("not today")
