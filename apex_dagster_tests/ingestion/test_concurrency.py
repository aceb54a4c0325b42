"""Several submissions of one document at once: the last to arrive wins, whoever is faster."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from apex_dagster.saga.opening import open_successors
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import CLAIMED, Status
from apex_dagster_tests.applications import BuildApplication, assert_whole
from apex_dagster_tests.documents import submission

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
