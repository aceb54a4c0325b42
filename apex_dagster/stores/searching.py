"""What a search asks of the stores, and what they give back: candidates, by version and chunk.

Only PostgreSQL knows what is live. What Neo4j and Qdrant find is of any version they hold; the
snapshot of the pointers says which of it counts. Nothing here looks at `ingestion_status`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from apex_dagster.records import SagaId, VersionRef


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class ChunkRef:
    """Names one chunk of one version."""

    ref: VersionRef
    ordinal: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """A chunk as one store ranks it."""

    chunk: ChunkRef
    score: float  # the store's own; higher is better, comparable within one answer only


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A version mentions an entity."""

    ref: VersionRef
    entity_key: str
    chunk_ordinals: tuple[int, ...]  # perhaps none, where it is not known where


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """A version says that two entities are related."""

    ref: VersionRef
    entity_key: str  # one of those that were asked for
    neighbour_key: str
    chunk_ordinal: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Neighbourhood:
    """Entities, what they are related to, and the versions that mention either."""

    versions: int  # how many the graph holds
    mentioned: Mapping[str, int]  # entity or neighbour -> how many versions mention it
    mentions: tuple[Mention, ...]  # of entities and of neighbours
    edges: tuple[Edge, ...]
    cut_off: bool  # whether there are more mentions than were asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchFilter:
    """Which live versions count; all by default."""

    collection: str | None = None
    metadata: Mapping[str, str | int | float | bool] = field(default_factory=dict)  # each exactly

    def __bool__(self) -> bool:
        return self.collection is not None or bool(self.metadata)


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveMark:
    """What the snapshot says of a live version."""

    embedding_model: str
    passes: bool  # the filter


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundChunk:
    """A chunk with what is shown of it."""

    text: str
    start: int  # offsets into the document's text, in characters
    end: int
    title: str
    collection: str
    metadata: Mapping[str, Any]


class SearchSnapshot(Protocol):
    """PostgreSQL at one moment. For one thread."""

    def rank_text(
        self, query: str, wanted: SearchFilter, *, limit: int, timeout_s: float
    ) -> list[Candidate]:
        """Live chunks by full text, best first.

        Raises OutcomeUnknown after `timeout_s`; the snapshot can be used afterwards.
        """
        ...

    def live(
        self, refs: Collection[VersionRef], wanted: SearchFilter
    ) -> dict[VersionRef, LiveMark]:
        """Those of `refs` that the pointers name."""
        ...

    def passing(self, wanted: SearchFilter, *, limit: int) -> list[SagaId] | None:
        """The live versions that pass the filter; None if there are more than `limit`."""
        ...

    def chunks(self, wanted: Sequence[ChunkRef]) -> dict[ChunkRef, FoundChunk]:
        """Those of `wanted` that are there."""
        ...


class SearchableText(Protocol):
    """PostgreSQL."""

    def search_snapshot(self) -> AbstractContextManager[SearchSnapshot]:
        """One REPEATABLE READ, READ ONLY transaction, from the moment at which this returns."""
        ...


class SearchableVectors(Protocol):
    """Qdrant."""

    def nearest(
        self,
        embedding: NDArray[np.float32],
        *,
        limit: int,
        saga_ids: Sequence[SagaId] | None = None,
        collection: str | None = None,
    ) -> list[Candidate]:
        """Chunks of any version, the most similar first; of these sagas where they are given."""
        ...


class SearchableGraph(Protocol):
    """Neo4j."""

    def neighbourhood(
        self, keys: Sequence[str], *, limit: int, saga_ids: Sequence[SagaId] | None = None
    ) -> Neighbourhood:
        """Those of the entities that exist, with up to `limit` mentions and edges of each."""
        ...


def refs_of(candidates: Sequence[Candidate]) -> Iterator[VersionRef]:
    """The versions that candidates are of."""
    return (candidate.chunk.ref for candidate in candidates)
