"""The ledger on a real PostgreSQL: every change conditional, every change recorded."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from apex_dagster.composition import Application
from apex_dagster.saga import states
from apex_dagster.saga.extractions import submitted_documents
from apex_dagster.saga.ledger import _SQL
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import MOVES, Status
from apex_dagster_tests.documents import submission

CHAIN = """
SELECT bool_and(hash = apex.event_hash(previous, saga_id, seq, event, step, status, epoch,
                                       duration_ms, detail, at))
FROM (SELECT *, lag(hash, 1, '\\x'::bytea) OVER (PARTITION BY saga_id ORDER BY seq) AS previous
      FROM apex.saga_event) chained
"""


@pytest.fixture
def saga(app: Application, unique: str) -> Saga:
    """One saga in progress, held by "me"."""
    return app.ingestion.open([submission(unique)], owner="me").alive[0]


def test_every_move_follows_the_table() -> None:
    allowed = {
        (Status.PENDING, Status.IN_PROGRESS),
        (Status.IN_PROGRESS, Status.COMPLETED),
        (Status.IN_PROGRESS, Status.COMPENSATING),
        (Status.COMPENSATING, Status.COMPENSATED),
        (Status.COMPENSATING, Status.FAILED),
        (Status.FAILED, Status.COMPENSATING),
    }
    moves = {(source, move.target) for move in MOVES if move.target for source in move.source}
    assert moves == allowed


@pytest.mark.parametrize("move", [m for m in MOVES if Status.IN_PROGRESS not in m.source])
def test_a_move_from_another_status_is_refused(
    app: Application, saga: Saga, move: states.Move
) -> None:
    assert app.ledger.advance(move, [saga]) == []
    assert app.ledger.sagas([saga.saga_id]) == [saga]


def test_a_move_with_an_old_epoch_is_refused(app: Application, saga: Saga) -> None:
    [now] = app.ledger.take_over("other", among=[saga.saga_id], dead_owner="me")
    assert now.epoch == saga.epoch + 1
    assert app.ledger.advance(states.STEP_STARTED, [saga], step="neo4j_write") == []
    assert app.ledger.held([saga.saga_id], owner="me") == []
    assert len(app.ledger.advance(states.STEP_STARTED, [now], step="neo4j_write")) == 1


@pytest.mark.parametrize("move", [m for m in MOVES if Status.IN_PROGRESS in m.source])
def test_a_move_waits_for_the_disk_unless_it_may_be_lost(
    app: Application, saga: Saga, move: states.Move
) -> None:
    with app.ledger.transaction() as tx:
        step = "neo4j_write" if move.event.startswith("step") else None
        assert app.ledger.advance(move, [saga], step=step, tx=tx)
        row = tx.execute("SHOW synchronous_commit", {}).fetchone()
    assert row == {"synchronous_commit": "off" if move.may_be_lost else "on"}


def test_owners_are_looked_up_without_a_write_while_their_leases_are_young(
    app: Application, saga: Saga
) -> None:
    [owned] = app.ledger.owned([saga.saga_id], owner="me")
    assert owned.lease_expires_at == saga.lease_expires_at
    assert app.ledger.owned([saga.saga_id], owner="other") == []
    app.ledger.leases.granted(
        [saga.saga_id], asked_at=app.ledger.leases.now() - 0.6 * app.ledger.lease_s
    )
    [renewed] = app.ledger.owned([saga.saga_id], owner="me")
    assert renewed.lease_expires_at > saga.lease_expires_at


def test_a_lease_that_runs_is_not_taken_over(app: Application, saga: Saga) -> None:
    assert app.ledger.take_over("other") == []
    assert app.ledger.take_over("other", among=[saga.saga_id], dead_owner="nobody") == []


def test_renewing_reaches_only_what_the_owner_holds(app: Application, saga: Saga) -> None:
    assert (app.ledger.renew("me"), app.ledger.renew("other")) == (1, 0)


def test_events_are_hash_chained_also_when_many_append_at_once(
    app: Application, saga: Saga
) -> None:
    def append(number: int) -> int:
        move, step = states.STEP_STARTED, f"step {number}"
        return len(app.ledger.advance(move, [saga], step=step, duration_ms=number / 3))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(append, range(20))) == [1] * 20
    events = app.ledger.events(saga.saga_id)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    with app.ledger.transaction() as tx:
        assert tx.execute(CHAIN).fetchone() == {"bool_and": True}


def test_the_hash_of_an_event_depends_on_the_one_before_it(app: Application) -> None:
    hash_of = "SELECT apex.event_hash(%s, 's', 1, 'e', NULL, 'pending', 0, NULL, '{}', 'epoch')"
    with app.ledger.transaction() as tx:
        hashes = [tx.execute(hash_of, [previous]).fetchone() for previous in (b"a", b"b")]
    assert hashes[0] != hashes[1]


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE apex.saga_event SET event = 'other'",
        "DELETE FROM apex.saga_event",
        "TRUNCATE apex.saga_event",
    ],
)
def test_the_audit_log_only_grows(app: Application, saga: Saga, statement: str) -> None:
    with (
        pytest.raises(psycopg.errors.InsufficientPrivilege, match="append-only"),
        app.ledger.transaction() as tx,
    ):
        tx.execute(statement)  # type: ignore[arg-type]


def test_versions_are_never_used_twice(app: Application, unique: str) -> None:
    versions = []
    for edition in (1, 2, 3):
        [saga] = app.ingestion.open([submission(unique, edition=edition)], owner="me").alive
        app.compensation.compensate([saga.saga_id], owner="me")
        versions.append(saga.version)
    assert versions == [1, 2, 3]


def test_the_same_content_joins_the_saga_that_is_under_way(
    app: Application, saga: Saga, unique: str
) -> None:
    batch = app.ingestion.open([submission(unique)], owner="other")
    assert [one.saga_id for one in batch.joined] == [saga.saga_id]
    assert (batch.alive, batch.unchanged) == ([], [])


def test_a_pivot_waits_for_the_publish_of_what_it_replaces(app: Application, unique: str) -> None:
    [first] = app.ingestion.open([submission(unique)], owner="me").alive
    staged = app.ingestion.stage("redis_write", [first])
    app.ledger.pivot(staged.alive, steps=app.engine.step_names)  # and dies before publishing
    [second] = app.ingestion.open([submission(unique, edition=2)], owner="me").alive
    staged = app.ingestion.stage("redis_write", [second])
    pivoted = app.ledger.pivot(staged.alive, steps=app.engine.step_names)
    assert [saga.saga_id for saga in pivoted.blocked] == [second.saga_id]

    commit = app.ingestion.commit(staged.alive, owner="me")
    assert [saga.saga_id for saga in commit.completed] == [second.saga_id]
    assert app.ledger.sagas([first.saga_id])[0].published_at is not None


def test_joining_a_saga_does_not_wait_for_its_pivot(
    app: Application, saga: Saga, unique: str
) -> None:
    """The pivot holds the saga and wants the document; whoever joins holds the document."""
    with ThreadPoolExecutor(1) as pool, app.ledger.transaction() as tx:
        tx.execute(_SQL["lock_sagas"], {"saga_ids": [saga.saga_id]})
        joining = pool.submit(app.ingestion.open, [submission(unique)], owner="other")
        assert len(joining.result(timeout=5).joined) == 1


def test_a_batch_opens_one_saga_of_a_document(app: Application, unique: str) -> None:
    batch = app.ingestion.open([submission(unique), submission(unique, edition=2)], owner="me")
    assert len(batch.alive) == 1


def test_a_saga_is_opened_with_everything_it_needs_to_go_on(
    app: Application, saga: Saga, unique: str
) -> None:
    [document] = submitted_documents(app.ledger, [saga.saga_id]).values()
    assert document.content == submission(unique).document.content
