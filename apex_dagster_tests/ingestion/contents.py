"""What each store has to show of a document, and what a read got: fingerprints, by store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from apex_dagster.extraction.extract import Extractor
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.ingestion.read import LiveDocument
from apex_dagster.records import Chunk, Entity, Extraction, Relation, VersionRef
from apex_dagster_tests.documents import DIM, submission
from apex_dagster_tests.ingestion.history import Seen


def edition(document_id: str, number: int, *, shared: str) -> Submission:
    """An edition that differs from the others in every store, with entities beginning with `shared`
    that other documents and editions mention as well."""
    names = [f"{shared} {which % 5}" for which in (number, number + 1)]
    own = f"{document_id} {number % 3}"
    return submission(
        document_id,
        edition=number,
        chunks=1 + number % 4,
        entities=[{"name": name, "type": "place"} for name in (*names, own)],
        relations=[{"source": own, "target": name, "type": f"EDITION_{number}"} for name in names],
    )


def submitted(submission: Submission) -> Mapping[str, str]:
    """What the stores have to show once it is live."""
    extraction = extracted(submission)
    texts = [chunk.text for chunk in extraction.chunks]
    return {
        "postgres": _postgres(extraction.title, extraction.content_hash, extraction.chunks),
        "neo4j": _neo4j(extraction.entities, extraction.relations),
        "qdrant": _qdrant(texts, extraction.embeddings.tobytes()),
        "redis": _redis(extraction.title, extraction.content_hash, "\n".join(texts)),
    }


def seen(document: LiveDocument) -> Mapping[str, Seen]:
    """The parts of a read, each with the version its items say they are of."""
    live, graph, points = document.version, document.graph, document.points
    parts = {
        "postgres": Seen(
            ref=live.ref, fingerprint=_postgres(live.title, live.content_hash, live.chunks)
        ),
        "neo4j": Seen(ref=one(graph.refs), fingerprint=_neo4j(graph.entities, graph.relations)),
        "qdrant": Seen(
            ref=one(points.refs), fingerprint=_qdrant(points.texts, points.embeddings.tobytes())
        ),
    }
    if document.cached:
        body = document.cached.body
        text = _redis(body["title"], body["content_hash"], body["text"])
        parts["redis"] = Seen(ref=one(document.cached.refs), fingerprint=text)
    return parts


def extracted(submission: Submission) -> Extraction:
    return Extractor.default(embedding_dim=DIM).extract(submission.document)


def one(refs: frozenset[VersionRef]) -> VersionRef:
    [ref] = refs
    return ref


def _postgres(title: str, content_hash: str, chunks: Sequence[Chunk]) -> str:
    return _hash([title, content_hash, [asdict(chunk) for chunk in chunks]])


def _neo4j(entities: Sequence[Entity], relations: Sequence[Relation]) -> str:
    return _hash([sorted(json.dumps(asdict(each)) for each in (*entities, *relations))])


def _qdrant(texts: Sequence[str], embeddings: bytes) -> str:
    return _hash([list(texts), embeddings.hex()])


def _redis(title: str, content_hash: str, text: str) -> str:
    return _hash([title, content_hash, text])


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
