"""What each store has to hold of a live version, item by item, and what is different from it.

Items are names ("chunk 3 embedding", "mention of place:port amaranth: description") with the value
that the store's own copy has, as plain data that compares equal if and only if the copies are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from apex_dagster.records import SagaId, StagedVersion, VersionRef, item_id

Items = Mapping[str, Any]
Contents = Mapping[SagaId, Items]

NOTHING = "nothing"
_EXCERPT_CHARS = 60


def differences(expected: Items, held: Items) -> Iterator[tuple[str, str]]:
    """(what has to be there, what is there), in words, for each item that is not as expected."""
    for name in sorted(expected.keys() | held.keys()):
        if name not in held:
            yield f"{name}: {_excerpt(expected[name])}", NOTHING
        elif name not in expected:
            yield f"no {name}", _excerpt(held[name])
        elif expected[name] != held[name]:
            yield f"{name}: {_excerpt(expected[name])}", _excerpt(held[name])


def _excerpt(value: Any) -> str:
    if isinstance(value, bytes):
        floats = np.frombuffer(value, dtype=np.float16 if len(value) % 4 else np.float32)
        return f"{len(value)} bytes of floats, {', '.join(f'{x:.4g}' for x in floats[:3])}…"
    text = value if isinstance(value, str) else orjson.dumps(value, default=str).decode()
    return ascii(text if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]}…")


# -- Neo4j -----------------------------------------------------------------------------------------


def expected_in_neo4j(version: StagedVersion) -> Items:
    """Version node, mentions with their entities, relations, all committed and current."""
    content, stamp = version.extraction, _stamp(version.ref)
    mentions = [
        (
            entity.key,
            entity.type,
            entity.key.partition(":")[2],
            {
                "name": entity.name,
                "description": entity.description,
                "aliases": list(entity.aliases),
                "chunk_ordinals": list(entity.chunk_ordinals),
                "mentions": entity.mentions,
                **stamp,
            },
        )
        for entity in content.entities
    ]
    relations = [
        (
            relation.source_key,
            relation.target_key,
            {
                "type": relation.type,
                "description": relation.description,
                "weight": relation.weight,
                "chunk_ordinal": relation.chunk_ordinal,
                **stamp,
            },
        )
        for relation in content.relations
    ]
    about = {
        "title": content.title,
        "collection": content.collection,
        "content_hash": content.content_hash,
        **stamp,
    }
    return items_in_neo4j(about, True, mentions, relations)


def items_in_neo4j(
    version: Mapping[str, Any],
    current: bool,
    mentions: Sequence[tuple[str, str, str, Mapping[str, Any]]],
    relations: Sequence[tuple[str, str, Mapping[str, Any]]],
) -> Items:
    """A mention is (key, type, shared name, properties), a relation (source, target, properties).

    What has neither name nor order of its own is numbered after sorting.
    """
    items = _named("version", {**version, "current": current})
    for key, entity_type, name, properties in sorted(mentions, key=_bytes):
        label = _free(items, f"mention of {key}")
        items |= _named(label, {**properties, "entity type": entity_type, "entity name": name})
    for source, target, properties in sorted(relations, key=_bytes):
        label = _free(items, f"relation {source} {properties.get('type')} {target}")
        items |= _named(label, properties)
    return items


def _free(items: Items, label: str) -> str:
    number, free = 1, label
    while f"{free}: saga_id" in items:
        number += 1
        free = f"{label} ({number})"
    return free


def _bytes(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS, default=str)


# -- PostgreSQL ------------------------------------------------------------------------------------


def expected_in_postgres(version: StagedVersion) -> Items:
    """The row of the version and those of its chunks, all committed; vectors in half precision."""
    content, stamp = version.extraction, _stamp(version.ref)
    about = {
        **stamp,
        "title": content.title,
        "collection": content.collection,
        "metadata": _plain(content.metadata),
        "content_hash": content.content_hash,
        "embedding_model": content.embedding_model,
        "chunk_count": len(content.chunks),
        "embedding": halves(content.document_embedding()),
    }
    items = _named("version", about)
    for chunk, embedding in zip(content.chunks, content.embeddings, strict=True):
        row = {
            **stamp,
            "chunk_id": str(item_id(version.ref.saga_id, "chunk", chunk.ordinal)),
            "start": chunk.start,
            "end": chunk.end,
            "text": chunk.text,
            "embedding": halves(embedding),
        }
        items |= _named(f"chunk {chunk.ordinal}", row)
    return items


def items_in_postgres(
    version: Mapping[str, Any] | None, chunks: Sequence[Mapping[str, Any]]
) -> Items:
    """Rows with the names of `expected_in_postgres`; a chunk has its `ordinal` besides."""
    items = _named("version", version) if version is not None else {}
    for row in chunks:
        fields = {name: value for name, value in row.items() if name != "ordinal"}
        items |= _named(f"chunk {row['ordinal']}", fields)
    return items


def halves(vector: Any) -> bytes:
    """The vector's half-precision floats, as bytes."""
    return np.ascontiguousarray(vector, dtype="<f2").tobytes()


# -- Qdrant ----------------------------------------------------------------------------------------


def expected_in_qdrant(version: StagedVersion) -> Items:
    """A committed point for each chunk."""
    content = version.extraction
    items: dict[str, Any] = {}
    for chunk, embedding in zip(content.chunks, content.embeddings, strict=True):
        payload = {
            **_stamp(version.ref),
            "ordinal": chunk.ordinal,
            "text": chunk.text,
            "title": content.title,
            "collection": content.collection,
            "content_hash": content.content_hash,
            "metadata": _plain(content.metadata),
        }
        items |= _point(
            str(item_id(version.ref.saga_id, "chunk", chunk.ordinal)), payload, embedding
        )
    return items


def items_in_qdrant(points: Sequence[tuple[str, Mapping[str, Any], Any]]) -> Items:
    """A point is (id, payload, vector)."""
    items: dict[str, Any] = {}
    for point in points:
        items |= _point(*point)
    return items


def _point(point_id: str, payload: Mapping[str, Any], vector: Any) -> dict[str, Any]:
    floats = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    return _named(f"point {point_id}", {**payload, "embedding": floats})


# -- Redis -----------------------------------------------------------------------------------------


def expected_in_redis(body: bytes) -> Items:
    """The fields of the entry that was staged, committed, and the key it is under."""
    entry = orjson.loads(body)
    committed = _named("entry", {**entry, "ingestion_status": "committed"})
    return {**committed, "key: document_id": entry["document_id"]}


def items_in_redis(document_id: str, body: bytes) -> Items:
    """The fields of what is under the key of this document; all of it if it is no JSON object."""
    key = {"key: document_id": document_id}
    try:
        entry = orjson.loads(body)
    except orjson.JSONDecodeError:
        entry = None
    if not isinstance(entry, dict):
        return {"entry": body.decode(errors="replace"), **key}
    return {**_named("entry", entry), **key}


def _named(label: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{label}: {name}": value for name, value in fields.items() if value is not None}


def _stamp(ref: VersionRef) -> dict[str, Any]:
    return {
        "saga_id": ref.saga_id,
        "document_id": ref.document_id,
        "version": ref.version,
        "ingestion_status": "committed",
    }


def _plain(metadata: Mapping[str, Any]) -> Any:
    """As it comes back from a store: JSON knows no tuples."""
    return orjson.loads(orjson.dumps(dict(metadata), option=orjson.OPT_NON_STR_KEYS))
