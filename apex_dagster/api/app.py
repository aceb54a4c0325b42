"""The HTTP application: what lives as long as its process, and the routes over it.

It opens sagas and waits for them; Dagster's runs drive them. So it needs the ledger and nothing
else, and is up in a second.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from apex_dagster.api import documents, health, problems, schemas
from apex_dagster.api.answers import answer_of
from apex_dagster.api.documents import Documents
from apex_dagster.api.health import Health
from apex_dagster.api.hosts import LoopbackNames
from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.endings import Endings
from apex_dagster.ingestion.intake import Intake
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.submissions import ended_sagas
from apex_dagster.saga.wakeup import ENDED, Listener
from apex_dagster.settings import Settings

THREADS = 4  # as many as the ledger has connections

DESCRIPTION = (
    "Takes documents into Neo4j, PostgreSQL, Qdrant and Redis: into all four, or into none."
)


def create_app(settings: Settings, postgres_url: str, *, admit: Callable[[int], None]) -> FastAPI:
    """The application over a migrated ledger. Nothing is connected before it starts.

    `admit(n)` raises an error with `retry_after_s` unless `n` documents may come in now; with 0 it
    only tells whether any may. It is called from several threads.
    """
    app = FastAPI(
        title="apex_dagster",
        version=version("apex-dagster"),
        description=DESCRIPTION,
        lifespan=partial(lifespan, settings=settings, postgres_url=postgres_url, admit=admit),
        redoc_url=None,
    )
    app.include_router(documents.router)
    app.include_router(health.router)
    problems.install(app)
    if not settings.api_trust_network:
        app.add_middleware(LoopbackNames)
    app.openapi = partial(openapi, app)  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def lifespan(
    app: FastAPI, *, settings: Settings, postgres_url: str, admit: Callable[[int], None]
) -> AsyncIterator[None]:
    """Connections and threads, for as long as the application runs."""
    ledger = Ledger(postgres_url, lease_s=settings.lease_s)
    executor = ThreadPoolExecutor(THREADS, "ledger")
    endings = Endings(
        partial(ended_sagas, ledger),
        Listener(postgres_url, ENDED),
        executor,
        publish_wait_s=settings.publish_wait_s,
    )
    app.state.documents = Documents(
        intake=Intake(
            ledger,
            endings,
            executor,
            answer_of=answer_of,
            admit=admit,
            pending_max=settings.pending_max,
            answer_wait_s=settings.answer_wait_s,
        ),
        extractor=_extractor(settings),
        executor=executor,
        body_bytes_max=min(settings.api_body_bytes_max, settings.document_bytes_max),
        batch_documents_max=settings.api_batch_documents_max,
        patience_s=settings.answer_wait_s,
    )
    app.state.health = Health(
        ledger=ledger, executor=executor, admit=admit, waiting=lambda: endings.waiting
    )
    endings.start()
    try:
        yield
    finally:
        await endings.stop()
        executor.shutdown()
        ledger.close()


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


def openapi(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description, with the models that no route validates by."""
    if app.openapi_schema is None:
        schema = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        models = (schemas.Document, schemas.Ingested, schemas.Line, schemas.Problem)
        _, definitions = models_json_schema(
            [(model, "validation") for model in models],
            ref_template="#/components/schemas/{model}",
        )
        components = schema.setdefault("components", {}).setdefault("schemas", {})
        components |= definitions["$defs"]
        app.openapi_schema = schema
    return app.openapi_schema
