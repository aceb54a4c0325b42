"""Several submissions of one document at once: the last to arrive wins, whoever is faster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from typing import TYPE_CHECKING

import pytest

from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.opening import (
    RESTARTS_MAX,
    open_successors,
    used_up_restarts,
    waiting_restarts,
)
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.states import CLAIMED, Status
from apex_dagster_tests.applications import BuildApplication, assert_whole, recovered
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.test_crash import recover

if TYPE_CHECKING:
    from apex_dagster.composition import Application


def staged(app: Application, document_id: str, edition: int) -> list[Saga]:
    """A saga that has only its pivot before it, held by "me"."""
    opened = app.ingestion.open([submission(document_id, edition=edition)], owner="me")
    return app.ingestion.stage("redis_write", opened.alive).alive


def test_the_later_of_two_starts_again_on_the_version_of_the_faster(
    app: Application, unique: str
) -> None:
    earlier, later = staged(app, unique, 1), staged(app, unique, 2)
    assert app.ingestion.commit(earlier, owner="me").failed == []
    outcome = app.ingestion.commit(later, owner="me")
    [restarted] = outcome.completed
    assert outcome.failed == []
    assert restarted.predecessor_saga_id == later[0].saga_id
    assert (restarted.version, restarted.expected_version) == (3, 1)
    assert restarted.arrival == later[0].arrival
    [loser] = app.ledger.sagas([later[0].saga_id])
    assert loser.status is Status.COMPENSATED
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_the_earlier_of_two_is_superseded_when_the_later_was_faster(
    app: Application, unique: str
) -> None:
    earlier, later = staged(app, unique, 1), staged(app, unique, 2)
    assert app.ingestion.commit(later, owner="me").failed == []
    outcome = app.ingestion.commit(earlier, owner="me")
    [superseded] = outcome.failed
    assert superseded.error is not None
    assert superseded.error["class"] == "superseded"
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == later[0].saga_id


def test_many_writers_of_one_document_leave_the_last_to_arrive(
    build_application: BuildApplication, unique: str
) -> None:
    # As many attempts as in production: all documents share an entity, so writers do deadlock.
    app = build_application(step_attempts=5, undo_attempts=8)

    def write(edition: int) -> None:
        batch = [submission(unique, edition=edition), submission(f"{unique}-{edition}")]
        app.ingestion.ingest(batch, owner=f"writer-{edition}")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(1, 13)))
    sagas = app.ledger.list_sagas(document_id=unique, limit=200)
    assert {saga.status for saga in sagas} <= {Status.COMPLETED, Status.COMPENSATED}
    live = app.ledger.pointers([unique])[unique]["live_saga_id"]
    last = max(sagas, key=lambda saga: (saga.arrival, saga.version))
    assert last.saga_id == live
    app.ingestion.sweep()
    assert_whole(app, unique)
    for edition in range(1, 13):
        assert_whole(app, f"{unique}-{edition}")


def test_a_restart_does_not_replace_what_arrived_after_it(app: Application, unique: str) -> None:
    first, second = staged(app, unique, 1), staged(app, unique, 2)
    app.ingestion.commit(first, owner="me")
    app.compensation.compensate([second[0].saga_id], owner="me")
    app.ingestion.commit(staged(app, unique, 3), owner="me")
    live = app.ledger.pointers([unique])[unique]["live_saga_id"]

    loser = app.ledger.sagas([second[0].saga_id])
    restarted = open_successors(app.ledger, loser, run_id=None, same_arrival=True)
    claimed = app.engine.move(CLAIMED, restarted, owner="me")
    outcome = app.ingestion.commit(claimed, owner="me")
    [superseded] = outcome.failed
    assert superseded.error is not None
    assert superseded.error["class"] == "superseded"
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == live


@pytest.mark.parametrize("point", ["compensating", "undone:neo4j_write", "undone"])
def test_a_loser_whose_owner_dies_before_its_restart_is_restarted_by_recovery(
    build_application: BuildApplication, unique: str, point: str
) -> None:
    """At "undone" it is closed, and nobody has claimed what is to replace it."""
    app = build_application(lease_s=0.3)
    earlier, later = staged(app, unique, 1), staged(app, unique, 2)
    app.ingestion.commit(earlier, owner="me")
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.commit(later, owner="me")
    restarted = recover(app, unique)
    assert (restarted.arrival, restarted.status) == (later[0].arrival, Status.COMPLETED)
    assert restarted.predecessor_saga_id == later[0].saga_id
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == restarted.saga_id
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_a_loser_is_closed_and_succeeded_in_one_moment(app: Application, unique: str) -> None:
    """Whoever undoes it, and however often: one successor, in the loser's place in the order."""
    earlier, later = staged(app, unique, 1), staged(app, unique, 2)
    app.ingestion.commit(earlier, owner="me")
    [loser] = app.engine.commit(later, owner="me").failed
    app.compensation.compensate([loser.saga_id], owner="me")
    app.compensation.compensate([loser.saga_id], owner="other")
    [successor] = waiting_restarts(app.ledger, [loser])
    assert (successor.arrival, successor.run_id) == (loser.arrival, loser.run_id)
    assert (successor.version, successor.expected_version) == (3, 1)


def test_losers_of_one_document_that_are_closed_together_all_start_again(
    app: Application, unique: str
) -> None:
    first, second, third = (staged(app, unique, edition) for edition in (1, 2, 3))
    app.ingestion.commit(first, owner="me")
    losers = app.engine.commit([*second, *third], owner="me").failed
    app.compensation.compensate([saga.saga_id for saga in losers], owner="me")
    waiting = waiting_restarts(app.ledger, losers)
    assert [saga.arrival for saga in waiting] == [second[0].arrival, third[0].arrival]
    assert [saga.version for saga in waiting] == [5, 4]


def test_what_lost_its_pivot_in_a_run_that_has_ended_is_not_restarted(
    app: Application, unique: str
) -> None:
    earlier, later = staged(app, unique, 1), staged(app, unique, 2)
    app.ingestion.commit(earlier, owner="me")
    [loser] = app.engine.commit(later, owner="me").failed
    cancelled = Failure(error_class="interrupted", step=None, message="the run was cancelled")
    begun = app.compensation.begin(
        [loser.saga_id], owner="sensor", failure=cancelled, dead_owners=["me"]
    )
    [ended] = app.compensation.finish(begun)
    assert ended.error is not None
    assert (ended.status, ended.error["class"]) == (Status.COMPENSATED, "interrupted")
    assert waiting_restarts(app.ledger, [ended]) == []


def test_a_submission_that_loses_again_and_again_is_given_up(app: Application, unique: str) -> None:
    [saga] = staged(app, unique, 1)
    for number in range(RESTARTS_MAX + 1):
        with app.ledger.transaction() as tx:
            tx.execute(
                "UPDATE apex.documents SET live_version = %s, live_saga_id = 'somebody'"
                " WHERE document_id = %s",
                [1000 + number, unique],
            )
        [loser] = app.engine.commit([saga], owner="me").failed
        used_up = used_up_restarts(app.ledger, [loser])
        app.compensation.compensate([loser.saga_id], owner="me")
        waiting = waiting_restarts(app.ledger, [loser])
        if waiting:
            assert used_up == []
            [claimed] = app.engine.move(CLAIMED, waiting, owner="me")
            [saga] = app.ingestion.stage("redis_write", [claimed]).alive
    assert (number, waiting, used_up) == (RESTARTS_MAX, [], [loser])


def test_content_that_is_live_is_new_again_while_other_content_is_under_way(
    app: Application, unique: str
) -> None:
    """A is live, B under way, A comes again: it has to end with A."""
    app.ingestion.commit(staged(app, unique, 1), owner="me")
    between = staged(app, unique, 2)
    again = staged(app, unique, 1)
    assert len(again) == 1
    app.ingestion.commit(between, owner="me")
    app.ingestion.commit(again, owner="me")
    pointer = app.ledger.pointers([unique])[unique]
    assert pointer["content_hash"] == again[0].content_hash


@pytest.mark.parametrize("order", list(permutations(range(3))), ids=str)
def test_content_that_comes_again_after_another_is_what_ends_live(
    app: Application, unique: str, order: tuple[int, ...]
) -> None:
    """A and B are under way, A comes again: it has to end with A, whichever pivots first."""
    batches = [staged(app, unique, edition) for edition in (1, 2, 1)]
    assert [len(batch) for batch in batches] == [1, 1, 1]
    for number in order:
        failed = app.ingestion.commit(batches[number], owner="me").failed
        app.compensation.compensate([saga.saga_id for saga in failed], owner="me")
    app.ingestion.sweep()
    pointer = app.ledger.pointers([unique])[unique]
    assert pointer["content_hash"] == batches[2][0].content_hash
    assert_whole(app, unique)


def test_the_last_to_arrive_is_joined_and_no_other(app: Application, unique: str) -> None:
    staged(app, unique, 1)
    [last] = staged(app, unique, 2)
    batch = app.ingestion.open([submission(unique, edition=2)], owner="other")
    assert [saga.saga_id for saga in batch.joined] == [last.saga_id]


def test_what_is_live_is_new_again_while_a_loser_is_undone(
    build_application: BuildApplication, unique: str
) -> None:
    """A, B, A again: B is live, and while the second A is undone, to start again, B comes again."""
    app = build_application(lease_s=0.3)
    between = staged(app, unique, 2)
    loser = staged(app, unique, 1)
    app.ingestion.commit(between, owner="me")
    with armed("undoing:neo4j_write=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.commit(loser, owner="me")
    [again] = app.ingestion.ingest([submission(unique, edition=2)], owner="other")
    assert again.saga_id != between[0].saga_id
    for saga in app.ledger.list_sagas(document_id=unique):
        recovered(app, saga.saga_id)
    for successor in waiting_restarts(app.ledger, loser):
        assert recovered(app, successor.saga_id).status is Status.COMPENSATED
    pointer = app.ledger.pointers([unique])[unique]
    assert pointer["content_hash"] == between[0].content_hash
    app.ingestion.sweep()
    assert_whole(app, unique)
