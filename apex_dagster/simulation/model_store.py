"""What the four model stores have in common.

Each is as atomic as the real one is and no more: Neo4j and PostgreSQL change in one transaction a
call, Redis in one script a document, Qdrant in one request after another, each of a few points. The
conformance suite holds the real stores to the same promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from apex_dagster.errors import StoreRejected
from apex_dagster.records import Publication, Receipt, Removal, SagaId, StagedVersion, VersionRef
from apex_dagster.simulation.documents import REFUSED_BY
from apex_dagster.simulation.network import Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something a store holds of a version: a node, a row, a point, an entry."""

    ref: VersionRef
    content: str  # the content hash of what it was made of
    status: str = "staged"


class ModelStore:
    """`apply` functions change the state; the network calls them, now, late, twice or never."""

    name = ""

    def __init__(self, network: Network) -> None:
        self._network = network
        self.written: set[SagaId] = set()  # sagas of which it has ever held anything
        self.removed: set[SagaId] = set()  # sagas that were discarded or reverted
        self.relanded: set[SagaId] = set()  # sagas of which something landed after that

    def prepare(self) -> None:
        self._request("prepare", lambda: None)

    def ping(self) -> None:
        self._request("ping", lambda: None)

    def close(self) -> None:
        """There is nothing to release."""

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        self._refuse(batch)
        self._stage(batch)
        return [_receipt(self.name, version) for version in batch]

    def publish(self, batch: Sequence[Publication]) -> None:
        raise NotImplementedError

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, "revert", lambda item: item.status == "staged")

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, "discard", lambda item: True)

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        """In one request; Qdrant needs more."""
        counts: dict[SagaId, int] = {}
        told = what("remove before", [removal.ref for removal in batch])
        self._request(told, lambda: counts.update(self._remove_older(batch)))
        return {removal.ref.saga_id: counts.get(removal.ref.saga_id, 0) for removal in batch}

    def _remove_older(self, batch: Sequence[Removal]) -> dict[SagaId, int]:
        counts: dict[SagaId, int] = {}
        for removal in batch:
            older = self.older_than(removal.ref)
            self.removed.update(item.ref.saga_id for item in older)
            self._bury(removal.ref, older)
            counts[removal.ref.saga_id] = len(older)
        return counts

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        """Forget these, and fence off what is older than the deletion."""
        raise NotImplementedError

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        shown: dict[SagaId, Mapping[str, int]] = {}

        def apply() -> None:
            for removal in batch:
                older = [item.status for item in self.older_than(removal.ref)]
                count = sum(status not in ("staged", "deleted") for status in older)
                shown[removal.ref.saga_id] = {"items": count}

        self._request(what("read back", [removal.ref for removal in batch]), apply)
        return shown

    def older_than(self, ref: VersionRef) -> list[Item]:
        """Items of this document's versions before this one."""
        return [
            item
            for item in self.items()
            if item.ref.document_id == ref.document_id and item.ref.version < ref.version
        ]

    def digest(self, document_id: str, version: int) -> str | None:
        found = sorted(
            f"{item.content} {item.status}"
            for item in self.items()
            if (item.ref.document_id, item.ref.version) == (document_id, version)
        )
        return " ".join(found) or None

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return {ref.saga_id: len(self.of_saga(ref.saga_id)) for ref in refs}

    def items(self) -> list[Item]:
        """Everything it holds: what a direct reader could see."""
        raise NotImplementedError

    def of_saga(self, saga_id: SagaId) -> list[Item]:
        """Everything it holds of one version."""
        return [item for item in self.items() if item.ref.saga_id == saga_id]

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        raise NotImplementedError

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        raise NotImplementedError

    def _request(self, what: str, apply: Callable[[], object]) -> None:
        self._network.request(self.name, what, apply)

    def _landed(self, saga_id: SagaId) -> None:
        self.written.add(saga_id)
        if saga_id in self.removed:
            self.relanded.add(saga_id)

    def _refuse(self, batch: Sequence[StagedVersion]) -> None:
        refused = [v for v in batch if v.extraction.metadata.get(REFUSED_BY) == self.name]
        if refused:
            # PostgreSQL is the one that does not tell which document of the batch it means.
            names = () if self.name == "postgres" else [v.ref.document_id for v in refused]
            raise StoreRejected(self.name, "too large", document_ids=names)


def item_of(version: StagedVersion) -> Item:
    """What a store holds of it at first."""
    return Item(ref=version.ref, content=version.extraction.content_hash)


def tombstone(ref: VersionRef) -> Item:
    """What stands for a deleted document where a store cannot do without."""
    return Item(ref=ref, content="", status="deleted")


def what(verb: str, refs: Sequence[VersionRef]) -> str:
    """A request, for the trace."""
    return f"{verb} {[ref.saga_id for ref in refs]}"


def _receipt(store: str, version: StagedVersion) -> Receipt:
    items = {"chunks": len(version.extraction.chunks)}
    return Receipt(store=store, saga_id=version.ref.saga_id, items=items)
