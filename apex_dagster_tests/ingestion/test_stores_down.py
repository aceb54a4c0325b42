"""Real failures: a Qdrant that is stopped, one that holds vectors of another dimension."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest
from qdrant_client import QdrantClient, models

from apex_dagster.composition import Application
from apex_dagster.saga.bound import overdue_count, recovery_times
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.states import STEP_STARTED, Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import (
    BuildApplication,
    assert_whole,
    copies,
    events,
    recovered,
)
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.documents import DIM, submission, submissions
from apex_dagster_tests.servers import FIELDS, PrivateServer


def with_own(endpoints: Endpoints, server: PrivateServer) -> Endpoints:
    """The shared servers, but for one of the test's own."""
    own = {field: getattr(server.endpoints, field) for field in FIELDS[server.name]}
    return replace(endpoints, **own)


@contextmanager
def down(server: PrivateServer, outage: str) -> Iterator[None]:
    """The server is killed, or stopped in its tracks, for the length of the block."""
    (server.freeze if outage == "frozen" else server.kill)()
    try:
        yield
    finally:
        (server.thaw if outage == "frozen" else server.start)()


def undos(app: Application, saga_id: str) -> list[str | None]:
    """The steps that really were undone, in order."""
    return [
        event["step"]
        for event in app.ledger.events(saga_id)
        if event["event"] == "step_undone" and "skipped" not in event["detail"]
    ]


def test_qdrant_stopped_compensates_the_whole_batch_in_reverse(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
) -> None:
    server = private_server("qdrant")
    servers = replace(
        endpoints,
        qdrant_url=server.endpoints.qdrant_url,
        qdrant_api_key=server.endpoints.qdrant_api_key,
    )
    app = build_application(servers)
    names = [f"{unique}-{index}" for index in range(3)]
    app.ingestion.ingest(submissions(unique, 3), owner="before")
    before = {name: copies(app, name) for name in names}
    server.stop()
    sagas = app.ingestion.ingest(submissions(unique, 3, edition=2), owner="test")
    # The connection was refused, so nothing can have been written there, and the undo need not wait
    # for the store to come back.
    assert {saga.status for saga in sagas} == {Status.COMPENSATED}
    for saga in sagas:
        assert undos(app, saga.saga_id) == ["postgres_write", "neo4j_write"]
        assert ("step_started", "redis_write") not in events(app, saga.saga_id)
    server.start()
    assert {name: copies(app, name) for name in names} == before
    for name in names:
        assert_whole(app, name)


def test_a_collection_of_another_dimension_compensates_every_document(
    build_application: BuildApplication,
    endpoints: Endpoints,
    qdrant_collection: str,
    unique: str,
) -> None:
    create_bare_collection(endpoints, qdrant_collection, dim=8)
    app = build_application()
    sagas = app.ingestion.ingest(submissions(unique, 3), owner="test")
    assert {saga.status for saga in sagas} == {Status.COMPENSATED}
    for saga in sagas:
        assert saga.error is not None
        assert saga.error["step"] == "qdrant_write"
        assert "8 floats" in saga.error["message"]
        assert undos(app, saga.saga_id) == ["postgres_write", "neo4j_write"]
        assert ("step_started", "redis_write") not in events(app, saga.saga_id)
        assert_whole(app, saga.document_id)


def test_what_a_worker_left_that_died_before_the_indexes_were_made_is_undone(
    build_application: BuildApplication,
    endpoints: Endpoints,
    qdrant_collection: str,
    unique: str,
) -> None:
    """The first of all documents: its worker creates the collection and dies; an undo counts by an
    index that nobody has made yet."""
    app = build_application()
    [saga] = app.ingestion.open([submission(unique)], owner="dead").alive
    [staged] = app.ingestion.stage("postgres_write", [saga]).alive
    [begun] = app.engine.move(STEP_STARTED, [staged], step="qdrant_write")
    create_bare_collection(endpoints, qdrant_collection, dim=DIM)
    [ended] = app.compensation.compensate([begun.saga_id], owner="recovery")
    assert ended.status is Status.COMPENSATED, ended.undone_steps
    assert_whole(app, unique)


def create_bare_collection(endpoints: Endpoints, name: str, *, dim: int) -> None:
    """A collection without payload indexes."""
    assert endpoints.qdrant_api_key is not None
    client = QdrantClient(
        url=endpoints.qdrant_url,
        headers={"api-key": endpoints.qdrant_api_key.get_secret_value()},
        check_compatibility=False,
    )
    vectors = models.VectorParams(size=dim, distance=models.Distance.DOT)
    client.create_collection(name, vectors_config=vectors)
    client.close()


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_an_undo_whose_store_is_down_waits_and_ends_by_itself_when_it_is_back(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    outage: str,
) -> None:
    server = private_server("qdrant")
    app = build_application(with_own(endpoints, server), undo_timeout_s=3.0)
    app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(app, unique)
    opened = app.ingestion.open([submission(unique, edition=2)], owner="test")
    staged = app.ingestion.stage("qdrant_write", opened.alive)
    with down(server, outage):
        assert app.compensation.compensate([staged.alive[0].saga_id], owner="test") == []
        [saga] = app.ledger.sagas([staged.alive[0].saga_id])
        assert (saga.status, saga.is_waiting, saga.waits_for) == (
            Status.COMPENSATING,
            True,
            ["qdrant"],
        )
        assert undos(app, saga.saga_id) == ["postgres_write", "neo4j_write"]
        told = app.ledger.events(saga.saga_id)
        assert told[-1]["event"] == "saga_waits"
        # Recovery looks whether the store is back, and leaves the saga alone while it is not.
        for tick in range(3):
            assert app.ingestion.recovery.recover(owner=f"tick-{tick}") == []
        assert app.ledger.events(saga.saga_id) == told
        assert app.ledger.quarantined() == []
        # A long outage: the bound counts from its end.
        with app.ledger.transaction() as tx:
            tx.execute("UPDATE apex.saga_state SET lease_expires_at = now() - interval '1 day'")
        assert app.ledger.overdue_sagas(bound_s=60.0) == []
        assert overdue_count(app.ledger, bound_s=60.0) == 0
    ended = recovered(app, saga.saga_id)
    assert ended.status is Status.COMPENSATED
    assert recovery_times(app.ledger, bound_s=60.0).over_bound == 0
    assert copies(app, unique) == before


@pytest.mark.parametrize("outage", ["killed", "frozen"])
def test_a_publish_whose_store_is_down_waits_and_ends_by_itself_when_it_is_back(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    outage: str,
) -> None:
    server = private_server("qdrant")
    app = build_application(with_own(endpoints, server), step_timeout_s=3.0)
    app.ingestion.ingest([submission(unique)], owner="before")
    opened = app.ingestion.open([submission(unique, edition=2)], owner="test")
    staged = app.ingestion.stage("redis_write", opened.alive)
    with down(server, outage):
        [saga] = app.ingestion.commit(staged.alive, owner="test").completed
        [saga] = app.ledger.sagas([saga.saga_id])
        assert (saga.status, saga.published_at, saga.is_waiting) == (Status.COMPLETED, None, True)
        for tick in range(3):
            assert app.ingestion.recovery.recover(owner=f"tick-{tick}") == []
        assert app.ledger.overdue_sagas(bound_s=0.0) == []
    ended = recovered(app, saga.saga_id)
    assert ended.published_at is not None
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_while_a_store_is_down_nothing_is_sent_to_it(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
) -> None:
    """Neither a new saga's step, nor one that recovery resumes: both end at once."""
    server = private_server("redis")
    app = build_application(with_own(endpoints, server), probe_delay_s=600, probe_delay_s_max=600)
    other = build_application(with_own(endpoints, server), probe_delay_s=600, probe_delay_s_max=600)
    with down(server, "killed"):
        app.ingestion.ingest([submission(unique)], owner="first")
        opened = other.ingestion.open([submission(f"{unique}-2")], owner="second")
        staging = other.ingestion.stage("redis_write", opened.alive)
        [failed] = staging.failed
        assert failed.error is not None
        assert "retry after" in failed.error["message"]
        assert failed.error["class"] == "store_down"
    # It is up again, and not even then is it called before a probe has said so.
    [ended] = other.compensation.compensate([failed.saga_id], owner="second")
    assert ended.status is Status.COMPENSATED
    [third] = other.ingestion.ingest([submission(f"{unique}-3")], owner="third")
    assert third.status is Status.COMPENSATED
    assert app.breakers.probe(at_once=True) == ["redis"]
    time.sleep(1.1)  # what a process has seen of the breakers may be a second old
    [fourth] = other.ingestion.ingest([submission(f"{unique}-4")], owner="fourth")
    assert fourth.status is Status.COMPLETED


def test_an_undo_that_finds_its_store_down_again_and_again_is_given_up_with_an_alert(
    app: Application, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The store answers every probe, and yet it takes no undo: somebody has to look."""
    opened = app.ingestion.open([submission(unique)], owner="test")
    [saga] = app.ingestion.stage("qdrant_write", opened.alive).alive
    with armed("undoing:qdrant_write=unavailable"):
        app.compensation.compensate([saga.saga_id], owner="test")
        deadline = time.monotonic() + 60
        while app.ledger.sagas([saga.saga_id])[0].status is Status.COMPENSATING:
            app.ingestion.recovery.recover(owner=f"tick-{time.monotonic_ns()}")
            assert time.monotonic() < deadline
    [saga] = app.ledger.sagas([saga.saga_id])
    assert saga.status is Status.FAILED
    assert "compensation_failed" in caplog.text
    waited = [event for event, _ in events(app, saga.saga_id) if event == "saga_waits"]
    assert len(waited) == 10
    app.breakers.probe(at_once=True)  # as `apex saga compensate` does
    [ended] = app.compensation.compensate([saga.saga_id], owner="operator")
    assert ended.status is Status.COMPENSATED


@pytest.mark.parametrize("name", ["neo4j", "redis"])
def test_any_other_store_that_is_stopped_compensates_too(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    name: str,
) -> None:
    server = private_server(name)
    own = {field: getattr(server.endpoints, field) for field in FIELDS[name]}
    app = build_application(replace(endpoints, **own))
    app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(app, unique)
    server.stop()
    [saga] = app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    assert saga.status is Status.COMPENSATED
    server.start()
    assert copies(app, unique) == before
