"""Eight processes at once, as from several front doors: on one document, and on shared entities."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from neo4j import GraphDatabase

from apex_dagster.composition import Application
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.audit import verify
from apex_dagster.saga.opening import RESTARTS_MAX
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import QUICK, BuildApplication, assert_whole
from apex_dagster_tests.ingestion.contents import edition, extracted
from apex_dagster_tests.ingestion.writers import write_at_once

PROCESSES = 8
# As in production: whoever meets a writer in Neo4j tries again.
PATIENT = QUICK | {"step_attempts": 8, "undo_attempts": 8, "step_timeout_s": 60.0, "lease_s": 300.0}


@pytest.fixture
def settings(qdrant_collection: str, redis_prefix: str, tmp_path: Any) -> dict[str, Any]:
    return PATIENT | {
        "home": tmp_path,
        "qdrant_collection": qdrant_collection,
        "redis_prefix": redis_prefix,
    }


def test_one_document_from_many_processes_ends_as_the_last_to_arrive(
    build_application: BuildApplication, settings: dict[str, Any], unique: str
) -> None:
    """Four contents, each submitted by two processes, three times over."""
    app = build_application(**settings)
    contents = [edition(unique, number, shared=unique) for number in range(1, 5)]
    work = [
        [contents[(number // 2 + turn) % 4] for turn in range(3)] for number in range(PROCESSES)
    ]
    answers = write_at_once(app.endpoints, settings, work)
    sagas = {saga.saga_id: saga for saga in app.ledger.list_sagas(document_id=unique, limit=1000)}
    assert {saga.status for saga in sagas.values()} <= {Status.COMPLETED, Status.COMPENSATED}
    for submissions, answer in zip(work, answers, strict=True):
        got = {saga.content_hash for saga in answer.sagas}
        assert got == {content_hash(submission.document) for submission in submissions}
    # The last to arrive is live, restarted as often as it took.
    last = max(sagas.values(), key=lambda saga: (saga.arrival, saga.version))
    assert (last.status, last.saga_id) == (Status.COMPLETED, live_saga(app, unique))
    starts = Counter(saga.arrival for saga in sagas.values())
    assert max(starts.values()) <= 1 + RESTARTS_MAX
    assert {reason(s) for s in sagas.values()} <= {"version_conflict", "superseded", None}
    app.ingestion.sweep()
    assert_whole(app, unique)
    assert verify(app.ledger, app.stores).differences == []


def test_documents_that_share_entities_neither_lose_nor_double_a_node_or_an_edge(
    build_application: BuildApplication, settings: dict[str, Any], unique: str
) -> None:
    """Updates and sweeps of eight documents, which mention five entities among them."""
    app = build_application(**settings)
    work = [
        [edition(f"{unique}-{number}", number + turn, shared=unique) for turn in range(4)]
        for number in range(PROCESSES)
    ]
    answers = write_at_once(app.endpoints, settings, work)
    assert {saga.status for answer in answers for saga in answer.sagas} == {Status.COMPLETED}
    app.ingestion.sweep()
    expected = [extracted(submissions[-1]) for submissions in work]
    nodes = Counter({entity.key: 1 for content in expected for entity in content.entities})
    edges = Counter(
        (content.document_id, relation.source_key, relation.type, relation.target_key)
        for content in expected
        for relation in content.relations
    )
    edges += Counter(
        (content.document_id, content.document_id, "MENTIONS", entity.key)
        for content in expected
        for entity in content.entities
    )
    assert graph(app, unique) == (nodes, edges)
    assert verify(app.ledger, app.stores).differences == []


def graph(app: Application, token: str) -> tuple[Counter[str], Counter[tuple[str, str, str, str]]]:
    """Entities whose keys have the token, and all relationships at them, with their numbers."""
    servers = app.endpoints
    login = (servers.neo4j_user, servers.neo4j_password.get_secret_value())
    with GraphDatabase.driver(servers.neo4j_uri, auth=login) as driver:
        nodes = driver.execute_query(
            "MATCH (e:Entity) WHERE e.key STARTS WITH $start RETURN e.key AS key",
            start=f"place:{token}",
        )
        edges = driver.execute_query(
            "MATCH (a)-[r]->(e:Entity) WHERE e.key STARTS WITH $start"
            " RETURN r.document_id AS document_id, coalesce(a.key, a.document_id) AS source,"
            " coalesce(r.type, type(r)) AS type, e.key AS target",
            start=f"place:{token}",
        )
    return (
        Counter(record["key"] for record in nodes.records),
        Counter(tuple(record.values()) for record in edges.records),
    )


def live_saga(app: Application, document_id: str) -> str | None:
    saga_id: str | None = app.ledger.pointers([document_id])[document_id]["live_saga_id"]
    return saga_id


def reason(saga: Saga) -> str | None:
    return (saga.error or {}).get("class")
