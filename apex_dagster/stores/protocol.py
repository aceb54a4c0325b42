"""What a saga needs of a store, and what each method promises.

Every item a store writes carries `document_id`, `version`, `saga_id` and `ingestion_status`, and
its id derives from `saga_id` (`records.item_id`). All methods take a batch and are safe to repeat,
in any order and late: `stage` only inserts, so a repeat that lands after `publish` never turns
committed items back into staged ones; `publish` changes existing items only, so a repeat that lands
after `discard` brings nothing back.

An adapter translates its driver's errors once, at its edge, into `errors.StoreUnavailable`,
`StoreConflict`, `OutcomeUnknown` (all transient) and `StoreRejected` (terminal). A call that raises
a terminal error has left nothing of the batch visible and may have left some of it staged.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol

from apex_dagster.records import Publication, Receipt, Removal, SagaId, StagedVersion, VersionRef
from apex_dagster.stores.contents import Contents, Items


class Store(Protocol):
    """One of the four. Instances are safe to use from several threads."""

    @property
    def name(self) -> str:
        """ "neo4j", "postgres", "qdrant" or "redis"."""
        ...

    def prepare(self) -> None:
        """Create what the store needs before the first write: constraints, indexes, a collection.

        Raises StoreRejected when the store already holds something incompatible, such as a
        collection of another dimension.
        """
        ...

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        """Write new versions beside the live ones, in one transaction or request where size allows.

        Returns one receipt a version, in the order of `batch`.
        """
        ...

    def publish(self, batch: Sequence[Publication]) -> None:
        """Mark staged items of `ref` committed and committed items of `replaced` superseded.

        Ignores a publication that is older than what the store has already published of that
        document. Raises StageMissing for versions of which nothing is there.
        """
        ...

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove what these sagas staged, and nothing else; items by saga, 0 where none are."""
        ...

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove all items of these sagas, whatever their status. For versions that can never be
        live (again): superseded ones after the grace time, and late writes of compensated ones."""
        ...

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        """Remove all items of all versions older than these deletions, whatever their status, and
        see to it that no late publish of one shows again; items by deletion.

        Never touches a later version, however late it lands.
        """
        ...

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        """What each query path would still show of versions older than these deletions: items by
        path, by deletion. What is staged shows nobody anything, and is not counted."""
        ...

    def digest(self, document_id: str, version: int) -> str | None:
        """Sha256 hex of the store's own copy of one version, including each item's status but no
        time to live; None where it holds nothing of it. Two digests are equal if and only if the
        copies are."""
        ...

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """How many items the store itself counts for each version: entities in Neo4j, chunks in
        PostgreSQL, points in Qdrant, cache entries in Redis (0 or 1)."""
        ...

    def ping(self) -> None:
        """Return when the store answers; raise StoreUnavailable or OutcomeUnknown otherwise."""
        ...

    def close(self) -> None:
        """Release connections; the store is not used again."""
        ...


class AuditedStore(Store, Protocol):
    """A store whose content can be compared, item by item, with what has to be there, and put
    right."""

    def contents(self, document_ids: Sequence[str]) -> Contents:
        """All that the store holds of these documents, item by item, by saga: live versions, those
        beside them, and what nobody knows of. Not from one moment. Memory grows with it."""
        ...

    def restore(self, batch: Sequence[StagedVersion]) -> None:
        """Make the store's copy of these versions, which are live and published, what it has to be,
        whatever is there of them now: what is missing is written, what was altered is written over,
        what was added goes. Ignores a version of which a newer one has been published.
        """
        ...

    def inventory(self, *, page: int) -> Iterator[list[VersionRef]]:
        """Whatever versions there are in the store, of documents known or not, in pages of about so
        many; one may come several times. Not from one moment."""
        ...

    def expected(self, version: StagedVersion) -> Items:
        """What `contents` says of this version where it is live and intact."""
        ...
