"""The audit proof on real servers: what is clean passes, and whatever is tampered with is named."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, LiteralString
from uuid import uuid4

import psycopg
import pytest
import redis
from neo4j import GraphDatabase
from qdrant_client import QdrantClient, models

from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import ITEMS_NAMED_MAX, AuditReport, verify
from apex_dagster.records import Publication, item_id
from apex_dagster.saga import audit, states
from apex_dagster.saga.audit import Difference
from apex_dagster.saga.ledger import Transaction
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.documents import DIM, submission, submissions


def check(app: Application, **more: Any) -> AuditReport:
    return verify(app.ledger, app.stores, **more)


def places(app: Application, **more: Any) -> set[str]:
    return {difference.place for difference in check(app, **more).differences}


def ingest(app: Application, document_id: str, **fields: Any) -> Saga:
    [saga] = app.ingestion.ingest([submission(document_id, **fields)], owner="test")
    return saga


@contextmanager
def as_superuser(app: Application) -> Iterator[Transaction]:
    """Without the triggers that keep the audit log append-only, nor foreign keys."""
    with app.ledger.transaction() as tx:
        tx.execute("SET LOCAL session_replication_role = replica")
        yield tx


def tamper(app: Application, *statements: LiteralString, **values: object) -> None:
    with as_superuser(app) as tx:
        for statement in statements:
            assert tx.execute(statement, values).rowcount > 0, "nothing was tampered with"


def only(app: Application, place: str, saga: Saga) -> Difference:
    """The one difference there is."""
    [difference] = check(app).differences
    assert (difference.place, difference.document_id) == (place, saga.document_id)
    assert difference.saga_id == saga.saga_id
    return difference


# -- what is clean -------------------------------------------------------------------------------


def test_a_history_of_everything_that_may_happen_is_clean(app: Application, unique: str) -> None:
    app.ingestion.ingest(submissions(unique, 3), owner="test")
    ingest(app, f"{unique}-0", edition=2)
    assert ingest(app, f"{unique}-0", dim=7).status is Status.COMPENSATED
    [left] = app.ingestion.open([submission(f"{unique}-1", edition=2)], owner="dead").alive
    [now] = app.ledger.take_over("other", among=[left.saga_id], dead_owner="dead")
    app.compensation.compensate([now.saga_id], owner="other")
    app.ingestion.open([submission(f"{unique}-2", edition=3)], owner="alive")
    app.ingestion.sweep()
    audit.anchor(app.ledger)
    report = check(app)
    assert report.differences == []
    assert (report.sagas, report.anchors, report.live, report.dead) == (7, 1, 3, 3)
    assert report.events > 60


def test_an_empty_ledger_is_clean(app: Application) -> None:
    assert audit.anchor(app.ledger) is None
    assert check(app).differences == []


@pytest.mark.parametrize("last_step", ["neo4j_write", "redis_write"])
def test_a_saga_in_flight_is_left_alone(app: Application, unique: str, last_step: str) -> None:
    ingest(app, unique)
    batch = app.ingestion.open([submission(unique, edition=2)], owner="alive")
    app.ingestion.stage(last_step, batch.alive)
    assert check(app).differences == []


def test_a_version_between_pivot_and_publish_is_left_alone(app: Application, unique: str) -> None:
    ingest(app, unique)
    batch = app.ingestion.open([submission(unique, edition=2)], owner="alive")
    staged = app.ingestion.stage("redis_write", batch.alive)
    assert app.ledger.pivot(staged.alive, steps=app.engine.step_names).completed
    assert check(app).differences == []


def test_a_superseded_version_may_stay_until_its_sweep(app: Application, unique: str) -> None:
    first = ingest(app, unique)
    ingest(app, unique, edition=2)
    assert check(app).dead == 0
    app.ingestion.sweep()
    assert (check(app).dead, check(app).differences) == (1, [])
    assert app.stores["qdrant"].holdings([first.ref]) == {first.saga_id: 0}


# -- the ledger tampered with --------------------------------------------------------------------


def test_a_changed_event_is_found(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    tamper(
        app,
        'UPDATE apex.saga_event SET detail = \'{"chunks": 3, "by": "me"}\''
        " WHERE event = 'step_completed' AND step = 'postgres_write'",
    )
    assert "as it was written" in only(app, "saga_event", saga).expected


@pytest.mark.parametrize("column", ["duration_ms = 1", "at = at - interval '1 day'", "step = 'x'"])
def test_every_column_of_an_event_counts(app: Application, unique: str, column: str) -> None:
    saga = ingest(app, unique)
    tamper(app, f"UPDATE apex.saga_event SET {column} WHERE seq = 3")
    only(app, "saga_event", saga)


def test_a_removed_event_in_the_middle_is_found(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    tamper(app, "DELETE FROM apex.saga_event WHERE seq = 5")
    difference = only(app, "saga_event", saga)
    assert (difference.expected, difference.found) == ("event 5 after event 4", "event 6")


def test_a_removed_tail_is_found_even_if_the_saga_is_set_back(
    app: Application, unique: str
) -> None:
    saga = ingest(app, unique)
    audit.anchor(app.ledger)
    tamper(app, "DELETE FROM apex.saga_event WHERE event = 'saga_published'")
    assert places(app) == {"saga_event", "saga_state"}
    tamper(
        app,
        "UPDATE apex.saga_state s SET event_seq = e.seq, event_hash = e.hash, published_at = NULL"
        " FROM apex.saga_event e WHERE e.saga_id = s.saga_id AND e.event = 'saga_completed'",
    )
    assert "as anchor 1 has it" in only(app, "saga_event", saga).expected


def test_a_removed_chain_is_found_even_if_the_saga_goes_with_it(
    app: Application, unique: str
) -> None:
    saga = ingest(app, unique, dim=7)
    audit.anchor(app.ledger)
    tamper(app, "DELETE FROM apex.saga_event")
    assert places(app) == {"saga_event", "saga_state"}
    tamper(app, "DELETE FROM apex.saga_state")
    [difference] = check(app).differences
    assert (difference.saga_id, difference.found) == (saga.saga_id, "no events at all")


def test_a_forged_move_is_found_although_its_hash_is_right(app: Application, unique: str) -> None:
    saga = ingest(app, unique, dim=7)
    with as_superuser(app) as tx:
        forged = states._move("saga_completed", {Status.COMPENSATED}, Status.COMPLETED)
        assert app.ledger.advance(forged, [saga], tx=tx)
    report = check(app)
    faults = [one for one in report.differences if one.place == "saga_event"]
    assert [one.expected for one in faults] == ["a move that is allowed from compensated, epoch 2"]
    assert "documents" in {one.place for one in report.differences}


def test_a_changed_status_is_found(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    tamper(app, "UPDATE apex.saga_state SET status = 'compensated'")
    difference = only(app, "saga_state", saga)
    assert difference.expected.startswith("completed")
    assert difference.found.startswith("compensated")


def test_a_saga_that_is_given_another_version_is_found(app: Application, unique: str) -> None:
    ingest(app, unique)
    tamper(app, "UPDATE apex.saga_state SET version = 7")
    assert "saga_state" in places(app)


def test_a_moved_pointer_is_found(app: Application, unique: str) -> None:
    first, second = ingest(app, unique), ingest(app, unique, edition=2)
    tamper(
        app,
        "UPDATE apex.documents SET live_version = 1, live_saga_id = %(saga_id)s",
        saga_id=first.saga_id,
    )
    difference = only(app, "documents", second)
    assert difference.expected == "version 2 live"
    assert difference.found == f"version 1 of {first.saga_id} live"


def test_a_pointer_to_nothing_and_one_from_nowhere_are_found(app: Application, unique: str) -> None:
    ingest(app, unique)
    tamper(app, "UPDATE apex.documents SET live_version = NULL, live_saga_id = NULL")
    assert places(app) == {"documents"}
    tamper(app, "INSERT INTO apex.documents (document_id, live_version, live_saga_id)"
                " VALUES ('nowhere', 1, 'ingest_nowhere')")  # fmt: skip
    assert {one.document_id for one in check(app).differences} == {unique, "nowhere"}


# -- anchors -------------------------------------------------------------------------------------


def test_an_anchor_takes_only_what_has_grown(app: Application, unique: str) -> None:
    app.ingestion.ingest(submissions(unique, 3), owner="test")
    first = audit.anchor(app.ledger)
    assert first is not None
    assert (first.anchor_seq, first.head_count) == (1, 3)
    assert audit.anchor(app.ledger, every_s=0) is None
    ingest(app, f"{unique}-1", edition=2)
    assert audit.anchor(app.ledger) is None  # within a minute of the last
    second = audit.anchor(app.ledger, every_s=0)
    assert second is not None
    assert (second.anchor_seq, second.head_count) == (2, 1)
    assert check(app).differences == []


def test_what_was_in_flight_at_one_anchor_is_in_the_next(app: Application, unique: str) -> None:
    """Its transaction is older than that of the anchor, and ends after it."""
    [saga] = app.ingestion.open([submission(unique)], owner="me").alive
    with app.ledger.transaction() as tx:
        app.ledger.advance(states.STEP_STARTED, [saga], step="neo4j_write", tx=tx)
        other = ingest(app, f"{unique}-other")
        assert audit.anchor(app.ledger) is not None
    made = audit.anchor(app.ledger, every_s=0)
    assert made is not None
    with app.ledger.transaction() as tx:
        heads = tx.execute(
            "SELECT saga_id, event_seq FROM apex.audit_head WHERE anchor_seq = 2"
        ).fetchall()
    assert heads == [{"saga_id": saga.saga_id, "event_seq": 3}]
    assert other.saga_id not in {head["saga_id"] for head in heads}


def test_a_restored_database_whose_transactions_count_anew_is_anchored(
    app: Application, unique: str
) -> None:
    ingest(app, unique)
    audit.anchor(app.ledger)
    far = "'9000000000000'::xid8"
    tamper(app, f"UPDATE apex.saga_event SET written_in = {far}")
    with as_superuser(app) as tx:
        tx.execute(f"UPDATE apex.audit_anchor SET horizon = {far}")
    ingest(app, f"{unique}-new")
    made = audit.anchor(app.ledger, every_s=0)
    assert made is not None
    assert made.head_count == 1


def test_anchors_made_at_once_form_one_chain(app: Application, unique: str) -> None:
    app.ingestion.ingest(submissions(unique, 2), owner="test")
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: audit.anchor(app.ledger, every_s=0), range(3)))
    assert [one.anchor_seq for one in made if one] == [1]
    assert check(app).differences == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE apex.audit_anchor SET hash = sha256('x') WHERE anchor_seq = 1",
        "UPDATE apex.audit_anchor SET anchored_at = now() WHERE anchor_seq = 2",
        "DELETE FROM apex.audit_anchor WHERE anchor_seq = 1",
        "DELETE FROM apex.audit_head WHERE anchor_seq = 2",
    ],
)
def test_changed_anchors_are_found(app: Application, unique: str, statement: LiteralString) -> None:
    for edition in (1, 2):
        ingest(app, unique, edition=edition)
        audit.anchor(app.ledger, every_s=0)
    assert check(app).differences == []
    with pytest.raises(psycopg.Error, match="append-only"), app.ledger.transaction() as tx:
        tx.execute(statement)
    tamper(app, statement)
    assert places(app) == {"audit_anchor"}


def test_a_noted_anchor_shows_that_history_was_rewritten(app: Application, unique: str) -> None:
    """A superuser removes the newest anchor with its heads: the rest is in order."""
    ingest(app, unique)
    audit.anchor(app.ledger)
    ingest(app, unique, edition=2)
    noted = audit.anchor(app.ledger, every_s=0)
    assert noted is not None
    assert check(app, noted_anchor=noted.hash).differences == []
    tamper(
        app,
        "DELETE FROM apex.audit_head WHERE anchor_seq = 2",
        "DELETE FROM apex.audit_anchor WHERE anchor_seq = 2",
    )
    assert check(app).differences == []
    assert places(app, noted_anchor=noted.hash) == {"audit_anchor"}


# -- the stores ----------------------------------------------------------------------------------

STORES = ("neo4j", "postgres", "qdrant", "redis")


@pytest.mark.parametrize("store", ["neo4j", "postgres", "qdrant"])
def test_a_live_version_that_a_store_has_lost_is_found(
    app: Application, unique: str, store: str
) -> None:
    app.ingestion.ingest(submissions(unique, 2), owner="test")
    [saga] = app.ledger.list_sagas(document_id=f"{unique}-0")
    if store == "postgres":  # it refuses to discard what a pointer names
        tamper(
            app,
            "DELETE FROM apex.chunks WHERE document_id = %(id)s",
            "DELETE FROM apex.document_versions WHERE document_id = %(id)s",
            id=saga.document_id,
        )
    else:
        app.stores[store].discard([saga.ref])
    difference = only(app, store, saga)
    assert "version 1, which is live" in difference.expected
    assert difference.found == "none"


# -- tampering: (store, what is done, how the difference begins) -----------------------------------


def cypher(query: LiteralString) -> Callable[[Application, Saga], None]:
    def run(app: Application, saga: Saga) -> None:
        servers = app.endpoints
        login = (servers.neo4j_user, servers.neo4j_password.get_secret_value())
        with GraphDatabase.driver(servers.neo4j_uri, auth=login) as driver:
            values = {"saga_id": saga.saga_id, "document_id": saga.document_id}
            summary = driver.execute_query(query, values).summary
            assert summary.counters.contains_updates

    return run


def sql(statement: LiteralString) -> Callable[[Application, Saga], None]:
    return lambda app, saga: tamper(app, statement, saga_id=saga.saga_id)


def qdrant(
    change: Callable[[QdrantClient, str, str], object],
) -> Callable[[Application, Saga], None]:
    """`change` gets a client, the collection and the id of the version's second point."""

    def run(app: Application, saga: Saga) -> None:
        key = app.endpoints.qdrant_api_key
        assert key is not None
        client = QdrantClient(
            url=app.endpoints.qdrant_url,
            headers={"api-key": key.get_secret_value()},
            check_compatibility=False,
        )
        change(client, app.settings.qdrant_collection, str(item_id(saga.saga_id, "chunk", 1)))
        client.close()

    return run


def other_point(client: QdrantClient, collection: str, point_id: str) -> None:
    """A fourth point of the version, under an id that no chunk has."""
    [record] = client.retrieve(collection, [point_id], with_vectors=True)
    copy = models.PointStruct(id=str(uuid4()), vector=record.vector, payload=record.payload)  # type: ignore[arg-type]
    client.upsert(collection, [copy], wait=True)


def other_text(client: QdrantClient, collection: str, point_id: str) -> None:
    client.set_payload(collection, {"text": "x"}, points=[point_id], wait=True)


def other_vector(client: QdrantClient, collection: str, point_id: str) -> None:
    [record] = client.retrieve(collection, [point_id])
    vector = [1.0] + [0.0] * (DIM - 1)
    point = models.PointStruct(id=point_id, vector=vector, payload=record.payload)
    client.upsert(collection, [point], wait=True)


def entry(change: Callable[[dict[str, Any]], object]) -> Callable[[Application, Saga], None]:
    def run(app: Application, saga: Saga) -> None:
        with redis.Redis.from_url(app.endpoints.redis_url.get_secret_value()) as client:
            name = f"{app.settings.redis_prefix}doc:{saga.document_id}"
            body = json.loads(client.get(name) or b"")
            change(body)
            client.set(name, json.dumps(body))

    return run


TAMPERINGS = [
    (
        "neo4j",
        cypher("MATCH ()-[m:MENTIONS {saga_id: $saga_id}]->() WITH m LIMIT 1 DELETE m"),
        "mention of",
    ),
    ("neo4j", cypher("MATCH ()-[r:RELATES {saga_id: $saga_id}]->() DELETE r"), "relation"),
    (
        "neo4j",
        cypher("MATCH ()-[r:RELATES {saga_id: $saga_id}]->() SET r.weight = 7.0"),
        "relation",
    ),
    (
        "neo4j",
        cypher(
            "MATCH (a)-[r:RELATES {saga_id: $saga_id}]->(b) CREATE (b)-[s:RELATES]->(a)"
            " SET s = properties(r)"
        ),
        "no relation",
    ),
    (
        "neo4j",
        cypher("MATCH (v:DocumentVersion {saga_id: $saga_id}) SET v.title = 'x'"),
        "version: title",
    ),
    ("neo4j", cypher("MATCH ()-[c:CURRENT]->({saga_id: $saga_id}) DELETE c"), "version: current"),
    (
        "neo4j",
        cypher("MATCH ()-[m:MENTIONS {saga_id: $saga_id}]->() SET m.ingestion_status = 'staged'"),
        "mention of",
    ),
    (
        "postgres",
        sql("DELETE FROM apex.chunks WHERE saga_id = %(saga_id)s AND ordinal = 1"),
        "chunk 1",
    ),
    (
        "postgres",
        sql(
            "UPDATE apex.chunks SET text = text || '.' WHERE saga_id = %(saga_id)s AND ordinal = 1"
        ),
        "chunk 1: text",
    ),
    (
        "postgres",
        sql(
            "UPDATE apex.chunks c SET embedding = o.embedding FROM apex.chunks o"
            " WHERE o.saga_id = c.saga_id AND o.ordinal = 0 AND c.ordinal = 1"
            " AND c.saga_id = %(saga_id)s"
        ),
        "chunk 1: embedding",
    ),
    (
        "postgres",
        sql(
            "UPDATE apex.document_versions SET metadata = '{\"a\": 1}' WHERE saga_id = %(saga_id)s"
        ),
        "version: metadata",
    ),
    ("qdrant", qdrant(lambda c, name, point: c.delete(name, [point], wait=True)), "point"),
    ("qdrant", qdrant(other_point), "no point"),
    ("qdrant", qdrant(other_vector), "point"),
    (
        "qdrant",
        qdrant(other_text),
        "point",
    ),
    ("redis", entry(lambda body: body.update(text="x")), "entry: text"),
    (
        "redis",
        entry(lambda body: body.update(ingestion_status="staged")),
        "entry: ingestion_status",
    ),
    ("redis", entry(lambda body: body.update(more=1)), "no entry: more"),
]


@pytest.mark.parametrize(("store", "change", "begins"), TAMPERINGS)
def test_whatever_is_altered_in_a_store_is_named(
    app: Application,
    unique: str,
    store: str,
    change: Callable[[Application, Saga], None],
    begins: str,
) -> None:
    saga = ingest(app, unique)
    other = ingest(app, f"{unique}-other")
    assert check(app).differences == []
    change(app, saga)
    found = check(app).differences
    assert found
    assert {(one.place, one.document_id, one.saga_id) for one in found} == {
        (store, unique, saga.saga_id)
    }
    assert found[0].expected.startswith(begins)
    assert check(app, document_ids=[other.document_id]).differences == []
    repaired = app.reconciler.reconcile(repair_as="test", document_ids=[unique])
    assert {(drift.store, drift.saga_id) for drift in repaired.drifts} == {(store, saga.saga_id)}
    assert repaired.left == []
    assert check(app).differences == []


def test_many_differences_of_one_version_are_counted(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    sql("UPDATE apex.chunks SET text = 'x', char_end = 1 WHERE saga_id = %(saga_id)s")(app, saga)
    found = check(app).differences
    assert len(found) == ITEMS_NAMED_MAX + 1
    assert found[-1].expected.startswith("3 items more of version 1")


@pytest.mark.parametrize("store", ["neo4j", "postgres", "qdrant"])
def test_what_no_saga_has_written_is_found(app: Application, unique: str, store: str) -> None:
    """As after a restore of PostgreSQL from before that saga."""
    live = ingest(app, unique)
    [stranger] = app.ingestion.open([submission(unique, edition=2)], owner="me").alive
    app.ingestion.stage("redis_write", [stranger])
    assert check(app).differences == []
    if store != "postgres":  # which would not let its own rows outlive the saga
        app.stores["postgres"].discard([stranger.ref])
    for name in {"neo4j", "qdrant"} - {store}:
        app.stores[name].discard([stranger.ref])
    tamper(
        app,
        "DELETE FROM apex.saga_event WHERE saga_id = %(id)s",
        "DELETE FROM apex.saga_state WHERE saga_id = %(id)s",
        id=stranger.saga_id,
    )
    difference = only(app, store, live)
    assert difference.expected == f"nothing of saga {stranger.saga_id}"


def test_a_missing_cache_entry_is_fine_and_one_of_another_version_is_not(
    app: Application, unique: str
) -> None:
    first = ingest(app, unique)
    with redis.Redis.from_url(app.endpoints.redis_url.get_secret_value()) as client:
        name = f"{app.settings.redis_prefix}doc:{unique}"
        stale = client.get(name)
        second = ingest(app, unique, edition=2)
        client.set(name, stale or b"")
        difference = only(app, "redis", second)
        assert difference.found == first.saga_id
        client.set(name, "no JSON")
        assert places(app) == {"redis"}
        client.delete(name)
    assert check(app).differences == []


def test_a_live_version_without_its_extraction_is_found(app: Application, unique: str) -> None:
    saga = ingest(app, unique)
    tamper(app, "UPDATE apex.extraction SET body = '\\x00' WHERE saga_id = %(id)s", id=saga.saga_id)
    assert "cannot be read" in only(app, "extraction", saga).found
    tamper(app, "DELETE FROM apex.extraction WHERE saga_id = %(id)s", id=saga.saga_id)
    assert only(app, "extraction", saga).found == "nothing stored"


def test_an_audit_of_many_versions_goes_by_pages_and_says_how_far_it_is(
    app: Application, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("apex_dagster.ingestion.audit.LIVE_A_REQUEST", 2)
    app.ingestion.ingest(submissions(unique, 5), owner="test")
    ingest(app, unique, dim=7)
    steps: list[tuple[int, int]] = []
    report = check(app, progress=lambda done, total: steps.append((done, total)))
    assert (report.live, report.dead, report.differences) == (5, 1, [])
    assert steps == [(0, 6), (2, 6), (4, 6), (5, 6), (6, 6), (6, 6)]


@pytest.mark.parametrize("store", STORES)
def test_a_leftover_of_a_dead_saga_is_found(app: Application, unique: str, store: str) -> None:
    ingest(app, unique)
    [dead] = app.ingestion.open([submission(unique, edition=2)], owner="me").alive
    [version] = staged_version(app, dead)
    app.compensation.compensate([dead.saga_id], owner="me")
    if store == "postgres":  # it refuses to stage for a saga that has ended
        with as_superuser(app) as tx:
            tx.execute(
                "INSERT INTO apex.chunks (chunk_id, saga_id, document_id, version, ordinal,"
                " ingestion_status, char_start, char_end, text, embedding)"
                " SELECT gen_random_uuid(), %s, document_id, 2, 0, 'committed', 0, 1, text,"
                " embedding FROM apex.chunks LIMIT 1",
                [dead.saga_id],
            )
    else:
        app.stores[store].stage([version])
        app.stores[store].publish([Publication(ref=dead.ref)])
    report = check(app)
    leftover = [one for one in report.differences if one.saga_id == dead.saga_id]
    assert [(one.place, one.document_id) for one in leftover] == [(store, unique)]
    assert leftover[0].expected == "nothing of version 2, which is compensated"
    # It has also taken the place of what is live.
    others = [one for one in report.differences if one not in leftover]
    assert [one.place for one in others] == ([store] if store in ("redis", "neo4j") else [])
    assert check(app, dead_max=0).dead == 0


def staged_version(app: Application, saga: Saga) -> list[Any]:
    """The content that the saga would stage, extracted but not yet written."""
    app.ingestion.extract([saga])
    [staged] = app.ingestion._extractions.of([saga.ref])
    return [staged]
