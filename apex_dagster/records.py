"""The nouns that travel between layers: frozen, keyword-only, without behaviour of their own."""

from __future__ import annotations

import hashlib
import unicodedata
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NewType

import numpy as np
from numpy.typing import NDArray

SagaId = NewType("SagaId", str)  # "ingest_{document_id}_{16 hex digits}", or "delete_..."

_ITEM_NAMESPACE = uuid.UUID("6f0f6f5e-2b0c-5d1f-9a43-6a1a0c2b9f11")


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """What was submitted: raw bytes and what is known about them, before extraction."""

    document_id: str
    name: str  # file name with its suffix, which picks the parser
    content: bytes
    media_type: str | None = None  # wins over the suffix when given
    collection: str = "default"
    metadata: Mapping[str, Any] = field(default_factory=dict)  # JSON values only
    source_uri: str | None = None  # where it came from, e.g. a path below the inbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """A retrievable span of a document's text."""

    ordinal: int  # 0 for the first; without gaps
    text: str
    start: int  # offsets into the parsed text, in characters: text[start:end]
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Entity:
    """What a document says of one entity. Only `key`, `type` and the name in `key` are shared
    between documents; the rest stands on the document's own versioned relationship."""

    key: str  # entity_key(type, name)
    type: str  # "person", "organization", "place", ...: lower case
    name: str  # as the document writes it
    description: str = ""
    aliases: tuple[str, ...] = ()
    chunk_ordinals: tuple[int, ...] = ()  # where it is mentioned, ascending
    mentions: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Relation:
    """A typed edge between two entities of the same document."""

    source_key: str
    target_key: str
    type: str  # "ACQUIRED", "WORKS_FOR", ...: upper snake case
    description: str = ""  # the sentence that says so
    weight: float = 1.0  # how many times the document says so
    chunk_ordinal: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Extraction:
    """All that the four stores will hold of one version of a document."""

    document_id: str
    title: str
    collection: str
    content_hash: str  # sha256 hex of what was submitted; equal hashes make no new version
    metadata: Mapping[str, Any]
    chunks: tuple[Chunk, ...]
    embeddings: NDArray[np.float32]  # (len(chunks), embedding_dim), each row of L2 norm 1
    embedding_model: str
    entities: tuple[Entity, ...]  # unique by key
    relations: tuple[Relation, ...]  # both keys are in `entities`

    def document_embedding(self) -> NDArray[np.float32]:
        """Normalised mean of the chunk embeddings, shape (embedding_dim,); zeros if no chunks."""
        if not len(self.embeddings):
            return np.zeros(self.embeddings.shape[1], dtype=np.float32)
        mean = self.embeddings.mean(axis=0, dtype=np.float64)
        norm = float(np.linalg.norm(mean))
        embedding: NDArray[np.float32] = (mean / norm if norm else mean).astype(np.float32)
        return embedding


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class VersionRef:
    """Names one version of a document; `saga_id` alone addresses what the stores hold of it."""

    document_id: str
    version: int  # 1 or more, never reused; gaps are normal
    saga_id: SagaId


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class StagedVersion:
    """What a store is asked to stage: a version and its content."""

    ref: VersionRef
    extraction: Extraction


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """A version that has become live, and the one it replaced, if any."""

    ref: VersionRef
    replaced: VersionRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """A deletion that has passed its pivot. Every version of the document that is older than it,
    not only `removed`, can never be live again."""

    ref: VersionRef  # of the deletion itself, whose version number is higher than all of these
    removed: VersionRef | None = None  # what was live until then


# What a pivot leaves to be told to the stores.
Change = Publication | Removal


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What a store holds of one staged version."""

    store: str
    saga_id: SagaId
    items: Mapping[str, int]  # by kind: {"chunks": 8}, {"entities": 15, "relations": 12}


def item_id(saga_id: str, kind: str, ordinal: int) -> uuid.UUID:
    """The id of one stored item: UUIDv5 of saga, kind and ordinal.

    Ids never derive from document and version, so a late write of a dead attempt cannot collide
    with anything live.
    """
    return uuid.uuid5(_ITEM_NAMESPACE, f"{saga_id}\x1f{kind}\x1f{ordinal}")


def item_ids(saga_id: str, kind: str, ordinals: Iterable[int]) -> list[uuid.UUID]:
    """`item_id` of each ordinal; the part they share is hashed once.

    >>> item_ids("s", "chunk", [7]) == [item_id("s", "chunk", 7)]
    True
    """
    shared = hashlib.sha1(_ITEM_NAMESPACE.bytes, usedforsecurity=False)
    shared.update(f"{saga_id}\x1f{kind}\x1f".encode())
    ids = []
    for ordinal in ordinals:
        digest = shared.copy()
        digest.update(str(ordinal).encode())
        ids.append(uuid.UUID(bytes=digest.digest()[:16], version=5))
    return ids


def entity_key(entity_type: str, name: str) -> str:
    """The key under which documents share an entity: type and normalised name.

    >>> entity_key("Organization", "  ACME\\u00a0Corp ")
    'organization:acme corp'
    """
    normalised = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
    return f"{entity_type.lower()}:{normalised}"
