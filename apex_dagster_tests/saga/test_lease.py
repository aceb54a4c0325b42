"""Leases: whose clock counts, who waits for whom, and who notices that one is over."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import LeaseLost
from apex_dagster.records import SagaId
from apex_dagster.saga import states
from apex_dagster.saga.lease import LeaseClock
from apex_dagster.saga.ledger import _SQL
from apex_dagster.saga.saga import Saga
from apex_dagster_tests.applications import BuildApplication
from apex_dagster_tests.documents import submission, submissions


@pytest.fixture
def expired(app: Application, unique: str) -> list[Saga]:
    """Ten sagas whose owner fell silent an hour ago."""
    sagas = app.ingestion.open(submissions(unique, 10), owner="silent").alive
    expire(app)
    return sagas


def expire(app: Application) -> None:
    with app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET lease_expires_at = lease_expires_at - %s",
            [timedelta(hours=1)],
        )


def test_recovery_does_not_queue_behind_another(app: Application, expired: list[Saga]) -> None:
    """What one has locked, another passes over; it takes the rest at once."""
    first = sorted(saga.saga_id for saga in expired)[:4]
    with ThreadPoolExecutor(1) as pool, app.ledger.transaction() as tx:
        tx.execute(_SQL["lock_sagas"], {"saga_ids": first})
        taken = pool.submit(app.ledger.take_over, "other").result(timeout=5)
        among = pool.submit(app.ledger.take_over, "another", among=first).result(timeout=5)
    assert {saga.saga_id for saga in taken} == {s.saga_id for s in expired} - set(first)
    assert among == []


def test_of_several_recoveries_at_once_one_gets_each_saga(
    app: Application, expired: list[Saga]
) -> None:
    with ThreadPoolExecutor(3) as pool:
        owners = ["a", "b", "c"]
        taken = [saga for some in pool.map(app.ledger.take_over, owners) for saga in some]
    assert sorted(s.saga_id for s in taken) == sorted(s.saga_id for s in expired)
    assert {saga.epoch for saga in taken} == {expired[0].epoch + 1}


def test_recovery_takes_no_more_than_it_was_told(app: Application, expired: list[Saga]) -> None:
    assert len(app.ledger.take_over("other", limit=3)) == 3
    assert len(app.ledger.take_over("other", limit=50)) == len(expired) - 3


def test_a_lease_counts_from_when_it_is_written(
    build_application: BuildApplication, unique: str
) -> None:
    """Not from when its transaction began, which may be long ago: by now() it would be over."""
    app = build_application(lease_s=2.0)
    [saga] = app.ingestion.open([submission(unique)], owner="first").alive
    with app.ledger.transaction() as tx:
        tx.execute("SELECT pg_sleep(2.2)")
        [resumed] = app.ledger.advance(states.RESUMED, [saga], owner="second", tx=tx)
        row = tx.execute(
            "SELECT lease_expires_at > clock_timestamp() AS runs FROM apex.saga_state"
            " WHERE saga_id = %s",
            [resumed.saga_id],
        ).fetchone()
    assert row == {"runs": True}


def test_an_owner_whose_lease_is_over_asks_before_it_writes(app: Application, unique: str) -> None:
    [saga] = app.ingestion.open([submission(unique)], owner="me").alive
    forget(app, saga)
    app.engine.assure_leases([saga])  # nobody else wanted it: it is renewed
    assert app.ledger.leases.remaining_s(saga.saga_id) > 0
    app.ledger.take_over("other", among=[saga.saga_id], dead_owner="me")
    app.engine.assure_leases([saga])  # by its own clock the lease runs still: no question asked
    forget(app, saga)
    with pytest.raises(LeaseLost, match=saga.saga_id):
        app.engine.assure_leases([saga])


def test_only_the_sagas_that_were_lost_leave_the_batch(app: Application, unique: str) -> None:
    sagas = app.ingestion.open(submissions(unique, 3), owner="me").alive
    extracted = app.ingestion.extract(sagas).alive
    app.ledger.take_over("other", among=[sagas[0].saga_id], dead_owner="me")
    for saga in extracted:
        forget(app, saga)
    receipts, failures = app.engine._stage(app.engine.steps[2], extracted)
    assert (set(receipts), failures) == ({saga.saga_id for saga in sagas[1:]}, {})
    assert app.stores["qdrant"].holdings([sagas[0].ref]) == {sagas[0].saga_id: 0}


def forget(app: Application, saga: Saga) -> None:
    """As if its lease had been asked for an hour ago."""
    app.ledger.leases.granted([saga.saga_id], asked_at=app.ledger.leases.now() - 3600)


def test_a_lease_is_counted_from_before_it_was_asked_for() -> None:
    clock, saga_id = LeaseClock(10.0), SagaId("ingest_a")
    assert clock.remaining_s(saga_id) <= 0
    clock.granted([saga_id], asked_at=clock.now() - 4)
    assert 0 < clock.remaining_s(saga_id) <= 6
    clock.granted([saga_id], asked_at=clock.now() - 11)
    assert clock.remaining_s(saga_id) < 0
