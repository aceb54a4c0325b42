"""Versions to stage: random, but the same for the same arguments."""

from __future__ import annotations

import hashlib

import numpy as np

from apex_dagster.records import (
    Chunk,
    Entity,
    Extraction,
    Relation,
    SagaId,
    StagedVersion,
    VersionRef,
    entity_key,
)

WORDS = (
    *("harbour", "ledger", "turbine", "orchard", "signal", "granite", "voyage", "contract"),
    *("laboratory", "winter", "copper", "archive", "bridge", "engine", "museum", "river"),
    *("senate", "violin", "market", "lantern"),
)
ENTITY_TYPES = ("person", "organization", "place")
RELATION_TYPES = ("ACQUIRED", "WORKS_FOR", "LOCATED_IN", "FOUNDED")


def version_ref(document_id: str, version: int = 1, *, seed: int = 0) -> VersionRef:
    """Names a version; its saga_id is `ingest_{document_id}_{16 hex digits}`."""
    hex16 = _rng(document_id, version, seed, "saga").bytes(8).hex()
    saga_id = SagaId(f"ingest_{document_id}_{hex16}")
    return VersionRef(document_id=document_id, version=version, saga_id=saga_id)


def staged_version(
    document_id: str,
    version: int = 1,
    *,
    chunks: int = 8,
    entities: int = 15,
    relations: int = 12,
    dim: int = 384,
    seed: int = 0,
    vocabulary: str = "Common",
    vocabulary_size: int | None = None,
) -> StagedVersion:
    """A version with so many chunks, entities and relations.

    Its entities are drawn from `vocabulary_size` names (default: four times `entities`) that begin
    with `vocabulary`, so documents of one vocabulary share some, and all if the size is `entities`.
    """
    rng = _rng(document_id, version, seed, "content")
    named = _entities(rng, entities, chunks, vocabulary, vocabulary_size or 4 * entities)
    extraction = Extraction(
        document_id=document_id,
        title=f"Report {version} on {' '.join(_words(rng, 3))}",
        collection="conformance",
        content_hash=rng.bytes(32).hex(),
        metadata={"author": _words(rng, 1)[0], "pages": int(rng.integers(1, 90)), "tags": ["a"]},
        chunks=_chunks(rng, chunks),
        embeddings=_embeddings(rng, chunks, dim),
        embedding_model="test/random",
        entities=named,
        relations=_relations(rng, relations, named, chunks),
    )
    return StagedVersion(ref=version_ref(document_id, version, seed=seed), extraction=extraction)


def _rng(*parts: object) -> np.random.Generator:
    seed = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return np.random.default_rng(int.from_bytes(seed, "big"))


def _words(rng: np.random.Generator, count: int) -> list[str]:
    return [WORDS[index] for index in rng.integers(0, len(WORDS), count)]


def _chunks(rng: np.random.Generator, count: int) -> tuple[Chunk, ...]:
    chunks, start = [], 0
    for ordinal in range(count):
        text = f"{ordinal}: {' '.join(_words(rng, 24))}."
        chunks.append(Chunk(ordinal=ordinal, text=text, start=start, end=start + len(text)))
        start += len(text) + 1
    return tuple(chunks)


def _embeddings(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    rows = rng.standard_normal((count, dim), dtype=np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if count else rows


def _entities(
    rng: np.random.Generator, count: int, chunks: int, vocabulary: str, vocabulary_size: int
) -> tuple[Entity, ...]:
    entities = []
    for index in rng.choice(vocabulary_size, count, replace=False) if count else ():
        entity_type = ENTITY_TYPES[index % len(ENTITY_TYPES)]
        name = f"{vocabulary} {WORDS[index % len(WORDS)].title()} {index}"
        where = sorted({int(o) for o in rng.integers(0, chunks, 3)}) if chunks else []
        entities.append(
            Entity(
                key=entity_key(entity_type, name),
                type=entity_type,
                name=name,
                description=" ".join(_words(rng, 8)),
                aliases=(name.upper(), f"the {name}"),
                chunk_ordinals=tuple(where),
                mentions=len(where) or 1,
            )
        )
    return tuple(entities)


def _relations(
    rng: np.random.Generator, count: int, entities: tuple[Entity, ...], chunks: int
) -> tuple[Relation, ...]:
    if len(entities) < 2:
        return ()
    relations = []
    for _ in range(count):
        source, target = rng.choice(len(entities), 2, replace=False)
        relations.append(
            Relation(
                source_key=entities[source].key,
                target_key=entities[target].key,
                type=RELATION_TYPES[int(rng.integers(len(RELATION_TYPES)))],
                description=" ".join(_words(rng, 10)),
                weight=float(rng.integers(1, 5)),
                chunk_ordinal=int(rng.integers(chunks)) if chunks else None,
            )
        )
    return tuple(relations)
