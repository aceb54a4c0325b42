"""What a store gives back of one version, and what reading needs of the four.

Readers ask by saga_id: the version that a snapshot of the ledger's pointer names, whatever its
status, as it is still `staged` between the pivot and its publish. Each part says what the store
itself has on its items, for the reader to compare with that pointer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from apex_dagster.records import Chunk, Entity, Relation, VersionRef


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """One store's part of one version."""

    refs: frozenset[VersionRef]  # what its items say they belong to
    items: Mapping[str, int]  # by kind, as in the receipt of staging


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Graph(Part):
    """Neo4j's part."""

    entities: tuple[Entity, ...]  # by key
    relations: tuple[Relation, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Points(Part):
    """Qdrant's part, by ordinal."""

    texts: tuple[str, ...]
    embeddings: NDArray[np.float32]  # (len(texts), embedding_dim)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CacheEntry(Part):
    """Redis's part."""

    body: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveVersion:
    """PostgreSQL's part of the version that the pointer names, all from one snapshot."""

    ref: VersionRef
    title: str
    collection: str
    metadata: Mapping[str, Any]
    content_hash: str
    chunks: tuple[Chunk, ...]
    receipts: Mapping[str, Mapping[str, int]]  # saga step -> what its store has taken in


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveHeading:
    """What a list tells of a live version."""

    ref: VersionRef
    title: str
    collection: str
    live_since: datetime  # when its pivot moved the pointer


PartT = TypeVar("PartT", bound=Part | None, covariant=True)


class SnapshotReader(Protocol):
    """PostgreSQL."""

    def read_live(self, document_id: str) -> LiveVersion | None:
        """Pointer and content in one REPEATABLE READ, READ ONLY transaction; None where no version
        is live."""
        ...


class Catalogue(Protocol):
    """PostgreSQL."""

    def list_live(
        self, *, after: str = "", collection: str | None = None, limit: int
    ) -> list[LiveHeading]:
        """Up to `limit` live versions in the order of document_id, those beyond `after`."""
        ...


class VersionReader(Protocol[PartT]):
    """Each of the other three."""

    @property
    def name(self) -> str:
        """ "neo4j", "qdrant" or "redis"."""
        ...

    def read_version(self, ref: VersionRef) -> PartT:
        """What the store holds of this saga, perhaps nothing, perhaps half of it."""
        ...
