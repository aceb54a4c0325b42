"""The conformance suite on Redis, and what only Redis can do wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from urllib.parse import urlsplit

import orjson
import pytest
import redis

from apex_dagster.errors import OutcomeUnknown, StageMissing, StoreRejected, StoreUnavailable
from apex_dagster.records import Publication, VersionRef
from apex_dagster.stores.redis_store import TEXT_BYTES_MAX, RedisStore
from apex_dagster_tests.stores.conformance import (
    OpenStore,
    StoreConformance,
    digest,
    eventually,
    publish,
    within,
)
from apex_dagster_tests.stores.faulty_link import Address


class RedisProbe:
    """The keys of one prefix."""

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        self.client, self.prefix = client, prefix

    def key(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def entries(self) -> list[tuple[bytes, dict]]:
        keys = [
            *self.client.scan_iter(f"{self.prefix}stage:*"),
            *self.client.scan_iter(f"{self.prefix}doc:*"),
        ]
        return [(key, orjson.loads(self.client.get(key))) for key in keys]

    def totals(self) -> Mapping[str, int]:
        return {"entries": len(self.entries())}

    def statuses(self, ref: VersionRef) -> Mapping[str, int]:
        return Counter(
            entry["ingestion_status"]
            for _, entry in self.entries()
            if entry["saga_id"] == ref.saga_id
        )

    def alterations(self, ref: VersionRef) -> Iterable[Callable[[], None]]:
        staged, live = self.key(f"stage:{ref.saga_id}"), self.key(f"doc:{ref.document_id}")
        key = staged if self.client.exists(staged) else live

        def set_field(name: str, value: object) -> None:
            entry = orjson.loads(self.client.get(key))
            self.client.set(key, orjson.dumps({**entry, name: value}))

        for name, value in (("title", "x"), ("entities", []), ("text", None), ("added", 1)):
            yield lambda name=name, value=value: set_field(name, value)
        yield lambda: self.client.delete(key)


@pytest.fixture
def probe(stack, redis_prefix) -> Iterator[RedisProbe]:
    with redis.Redis.from_url(stack.redis_url.get_secret_value()) as client:
        yield RedisProbe(client, redis_prefix)


@pytest.fixture(scope="session")
def address(stack) -> Address:
    url = urlsplit(stack.redis_url.get_secret_value())
    assert url.hostname
    return url.hostname, url.port or 6379


@pytest.fixture
def open_store(stack, redis_prefix) -> Iterator[OpenStore]:
    opened = []

    def open_store(address: Address, *, timeout_s: float = 30.0) -> RedisStore:
        parts = urlsplit(stack.redis_url.get_secret_value())
        user = parts.netloc.rpartition("@")[0]
        url = parts._replace(netloc=f"{user}@{address[0]}:{address[1]}").geturl()
        store = RedisStore(url, prefix=redis_prefix, timeout_s=timeout_s)
        opened.append(store)
        if timeout_s >= 30.0:
            store.prepare()
        return store

    yield open_store
    for store in opened:
        store.close()


@pytest.fixture
def private_redis(private_server) -> Iterator[tuple[RedisStore, redis.Redis]]:
    """A store on a server of this test's own, and a client to configure it."""
    url = private_server("redis").endpoints.redis_url.get_secret_value()
    store = RedisStore(url)
    with redis.Redis.from_url(url) as client:
        yield store, client
    store.close()


class TestRedisStore(StoreConformance):
    forgets_superseded = True

    def test_the_staged_entry_expires_and_its_publish_says_so(self, store, probe, make):
        version = make()
        store.stage([version])
        ttl_s = probe.client.ttl(probe.key(f"stage:{version.ref.saga_id}"))
        assert 86000 < ttl_s <= 86400
        probe.client.delete(probe.key(f"stage:{version.ref.saga_id}"))  # as expiry does
        assert digest(store, version) is None
        with pytest.raises(StageMissing):
            store.publish([Publication(ref=version.ref)])

    def test_the_live_entry_expires_and_its_fence_does_not(self, store, probe, make):
        version = make()
        document_id = version.ref.document_id
        publish(store, version)
        doc = probe.key(f"doc:{document_id}")
        assert 3500 < probe.client.ttl(doc) <= 3600
        assert probe.client.ttl(probe.key(f"fence:{{{doc}}}")) == -1

    def test_an_older_version_stays_out_after_the_live_entry_was_evicted(self, store, probe, make):
        older, newer = make(version=1), make(version=2)
        store.stage([older])
        publish(store, newer)
        probe.client.delete(probe.key(f"doc:{newer.ref.document_id}"))
        store.publish([Publication(ref=older.ref)])
        assert store.read(older.ref.document_id) is None

    def test_an_evicted_entry_is_a_miss_and_can_be_staged_and_published_again(
        self, store, probe, make
    ):
        version = make()
        publish(store, version)
        before = digest(store, version)
        probe.client.delete(probe.key(f"doc:{version.ref.document_id}"))
        assert (store.read(version.ref.document_id), digest(store, version)) == (None, None)
        with pytest.raises(StageMissing):
            store.publish([Publication(ref=version.ref)])
        publish(store, version)
        assert digest(store, version) == before

    def test_a_read_shows_the_published_version(self, store, make):
        version = make()
        content = version.extraction
        store.stage([version])
        assert store.read(version.ref.document_id) is None
        store.publish([Publication(ref=version.ref)])
        assert store.read(version.ref.document_id) == {
            "saga_id": version.ref.saga_id,
            "ingestion_status": "committed",
            "document_id": version.ref.document_id,
            "version": 1,
            "title": content.title,
            "collection": content.collection,
            "metadata": content.metadata,
            "content_hash": content.content_hash,
            "chunks": 8,
            "entities": [{"key": e.key, "type": e.type, "name": e.name} for e in content.entities],
            "relations": 12,
            "text": "\n".join(chunk.text for chunk in content.chunks),
        }

    def test_a_long_text_is_left_to_the_ledger(self, store, make):
        version = make(chunks=2 * TEXT_BYTES_MAX // 100)
        publish(store, version)
        entry = store.read(version.ref.document_id)
        assert (entry["text"], entry["chunks"]) == (None, len(version.extraction.chunks))

    def test_metadata_that_is_not_json_names_its_document(self, store, make):
        good, bad = make("good"), make("bad")
        bad.extraction.metadata["when"] = object()
        with pytest.raises(StoreRejected) as caught:
            store.stage([good, bad])
        assert caught.value.document_ids == (bad.ref.document_id,)

    def test_a_full_server_is_unavailable_for_writes_and_can_be_undone_and_read(
        self, private_redis, make
    ):
        store, client = private_redis
        live, staged, late = make("live"), make("staged"), make("late")
        publish(store, live)
        store.stage([staged])
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "1mb")
        for write in (
            lambda: store.stage([late]),
            lambda: store.publish([Publication(ref=staged.ref)]),
        ):
            with pytest.raises(StoreUnavailable, match="maxmemory"):
                write()
        assert store.read(live.ref.document_id)["version"] == 1
        assert digest(store, live) is not None
        assert store.holdings([staged.ref]) == {staged.ref.saga_id: 1}
        assert store.revert([staged.ref]) == {staged.ref.saga_id: 1}
        assert store.discard([live.ref]) == {live.ref.saga_id: 1}
        client.config_set("maxmemory", "0")
        store.stage([late])

    def test_a_server_that_may_evict_fences_is_refused(self, private_redis):
        store, client = private_redis
        client.config_set("maxmemory", "100mb")
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreRejected, match="volatile-lru"):
            store.prepare()
        client.config_set("maxmemory-policy", "volatile-lru")
        store.prepare()

    def test_a_server_that_is_frozen_then_killed_is_an_error_in_time_and_found_again(
        self, private_server, make
    ):
        server = private_server("redis")
        store = RedisStore(server.endpoints.redis_url.get_secret_value(), timeout_s=1.0)
        store.ping()
        server.freeze()
        for call in (lambda: store.stage([make()]), store.ping):
            with within(4.0), pytest.raises(OutcomeUnknown):
                call()
        server.thaw()
        eventually(store.ping)
        server.kill()
        with within(4.0), pytest.raises(StoreUnavailable):
            store.stage([make()])
        server.start()
        eventually(store.ping)
        store.close()

    def test_a_wrong_password_is_unavailable_and_not_shown(self, address):
        store = RedisStore(f"redis://:secret-guess@{address[0]}:{address[1]}/0", timeout_s=2.0)
        with pytest.raises(StoreUnavailable) as caught:
            store.ping()
        assert "secret-guess" not in f"{caught.value!r} {caught.value.__cause__!r} {store!r}"
        store.close()
