"""The pivot moves a document's pointer for nobody who may not: looked at in the pointer itself,
which a refused move of the saga does not protect."""

from __future__ import annotations

import pytest

from apex_dagster.composition import Application
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import observed
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole
from apex_dagster_tests.documents import submission


@pytest.fixture
def staged(app: Application, unique: str) -> list[Saga]:
    """One saga, staged in every store and held by "me"."""
    opened = app.ingestion.open([submission(unique)], owner="me")
    return app.ingestion.stage("redis_write", opened.alive).alive


def pivot_moves_nothing(app: Application, sagas: list[Saga]) -> bool:
    pivoted = app.ledger.pivot(sagas, steps=app.engine.step_names)
    [pointer] = app.ledger.pointers([sagas[0].document_id]).values()
    return not pivoted.completed and pointer["live_saga_id"] is None


def test_a_saga_that_is_being_undone_does_not_become_live(
    app: Application, staged: list[Saga]
) -> None:
    begun = app.compensation.begin([staged[0].saga_id], owner="me")
    assert [saga.status for saga in begun] == [Status.COMPENSATING]
    assert pivot_moves_nothing(app, begun)


def test_an_owner_that_was_taken_over_makes_nothing_live(
    app: Application, staged: list[Saga]
) -> None:
    [taken] = app.ledger.take_over("other", among=[staged[0].saga_id], dead_owner="me")
    assert taken.status is Status.IN_PROGRESS
    assert pivot_moves_nothing(app, staged)


def test_a_saga_that_misses_a_store_does_not_become_live(app: Application, unique: str) -> None:
    opened = app.ingestion.open([submission(unique)], owner="me")
    staged = app.ingestion.stage("qdrant_write", opened.alive)
    assert pivot_moves_nothing(app, staged.alive)


def test_a_pivot_whose_answer_was_lost_is_published(
    app: Application, staged: list[Saga], unique: str
) -> None:
    app.ledger.pivot(staged, steps=app.engine.step_names)
    commit = app.engine.commit(staged, owner="me")
    assert [saga.published_at is not None for saga in commit.completed] == [True]
    assert commit.failed == []
    assert_whole(app, unique)


def test_a_pivot_waits_while_others_take_the_publish_before_it_out_of_its_hands(
    app: Application, staged: list[Saga], unique: str
) -> None:
    app.ledger.pivot(staged, steps=app.engine.step_names)  # and dies before publishing
    opened = app.ingestion.open([submission(unique, edition=2)], owner="me")
    second = app.ingestion.stage("redis_write", opened.alive).alive
    others: list[Saga] = []

    def take_the_publish(point: str) -> None:
        if point == "marked" and len(others) < 2:
            live = app.ledger.sagas([staged[0].saga_id])
            others.extend(app.ledger.advance(states.PUBLISH_RESUMED, live, owner="other"))

    with observed(take_the_publish):
        commit = app.engine.commit(second, owner="me")
    assert len(others) == 2
    assert [saga.saga_id for saga in commit.completed] == [second[0].saga_id]
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_a_pivot_tells_what_is_to_be_published_and_what_it_replaces(
    app: Application, unique: str
) -> None:
    [first] = app.ingestion.ingest([submission(unique)], owner="before")
    opened = app.ingestion.open([submission(unique, edition=2)], owner="me")
    staged = app.ingestion.stage("redis_write", opened.alive).alive
    pivoted = app.ledger.pivot(staged, steps=app.engine.step_names)
    [publication] = pivoted.changes
    assert (publication.ref, publication.replaced) == (staged[0].ref, first.ref)
    assert pivoted.changes == app.ledger.changes(pivoted.completed)


def test_what_an_update_replaces_is_superseded_in_every_store(
    app: Application, unique: str
) -> None:
    [first] = app.ingestion.ingest([submission(unique)], owner="test")
    [second] = app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    for name in ("neo4j", "postgres", "qdrant"):
        contents = app.stores[name].contents([unique])
        for saga, status in ((first, "superseded"), (second, "committed")):
            items = contents[saga.saga_id].items()
            held = {value for item, value in items if item.endswith("ingestion_status")}
            assert held == {status}, (name, saga.version)
