"""The conformance suite on PostgreSQL, and what only PostgreSQL can do: check the ledger's rows."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import urlsplit

import numpy as np
import psycopg
import pytest

from apex_dagster.errors import StageMissing, StoreRejected
from apex_dagster.records import Publication
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster_tests.stores.conformance import (
    MakeVersion,
    OpenStore,
    StoreConformance,
    digest,
    publish,
)
from apex_dagster_tests.stores.corpus import staged_version
from apex_dagster_tests.stores.faulty_link import Address
from apex_dagster_tests.stores.ledgered_postgres import (
    DIM,
    LedgeredStore,
    LedgerRows,
    PostgresProbe,
    compensate,
    unique_version,
    wait_until,
    waiting_for_locks,
)


@pytest.fixture
def address(postgres_database) -> Address:
    url = urlsplit(postgres_database)
    assert url.hostname
    assert url.port
    return url.hostname, url.port


@pytest.fixture
def connection(postgres_database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def probe(connection) -> PostgresProbe:
    return PostgresProbe(connection)


@pytest.fixture
def ledger(connection) -> LedgerRows:
    return LedgerRows(connection)


@pytest.fixture
def open_store(postgres_database) -> Iterator[OpenStore]:
    opened: list[PostgresStore] = []

    def open_store(address: Address, *, timeout_s: float = 30.0) -> PostgresStore:
        store = LedgeredStore(
            through(postgres_database, address), postgres_database, timeout_s=timeout_s
        )
        opened.append(store)
        if timeout_s >= 30.0:
            store.prepare()
        return store

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store, address) -> PostgresStore:
    return open_store(address)


@pytest.fixture
def make() -> MakeVersion:
    token = uuid.uuid4().hex[:10]
    return lambda name="doc", version=1, **shape: staged_version(
        f"{token}-{name}", version, vocabulary=token, **shape
    )


@pytest.fixture
def bare_store(postgres_database) -> Iterator[PostgresStore]:
    """The store alone: nobody opens sagas for it or moves pointers."""
    store = PostgresStore(postgres_database, embedding_dim=DIM)
    store.prepare()
    yield store
    store.close()


def through(url: str, address: Address) -> str:
    parts = urlsplit(url)
    user = parts.netloc.rpartition("@")[0]
    return parts._replace(netloc=f"{user}@{address[0]}:{address[1]}").geturl()


class TestPostgresStore(StoreConformance):
    pass


class TestStageChecksTheSaga:
    @pytest.mark.parametrize("status", ["compensating", "compensated", "failed", None])
    def test_a_saga_that_may_not_stage_leaves_no_row(self, bare_store, ledger, probe, status):
        open_one, closed = unique_version(), unique_version()
        ledger.open(open_one.ref)
        if status:
            ledger.open(closed.ref, status)
        receipts = bare_store.stage([closed, open_one])
        assert [dict(receipt.items) for receipt in receipts] == [{"chunks": 0}, {"chunks": 8}]
        assert probe.statuses(closed.ref) == {}
        assert probe.statuses(open_one.ref) == {"staged": 9}

    def test_a_stage_in_flight_makes_the_claim_for_compensation_wait(
        self, bare_store, ledger, probe, postgres_database
    ):
        """Held up after it has seen its saga in progress: the claim must not be faster."""
        version = unique_version()
        ledger.open(version.ref)
        with psycopg.connect(postgres_database) as blocker, ThreadPoolExecutor(2) as pool:
            blocker.execute("LOCK TABLE apex.chunks IN SHARE MODE")
            staging = pool.submit(bare_store.stage, [version])
            wait_until(lambda: waiting_for_locks(ledger.connection) == 1)
            claim = pool.submit(compensate, postgres_database, version.ref)
            wait_until(lambda: waiting_for_locks(ledger.connection) == 2)
            assert not claim.done()
            blocker.rollback()
            assert staging.result()[0].items == {"chunks": 8}
            claim.result()
        assert bare_store.revert([version.ref]) == {version.ref.saga_id: 8}
        assert bare_store.stage([version])[0].items == {"chunks": 0}
        assert probe.statuses(version.ref) == {}

    def test_what_a_live_saga_lost_is_staged_again(self, bare_store, ledger, connection):
        version = unique_version()
        ledger.open(version.ref)
        bare_store.stage([version])
        ledger.pivot(version.ref)
        bare_store.publish([Publication(ref=version.ref)])
        before = digest(bare_store, version)
        for table in ("document_versions", "chunks"):
            connection.execute(
                f"DELETE FROM apex.{table} WHERE saga_id = %s", [version.ref.saga_id]
            )
        with pytest.raises(StageMissing):
            bare_store.publish([Publication(ref=version.ref)])
        bare_store.stage([version])
        bare_store.publish([Publication(ref=version.ref)])
        assert digest(bare_store, version) == before

    def test_a_completed_saga_that_is_no_longer_live_stages_nothing(self, bare_store, ledger):
        old, new = unique_version(), None
        new = staged_version(old.ref.document_id, version=2)
        for version in (old, new):
            ledger.open(version.ref)
            ledger.pivot(version.ref)
        assert bare_store.stage([old])[0].items == {"chunks": 0}
        assert digest(bare_store, old) is None


class TestPointerDecides:
    def test_only_what_the_pointer_names_is_committed(self, bare_store, ledger, probe):
        version = unique_version()
        ledger.open(version.ref)
        bare_store.stage([version])
        bare_store.publish([Publication(ref=version.ref)])
        assert set(probe.statuses(version.ref)) == {"staged"}

    @pytest.mark.parametrize("marked", [False, True])
    def test_the_live_version_cannot_be_removed(self, bare_store, ledger, marked):
        """Between pivot and mark it is still `staged`, and a zombie's undo could take it away."""
        version = unique_version()
        ledger.open(version.ref)
        bare_store.stage([version])
        ledger.pivot(version.ref)
        if marked:
            bare_store.publish([Publication(ref=version.ref)])
        before = digest(bare_store, version)
        for remove in (bare_store.revert, bare_store.discard):
            assert remove([version.ref]) == {version.ref.saga_id: 0}
        assert digest(bare_store, version) == before


class TestLimits:
    def test_another_dimension_is_refused_by_name_and_nothing_is_staged(self, store, make, probe):
        totals, good = probe.totals(), make("good")
        with pytest.raises(StoreRejected, match="takes 384 floats") as caught:
            store.stage([good, make("wide", dim=385), make("narrow", dim=8)])
        assert len(caught.value.document_ids) == 2
        assert good.ref.document_id not in caught.value.document_ids
        assert probe.totals() == totals

    @pytest.mark.parametrize("value", [np.nan, np.inf, 70_000.0])
    def test_numbers_that_half_precision_cannot_hold_are_refused(self, store, make, value):
        version = make()
        embeddings = version.extraction.embeddings.copy()
        embeddings[2, 5] = value
        broken = replace(version, extraction=replace(version.extraction, embeddings=embeddings))
        with pytest.raises(StoreRejected, match="beyond 65504") as caught:
            store.stage([broken])
        assert caught.value.document_ids == (version.ref.document_id,)

    def test_zero_vectors_are_held(self, store, make):
        version = make()
        zeros = np.zeros_like(version.extraction.embeddings)
        publish(store, replace(version, extraction=replace(version.extraction, embeddings=zeros)))
        assert store.holdings([version.ref]) == {version.ref.saga_id: 8}

    @pytest.mark.parametrize("value", ["\ud800", float("nan"), {1, 2}])
    def test_metadata_that_is_not_json_is_refused_by_name(self, store, make, value):
        version = make()
        broken = replace(version.extraction, metadata={"deep": [{"value": value}]})
        with pytest.raises(StoreRejected, match="metadata is not JSON") as caught:
            store.stage([replace(version, extraction=broken), make("good")])
        assert caught.value.document_ids == (version.ref.document_id,)

    @pytest.mark.parametrize("text", ["nul \x00", "half a pair \ud83d"])
    def test_an_id_that_is_no_text_is_refused(self, bare_store, text):
        with pytest.raises(StoreRejected):
            bare_store.digest(text, 1)

    def test_a_backslash_before_u0000_is_not_a_nul(self, store, make):
        version = make()
        fine = replace(version.extraction, metadata={"path": "c:\\u0000", "more": "\\\\u0000"})
        assert store.stage([replace(version, extraction=fine)])[0].items == {"chunks": 8}

    def test_a_text_beyond_what_full_text_search_takes_is_a_rejection(self, store, make, probe):
        version, totals = make(chunks=1), probe.totals()
        words = " ".join(f"w{number:07}" for number in range(150_000))
        chunk = replace(version.extraction.chunks[0], text=words)
        with pytest.raises(StoreRejected, match="too long for tsvector"):
            store.stage([replace(version, extraction=replace(version.extraction, chunks=(chunk,)))])
        assert probe.totals() == totals


class TestSearch:
    def test_the_index_answers_nearest_documents(self, store, make, connection):
        versions = [make(f"d{n}") for n in range(30)]
        store.stage(versions)
        wanted = versions[7].extraction.document_embedding()
        with connection.transaction():
            connection.execute("SET LOCAL enable_seqscan = off")
            query = (
                " SELECT document_id FROM apex.document_versions WHERE vector_dims(embedding) = 384"
                " ORDER BY embedding::halfvec(384) <=> %s::halfvec(384) LIMIT 1"
            )
            plan = connection.execute(f"EXPLAIN {query}", [str(wanted.tolist())]).fetchall()
            assert "document_versions_embedding_384" in str(plan)
            nearest = connection.execute(query, [str(wanted.tolist())]).fetchone()
        assert nearest == (versions[7].ref.document_id,)
