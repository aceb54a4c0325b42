"""Documents to search for: chunks and entities of a test's own, embedded by the real model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from apex_dagster.composition import Application
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import Document
from apex_dagster.saga.saga import Saga


def text_of(
    document_id: str, *chunks: str, entities: Sequence[Any] = (), **fields: Any
) -> Submission:
    """A document of these chunks; `fields` are members of its JSON, as relations or metadata."""
    content = {
        "document_id": document_id,
        "title": document_id,
        "chunks": list(chunks),
        "entities": list(entities),
        **fields,
    }
    document = Document(
        document_id=document_id, name=f"{document_id}.json", content=json.dumps(content).encode()
    )
    return Submission(document=document)


def ingest(app: Application, *submissions: Submission) -> list[Saga]:
    """Live, all of them."""
    sagas = app.ingestion.ingest(list(submissions), owner="test")
    assert {saga.status for saga in sagas} == {"completed"}
    return sagas
