"""What the sweep removes, when, and what it must never touch."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pydantic import SecretStr

from apex_dagster.composition import Application
from apex_dagster.errors import StoreUnavailable
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole, copies
from apex_dagster_tests.documents import submission

HOUR_S, DAY_S = 3600.0, 86400.0


def schedule(app: Application, saga_id: str) -> list[float]:
    """When a saga is to be swept: seconds after now, to ten."""
    with app.ledger.transaction() as tx:
        rows = tx.execute(
            "SELECT extract(epoch FROM due_at - clock_timestamp())::float8 AS after_s"
            " FROM apex.sweep WHERE saga_id = %s ORDER BY due_at",
            [saga_id],
        ).fetchall()
    return [round(row["after_s"], -1) for row in rows]


def test_a_replaced_version_stays_for_the_grace_and_is_looked_for_again(
    build_application: BuildApplication, unique: str
) -> None:
    app = build_application(grace_s=1000.0)
    [first] = app.ingestion.ingest([submission(unique)], owner="test")
    app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    assert schedule(app, first.saga_id) == [1000.0, 1000.0 + HOUR_S, 1000.0 + DAY_S]
    assert app.ingestion.sweep() == 0
    assert 1 in copies(app, unique)["qdrant"]


def test_a_compensated_saga_is_swept_at_once_and_twice_more(app: Application, unique: str) -> None:
    [saga] = app.ingestion.open([submission(unique)], owner="test").alive
    app.compensation.compensate([saga.saga_id], owner="test")
    assert schedule(app, saga.saga_id) == [0.0, HOUR_S, DAY_S]


def test_neither_a_live_nor_an_open_saga_is_swept(app: Application, unique: str) -> None:
    [live] = app.ingestion.ingest([submission(unique)], owner="test")
    opened = app.ingestion.open([submission(unique, edition=2)], owner="test")
    staged = app.ingestion.stage("redis_write", opened.alive)
    before = copies(app, unique)
    assert sorted(before["redis"]) == [1, 2]
    with app.ledger.transaction() as tx:
        for saga_id in (live.saga_id, staged.alive[0].saga_id):
            tx.execute(
                "INSERT INTO apex.sweep (saga_id, due_at, reason)"
                " VALUES (%s, clock_timestamp() - interval '1 hour', 'compensated')",
                [saga_id],
            )
    assert app.ingestion.sweep() == 0
    assert copies(app, unique) == before


def test_a_sweep_that_a_store_refused_is_done_again(
    app: Application, build_application: BuildApplication, endpoints: Endpoints, unique: str
) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    nobody = SecretStr("redis://127.0.0.1:1/0")
    broken = build_application(replace(endpoints, redis_url=nobody))
    with pytest.raises(StoreUnavailable):
        broken.ingestion.sweep()
    assert app.ingestion.sweep() == 1
    assert_whole(app, unique)
