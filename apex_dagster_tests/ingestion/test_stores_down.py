"""Real failures: a Qdrant that is stopped, one that holds vectors of another dimension."""

from __future__ import annotations

from dataclasses import replace

from qdrant_client import QdrantClient, models

from apex_dagster.composition import Application
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole, copies, events
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.documents import submissions


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
    # Its own store cannot be undone while it is down, so these wait for an operator; the stores
    # before it are undone, and the one after it was never written.
    assert {saga.status for saga in sagas} == {Status.FAILED}
    for saga in sagas:
        assert undos(app, saga.saga_id) == ["postgres_write", "neo4j_write"]
        assert ("step_started", "redis_write") not in events(app, saga.saga_id)
    server.start()
    ended = app.compensation.compensate([saga.saga_id for saga in sagas], owner="operator")
    assert {saga.status for saga in ended} == {Status.COMPENSATED}
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
        assert undos(app, saga.saga_id) == ["qdrant_write", "postgres_write", "neo4j_write"]
        assert ("step_started", "redis_write") not in events(app, saga.saga_id)
        assert_whole(app, saga.document_id)
