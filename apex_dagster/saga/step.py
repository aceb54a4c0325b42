"""What the engine needs of a saga step. `apex_dagster.ingestion.steps` builds them from stores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from apex_dagster.records import Publication, Receipt, Removal, SagaId, VersionRef


def store_of(step_name: str) -> str:
    """The store of a saga step: "neo4j" of "neo4j_write"."""
    return step_name.removesuffix("_write")


class SagaStep(Protocol):
    """One store's part of a saga. Every method is safe to repeat and may land late."""

    @property
    def name(self) -> str:
        """For example "neo4j_write"."""
        ...

    def stage(self, refs: Sequence[VersionRef]) -> Sequence[Receipt]:
        """Write the versions beside the live ones; one receipt each, in order."""
        ...

    def publish(self, publications: Sequence[Publication]) -> None:
        """Mark the versions as live, and what they replaced as superseded."""
        ...

    def inventory(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, Any]]:
        """What the store holds of the live versions that deletions will remove, by deletion:
        counts and digests, no content."""
        ...

    def remove(self, removals: Sequence[Removal]) -> Mapping[SagaId, int]:
        """Remove every version that is older than the deletion; items removed by deletion."""
        ...

    def read_back(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        """How many items each query path still shows of such versions, by deletion."""
        ...

    def undo(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove what was staged; items removed by saga."""
        ...

    def discard(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove everything of versions that can never be live again."""
        ...
