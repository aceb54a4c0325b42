"""The composition root: settings → server addresses → clients → stores, ledger, engine, use cases.

Clients live as long as the process and are shared by everything in it: a Dagster run, a sensor tick
and a request each ask for the application and get the same one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Lock

from apex_dagster.access.receipt_key import ReceiptKey
from apex_dagster.embedded.stack import endpoints
from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.inbox import Inbox
from apex_dagster.ingestion.ingest import Ingestion
from apex_dagster.ingestion.read import DocumentReader
from apex_dagster.ingestion.reconcile import Reconciler
from apex_dagster.ingestion.search import Searcher
from apex_dagster.ingestion.sources import Sources
from apex_dagster.ingestion.steps import Extractions, StoreStep
from apex_dagster.ingestion.views import Views
from apex_dagster.migrations.migrate import migrate
from apex_dagster.observability.alerts import Alerts, Tell
from apex_dagster.observability.delivery import to_log, to_slack, to_webhook
from apex_dagster.saga.admission import Admission
from apex_dagster.saga.breaker import BreakerPolicy, Breakers
from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.engine import SagaEngine
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.retry import RetryPolicy
from apex_dagster.saga.scheduled_retry import RetrySchedule
from apex_dagster.saga.step import SagaStep
from apex_dagster.settings import Endpoints, Settings
from apex_dagster.stores.neo4j_store import Neo4jStore
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster.stores.protocol import AuditedStore
from apex_dagster.stores.qdrant_store import QdrantStore
from apex_dagster.stores.reading import Catalogue
from apex_dagster.stores.redis_store import RedisStore

VIEW_TIMEOUT_S = 1.0  # a frozen Redis costs a read no more, and then none for a while


@dataclass(frozen=True, slots=True, kw_only=True)
class Application:
    """Everything a process needs, built once."""

    settings: Settings
    endpoints: Endpoints
    ledger: Ledger
    breakers: Breakers
    admission: Admission  # to be asked before anything is taken in
    stores: Mapping[str, AuditedStore]  # by name, in the order of the saga
    ingestion: Ingestion
    reconciler: Reconciler
    alerts: Alerts
    tell: Sequence[Tell]  # how alerts are told
    reader: DocumentReader
    searcher: Searcher
    sources: Sources
    inbox: Inbox

    @property
    def engine(self) -> SagaEngine:
        """Sagas forward."""
        return self.ingestion.engine

    @property
    def compensation(self) -> Compensation:
        """Sagas backward."""
        return self.ingestion.compensation

    def close(self) -> None:
        """Release all connections."""
        for store in self.stores.values():
            store.close()
        self.ledger.close()


_applications: dict[tuple[int, Settings], Application] = {}
_lock = Lock()


def application(settings: Settings | None = None) -> Application:
    """The application of this process for these settings; default: those of the environment.

    The first call starts embedded servers where settings name no outside ones, and migrates the
    ledger. Raises ServerNotStarted or StoreUnavailable when that cannot be done.
    """
    settings = settings or Settings()
    key = (os.getpid(), settings)  # a forked child must not use its parent's connections
    with _lock:
        if key not in _applications:
            _applications[key] = build(settings, endpoints(settings))
        return _applications[key]


def build(
    settings: Settings,
    servers: Endpoints,
    *,
    extractor: Extractor | None = None,
    ledger: Ledger | None = None,
    around_step: Callable[[SagaStep], SagaStep] = lambda step: step,
) -> Application:
    """Wire everything up for the given servers. `ledger` and `around_step` are for measuring."""
    migrate(servers.postgres_url.get_secret_value())
    in_order = _stores(settings, servers)
    extractor = extractor or _extractor(settings)
    stores: dict[str, AuditedStore] = {store.name: store for store in in_order}
    ledger = ledger or Ledger(servers.postgres_url.get_secret_value(), lease_s=settings.lease_s)
    extractions = Extractions(ledger)
    breakers = _breakers(settings, ledger, stores)
    engine = SagaEngine(
        ledger,
        [around_step(StoreStep(store, extractions)) for store in stores.values()],
        breakers=breakers,
        retry=_policy(settings, settings.step_attempts, settings.step_timeout_s),
        lease_s=settings.lease_s,
        grace_s=settings.grace_s,
        staging=settings.staging,
        seal=ReceiptKey(settings.home),
    )
    compensation = Compensation(
        engine,
        retry=_policy(settings, settings.undo_attempts, settings.undo_timeout_s),
        order=settings.compensation,
        schedule=RetrySchedule(
            attempts_max=settings.document_attempts,
            delay_s=settings.document_retry_s,
            delay_s_max=settings.document_retry_s_max,
        ),
    )
    inbox = Inbox(settings.inbox_dir)
    return Application(
        settings=settings,
        endpoints=servers,
        ledger=ledger,
        breakers=breakers,
        admission=Admission(breakers),
        stores=stores,
        ingestion=Ingestion(
            ledger=ledger,
            engine=engine,
            compensation=compensation,
            extractor=extractor,
            extractions=extractions,
            takeovers_max=settings.takeovers_max,
            sweep_orphans=in_order[0].sweep_orphans,
        ),
        reconciler=Reconciler(engine, stores, extractions, grace_s=settings.grace_s),
        alerts=Alerts(
            ledger,
            window_s=settings.alert_window_s,
            bound_s=settings.saga_bound_s,
            repeat_s=settings.alert_repeat_s,
            down=breakers.down,
        ),
        tell=_tell(settings),
        reader=_reader(settings, in_order),
        searcher=_searcher(settings, in_order, extractor),
        sources=Sources(inbox, document_bytes_max=settings.document_bytes_max),
        inbox=inbox,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a process needs that shows documents."""

    reader: DocumentReader
    views: Views
    catalogue: Catalogue


@contextmanager
def reading(settings: Settings, servers: Endpoints) -> Iterator[Reading]:
    """For a process that writes to no store: clients of its own, which give up as a read does.

    Connects when the first document is read.
    """
    patience = {"step_timeout_s": settings.read_timeout_s}
    stores = _stores(settings.model_copy(update=patience), servers)
    quick = _cache(settings, servers, timeout_s=min(VIEW_TIMEOUT_S, settings.read_timeout_s))
    try:
        reader = _reader(settings, stores)
        yield Reading(reader=reader, views=Views(quick), catalogue=stores[1])
    finally:
        for store in (*stores, quick):
            store.close()


@contextmanager
def searching(settings: Settings, servers: Endpoints) -> Iterator[Searcher]:
    """For a process that searches. Clients apart from those of `reading`: a search keeps its
    connection for as long as its slowest ranker takes. Connects, and loads models, when needed."""
    patience = {"step_timeout_s": settings.read_timeout_s}
    stores = _stores(settings.model_copy(update=patience), servers)
    try:
        yield _searcher(settings, stores, _extractor(settings))
    finally:
        for store in stores:
            store.close()


_Stores = tuple[Neo4jStore, PostgresStore, QdrantStore, RedisStore]


def _reader(settings: Settings, stores: _Stores) -> DocumentReader:
    graphs, snapshots, points, cache = stores
    return DocumentReader(
        snapshots=snapshots,
        graphs=graphs,
        points=points,
        cache=cache,
        timeout_s=settings.read_timeout_s,
    )


def _searcher(settings: Settings, stores: _Stores, extractor: Extractor) -> Searcher:
    graph, text, vectors, _ = stores
    return Searcher(
        text=text,
        vectors=vectors,
        graph=graph,
        embedder=extractor.embedder,
        recogniser=extractor.recogniser,
        embedding_dim=settings.embedding_dim,
        timeout_s=settings.search_timeout_s,
    )


def _stores(settings: Settings, servers: Endpoints) -> _Stores:
    return (
        Neo4jStore(
            servers.neo4j_uri,
            servers.neo4j_user,
            servers.neo4j_password.get_secret_value(),
            servers.neo4j_database,
            timeout_s=settings.step_timeout_s,
        ),
        PostgresStore(
            servers.postgres_url.get_secret_value(),
            embedding_dim=settings.embedding_dim,
            timeout_s=settings.step_timeout_s,
        ),
        QdrantStore(
            servers.qdrant_url,
            collection=settings.qdrant_collection,
            embedding_dim=settings.embedding_dim,
            api_key=servers.qdrant_api_key.get_secret_value() if servers.qdrant_api_key else None,
            timeout_s=settings.step_timeout_s,
        ),
        _cache(settings, servers, timeout_s=min(10.0, settings.step_timeout_s)),
    )


def _cache(settings: Settings, servers: Endpoints, *, timeout_s: float) -> RedisStore:
    return RedisStore(
        servers.redis_url.get_secret_value(),
        prefix=settings.redis_prefix,
        cache_ttl_s=settings.cache_ttl_s,
        timeout_s=timeout_s,
    )


def _breakers(settings: Settings, ledger: Ledger, stores: Mapping[str, AuditedStore]) -> Breakers:
    policy = BreakerPolicy(
        timeout_s=settings.probe_timeout_s,
        delay_s=settings.probe_delay_s,
        delay_s_max=settings.probe_delay_s_max,
        ramp_s=settings.admission_ramp_s,
    )
    return Breakers(ledger, {name: store.ping for name, store in stores.items()}, policy=policy)


def _tell(settings: Settings) -> list[Tell]:
    tell: list[Tell] = [to_log]
    if url := settings.alert_webhook_url:
        tell.append(to_webhook(url.get_secret_value()))
    if url := settings.alert_slack_url:
        tell.append(to_slack(url.get_secret_value()))
    return tell


def _extractor(settings: Settings) -> Extractor:
    return Extractor.default(
        spacy_model=settings.spacy_model,
        embedding_dim=settings.embedding_dim,
        chunk_tokens=settings.chunk_tokens,
        document_bytes_max=settings.document_bytes_max,
        chunks_max=settings.chunks_max,
        text_chars_min=settings.text_chars_min,
    )


def _policy(settings: Settings, attempts: int, timeout_s: float) -> RetryPolicy:
    return RetryPolicy(
        attempts=attempts,
        timeout_s=timeout_s,
        base_s=settings.retry_base_s,
        delay_s_max=settings.retry_delay_s_max,
    )
