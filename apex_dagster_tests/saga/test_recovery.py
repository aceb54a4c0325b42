"""In which order recovery takes what was left, so that nobody is passed over for ever."""

from __future__ import annotations

from datetime import timedelta

import pytest

from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import verify
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import BuildApplication, assert_whole, expire_leases
from apex_dagster_tests.documents import open_pending, submission, submissions
from apex_dagster_tests.saga.test_bound import leave, let_pass


def test_what_nobody_has_begun_keeps_nothing_else_waiting(app: Application, unique: str) -> None:
    """As when more comes in over HTTP than workers can drive."""
    waiting = [open_pending(app, f"{unique}-{number}") for number in range(8)]
    unpublished = leave(app, f"{unique}-z-unpublished", "pivoted")
    compensating = leave(app, f"{unique}-z-compensating", "written:redis_write")
    app.compensation.begin([compensating], owner="run:x", dead_owners=["run:x"])
    expire_leases(app)
    ended = app.ingestion.recovery.recover(owner="recovery", limit=2)
    assert {saga.saga_id for saga in ended} >= {unpublished, compensating}
    now = {saga.saga_id: saga for saga in app.ledger.sagas([unpublished, compensating])}
    assert now[unpublished].published_at is not None
    assert now[compensating].status is Status.COMPENSATED
    statuses = [saga.status for saga in app.ledger.sagas([saga.saga_id for saga in waiting])]
    assert statuses.count(Status.PENDING) == 6


def test_the_longest_left_is_taken_first_whatever_its_name(app: Application, unique: str) -> None:
    early, late = leave(app, f"{unique}-b", "pivoted"), leave(app, f"{unique}-a", "pivoted")
    let_pass(app, early, timedelta(hours=2))
    let_pass(app, late, timedelta(hours=1))
    assert [s.saga_id for s in app.ledger.take_over("other", limit=1)] == [early]


def test_those_that_nobody_has_begun_are_driven_together(
    app: Application, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(6):
        open_pending(app, f"{unique}-{number}")
    expire_leases(app)
    batches: list[int] = []
    recovery = app.ingestion.recovery
    resume = recovery._resume
    monkeypatch.setattr(
        recovery, "_resume", lambda some, owner: (batches.append(len(some)), resume(some, owner))
    )
    ended = recovery.recover(owner="recovery")
    assert batches == [6]
    assert {saga.status for saga in ended} == {Status.COMPLETED}


def test_of_several_sagas_of_a_document_each_has_its_turn(app: Application, unique: str) -> None:
    """In one batch, all of them would be made live in place of the same version."""
    app.ingestion.ingest([submission(unique)], owner="test")
    waiting = [open_pending(app, unique, edition=edition) for edition in (2, 3, 4)]
    expire_leases(app)
    ended = app.ingestion.recovery.recover(owner="recovery")
    assert {saga.saga_id for saga in ended} == {saga.saga_id for saga in waiting}
    completed = [s for s in app.ledger.list_sagas(document_id=unique) if s.status == "completed"]
    replaced = [saga.replaces_saga_id for saga in completed]
    assert len(set(replaced)) == len(replaced)
    assert verify(app.ledger, app.stores, document_ids=[unique]).differences == []


def test_of_several_sagas_of_a_document_in_one_batch_the_last_becomes_live(
    app: Application, unique: str
) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    sagas = [open_pending(app, unique, edition=edition) for edition in (2, 3)]
    claimed = app.engine.move(states.CLAIMED, sagas, owner="me")
    staged = app.ingestion.stage("redis_write", claimed).alive
    steps = app.engine.step_names
    pivoted = app.ledger.pivot(staged, steps=steps)
    assert [saga.saga_id for saga in pivoted.completed] == [sagas[1].saga_id]
    assert [saga.saga_id for saga in pivoted.superseded] == [sagas[0].saga_id]


def test_an_undo_that_a_slow_store_does_not_answer_is_tried_again(
    build_application: BuildApplication, unique: str
) -> None:
    """It answers a ping: nothing is wrong that somebody could correct."""
    app = build_application(undo_timeout_s=1.0, undo_attempts=1)
    app.ingestion.ingest(submissions(unique, 1), owner="test")
    opened = app.ingestion.open([submission(f"{unique}-0", edition=2)], owner="test")
    [saga] = app.ingestion.stage("qdrant_write", opened.alive).alive
    with armed("undoing:qdrant_write=hang:4*1"):
        app.compensation.compensate([saga.saga_id], owner="test")
    [waiting] = app.ledger.sagas([saga.saga_id])
    assert waiting.status is Status.COMPENSATING
    assert waiting.undone_steps["qdrant_write"]["waits"] == 1
    [ended] = app.ingestion.recovery.recover(owner="recovery")
    assert ended.status is Status.COMPENSATED
    assert_whole(app, f"{unique}-0")
