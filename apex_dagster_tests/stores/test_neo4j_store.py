"""The conformance suite on Neo4j, and what only a graph with shared nodes can do wrong."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import neo4j
import pytest

from apex_dagster.errors import OutcomeUnknown, StoreConflict, StoreRejected, StoreUnavailable
from apex_dagster.records import Publication, StagedVersion, VersionRef
from apex_dagster.stores.neo4j_store import KEY_CHARS_MAX, Neo4jStore
from apex_dagster_tests.stores.conformance import (
    OpenStore,
    StoreConformance,
    digest,
    eventually,
    held,
    patiently,
    publish,
    removal,
    within,
)
from apex_dagster_tests.stores.faulty_link import Address


class Neo4jProbe:
    """What the server holds of this test's documents, whose ids begin with its token."""

    def __init__(self, driver: neo4j.Driver, token: str) -> None:
        self.driver, self.token = driver, token

    def run(self, query: str, **parameters: object) -> list[neo4j.Record]:
        return self.driver.execute_query(query, parameters).records

    def count(self, query: str, **parameters: object) -> int:
        [record] = self.run(query, **parameters)
        return record[0]

    def totals(self) -> Mapping[str, int]:
        patterns = {"DocumentVersion": "(x:DocumentVersion)"}
        patterns |= {kind: f"()-[x:{kind}]->()" for kind in ("MENTIONS", "RELATES")}
        mine = "WHERE x.document_id STARTS WITH $token"
        return {
            kind: self.count(f"MATCH {pattern} {mine} RETURN count(x)", token=self.token)
            for kind, pattern in patterns.items()
        }

    def statuses(self, ref: VersionRef) -> Mapping[str, int]:
        rows = self.run(
            "MATCH (v:DocumentVersion {saga_id: $saga_id}) RETURN v.ingestion_status AS status "
            "UNION ALL MATCH ()-[r:MENTIONS|RELATES {saga_id: $saga_id}]->() "
            "RETURN r.ingestion_status AS status",
            saga_id=ref.saga_id,
        )
        return Counter(row["status"] for row in rows)

    def entities(self) -> int:
        """How many entities of this test's vocabulary there are, mentioned or not."""
        query = "MATCH (e:Entity) WHERE e.name STARTS WITH $token RETURN count(e)"
        return self.count(query, token=self.token)

    def alterations(self, ref: VersionRef) -> Iterable[Callable[[], None]]:
        version = "MATCH (v:DocumentVersion {saga_id: $id}) "
        mention = "MATCH ()-[m:MENTIONS {saga_id: $id}]->() WITH m ORDER BY m.name LIMIT 1 "
        relation = (
            "MATCH (a)-[r:RELATES {saga_id: $id}]->(b) WITH a, r, b ORDER BY r.description LIMIT 1 "
        )
        for change in (
            version + "SET v.title = 'altered'",
            version + "SET v.added = true",
            mention + "SET m.description = 'altered'",
            mention + "SET m.chunk_ordinals = [7, 7]",
            mention + "SET m.aliases = []",
            mention + "DELETE m",
            relation + "SET r.weight = r.weight + 1e-9",
            relation + "CREATE (b)-[t:RELATES]->(a) SET t = properties(r) DELETE r",
            relation + "DELETE r",
            relation + "CREATE (a)-[t:RELATES]->(b) SET t = properties(r)",
            relation + "SET r.ingestion_status = 'superseded'",
            version + "DETACH DELETE v",
        ):
            yield lambda change=change: self.run(change, id=ref.saga_id)


@pytest.fixture(scope="session")
def driver(stack) -> Iterator[neo4j.Driver]:
    auth = (stack.neo4j_user, stack.neo4j_password.get_secret_value())
    with neo4j.GraphDatabase.driver(stack.neo4j_uri, auth=auth) as driver:
        yield driver


@pytest.fixture
def probe(driver, unique) -> Neo4jProbe:
    return Neo4jProbe(driver, unique)


@pytest.fixture(scope="session")
def address(stack) -> Address:
    url = urlsplit(stack.neo4j_uri)
    assert url.hostname
    return url.hostname, url.port or 7687


@pytest.fixture
def open_store(stack) -> Iterator[OpenStore]:
    opened = []

    def open_store(address: Address, *, timeout_s: float = 30.0) -> Neo4jStore:
        store = Neo4jStore(
            f"bolt://{address[0]}:{address[1]}",
            stack.neo4j_user,
            stack.neo4j_password.get_secret_value(),
            timeout_s=timeout_s,
        )
        opened.append(store)
        if timeout_s >= 30.0:
            store.prepare()
        return store

    yield open_store
    for store in opened:
        store.close()


class TestNeo4jStore(StoreConformance):
    def test_a_removal_takes_entities_along_that_nothing_else_mentions(self, store, probe, make):
        doomed = make("doomed", entities=15, vocabulary_size=20)
        neighbour = make("neighbour", entities=15, vocabulary_size=20)
        publish(store, doomed)
        publish(store, neighbour)
        store.remove([removal(doomed, version_of_deletion=2)])
        mine, theirs = ({e.key for e in v.extraction.entities} for v in (doomed, neighbour))
        assert mine - theirs
        assert mine & theirs
        records = probe.run(
            "MATCH (e:Entity) WHERE e.key IN $keys RETURN e.key AS key", keys=sorted(mine | theirs)
        )
        assert {record["key"] for record in records} == theirs

    def test_entities_hold_nothing_that_a_document_says_of_them(self, store, probe, make):
        version = make(entities=1, relations=0)
        store.stage([version])
        [entity] = version.extraction.entities
        [record] = probe.run(
            "MATCH (e:Entity {key: $key}) RETURN properties(e) AS e", key=entity.key
        )
        record["e"].pop("touched")
        assert record["e"] == {
            "key": entity.key,
            "type": entity.type,
            "name": entity.key.removeprefix(f"{entity.type}:"),
        }

    def test_orphans_of_an_undone_document_are_swept_and_shared_entities_stay(
        self, store, probe, make
    ):
        kept, undone = make("kept", vocabulary_size=20), make("undone", vocabulary_size=20)
        publish(store, kept)
        before = digest(store, kept)
        store.stage([undone])
        store.revert([undone.ref])
        assert probe.entities() > 15
        while patiently(lambda _: store.sweep_orphans(1000), []):
            pass
        assert (probe.entities(), digest(store, kept)) == (15, before)

    def test_a_sweep_removes_at_most_its_limit(self, store, probe, make):
        version = make()
        store.stage([version])
        store.revert([version.ref])
        while (swept := patiently(lambda _: store.sweep_orphans(4), [])) == 4:
            pass
        assert swept < 4
        assert probe.entities() == 0

    def test_sweeping_while_documents_are_staged_loses_none_of_theirs(self, store, make):
        """Every document comes and goes, so that the sweeper finds what the next one needs."""
        batch = [make(f"d{n}", vocabulary_size=15) for n in range(60)]
        done = threading.Event()

        def sweep() -> None:
            while not done.is_set():
                patiently(lambda _: store.sweep_orphans(100), [])

        def come_and_go(versions) -> list[str | None]:
            digests = []
            for version in versions:
                [receipt] = patiently(store.stage, [version])
                assert store.holdings([version.ref]) == {version.ref.saga_id: held(receipt)}
                digests.append(digest(store, version))
                patiently(store.revert, [version.ref])
            return digests

        with ThreadPoolExecutor(4) as pool:
            sweeper = pool.submit(sweep)
            try:
                digests = list(pool.map(come_and_go, (batch[0::3], batch[1::3], batch[2::3])))
            finally:
                done.set()
            sweeper.result()
        alone = [come_and_go(versions) for versions in (batch[0::3], batch[1::3], batch[2::3])]
        assert digests == alone

    def test_an_entity_swept_while_a_stage_waits_for_its_lock_is_not_lost(
        self, store, driver, probe, make
    ):
        gone, version = make("gone", vocabulary_size=15), make(vocabulary_size=15)
        store.stage([gone])
        store.revert([gone.ref])
        assert probe.entities() == 15
        sweep = "MATCH (e:Entity) WHERE e.name STARTS WITH $token SET e.touched = 0 DELETE e"
        with driver.session() as session, ThreadPoolExecutor(1) as pool:
            transaction = session.begin_transaction()
            transaction.run(sweep, token=probe.token).consume()
            stage = pool.submit(patiently, store.stage, [version])
            wait_until_blocked(driver)
            transaction.commit()
            [receipt] = stage.result()
        assert store.holdings([version.ref]) == {version.ref.saga_id: held(receipt)}
        assert probe.totals()["RELATES"] == len(version.extraction.relations)

    def test_an_entity_mentioned_while_the_sweep_waits_for_its_lock_stays(
        self, store, driver, probe, make
    ):
        gone = make("gone", entities=1, relations=0)
        store.stage([gone])
        store.revert([gone.ref])
        mention = (
            "MATCH (e:Entity) WHERE e.name STARTS WITH $token SET e.touched = 0"
            " CREATE (:DocumentVersion {saga_id: $token, document_id: $token})-[:MENTIONS]->(e)"
        )
        with driver.session() as session, ThreadPoolExecutor(1) as pool:
            transaction = session.begin_transaction()
            transaction.run(mention, token=probe.token).consume()
            sweep = pool.submit(store.sweep_orphans, 100_000)
            wait_until_blocked(driver)
            transaction.commit()
            sweep.result()
        assert probe.entities() == 1

    def test_writers_and_undos_of_shared_entities_queue_instead_of_deadlocking(self, store, make):
        batch = [make(f"d{n}", vocabulary_size=15) for n in range(48)]
        store.stage([make("first", vocabulary_size=15)])

        def come_and_go(version: StagedVersion) -> None:
            store.stage([version])
            store.revert([version.ref])

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(come_and_go, batch))  # a deadlock would raise StoreConflict

    def test_revert_waits_for_a_stage_of_the_same_saga_that_is_still_in_flight(
        self, store, driver, probe, make
    ):
        """Its client gave up on it; without the wait, the version would appear after its undo."""
        version = make(entities=0, relations=0)
        with driver.session() as session, ThreadPoolExecutor(1) as pool:
            transaction = session.begin_transaction()
            transaction.run(
                "CREATE (:DocumentVersion {saga_id: $saga_id, ingestion_status: 'staged',"
                " document_id: $document_id, version: 1})",
                saga_id=version.ref.saga_id,
                document_id=version.ref.document_id,
            ).consume()
            undo = pool.submit(store.revert, [version.ref])
            wait_until_blocked(driver)
            transaction.commit()
            assert undo.result() == {version.ref.saga_id: 1}
        assert probe.statuses(version.ref) == {}

    def test_one_version_is_current_and_its_document_outlives_it(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        current = (
            "MATCH (d:Document {document_id: $id}) OPTIONAL MATCH (d)-[:CURRENT]->(v)"
            " RETURN d.fence AS fence, collect(v.version) AS versions"
        )
        [record] = probe.run(current, id=new.ref.document_id)
        assert (record["fence"], record["versions"]) == (2, [2])
        store.discard([old.ref, new.ref])
        [record] = probe.run(current, id=new.ref.document_id)
        assert (record["fence"], record["versions"]) == (2, [])

    def test_publishing_in_parallel_ends_with_the_newest(self, store, probe, make):
        versions = [make(version=number) for number in range(1, 9)]
        store.stage(versions)
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda version: patiently(store.publish, [Publication(ref=version.ref)]),
                    versions,
                )
            )
        [record] = probe.run(
            "MATCH (d:Document {document_id: $id})-[:CURRENT]->(v) RETURN d.fence, v.version",
            id=versions[0].ref.document_id,
        )
        assert tuple(record) == (8, 8)

    def test_a_name_too_long_for_the_index_is_rejected(self, store, probe, make):
        version, totals = make("long", entities=1, relations=0), probe.totals()
        [entity] = version.extraction.entities
        longest = replace(entity, key="person:" + "\U00020b9f" * (KEY_CHARS_MAX - 7))
        good = replace(version, extraction=replace(version.extraction, entities=(longest,)))
        store.stage([good])
        store.revert([good.ref])
        long = replace(longest, key=longest.key + "x")
        bad = replace(version, extraction=replace(version.extraction, entities=(long,)))
        with pytest.raises(StoreRejected) as caught:
            store.stage([make("good"), bad])
        assert caught.value.document_ids == (bad.ref.document_id,)
        assert probe.totals() == totals

    def test_a_relation_to_an_entity_that_is_not_there_is_rejected(self, store, probe, make):
        version, totals = make(entities=2, relations=1), probe.totals()
        [relation] = version.extraction.relations
        loose = replace(relation, target_key="person:nobody at all")
        bad = replace(version, extraction=replace(version.extraction, relations=(loose,)))
        with pytest.raises(StoreRejected) as caught:
            store.stage([make("good"), bad])
        assert caught.value.document_ids == (bad.ref.document_id,)
        assert probe.totals() == totals

    def test_a_server_that_is_frozen_then_killed_is_an_error_in_time_and_found_again(
        self, private_server, make
    ):
        server, version = private_server("neo4j"), make()
        login = (server.endpoints.neo4j_user, server.endpoints.neo4j_password.get_secret_value())
        patient = Neo4jStore(server.endpoints.neo4j_uri, *login)
        with ThreadPoolExecutor(8) as pool:  # as processes do that start together on a new server
            list(pool.map(lambda _: patient.prepare(), range(8)))
        publish(patient, version)  # a cold server plans its first queries for seconds
        before = digest(patient, version)
        store = Neo4jStore(server.endpoints.neo4j_uri, *login, timeout_s=2.0)
        store.ping()
        server.freeze()
        for call in (lambda: store.stage([make("other")]), store.ping):
            with within(8.0), pytest.raises((OutcomeUnknown, StoreUnavailable)):
                call()
        server.thaw()
        eventually(store.ping)
        server.kill()
        with within(8.0), pytest.raises(StoreUnavailable):
            store.stage([make("other")])
        server.start()
        eventually(store.ping)
        eventually(patient.ping)
        assert digest(patient, version) == before
        store.close()
        patient.close()

    def test_a_transaction_ended_while_it_waits_for_a_lock_may_be_repeated(
        self, store, driver, make, unique
    ):
        """The driver calls it the client's fault, as if the document were to blame."""
        version = make()
        with (
            ThreadPoolExecutor(1) as pool,
            driver.session() as session,
            session.begin_transaction(metadata={"test": unique}) as holder,
        ):
            holder.run("CREATE (:DocumentVersion {saga_id: $id})", id=version.ref.saga_id).consume()
            waiting = pool.submit(store.stage, [version])
            driver.execute_query("TERMINATE TRANSACTION $id", id=blocked_by(driver, unique))
            with pytest.raises(StoreConflict) as caught:
                waiting.result()
            holder.rollback()
        assert caught.value.nothing_written
        store.stage([version])

    def test_a_wrong_password_is_unavailable_and_not_shown(self, address):
        store = Neo4jStore(f"bolt://{address[0]}:{address[1]}", "nobody", "secret-guess")
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
        assert "secret-guess" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
        store.close()


def blocked_by(driver: neo4j.Driver, test: str, timeout_s: float = 20.0) -> str:
    """The transaction that waits for a lock of the one with this metadata."""
    query = "SHOW TRANSACTIONS YIELD transactionId AS id, status, metaData AS metadata"
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        records, _, _ = driver.execute_query(query)
        [holder] = [each["id"] for each in records if each["metadata"].get("test") == test]
        for each in records:
            if each["status"].startswith("Blocked") and holder in each["status"]:
                return str(each["id"])
    raise AssertionError(f"no transaction waited for it within {timeout_s:g} s")


def wait_until_blocked(driver: neo4j.Driver, timeout_s: float = 20.0) -> None:
    """Until some transaction waits for a lock."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        records, _, _ = driver.execute_query("SHOW TRANSACTIONS YIELD status RETURN status")
        if any(record["status"].startswith("Blocked") for record in records):
            return
    raise AssertionError(f"no transaction waited for a lock within {timeout_s:g} s")
