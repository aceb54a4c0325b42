"""The story of documents on the four real stores: all of them, or none."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from neo4j import GraphDatabase

from apex_dagster.composition import Application
from apex_dagster.records import entity_key
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import (
    BuildApplication,
    assert_whole,
    copies,
    events,
)
from apex_dagster_tests.documents import submission, submissions

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")


def test_a_document_ends_in_all_four_stores(app: Application, unique: str) -> None:
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPLETED
    assert saga.published_at is not None
    assert_whole(app, unique)
    counts = {name: dict(store.holdings([saga.ref])) for name, store in app.stores.items()}
    assert counts == {
        "neo4j": {saga.saga_id: 2},
        "postgres": {saga.saga_id: 3},
        "qdrant": {saga.saga_id: 3},
        "redis": {saga.saga_id: 1},
    }
    assert saga.saga_id.startswith(f"ingest_{unique}")


@pytest.mark.parametrize("at_once", [True, False])
def test_the_audit_trail_tells_the_whole_story(
    build_application: BuildApplication, unique: str, at_once: bool
) -> None:
    app = build_application(staging="at_once" if at_once else "in_order")
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    steps = [(event, step) for step in STEPS for event in ("step_started", "step_completed")]
    if at_once:  # every store's intent precedes every write
        steps.sort(key=lambda entry: entry[0], reverse=True)
    assert events(app, saga.saga_id) == [
        ("saga_opened", None),
        ("saga_claimed", None),
        *steps,
        ("saga_completed", None),
        ("saga_published", None),
    ]
    completed = [e for e in app.ledger.events(saga.saga_id) if e["event"] == "step_completed"]
    assert all(event["duration_ms"] > 0 for event in completed)


@pytest.mark.parametrize("point", ["started", "sent"])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_failure_at_any_step_undoes_what_may_have_been_written_in_reverse(
    build_application: BuildApplication, unique: str, step: str, point: str, at_once: bool
) -> None:
    app = build_application(staging="at_once" if at_once else "in_order")
    with armed(f"{point}:{step}=reject"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPENSATED
    assert saga.error is not None
    assert (saga.error["class"], saga.error["step"]) == ("permanent", step)
    undone = [event for event in app.ledger.events(saga.saga_id) if event["event"] == "step_undone"]
    assert [event["step"] for event in undone] == list(reversed(STEPS))
    # Whether the failed step itself has written anything is known only if nothing was sent.
    tried = STEPS if at_once else STEPS[: STEPS.index(step) + 1]
    ran = [each for each in tried if each != step or point == "sent"]
    really = [event["step"] for event in undone if "skipped" not in event["detail"]]
    assert really == list(reversed(ran))
    assert_whole(app, unique)


def test_steps_at_once_are_all_in_the_ledger_before_the_first_is_written(
    build_application: BuildApplication, unique: str
) -> None:
    """A crash at the first store's write must make undo look into every store."""
    app = build_application(staging="at_once")
    with armed("started:neo4j_write=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([submission(unique)], owner="test")
    [saga] = app.ledger.list_sagas(document_id=unique)
    assert saga.completed_steps == {}
    assert all(saga.may_hold(step) for step in STEPS)
    app.compensation.compensate([saga.saga_id], owner="test")
    assert_whole(app, unique)


@pytest.mark.parametrize("step", STEPS)
def test_a_failed_update_leaves_the_first_version_as_it_was(
    app: Application, unique: str, step: str
) -> None:
    [first] = app.ingestion.ingest([submission(unique)], owner="test")
    before = copies(app, unique)
    with armed(f"written:{step}=raise"), pytest.raises(BaseException, match="written"):
        app.ingestion.ingest([submission(unique, edition=2)], owner="crashed")
    [second] = app.ledger.list_sagas(document_id=unique, limit=1)
    app.compensation.compensate([second.saga_id], owner="test")
    assert app.ledger.sagas([second.saga_id])[0].status is Status.COMPENSATED
    assert copies(app, unique) == before
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == first.saga_id


def test_an_update_replaces_the_first_version_everywhere(app: Application, unique: str) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    [second] = app.ingestion.ingest([submission(unique, edition=2, chunks=5)], owner="test")
    assert second.version == 2
    app.ingestion.sweep()  # the grace time is 0 here
    assert_whole(app, unique)


def test_the_sweep_removes_entities_that_no_document_mentions_any_more(
    app: Application, unique: str
) -> None:
    def known(name: str) -> bool:
        neo4j = app.endpoints
        with GraphDatabase.driver(
            neo4j.neo4j_uri, auth=(neo4j.neo4j_user, neo4j.neo4j_password.get_secret_value())
        ) as driver:
            return bool(
                driver.execute_query("MATCH (e:Entity {key: $key}) RETURN e", key=name).records
            )

    key = entity_key("organization", f"{unique} Shipping")
    with armed("written:neo4j_write=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest([submission(unique)], owner="test")
    assert known(key)
    [saga] = app.ledger.list_sagas(document_id=unique)
    app.compensation.compensate([saga.saga_id], owner="test")
    app.ingestion.sweep()
    assert not known(key)


def test_identical_content_makes_no_new_version(app: Application, unique: str) -> None:
    [first] = app.ingestion.ingest([submission(unique)], owner="test")
    before = copies(app, unique)
    [again] = app.ingestion.ingest([submission(unique)], owner="test")
    assert again.saga_id == first.saga_id
    assert copies(app, unique) == before


def test_content_that_is_no_longer_live_makes_a_version_again(
    app: Application, unique: str
) -> None:
    for edition in (1, 2, 1):
        [saga] = app.ingestion.ingest([submission(unique, edition=edition)], owner="test")
    assert (saga.version, saga.status) == (3, Status.COMPLETED)


def test_one_poisoned_document_does_not_hold_up_the_other_99(app: Application, unique: str) -> None:
    batch = submissions(unique, 100, chunks=1)
    batch[41] = submission(f"{unique}-41", chunks=1, poison=True)
    sagas = app.ingestion.ingest(batch, owner="test")
    by_status = {s.status: [one for one in sagas if one.status is s.status] for s in sagas}
    assert len(by_status[Status.COMPLETED]) == 99
    [poisoned] = by_status[Status.COMPENSATED]
    assert poisoned.document_id == f"{unique}-41"
    [entry] = app.ledger.quarantined()
    assert (entry["saga_id"], entry["step"]) == (poisoned.saga_id, "postgres_write")
    assert "tsvector" in entry["reason"]
    for saga in [*sagas[:3], poisoned]:
        assert_whole(app, saga.document_id)


def test_a_transient_failure_is_retried_and_does_not_quarantine(
    app: Application, unique: str
) -> None:
    with armed("started:qdrant_write=unavailable*1"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPLETED
    with armed("started:qdrant_write=unavailable"):
        [other] = app.ingestion.ingest([submission(f"{unique}-b")], owner="test")
    assert other.status is Status.COMPENSATED
    assert other.error is not None
    assert other.error["class"] == "store_down"
    assert app.ledger.quarantined() == []


def test_an_undo_that_fails_alerts_and_does_not_stop_the_others(
    app: Application, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    down = "started:redis_write=reject;undoing:postgres_write=reject"
    with armed(down), caplog.at_level(logging.CRITICAL, "apex_dagster"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.FAILED
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    assert unique in caplog.text
    held = copies(app, unique)
    assert sorted(name for name, versions in held.items() if versions) == ["postgres"]
    [entry] = app.ledger.quarantined()
    assert entry["saga_id"] == saga.saga_id

    [ended] = app.compensation.compensate([saga.saga_id], owner="operator")
    assert ended.status is Status.COMPENSATED
    assert_whole(app, unique)


def test_all_undos_at_once_leave_the_same_as_one_after_another(
    build_application: BuildApplication, unique: str
) -> None:
    app = build_application(compensation="parallel")
    with armed("started:redis_write=reject"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPENSATED
    assert_whole(app, unique)


def test_a_near_empty_document_is_rejected_with_a_reason(app: Application, unique: str) -> None:
    from apex_dagster.ingestion.ingest import Submission
    from apex_dagster.records import Document

    empty = Document(document_id=unique, name="empty.txt", content=b"  \n ")
    [saga] = app.ingestion.ingest([Submission(document=empty)], owner="test")
    assert saga.status is Status.COMPENSATED
    [entry] = app.ledger.quarantined()
    assert (entry["document_id"], entry["step"]) == (unique, "extract")
    assert_whole(app, unique)


def test_a_redis_entry_that_expired_before_publish_is_staged_again(
    app: Application, unique: str
) -> None:
    opened = app.ingestion.open([submission(unique)], owner="test")
    extracted = app.ingestion.extract(opened.alive)
    staged = app.ingestion.stage("redis_write", extracted.alive)
    app.stores["redis"].revert([saga.ref for saga in staged.alive])
    commit = app.ingestion.commit(staged.alive, owner="test")
    assert [saga.published_at is not None for saga in commit.completed] == [True]
    assert_whole(app, unique)


def test_the_inbox_keeps_a_file_until_its_sagas_have_ended(
    app: Application, unique: str, tmp_path: Path
) -> None:
    inbox = app.inbox.folder
    inbox.mkdir(parents=True, exist_ok=True)
    good, bad = inbox / f"{unique}.json", inbox / f"{unique}-bad.txt"
    good.write_bytes(submission(unique).document.content)
    bad.write_text(" ")
    batch = app.sources.read(["inbox:"])
    opened = app.ingestion.open(batch, owner="test")
    assert app.inbox.settle(app.ledger) == {}
    assert good.exists()
    app.ingestion.ingest(batch, owner="other")  # joins: nothing to do while "test" holds them
    extracted = app.ingestion.extract(opened.alive)
    staged = app.ingestion.stage("redis_write", extracted.alive)
    app.ingestion.commit(staged.alive, owner="test")
    app.compensation.compensate([saga.saga_id for saga in extracted.failed], owner="test")
    app.inbox.settle(app.ledger)
    assert not good.exists()
    assert (inbox / "processed" / good.name).exists()
    assert (inbox / "quarantine" / bad.name).exists()
    assert "text" in (inbox / "quarantine" / f"{bad.name}.reason.json").read_text()
