"""How PostgresStore's connections behave when there are too few, none, or no answer."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.parse import urlsplit

import psycopg
import pytest

from apex_dagster.errors import OutcomeUnknown, StoreRejected, StoreUnavailable
from apex_dagster.migrations.migrate import migrate
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster_tests.servers import PrivateServer
from apex_dagster_tests.stores.conformance import digest, eventually, within
from apex_dagster_tests.stores.ledgered_postgres import (
    DIM,
    LedgeredStore,
    LedgerRows,
    unique_version,
    wait_until,
    waiting_for_locks,
)


@pytest.fixture
def connection(postgres_database) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_database, autocommit=True) as connection:
        yield connection


@pytest.fixture
def ledger(connection) -> LedgerRows:
    return LedgerRows(connection)


@pytest.fixture
def bare_store(postgres_database) -> Iterator[PostgresStore]:
    store = PostgresStore(postgres_database, embedding_dim=DIM)
    yield store
    store.close()


class TestConnections:
    def test_a_database_without_the_schema_says_what_to_do(self, stack):
        url = urlsplit(stack.postgres_url.get_secret_value())._replace(path="/postgres").geturl()
        store = PostgresStore(url, embedding_dim=DIM)
        store.ping()
        for call in (store.prepare, lambda: store.stage([unique_version()])):
            with pytest.raises(StoreRejected, match=r"schema up to date|no pgvector"):
                call()
        store.close()

    def test_a_wrong_password_is_refused_at_once_and_not_shown(self, postgres_database):
        url = urlsplit(postgres_database)
        wrong = url._replace(netloc=f"{url.username}:s3cret-x@{url.hostname}:{url.port}").geturl()
        store = PostgresStore(wrong, embedding_dim=DIM)
        with within(3.0), pytest.raises(StoreUnavailable, match="password") as caught:
            store.ping()
        assert "s3cret-x" not in f"{caught.value!r} {caught.value} {store!r}"
        store.close()

    def test_a_forked_child_has_connections_of_its_own(self, bare_store):
        bare_store.ping()
        child = os.fork()
        if child == 0:
            try:
                bare_store.ping()
                bare_store.close()
                os._exit(0)
            except BaseException:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        bare_store.ping()

    def test_prepare_by_four_at_once_builds_one_index(self, postgres_database, connection):
        stores = [PostgresStore(postgres_database, embedding_dim=16) for _ in range(4)]
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(PostgresStore.prepare, stores))
        for store in stores:
            store.close()
        [indexes] = connection.execute(
            "SELECT count(*) FROM pg_indexes WHERE indexname = 'document_versions_embedding_16'"
        ).fetchone()
        assert indexes == 1

    def test_more_threads_than_connections_take_turns(self, postgres_database, ledger):
        store = PostgresStore(postgres_database, embedding_dim=DIM, pool_size=2)
        versions = [unique_version() for _ in range(24)]
        for version in versions:
            ledger.open(version.ref)
        with ThreadPoolExecutor(12) as pool:
            receipts = list(pool.map(lambda version: store.stage([version])[0], versions))
        assert {receipt.items["chunks"] for receipt in receipts} == {8}
        store.close()


@pytest.fixture(scope="module")
def server(stack, servers_root) -> Iterator[PrivateServer]:
    """One for the module: each test leaves it running."""
    home = servers_root / f"postgres-connection-{uuid.uuid4().hex[:8]}"
    server = PrivateServer.start_new("postgres", home, stack)
    migrate(server.endpoints.postgres_url.get_secret_value())
    yield server
    server.stop()


@pytest.fixture
def server_url(server) -> str:
    return server.endpoints.postgres_url.get_secret_value()


@pytest.fixture
def private_store(server_url) -> Iterator[PostgresStore]:
    store = LedgeredStore(server_url, server_url, timeout_s=1.0)
    yield store
    store.close()


class TestServerFaults:
    def test_a_frozen_server_is_an_error_in_time_and_found_again(
        self, server, server_url, private_store
    ):
        version = unique_version()
        private_store.stage([version])
        before = digest(private_store, version)
        with frozen(server):
            for call in (private_store.ping, private_store.ping):
                with within(6.0), pytest.raises((OutcomeUnknown, StoreUnavailable)):
                    call()
        eventually(private_store.ping)
        assert digest(private_store, version) == before

    def test_a_server_frozen_in_mid_transaction_leaves_all_or_nothing(
        self, server, server_url, private_store
    ):
        versions = [unique_version() for _ in range(3)]
        private_store.ping()
        with psycopg.connect(server_url) as blocker, ThreadPoolExecutor(1) as pool:
            blocker.execute("LOCK TABLE apex.chunks IN SHARE MODE")
            staging = pool.submit(private_store.stage, versions)
            wait_until(lambda: waiting_for_locks(blocker) == 1)
            with frozen(server), within(6.0), pytest.raises(OutcomeUnknown):
                staging.result()
            blocker.rollback()
        eventually(lambda: private_store.stage(versions))
        held = private_store.holdings([version.ref for version in versions])
        assert set(held.values()) == {8}

    def test_a_restarted_server_is_found_again(self, server, server_url, private_store):
        version = unique_version()
        private_store.stage([version])
        before = digest(private_store, version)
        server.stop()
        with within(3.0), pytest.raises(StoreUnavailable):
            private_store.ping()
        server.start()
        private_store.ping()
        assert digest(private_store, version) == before

    def test_a_crash_of_the_server_loses_nothing_that_was_confirmed(self, server, private_store):
        """Its writer lives on, and will tell the ledger of it once the server is back."""
        for _ in range(3):
            version = unique_version()
            private_store.stage([version])
            server.kill()
            server.start()
            eventually(private_store.ping)
            assert private_store.holdings([version.ref]) == {version.ref.saga_id: 8}

    def test_a_statement_that_takes_too_long_is_cancelled_by_the_server(
        self, server_url, private_store
    ):
        with psycopg.connect(server_url) as blocker:
            blocker.execute("LOCK TABLE apex.chunks IN ACCESS EXCLUSIVE MODE")
            with within(4.0), pytest.raises(OutcomeUnknown):
                private_store.stage([unique_version()])
            assert waiting_for_locks(blocker) == 0
        private_store.ping()


@contextmanager
def frozen(server: PrivateServer) -> Iterator[None]:
    server.freeze()
    try:
        yield
    finally:
        server.thaw()
