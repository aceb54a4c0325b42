"""Two of the three rankers of a search: what Qdrant and Neo4j find, and what of it counts.

Each asks its store, on a thread of its own, then settles the answer with the snapshot: a candidate
counts if the pointer names its very version, and the version passes the filter. The third ranker,
full text, is PostgreSQL's own, where both are one statement.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from apex_dagster.extraction.query_names import keys_of, longest
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.stores.searching import (
    Candidate,
    ChunkRef,
    Edge,
    Mention,
    Neighbourhood,
    SearchableGraph,
    SearchableVectors,
    SearchFilter,
    SearchSnapshot,
    refs_of,
)

EDGE_WEIGHT = 0.5  # of a chunk that relates an entity of the query, to one that mentions it
NEIGHBOUR_WEIGHT = 0.1  # of a chunk that mentions what the entity is related to

FoundT = TypeVar("FoundT")


class StoreRanker(Protocol[FoundT]):
    """Ranks chunks for one query."""

    @property
    def name(self) -> str:
        """As answers call it."""
        ...

    @property
    def store(self) -> str:
        """Which store it asks."""
        ...

    def ask(self, wanted: SearchFilter, saga_ids: Sequence[SagaId] | None, limit: int) -> FoundT:
        """What the store finds, of any version; of these sagas where they are given."""
        ...

    def settle(
        self, found: FoundT, snapshot: SearchSnapshot, wanted: SearchFilter
    ) -> list[Candidate]:
        """What of it counts, best first."""
        ...

    def is_all(self, found: FoundT, limit: int) -> bool:
        """Whether the store has no more than that."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class VectorRanker:
    """By similarity of embeddings; of the query's model only, as no others can be compared."""

    vectors: SearchableVectors
    embedding: NDArray[np.float32]
    embedding_model: str
    name: str = "vector"
    store: str = "qdrant"

    def ask(
        self, wanted: SearchFilter, saga_ids: Sequence[SagaId] | None, limit: int
    ) -> list[Candidate]:
        """The nearest chunks."""
        return self.vectors.nearest(
            self.embedding, limit=limit, saga_ids=saga_ids, collection=wanted.collection
        )

    def settle(
        self, found: list[Candidate], snapshot: SearchSnapshot, wanted: SearchFilter
    ) -> list[Candidate]:
        """Those of live versions that pass."""
        marks = snapshot.live(set(refs_of(found)), wanted)
        passing = {
            ref
            for ref, mark in marks.items()
            if mark.passes and mark.embedding_model == self.embedding_model
        }
        return [candidate for candidate in found if candidate.chunk.ref in passing]

    def is_all(self, found: list[Candidate], limit: int) -> bool:
        """Whether Qdrant had fewer than it was asked for."""
        return len(found) < limit


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class GraphRanker:
    """By what a chunk has to do with the entities that the query names.

    An entity counts the more, the fewer documents mention it.
    """

    graph: SearchableGraph
    names: Sequence[str]  # normalised; whether they name anything, the graph says
    name: str = "graph"
    store: str = "neo4j"

    def ask(
        self, wanted: SearchFilter, saga_ids: Sequence[SagaId] | None, limit: int
    ) -> Neighbourhood:
        """The entities, their relations, and who mentions them or what they are related to."""
        return self.graph.neighbourhood(list(keys_of(self.names)), limit=limit, saga_ids=saga_ids)

    def settle(
        self, found: Neighbourhood, snapshot: SearchSnapshot, wanted: SearchFilter
    ) -> list[Candidate]:
        """Chunks of live versions that pass, by the sum of what they mention and relate. Only what
        a live version says counts as a relation."""
        said = {mention.ref for mention in found.mentions} | {edge.ref for edge in found.edges}
        marks = snapshot.live(said, wanted)
        edges = [edge for edge in found.edges if edge.ref in marks]
        mentions = [mention for mention in found.mentions if mention.ref in marks]
        scores = self._scores(found, mentions, edges)
        scored = [
            Candidate(chunk=chunk, score=score)
            for chunk, score in scores.items()
            if marks[chunk.ref].passes
        ]
        return sorted(scored, key=lambda each: (-each.score, each.chunk))

    def is_all(self, found: Neighbourhood, limit: int) -> bool:
        """Whether no entity had more mentions or relations."""
        return not found.cut_off

    def _scores(
        self, found: Neighbourhood, mentions: Iterable[Mention], edges: Sequence[Edge]
    ) -> Mapping[ChunkRef, float]:
        names = keys_of(self.names)
        known = longest({names[key] for key in found.mentioned if key in names})
        weights = {key: _rareness(found, key) for key in found.mentioned if names.get(key) in known}
        neighbours: dict[str, float] = {}
        scores: dict[ChunkRef, float] = {}
        for edge in edges:
            if (weight := weights.get(edge.entity_key)) is None:
                continue
            _add(scores, edge.ref, (edge.chunk_ordinal,), EDGE_WEIGHT * weight)
            if edge.neighbour_key not in weights:
                neighbours[edge.neighbour_key] = NEIGHBOUR_WEIGHT * _rareness(
                    found, edge.neighbour_key
                )
        for mention in mentions:
            weight = weights.get(mention.entity_key) or neighbours.get(mention.entity_key, 0.0)
            if weight:
                _add(scores, mention.ref, mention.chunk_ordinals or (None,), weight)
        return scores


def _add(
    scores: dict[ChunkRef, float],
    ref: VersionRef,
    ordinals: Iterable[int | None],
    weight: float,
) -> None:
    for ordinal in ordinals:
        # Of what stands nowhere in particular, the document's beginning is shown.
        chunk = ChunkRef(ref=ref, ordinal=ordinal or 0)
        scores[chunk] = scores.get(chunk, 0.0) + weight


def _rareness(found: Neighbourhood, key: str) -> float:
    mentioned = found.mentioned.get(key, 0)
    return math.log(1 + (max(found.versions, mentioned) + 1) / (mentioned + 1))
