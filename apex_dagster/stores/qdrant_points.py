"""Points of QdrantStore: what is stored of a chunk, in requests of bounded size, and its digest."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from qdrant_client import models

from apex_dagster.records import Chunk, StagedVersion, VersionRef, item_id, item_ids
from apex_dagster.stores.fitness import metadata_json
from apex_dagster.stores.reading import Points
from apex_dagster.stores.searching import Candidate, ChunkRef

REQUEST_BYTES_MAX = 8_000_000  # Qdrant's own limit is 32 MB; small ones keep its pauses short
REQUEST_POINTS_MAX = 500
_FLOAT_BYTES = 16  # one float of a vector as JSON, at most
PLACE_FIELDS = ("document_id", "version", "saga_id", "ordinal")  # which chunk a point is
_POINT_BYTES = 500  # ids, field names and numbers of a point as JSON


Point = dict[str, Any]


def request_sized(versions: Iterable[StagedVersion]) -> Iterator[list[Point]]:
    """The versions' points, packed into as few lists as fit a request."""
    pack: list[Point] = []
    pack_bytes = 0
    for point, point_bytes in _sized_points(versions):
        full = len(pack) == REQUEST_POINTS_MAX or pack_bytes + point_bytes > REQUEST_BYTES_MAX
        if pack and full:
            yield pack
            pack, pack_bytes = [], 0
        pack.append(point)
        pack_bytes += point_bytes
    if pack:
        yield pack


def insertion(points: Sequence[Point]) -> bytes:
    """The body of a request that inserts these points, and changes none that is there.

    Written without the client's models, which took longer than all else of a request. A float32 is
    written with the fewest digits that give it back; read as a float64 and rounded once more, as
    servers do, they still do: checked for every float32 from 2**-16 to 2.
    """
    return orjson.dumps(
        {"points": points, "update_mode": "insert_only"}, option=orjson.OPT_SERIALIZE_NUMPY
    )


def replacement(points: Sequence[Point]) -> bytes:
    """The body of a request that writes these points over whatever is there under their ids."""
    return orjson.dumps({"points": points}, option=orjson.OPT_SERIALIZE_NUMPY)


def tombstone(ref: VersionRef, embedding_dim: int) -> Point:
    """What stands for a deleted document: it names the deletion, and is similar to nothing."""
    payload = {
        "document_id": ref.document_id,
        "version": ref.version,
        "saga_id": ref.saga_id,
        "ingestion_status": "deleted",
        "ordinal": -1,  # of no chunk; whoever searches reads one from every point
    }
    vector = np.zeros(embedding_dim, dtype=np.float32)
    return {"id": str(item_id(ref.saga_id, "tombstone", 0)), "vector": vector, "payload": payload}


def record_hash(record: models.Record) -> bytes:
    """Sha256 of a stored point: its id, its vector's float32 bytes and its payload.

    The three are hashed in one JSON array, so that none can run into its neighbour.
    """
    vector = record.vector if isinstance(record.vector, list) else []
    floats = struct.pack(f"<{len(vector)}f", *vector).hex()
    canonical = json.dumps([str(record.id), floats, record.payload], sort_keys=True)
    return hashlib.sha256(canonical.encode()).digest()


def points_of(records: Sequence[models.Record], *, embedding_dim: int) -> Points:
    """Stored points of one version, in the order of its chunks."""
    payloads = [record.payload or {} for record in records]
    order = sorted(range(len(records)), key=lambda index: payloads[index]["ordinal"])
    vectors = [records[index].vector for index in order]
    return Points(
        refs=frozenset(map(ref_of, payloads)),
        items={"chunks": len(records)},
        texts=tuple(payloads[index]["text"] for index in order),
        embeddings=np.array(vectors, dtype=np.float32).reshape(len(records), embedding_dim),
    )


def candidate_of(point: models.ScoredPoint) -> Candidate:
    """A point that was found, with `PLACE_FIELDS` as its payload."""
    payload = point.payload or {}
    chunk = ChunkRef(ref=ref_of(payload), ordinal=payload["ordinal"])
    return Candidate(chunk=chunk, score=point.score)


def ref_of(payload: Mapping[str, Any]) -> VersionRef:
    """The version that a point says it is of."""
    return VersionRef(
        document_id=payload["document_id"], version=payload["version"], saga_id=payload["saga_id"]
    )


def _sized_points(
    versions: Iterable[StagedVersion],
) -> Iterator[tuple[Point, int]]:
    """Each point with what it takes in a request: bytes, estimated from above."""
    for version in versions:
        extraction = version.extraction
        shared = _POINT_BYTES + len(extraction.title) * 4 + len(extraction.document_id) * 8
        shared += len(metadata_json(extraction.metadata)) * 4
        ids = item_ids(version.ref.saga_id, "chunk", (c.ordinal for c in extraction.chunks))
        vectors = np.ascontiguousarray(extraction.embeddings, dtype=np.float32)
        for point_id, chunk, vector in zip(ids, extraction.chunks, vectors, strict=True):
            point_bytes = shared + len(vector) * _FLOAT_BYTES + len(chunk.text) * 4
            payload = _payload(version, chunk)
            yield {"id": str(point_id), "vector": vector, "payload": payload}, point_bytes


def _payload(version: StagedVersion, chunk: Chunk) -> dict[str, Any]:
    ref, extraction = version.ref, version.extraction
    return {
        "document_id": ref.document_id,
        "version": ref.version,
        "saga_id": ref.saga_id,
        "ingestion_status": "staged",
        "ordinal": chunk.ordinal,
        "text": chunk.text,
        "title": extraction.title,
        "collection": extraction.collection,
        "content_hash": extraction.content_hash,
        "metadata": dict(extraction.metadata),
    }
