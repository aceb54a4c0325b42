"""Documents to submit: with chunks, embeddings, entities and relations of their own, so that a test
pays for sagas and stores, not for language models. The code they pass through is the real one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.codec import pack
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import Document
from apex_dagster.saga.opening import Opening, open_sagas
from apex_dagster.saga.saga import Saga

if TYPE_CHECKING:  # costs seconds
    from apex_dagster.composition import Application

DIM = 384


# More distinct words than fit PostgreSQL's full-text form: every check of ours lets them pass, and
# the server's refusal does not say which document of a batch it means.
POISON = " ".join(f"word{number:x}" for number in range(140_000))


def document(
    document_id: str,
    *,
    edition: int = 1,
    chunks: int = 3,
    dim: int = DIM,
    poison: bool = False,
    **fields: Any,
) -> Document:
    """A document whose content depends on the arguments alone. A poisonous one is refused late."""
    rng = np.random.default_rng([edition, *document_id.encode()])
    content = {
        "document_id": document_id,
        "title": f"{document_id}, edition {edition}",
        "chunks": [
            {
                "text": POISON
                if poison
                else f"Chunk {ordinal} of edition {edition} tells of copper and of the harbour.",
                "embedding": rng.standard_normal(dim).round(6).tolist(),
            }
            for ordinal in range(chunks)
        ],
        "entities": [
            {"name": f"{document_id} Shipping", "type": "organization"},
            {"name": "Port Amaranth", "type": "place"},  # shared by all documents
        ],
        "relations": [
            {"source": f"{document_id} Shipping", "target": "Port Amaranth", "type": "BASED_IN"}
        ],
        **fields,
    }
    return Document(
        document_id=document_id, name=f"{document_id}.json", content=json.dumps(content).encode()
    )


def submission(document_id: str, **fields: Any) -> Submission:
    """The same, as it comes in from the shell."""
    return Submission(document=document(document_id, **fields))


def submissions(prefix: str, count: int, **fields: Any) -> list[Submission]:
    """Several documents with ids `prefix`-0, `prefix`-1, ..."""
    return [submission(f"{prefix}-{index}", **fields) for index in range(count)]


def open_pending(
    app: Application, document_id: str, *, run_id: str | None = None, **fields: Any
) -> Saga:
    """A saga of such a document that nobody drives yet, its extraction stored, as the API opens it
    (or, with `run_id`, as a run does)."""
    prepared = document(document_id, **fields)
    opening = Opening(
        document=prepared,
        content_hash=content_hash(prepared),
        body_hash="",
        client="test",
        body=pack(app.ingestion._extractor.extract(prepared)),
    )
    [opened] = open_sagas(app.ledger, [opening], run_id=run_id)
    assert opened.disposition == "opened"
    return opened.saga
