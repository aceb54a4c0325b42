"""Real failures: a Qdrant that is stopped, one that holds vectors of another dimension."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
from qdrant_client import QdrantClient, models

from apex_dagster.composition import Application
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole, copies, events
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.documents import submission, submissions
from apex_dagster_tests.servers import FIELDS


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
    assert endpoints.qdrant_api_key is not None
    key = endpoints.qdrant_api_key.get_secret_value()
    client = QdrantClient(
        url=endpoints.qdrant_url,
        headers={"api-key": key},
        check_compatibility=False,
    )
    client.create_collection(
        qdrant_collection,
        vectors_config=models.VectorParams(size=8, distance=models.Distance.DOT),
    )
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


def test_a_store_that_stays_down_during_its_undo_waits_for_an_operator(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = private_server("qdrant")
    servers = replace(
        endpoints,
        qdrant_url=server.endpoints.qdrant_url,
        qdrant_api_key=server.endpoints.qdrant_api_key,
    )
    app = build_application(servers)
    app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(app, unique)
    opened = app.ingestion.open([submission(unique, edition=2)], owner="test")
    staged = app.ingestion.stage("qdrant_write", opened.alive)
    server.kill()
    with caplog.at_level(logging.CRITICAL, "apex_dagster"):
        [saga] = app.compensation.compensate([staged.alive[0].saga_id], owner="test")
    assert saga.status is Status.FAILED
    assert undos(app, saga.saga_id) == ["postgres_write", "neo4j_write"]
    assert "compensation_failed" in caplog.text
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == [saga.saga_id]

    server.start()
    [ended] = app.compensation.compensate([saga.saga_id], owner="operator")
    assert ended.status is Status.COMPENSATED
    assert copies(app, unique) == before


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
