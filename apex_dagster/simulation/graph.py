"""Neo4j as a model: one transaction a call; a fence on the document; entities that are shared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from apex_dagster.errors import StageMissing
from apex_dagster.records import Publication, SagaId, StagedVersion, VersionRef
from apex_dagster.simulation.model_store import Item, ModelStore, item_of, what
from apex_dagster.simulation.network import Network


class ModelGraph(ModelStore):
    name = "neo4j"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._versions: dict[SagaId, Item] = {}
        self._fences: dict[str, int] = {}
        self.entities: set[str] = set()
        self._mentions: dict[SagaId, frozenset[str]] = {}

    def items(self) -> list[Item]:
        return list(self._versions.values())

    def of_saga(self, saga_id: SagaId) -> list[Item]:
        item = self._versions.get(saga_id)
        return [item] if item else []

    def mentioned(self, saga_id: SagaId) -> frozenset[str]:
        """The entities that a version mentions and that are there."""
        return self._mentions.get(saga_id, frozenset()) & self.entities

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                self._create(version)

        self._request(what("stage", [v.ref for v in batch]), apply)

    def _create(self, version: StagedVersion) -> None:
        saga_id = version.ref.saga_id
        self._landed(saga_id)
        if saga_id not in self._versions:
            self._versions[saga_id] = item_of(version)
            keys = frozenset(entity.key for entity in version.extraction.entities)
            self._mentions[saga_id] = keys
            self.entities |= keys

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            in_order = sorted(batch, key=lambda publication: publication.ref)
            missing = [p.ref.saga_id for p in in_order if not self._publish(p)]
            if missing:
                raise StageMissing(self.name, missing)

        self._request(what("publish", [p.ref for p in batch]), apply)

    def _publish(self, publication: Publication) -> bool:
        ref, old = publication.ref, publication.replaced
        if self._fence(ref) > ref.version:
            return True
        if ref.saga_id not in self._versions:
            return False
        self._fences[ref.document_id] = ref.version
        self._versions[ref.saga_id] = replace(self._versions[ref.saga_id], status="committed")
        replaced = self._versions.get(old.saga_id) if old else None
        if old and replaced and old.version < ref.version and replaced.status == "committed":
            self._versions[old.saga_id] = replace(replaced, status="superseded")
        return True

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        self._fences[ref.document_id] = max(self._fence(ref), ref.version)
        for item in older:
            mentioned = self._mentions.pop(item.ref.saga_id)
            del self._versions[item.ref.saga_id]
            self.entities -= mentioned - frozenset[str]().union(*self._mentions.values())

    def _fence(self, ref: VersionRef) -> int:
        return self._fences.get(ref.document_id, 0)

    def _remove(
        self, batch: Sequence[VersionRef], verb: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        counts = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                self.removed.add(ref.saga_id)
                item = self._versions.get(ref.saga_id)
                if item and doomed(item):
                    del self._versions[ref.saga_id], self._mentions[ref.saga_id]
                    counts[ref.saga_id] = 1

        self._request(what(verb, batch), apply)
        return counts

    def sweep_orphans(self, limit: int) -> int:
        """Remove entities that nothing mentions."""

        def apply() -> None:
            self.entities &= frozenset[str]().union(*self._mentions.values())

        self._request("sweep_orphans", apply)
        return 0
