"""Reconciliation on real servers: drift is named, put right, and written down.

What is altered item by item is in test_audit.py, where each alteration is repaired as well.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from neo4j import GraphDatabase
from qdrant_client import QdrantClient

from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import verify
from apex_dagster.ingestion.reconcile import IN_FLIGHT, ORPHANS_FREE, REPAIRED
from apex_dagster.records import Publication, VersionRef
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.documents import submission, submissions
from apex_dagster_tests.ingestion.test_audit import ingest, staged_version, tamper

STORES = ("neo4j", "postgres", "qdrant", "redis")


@pytest.fixture(autouse=True)
def only_own(app: Application, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other tests write to the same Neo4j, and this test's ledger knows nothing of theirs."""
    store = app.stores["neo4j"]
    everything = store.inventory

    def inventory(*, page: int) -> Iterator[list[VersionRef]]:
        for refs in everything(page=page):
            yield [ref for ref in refs if ref.document_id.startswith(unique)]

    monkeypatch.setattr(store, "inventory", inventory)


def lose(app: Application, store: str) -> None:
    """All that one store holds, as with its volume; of PostgreSQL what is not the ledger."""
    if store == "neo4j":
        with GraphDatabase.driver(
            app.endpoints.neo4j_uri,
            auth=(app.endpoints.neo4j_user, app.endpoints.neo4j_password.get_secret_value()),
        ) as driver:
            ids = [saga.document_id for saga in app.ledger.list_sagas()]
            driver.execute_query(
                "MATCH (v:DocumentVersion) WHERE v.document_id IN $ids"
                " OPTIONAL MATCH ()-[r:RELATES {saga_id: v.saga_id}]->() DELETE r"
                " DETACH DELETE v",
                ids=ids,
            )
            driver.execute_query("MATCH (d:Document) WHERE d.document_id IN $ids DELETE d", ids=ids)
    elif store == "postgres":
        tamper(app, "DELETE FROM apex.chunks", "DELETE FROM apex.document_versions")
    elif store == "qdrant":
        key = app.endpoints.qdrant_api_key
        client = QdrantClient(
            app.endpoints.qdrant_url, api_key=key.get_secret_value() if key else None
        )
        client.delete_collection(app.settings.qdrant_collection)
        client.close()


@pytest.mark.parametrize("store", ["neo4j", "postgres", "qdrant"])
def test_a_store_whose_data_is_lost_comes_back_whole(
    app: Application, unique: str, store: str
) -> None:
    sagas = app.ingestion.ingest(submissions(unique, 5), owner="test")
    before = {saga.saga_id: digests(app, saga) for saga in sagas}
    lose(app, store)
    found = app.reconciler.reconcile()
    assert {(drift.store, drift.kind, drift.outcome) for drift in found.drifts} == {
        (store, "missing", "found")
    }
    assert {drift.saga_id for drift in found.drifts} == set(before)
    assert app.reconciler.reconcile(repair_as="test").left == []
    assert {saga.saga_id: digests(app, saga) for saga in sagas} == before
    assert app.reconciler.reconcile().drifts == []


def test_a_repair_is_in_the_audit_log_with_who_and_where(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    app.stores["qdrant"].discard([saga.ref])
    app.stores["neo4j"].discard([saga.ref])
    app.reconciler.reconcile(repair_as="ada")
    event = app.ledger.events(saga.saga_id)[-1]
    assert (event["event"], event["detail"]) == (
        "version_restored",
        {"by": "ada", "drifts": {"neo4j": 1, "qdrant": 1}},
    )
    assert verify(app.ledger, app.stores).differences == []


def test_without_repair_nothing_is_changed(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    app.stores["qdrant"].discard([saga.ref])
    events = app.ledger.events(saga.saga_id)
    for _ in range(2):
        [drift] = app.reconciler.reconcile().drifts
        assert (drift.store, drift.kind, drift.outcome) == ("qdrant", "missing", "found")
    assert app.ledger.events(saga.saga_id) == events


def test_a_document_with_a_saga_under_way_is_left_to_it(app: Application, unique: str) -> None:
    live = ingest(app, unique)
    [rival] = app.ingestion.open([submission(unique, edition=2)], owner="me").alive
    app.ingestion.stage("postgres_write", [rival])
    app.stores["qdrant"].discard([live.ref])
    [drift] = app.reconciler.reconcile(repair_as="test").drifts
    assert (drift.saga_id, drift.outcome) == (live.saga_id, IN_FLIGHT)
    assert app.stores["qdrant"].holdings([live.ref])[live.saga_id] == 0
    app.compensation.compensate([rival.saga_id], owner="me")
    [drift] = app.reconciler.reconcile(repair_as="test").drifts
    assert drift.outcome == REPAIRED
    assert app.ledger.sagas([rival.saga_id])[0].status is Status.COMPENSATED


def test_what_lost_its_place_while_it_was_restored_is_swept(app: Application, unique: str) -> None:
    """Qdrant cannot look and write at once: an update that overtakes the repair wins anyway."""
    old = ingest(app, unique)
    app.stores["qdrant"].discard([old.ref])
    store = app.stores["qdrant"]
    restore = store.restore

    def restore_late(batch: object) -> None:
        ingest(app, unique, edition=2)
        overtaken.setattr(store, "_overtaken", lambda client, refs: set())  # it had looked before
        restore(batch)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as overtaken:
        overtaken.setattr(store, "restore", restore_late)
        app.reconciler.reconcile(repair_as="test")
    assert app.stores["qdrant"].holdings([old.ref])[old.saga_id] > 0
    tamper(
        app,
        "UPDATE apex.sweep SET due_at = due_at - interval '2 hours' WHERE saga_id = %(id)s",
        id=old.saga_id,
    )
    app.ingestion.sweep(limit=100)
    assert app.stores["qdrant"].holdings([old.ref])[old.saga_id] == 0
    assert app.reconciler.reconcile().drifts == []


@pytest.mark.parametrize("store", ["neo4j", "qdrant", "redis"])
def test_leftovers_of_a_compensated_saga_are_removed(
    app: Application, unique: str, store: str
) -> None:
    ingest(app, unique)
    [dead] = app.ingestion.open([submission(unique, edition=2)], owner="me").alive
    versions = staged_version(app, dead)
    app.compensation.compensate([dead.saga_id], owner="me")
    app.stores[store].stage(versions)
    if store == "qdrant":  # the others have fences, which such a publisher does not pass
        app.stores[store].publish([Publication(ref=dead.ref)])
    report = app.reconciler.reconcile(repair_as="test")
    assert {(drift.store, drift.outcome) for drift in report.drifts} == {(store, REPAIRED)}
    assert "dead" in {drift.kind for drift in report.drifts}
    assert app.ledger.events(dead.saga_id)[-1]["event"] == "leftovers_removed"
    assert verify(app.ledger, app.stores).differences == []


@pytest.mark.parametrize("store", ["neo4j", "qdrant", "redis"])
def test_a_document_that_nobody_knows_is_named_and_removed(
    app: Application, unique: str, store: str
) -> None:
    ingest(app, unique)
    ref = orphan(app, unique, store)
    [drift] = app.reconciler.reconcile(repair_as="test").drifts
    assert (drift.store, drift.kind, drift.saga_id) == (store, "orphaned", ref.saga_id)
    assert (drift.document_id, drift.outcome) == (ref.document_id, REPAIRED)
    assert app.stores[store].holdings([ref])[ref.saga_id] == 0
    assert app.reconciler.reconcile().drifts == []


def test_more_orphans_than_one_in_a_hundred_are_asked_about(app: Application, unique: str) -> None:
    ingest(app, unique)
    for number in range(ORPHANS_FREE + 1):
        orphan(app, f"{unique}-{number}", "qdrant")
    report = app.reconciler.reconcile(repair_as="test")
    assert len(report.left) == ORPHANS_FREE + 1
    assert "was the ledger restored from a backup?" in report.left[0].outcome
    assert app.reconciler.reconcile(repair_as="test", all_orphans=True).left == []


def test_a_version_whose_extraction_is_lost_cannot_be_repaired(
    app: Application, unique: str
) -> None:
    saga = ingest(app, unique)
    tamper(app, "DELETE FROM apex.extraction WHERE saga_id = %(id)s", id=saga.saga_id)
    [drift] = app.reconciler.reconcile(repair_as="test").left
    assert (drift.store, drift.kind) == ("extraction", "missing")
    assert "ingest the document again" in drift.outcome


def test_a_lost_store_is_rebuilt_while_documents_change(app: Application, unique: str) -> None:
    app.ingestion.ingest(submissions(unique, 10), owner="test")
    lose(app, "neo4j")
    stop = threading.Event()

    def write() -> None:
        edition = 2
        while not stop.is_set():
            app.ingestion.ingest([submission(f"{unique}-3", edition=edition)], owner="writer")
            edition += 1

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(3):
            app.reconciler.reconcile(repair_as="test")
    finally:
        stop.set()
        writer.join()
    app.reconciler.reconcile(repair_as="test")
    assert app.reconciler.reconcile().drifts == []


def digests(app: Application, saga: Saga) -> dict[str, str | None]:
    return {
        name: store.digest(saga.document_id, saga.version) for name, store in app.stores.items()
    }


def orphan(app: Application, unique: str, store: str) -> VersionRef:
    """A version in one store, of a saga that the ledger does not know."""
    [saga] = app.ingestion.open([submission(f"{unique}-orphan")], owner="me").alive
    [version] = staged_version(app, saga)
    app.stores[store].stage([version])
    if store == "redis":
        app.stores[store].publish([Publication(ref=saga.ref)])
    tamper(
        app,
        "DELETE FROM apex.saga_event WHERE saga_id = %(id)s",
        "DELETE FROM apex.extraction WHERE saga_id = %(id)s",
        "DELETE FROM apex.saga_state WHERE saga_id = %(id)s",
        id=saga.saga_id,
    )
    return saga.ref
