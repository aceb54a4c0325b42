"""What is known of a write that failed, and what follows for the saga."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import StoreUnavailable
from apex_dagster.ingestion.steps import StoreStep
from apex_dagster.records import Receipt, VersionRef
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import (
    BuildApplication,
    assert_whole,
    copies,
    events,
    expire_leases,
    recovered,
)
from apex_dagster_tests.documents import submission, submissions

NOBODY = "http://127.0.0.1:1"  # where a connection is refused: nothing can have been written


def qdrant_step(app: Application) -> StoreStep:
    step = app.engine.steps[app.engine.step_names.index("qdrant_write")]
    assert isinstance(step, StoreStep)
    return step


@pytest.mark.parametrize("store", ["neo4j", "postgres", "qdrant", "redis"])
def test_an_undo_touches_neither_what_is_live_nor_what_it_replaced(
    app: Application, unique: str, store: str
) -> None:
    """Readers may still hold a pointer to the superseded version."""
    first = app.ingestion.ingest([submission(unique)], owner="test")
    second = app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    before = copies(app, unique)[store]
    app.stores[store].revert([first[0].ref, second[0].ref])
    assert copies(app, unique)[store] == before


def test_an_attempt_that_was_refused_does_not_make_up_for_one_that_was_not(
    app: Application, build_application: BuildApplication, endpoints: Endpoints, unique: str
) -> None:
    """The first attempt's answer is lost, the second meets a store that is down: it may hold it."""
    app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(app, unique)
    down = build_application(replace(endpoints, qdrant_url=NOBODY)).stores["qdrant"]
    step = qdrant_step(app)
    up, real_stage = step.store, step.stage

    def stage(refs: Sequence[VersionRef]) -> list[Receipt]:
        receipts = real_stage(refs)
        if step.store is up:
            step.store = down
            raise StoreUnavailable("qdrant", "connection reset")
        return receipts

    step.stage = stage  # type: ignore[method-assign]
    opened = app.ingestion.open([submission(unique, edition=2)], owner="test")
    [failed] = app.ingestion.stage("qdrant_write", opened.alive).failed
    assert failed.error is not None
    assert "nothing_written" not in failed.error
    step.store = up
    app.compensation.compensate([failed.saga_id], owner="test")
    assert recovered(app, failed.saga_id).status is Status.COMPENSATED
    assert copies(app, unique) == before


def test_an_owner_that_was_refused_does_not_make_up_for_an_earlier_one(
    app: Application, build_application: BuildApplication, endpoints: Endpoints, unique: str
) -> None:
    app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(app, unique)
    with armed("sent:qdrant_write=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([submission(unique, edition=2)], owner="dead")
    expire_leases(app)
    cut_off = build_application(replace(endpoints, qdrant_url=NOBODY))
    [saga] = cut_off.ingestion.recovery.recover(owner="cut off")
    assert saga.status is Status.COMPENSATING  # it cannot tell that nothing is there, so it waits
    assert recovered(app, saga.saga_id).status is Status.COMPENSATED
    assert copies(app, unique) == before


def die_after_a_refusal(app: Application, document_id: str) -> None:
    """An owner records that the document was refused, and dies before it undoes it."""
    with (
        armed("sent:redis_write=reject*1;recorded:redis_write=raise"),
        pytest.raises(SimulatedCrash),
    ):
        app.ingestion.ingest([submission(document_id)], owner="dead")


def test_recovery_undoes_a_saga_that_has_an_error_rather_than_going_on(
    app: Application, unique: str
) -> None:
    die_after_a_refusal(app, unique)
    expire_leases(app)
    [saga] = app.ingestion.recovery.recover(owner="rescuer")
    assert saga.status is Status.COMPENSATED
    assert ("saga_resumed", None) in events(app, saga.saga_id)


def test_a_run_that_is_repeated_tries_again_what_had_failed_in_it(
    app: Application, unique: str
) -> None:
    die_after_a_refusal(app, unique)
    [left] = app.ledger.list_sagas(document_id=unique)
    assert left.error
    [saga] = app.ingestion.hold([left.saga_id], owner="again", parent_owner="dead")
    assert saga.error is None
    assert ("saga_retried", None) in events(app, saga.saga_id)
    commit = app.ingestion.commit([saga], owner="again")
    assert [done.status for done in commit.completed] == [Status.COMPLETED]
    assert_whole(app, unique)


def test_a_store_that_is_down_puts_no_document_into_quarantine_at_once(
    app: Application, unique: str
) -> None:
    with armed("started:qdrant_write=unavailable"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPENSATED
    assert app.ledger.quarantined() == []


def test_the_bad_one_of_a_batch_is_found_by_halves(app: Application, unique: str) -> None:
    """PostgreSQL does not say which of sixteen it refuses: 4 halvings, not 16 writes."""
    step = app.engine.steps[app.engine.step_names.index("postgres_write")]
    sizes: list[int] = []
    real_stage = step.stage

    def stage(refs: Sequence[VersionRef]) -> Sequence[Receipt]:
        sizes.append(len(refs))
        return real_stage(refs)

    step.stage = stage  # type: ignore[method-assign]
    batch = [*submissions(unique, 15), submission(f"{unique}-bad", poison=True)]
    sagas = app.ingestion.ingest(batch, owner="test")
    outcomes = {saga.document_id: saga.status for saga in sagas}
    assert outcomes.pop(f"{unique}-bad") is Status.COMPENSATED
    assert set(outcomes.values()) == {Status.COMPLETED}
    assert sorted(sizes, reverse=True) == [16, 8, 8, 4, 4, 2, 2, 1, 1]
