"""The documents of a simulation: a few bytes each, and how they are taken apart."""

from __future__ import annotations

import numpy as np

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import Chunk, Document, Entity, Extraction, entity_key

REFUSED_BY = "refused_by"  # metadata field: who refuses this document for good
TROUBLES = ("extractor", "neo4j", "postgres", "qdrant")


def submission(document_id: str, *, edition: int, chunks: int, trouble: str | None) -> Submission:
    """A document with so many chunks; `trouble` names who refuses it. Two of three editions were
    dropped as files, so that they are tried again by themselves."""
    return Submission(
        document=Document(
            source_uri=f"inbox:{document_id}.txt" if edition % 3 else None,
            document_id=document_id,
            name=f"{document_id}.txt",
            content=b"%d:%d" % (edition, chunks),
            metadata={REFUSED_BY: trouble} if trouble else {},
        )
    )


def deletion(document_id: str) -> Submission:
    """The wish that a document of `submission` be deleted."""
    return Submission.deletion(document_id)


def chunk_count(document: Document) -> int:
    """Chunks of a document of `submission`."""
    return int(document.content.partition(b":")[2])


class Extractor:
    """Takes a document of `submission` apart."""

    def extract(self, document: Document) -> Extraction:
        if document.metadata.get(REFUSED_BY) == "extractor":
            raise DocumentRejected(document.document_id, "unreadable")
        count = chunk_count(document)
        names = (document.document_id, "Port Amaranth")
        return Extraction(
            document_id=document.document_id,
            title=document.name,
            collection=document.collection,
            content_hash=content_hash(document),
            metadata=document.metadata,
            chunks=tuple(Chunk(ordinal=n, text=f"{n}", start=n, end=n + 1) for n in range(count)),
            embeddings=np.eye(count, 2, dtype=np.float32),
            embedding_model="none",
            entities=tuple(
                Entity(key=entity_key("place", name), type="place", name=name) for name in names
            ),
            relations=(),
        )
