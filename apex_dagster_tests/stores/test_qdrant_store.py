"""The conformance suite on Qdrant, and what only Qdrant can do wrong."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest

from apex_dagster.errors import OutcomeUnknown, StageMissing, StoreRejected, StoreUnavailable
from apex_dagster.records import Publication, VersionRef, item_id
from apex_dagster.stores import qdrant_points
from apex_dagster.stores.qdrant_store import QdrantStore
from apex_dagster_tests.servers import PrivateServer
from apex_dagster_tests.stores.conformance import (
    MakeVersion,
    OpenStore,
    StoreConformance,
    digest,
    eventually,
    publish,
    removal,
    within,
)
from apex_dagster_tests.stores.corpus import staged_version
from apex_dagster_tests.stores.faulty_link import Address

DIM = 384


class QdrantProbe:
    """The collection, by plain HTTP."""

    def __init__(self, server: httpx.Client, collection: str) -> None:
        self.server, self.collection = server, f"/collections/{collection}"

    def ask(self, method: str, path: str, body: object) -> dict:
        response = self.server.request(method, f"{self.collection}{path}", json=body)
        response.raise_for_status()
        return response.json()["result"]

    def totals(self) -> Mapping[str, int]:
        return {"points": self.ask("POST", "/points/count", {"exact": True})["count"]}

    def points(self, ref: VersionRef) -> list[dict]:
        mine = {"must": [{"key": "saga_id", "match": {"value": ref.saga_id}}]}
        wanted = {"filter": mine, "limit": 20_000, "with_payload": True, "with_vector": True}
        return self.ask("POST", "/points/scroll", wanted)["points"]

    def statuses(self, ref: VersionRef) -> Mapping[str, int]:
        return Counter(point["payload"]["ingestion_status"] for point in self.points(ref))

    def set_payload(self, ref: VersionRef, change: dict) -> None:
        body = {"payload": change, "points": [str(item_id(ref.saga_id, "chunk", 3))]}
        self.ask("POST", "/points/payload?wait=true", body)

    def put(self, ref: VersionRef, ordinal: int, vector: list[float]) -> None:
        [payload] = [p["payload"] for p in self.points(ref) if p["payload"]["ordinal"] == 3]
        point = {"id": str(item_id(ref.saga_id, "chunk", ordinal)), "payload": payload}
        self.ask("PUT", "/points?wait=true", {"points": [{**point, "vector": vector}]})

    def alterations(self, ref: VersionRef) -> Iterable[Callable[[], None]]:
        for change in (
            {"text": "x"},
            {"title": ""},
            {"metadata": {"pages": 1}},
            {"metadata": {"pages": 1.5}},
            {"collection": "x"},
            {"content_hash": "x"},
            {"ingestion_status": "superseded"},
            {"added": 1},  # null would take a key away
        ):
            yield lambda change=change: self.set_payload(ref, change)
        [vector] = [p["vector"] for p in self.points(ref) if p["payload"]["ordinal"] == 3]
        next_float = float(np.nextafter(np.float32(vector[5]), np.float32(1)))
        yield lambda: self.put(ref, 3, [*vector[:5], next_float, *vector[6:]])
        yield lambda: self.put(ref, 99, vector)
        last = {"points": [str(item_id(ref.saga_id, "chunk", 7))]}
        yield lambda: self.ask("POST", "/points/delete?wait=true", last) and None


@pytest.fixture
def server(stack) -> Iterator[httpx.Client]:
    headers = {"api-key": stack.qdrant_api_key.get_secret_value()}
    with httpx.Client(base_url=stack.qdrant_url, headers=headers, trust_env=False) as server:
        yield server


@pytest.fixture
def probe(server, qdrant_collection) -> QdrantProbe:
    return QdrantProbe(server, qdrant_collection)


@pytest.fixture(scope="module")
def address(stack) -> Address:
    url = urlsplit(stack.qdrant_url)
    assert url.hostname
    return url.hostname, url.port or 6333


@pytest.fixture
def open_store(stack, qdrant_collection, address) -> Iterator[OpenStore]:
    opened: list[QdrantStore] = []

    def open_store(
        address: Address, *, timeout_s: float = 30.0, embedding_dim: int = DIM
    ) -> QdrantStore:
        store = QdrantStore(
            f"http://{address[0]}:{address[1]}",
            collection=qdrant_collection,
            embedding_dim=embedding_dim,
            api_key=stack.qdrant_api_key.get_secret_value(),
            timeout_s=timeout_s,
        )
        opened.append(store)
        return store

    open_store(address).prepare()
    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store, address) -> QdrantStore:
    return open_store(address)


@pytest.fixture
def make() -> MakeVersion:
    token = uuid.uuid4().hex[:10]
    return lambda name="doc", version=1, **shape: staged_version(
        f"{token}-{name}", version, vocabulary=token, **shape
    )


class TestQdrantStore(StoreConformance):
    tombstones = {"points": 1}  # noqa: RUF012

    def test_a_tombstone_has_no_content_and_keeps_its_place(self, store, probe, make):
        live = make()
        publish(store, live)
        gone = removal(live, version_of_deletion=2)
        store.remove([gone])
        [point] = probe.points(gone.ref)
        assert point["payload"] == {
            "document_id": live.ref.document_id,
            "version": 2,
            "saga_id": gone.ref.saga_id,
            "ingestion_status": "deleted",
            "ordinal": -1,
        }
        assert not np.any(point["vector"])


class TestPoints:
    def test_vectors_are_held_byte_for_byte(self, store, probe, make):
        version = make()
        store.stage([version])
        held = {p["payload"]["ordinal"]: np.float32(p["vector"]) for p in probe.points(version.ref)}
        assert all(
            np.array_equal(held[n], row) for n, row in enumerate(version.extraction.embeddings)
        )

    def test_zero_vectors_are_held(self, store, make):
        version = make()
        zeros = np.zeros_like(version.extraction.embeddings)
        publish(store, replace(version, extraction=replace(version.extraction, embeddings=zeros)))
        assert store.holdings([version.ref]) == {version.ref.saga_id: 8}

    def test_a_point_says_what_a_direct_reader_needs(self, store, probe, make):
        version = make()
        store.stage([version])
        [payload] = [
            p["payload"] for p in probe.points(version.ref) if p["payload"]["ordinal"] == 2
        ]
        assert payload == {
            "document_id": version.ref.document_id,
            "version": 1,
            "saga_id": version.ref.saga_id,
            "ingestion_status": "staged",
            "ordinal": 2,
            "text": version.extraction.chunks[2].text,
            "title": version.extraction.title,
            "collection": "conformance",
            "content_hash": version.extraction.content_hash,
            "metadata": version.extraction.metadata,
        }

    def test_a_partly_landed_batch_is_completed_by_a_repeat(self, store, probe, make):
        version = make()
        store.stage([version])
        before = digest(store, version)
        lost = [str(item_id(version.ref.saga_id, "chunk", n)) for n in (0, 4, 5)]
        probe.ask("POST", "/points/delete?wait=true", {"points": lost})
        store.stage([version])
        assert digest(store, version) == before

    def test_requests_stay_below_their_bounds(self, make):
        long = make("long", chunks=40)
        chunks = tuple(replace(c, text="é" * 400_000) for c in long.extraction.chunks)
        long = replace(long, extraction=replace(long.extraction, chunks=chunks))
        versions = [make("many", chunks=1_200), long, make("small")]
        packs = list(qdrant_points.request_sized(versions))
        assert sum(map(len, packs)) == 1_248
        assert max(map(len, packs)) == qdrant_points.REQUEST_POINTS_MAX
        sizes = [len(qdrant_points.insertion(pack)) for pack in packs]
        assert max(sizes) <= qdrant_points.REQUEST_BYTES_MAX

    def test_small_documents_share_one_request(self, make):
        assert len(list(qdrant_points.request_sized([make(f"d{n}") for n in range(50)]))) == 1


class TestPublish:
    def test_a_publisher_paused_after_its_checks_revives_nothing_superseded(
        self, store, probe, make, monkeypatch
    ):
        old, new = make(version=1), make(version=2)
        publish(store, old)
        publish(store, new, replaced=old)
        monkeypatch.setattr(store, "_overtaken", lambda client, refs: set())  # what it saw before
        store.publish([Publication(ref=old.ref)])
        assert set(probe.statuses(old.ref)) == {"superseded"}

    def test_a_replaced_version_that_was_never_published_stays_staged(self, store, probe, make):
        old, new = make(version=1), make(version=2)
        store.stage([old])
        publish(store, new, replaced=old)
        assert set(probe.statuses(old.ref)) == {"staged"}


class TestPrepare:
    def test_a_collection_of_another_dimension_is_refused_with_the_remedy(
        self, open_store, address
    ):
        with pytest.raises(StoreRejected, match=r"384 floats .* APEX_EMBEDDING_DIM"):
            open_store(address, embedding_dim=512).prepare()

    def test_a_collection_of_another_distance_is_refused(self, store, probe, server):
        server.delete(probe.collection).raise_for_status()
        cosine = {"vectors": {"size": DIM, "distance": "Cosine"}}
        server.put(probe.collection, json=cosine).raise_for_status()
        with pytest.raises(StoreRejected, match="compared by Cosine"):
            store.prepare()

    def test_eight_at_once_make_one_collection_with_its_indexes(self, open_store, address, probe):
        stores = [open_store(address) for _ in range(8)]
        probe.server.delete(probe.collection).raise_for_status()
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(QdrantStore.prepare, stores))
        schema = probe.ask("GET", "", None)["payload_schema"]
        assert set(schema) == {"document_id", "saga_id", "ingestion_status", "collection"}

    def test_a_missing_collection_is_not_the_documents_fault(self, store, probe, make):
        probe.server.delete(probe.collection).raise_for_status()
        with pytest.raises(StoreUnavailable, match="doesn't exist"):
            store.stage([make()])


class TestLimits:
    def test_another_dimension_is_refused_by_name_and_nothing_is_staged(self, store, make, probe):
        good, wide = make("good"), make("wide", dim=385)
        with pytest.raises(StoreRejected, match="takes 384 floats") as caught:
            store.stage([good, wide])
        assert caught.value.document_ids == (wide.ref.document_id,)
        assert probe.totals() == {"points": 0}

    def test_the_server_refuses_what_does_not_fit_its_collection(self, open_store, address, make):
        with pytest.raises(StoreRejected, match="400"):
            open_store(address, embedding_dim=16).stage([make(dim=16)])

    @pytest.mark.parametrize("value", [np.nan, -np.inf])
    def test_numbers_that_are_none_are_refused(self, store, make, value):
        version = make()
        embeddings = version.extraction.embeddings.copy()
        embeddings[2, 5] = value
        broken = replace(version, extraction=replace(version.extraction, embeddings=embeddings))
        with pytest.raises(StoreRejected) as caught:
            store.stage([broken])
        assert caught.value.document_ids == (version.ref.document_id,)

    def test_an_id_that_is_no_text_is_refused(self, store):
        with pytest.raises(StoreRejected, match="not JSON"):
            store.digest("half a pair \ud83d", 1)

    @pytest.mark.parametrize("value", ["\ud800", float("nan"), {1, 2}])
    def test_metadata_that_is_not_json_is_refused_by_name(self, store, make, value):
        version = make()
        broken = replace(version.extraction, metadata={"deep": [{"value": value}]})
        with pytest.raises(StoreRejected, match="metadata is not JSON") as caught:
            store.stage([replace(version, extraction=broken), make("good")])
        assert caught.value.document_ids == (version.ref.document_id,)


class TestEmptyDocuments:
    def test_qdrant_holds_nothing_of_them(self, store, probe, make):
        empty = make(chunks=0)
        assert store.stage([empty])[0].items == {"chunks": 0}
        store.publish([Publication(ref=empty.ref)])
        assert (digest(store, empty), probe.totals()) == (None, {"points": 0})
        assert store.revert([empty.ref]) == {empty.ref.saga_id: 0}

    def test_another_process_has_to_stage_them_again_before_it_publishes(
        self, open_store, address, make
    ):
        empty, other = make(chunks=0), open_store(address)
        open_store(address).stage([empty])
        with pytest.raises(StageMissing):
            other.publish([Publication(ref=empty.ref)])
        other.stage([empty])
        other.publish([Publication(ref=empty.ref)])

    def test_an_empty_version_retires_the_one_it_replaces(self, store, probe, make):
        old, empty = make(version=1), make(version=2, chunks=0)
        publish(store, old)
        publish(store, empty, replaced=old)
        assert set(probe.statuses(old.ref)) == {"superseded"}


class TestConnections:
    def test_a_wrong_key_is_refused_and_not_shown(self, stack, qdrant_collection):
        store = QdrantStore(
            stack.qdrant_url, collection=qdrant_collection, embedding_dim=DIM, api_key="s3cret-x"
        )
        with pytest.raises(StoreUnavailable, match=r"401|403") as caught:
            store.holdings([staged_version("any").ref])
        assert "s3cret-x" not in f"{caught.value!r} {caught.value} {store!r}"
        store.close()

    def test_a_forked_child_has_connections_of_its_own(self, store):
        store.ping()
        child = os.fork()
        if child == 0:
            try:
                store.ping()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        store.ping()


@pytest.fixture
def own_server(private_server) -> PrivateServer:
    return private_server("qdrant")


class TestServerFaults:
    """On a server of its own, so that it can be stopped."""

    @pytest.fixture
    def private_store(self, own_server) -> Iterator[QdrantStore]:
        servers = own_server.endpoints
        store = QdrantStore(
            servers.qdrant_url,
            collection="chunks",
            embedding_dim=DIM,
            api_key=servers.qdrant_api_key.get_secret_value(),
            timeout_s=1.0,
        )
        store.prepare()
        yield store
        store.close()

    def test_a_frozen_server_is_an_error_in_time_and_staging_can_be_repeated(
        self, own_server, private_store, make
    ):
        staged, late = make("staged"), make("late")
        private_store.stage([staged])
        before = digest(private_store, staged)
        with frozen(own_server):
            for call in (lambda: private_store.stage([late]), private_store.ping):
                with within(4.0), pytest.raises(OutcomeUnknown):
                    call()
        eventually(lambda: private_store.stage([late]) and None)
        assert private_store.holdings([late.ref]) == {late.ref.saga_id: 8}
        assert digest(private_store, staged) == before

    def test_a_restarted_server_is_found_again(self, own_server, private_store, make):
        version = make()
        private_store.stage([version])
        before = digest(private_store, version)
        own_server.stop()
        for call in (private_store.ping, lambda: private_store.stage([version])):
            with within(3.0), pytest.raises(StoreUnavailable):
                call()
        own_server.start()
        private_store.ping()
        assert digest(private_store, version) == before


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()
