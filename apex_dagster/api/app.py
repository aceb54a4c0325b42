"""The HTTP application: what lives as long as its process, and the routes over it.

It opens sagas and waits for them; Dagster's runs drive them. It writes to the ledger and nowhere
else; the stores it asks only when a document is read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, TypeVar

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from apex_dagster.access.keys import usable_keys
from apex_dagster.api import (
    deletions,
    documents,
    health,
    live_documents,
    problems,
    progress,
    rate,
    sagas,
    schemas,
    search,
    search_schemas,
    uploads,
)
from apex_dagster.api.answers import answer_of
from apex_dagster.api.deletions import Deletions
from apex_dagster.api.documents import Documents
from apex_dagster.api.health import Health
from apex_dagster.api.hosts import LoopbackNames
from apex_dagster.api.key_ring import KeyRing
from apex_dagster.api.keys import ApiKeys, describe
from apex_dagster.api.live_documents import LiveDocuments
from apex_dagster.api.progress import Progress
from apex_dagster.api.sagas import Sagas
from apex_dagster.api.search import Searches
from apex_dagster.api.threads import BoundedCalls
from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.endings import Endings
from apex_dagster.ingestion.intake import Intake
from apex_dagster.ingestion.read import SNAPSHOTS_MAX
from apex_dagster.observability.metrics import render_metrics
from apex_dagster.saga.breaker import Breakers
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.submissions import ended_sagas
from apex_dagster.saga.wakeup import ENDED, Listener
from apex_dagster.settings import Endpoints, Settings

if TYPE_CHECKING:
    from apex_dagster.composition import Reading
    from apex_dagster.ingestion.search import Searcher

T = TypeVar("T")

THREADS = 4  # as many as the ledger has connections
LEDGER_BOUND_S = 30.0  # its own time-outs end a question earlier, unless it is frozen
READ_THREADS = 4  # as many as the store has; others than the ledger's, which no store keeps waiting
SEARCH_THREADS = 4  # as many as its store has
SEARCH_BOUND_S = 60.0  # the first one loads the models; all else has time-outs of its own

DESCRIPTION = (
    "Takes documents into Neo4j, PostgreSQL, Qdrant and Redis: into all four, or into none."
)


def create_app(
    settings: Settings, servers: Endpoints, *, admit: Callable[[int], None], keys: bool = False
) -> FastAPI:
    """The application over a migrated ledger. Nothing is connected before it starts.

    With `keys` each request has to bring an API key; without, it must come by a loopback name.
    `admit(n)` raises an error with `retry_after_s` unless `n` documents may come in now; with 0 it
    only tells whether any may. It is called from several threads.
    """
    app = FastAPI(
        title="apex_dagster",
        version=version("apex-dagster"),
        description=DESCRIPTION,
        lifespan=partial(lifespan, settings=settings, servers=servers, admit=admit),
        redoc_url=None,
    )
    app.include_router(documents.router)
    app.include_router(deletions.router)
    app.include_router(uploads.router)
    app.include_router(live_documents.router)  # below the others: an id may look like a path
    app.include_router(search.router)
    app.include_router(progress.router)  # above the next, whose ids may hold slashes
    app.include_router(sagas.router)
    app.include_router(health.router)
    problems.install(app)
    # Within the next, which says whose request it is.
    app.add_middleware(rate.RateLimit, rate=rate.rate_of(settings.api_rate))
    # A page of another site can make a browser send requests here, but none with a key.
    app.add_middleware(ApiKeys if keys else LoopbackNames)
    app.openapi = partial(openapi, app, keys=keys)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def lifespan(
    app: FastAPI, *, settings: Settings, servers: Endpoints, admit: Callable[[int], None]
) -> AsyncIterator[None]:
    """Connections and threads, for as long as the application runs."""
    postgres_url = servers.postgres_url.get_secret_value()
    ledger = Ledger(postgres_url, lease_s=settings.lease_s)
    executor = ThreadPoolExecutor(THREADS, "ledger")
    endings = Endings(
        partial(ended_sagas, ledger),
        Listener(postgres_url, ENDED),
        executor,
        publish_wait_s=settings.publish_wait_s,
    )
    ledger_calls = BoundedCalls(executor=executor, bound_s=LEDGER_BOUND_S)
    app.state.key_ring = KeyRing(
        partial(ledger_calls.run, partial(usable_keys, ledger)), settings.api_keys_cache_s
    )
    intake = partial(
        Intake,
        ledger,
        endings,
        executor,
        admit=admit,
        pending_max=settings.pending_max,
        answer_wait_s=settings.answer_wait_s,
    )
    app.state.documents = Documents(
        intake=intake(answer_of=answer_of),
        extractor=_extractor(settings),
        executor=executor,
        body_bytes_max=min(settings.api_body_bytes_max, settings.document_bytes_max),
        batch_documents_max=settings.api_batch_documents_max,
        patience_s=settings.answer_wait_s,
    )
    app.state.health = Health(
        ledger=ledger,
        executor=executor,
        admit=admit,
        waiting=lambda: endings.waiting,
        metrics=partial(
            render_metrics,
            ledger,
            bound_s=settings.saga_bound_s,
            window_s=settings.alert_window_s,
            down=Breakers(ledger, {}).down,
        ),
    )
    app.state.sagas = Sagas(ledger=ledger, calls=ledger_calls)
    app.state.deletions = Deletions(
        intake=intake(answer_of=deletions.answer_of),
        ledger=ledger,
        calls=ledger_calls,
    )
    app.state.progress = Progress(ledger=ledger, calls=ledger_calls)
    endings.start()
    try:
        with (
            live_reads(settings, servers, ledger) as app.state.live_documents,
            searches(settings, servers) as app.state.searches,
        ):
            yield
    finally:
        await endings.stop()
        executor.shutdown()
        ledger.close()


@contextmanager
def live_reads(settings: Settings, servers: Endpoints, ledger: Ledger) -> Iterator[LiveDocuments]:
    """Reads of documents, with clients and threads of their own."""

    def connect() -> AbstractContextManager[Reading]:
        from apex_dagster.composition import reading

        return reading(settings, servers)

    bound_s = SNAPSHOTS_MAX * settings.read_timeout_s
    with _connected("reads", READ_THREADS, bound_s, connect) as (reading, calls):
        yield LiveDocuments(reading=reading, ledger=ledger, calls=calls)


@contextmanager
def searches(settings: Settings, servers: Endpoints) -> Iterator[Searches]:
    """Searches, with clients and threads of their own."""

    def connect() -> AbstractContextManager[Searcher]:
        from apex_dagster.composition import searching

        return searching(settings, servers)

    with _connected("searches", SEARCH_THREADS, SEARCH_BOUND_S, connect) as (searcher, calls):
        yield Searches(searcher=searcher, calls=calls)


@contextmanager
def _connected(
    name: str, threads: int, bound_s: float, connect: Callable[[], AbstractContextManager[T]]
) -> Iterator[tuple[Future[T], BoundedCalls]]:
    """What `connect` opens, as soon as it is there, and calls on so many threads.

    Opened on one of them: importing the stores' drivers takes longer than all else at a start. A
    request that comes before they are there waits for them, nobody else does.
    """
    pool = ThreadPoolExecutor(threads, name)
    with ExitStack() as clients:
        try:
            opened = pool.submit(lambda: clients.enter_context(connect()))
            yield opened, BoundedCalls(executor=pool, bound_s=bound_s)
        finally:
            pool.shutdown(cancel_futures=True)


def _extractor(settings: Settings) -> Extractor:
    """For its rules only: a document that needs a model is extracted elsewhere."""
    return Extractor.default(
        spacy_model=settings.spacy_model,
        embedding_dim=settings.embedding_dim,
        chunk_tokens=settings.chunk_tokens,
        document_bytes_max=settings.document_bytes_max,
        chunks_max=settings.chunks_max,
        text_chars_min=settings.text_chars_min,
    )


def openapi(app: FastAPI, *, keys: bool) -> dict[str, Any]:
    """FastAPI's description, with the models that no route validates by."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        models = (
            schemas.Document,
            schemas.Text,
            schemas.Ingested,
            schemas.Line,
            schemas.Problem,
            search_schemas.SearchRequest,
        )
        _, definitions = models_json_schema(
            [(model, "validation") for model in models],
            ref_template="#/components/schemas/{model}",
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components |= definitions["$defs"]
        rate.describe(schema)
        if keys:
            describe(schema)
        app.openapi_schema = schema
    return app.openapi_schema
