"""What each store has to show of a version, and what a read got: fingerprints, by store."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from apex_dagster.chaos.history import Seen
from apex_dagster.ingestion.read import LiveDocument
from apex_dagster.records import Chunk, Entity, Extraction, Relation, VersionRef


def expected(extraction: Extraction) -> Mapping[str, str]:
    """What the stores have to show once it is live."""
    texts = [chunk.text for chunk in extraction.chunks]
    return {
        "postgres": rows(extraction.title, extraction.content_hash, extraction.chunks),
        "neo4j": _graph(extraction.entities, extraction.relations),
        "qdrant": _points(texts, extraction.embeddings.tobytes()),
        "redis": _entry(extraction.title, extraction.content_hash, "\n".join(texts)),
    }


def seen(document: LiveDocument) -> Mapping[str, Seen]:
    """The parts of a read, each with the version its items say they are of."""
    live, graph, points = document.version, document.graph, document.points
    parts = {
        "postgres": Seen(
            ref=live.ref, fingerprint=rows(live.title, live.content_hash, live.chunks)
        ),
        "neo4j": Seen(ref=_only(graph.refs), fingerprint=_graph(graph.entities, graph.relations)),
        "qdrant": Seen(
            ref=_only(points.refs), fingerprint=_points(points.texts, points.embeddings.tobytes())
        ),
    }
    if document.cached:
        body = document.cached.body
        text = _entry(body["title"], body["content_hash"], body["text"])
        parts["redis"] = Seen(ref=_only(document.cached.refs), fingerprint=text)
    return parts


def rows(title: str, content_hash: str, chunks: Sequence[Chunk]) -> str:
    """PostgreSQL's part."""
    return _hash([title, content_hash, [asdict(chunk) for chunk in chunks]])


def _graph(entities: Sequence[Entity], relations: Sequence[Relation]) -> str:
    items: list[Entity | Relation] = [*entities, *relations]
    return _hash([sorted(json.dumps(asdict(item)) for item in items)])


def _points(texts: Sequence[str], embeddings: bytes) -> str:
    return _hash([list(texts), embeddings.hex()])


def _entry(title: str, content_hash: str, text: str) -> str:
    return _hash([title, content_hash, text])


def _only(refs: frozenset[VersionRef]) -> VersionRef:
    [ref] = refs
    return ref


def _hash(content: object) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()
