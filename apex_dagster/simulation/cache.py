"""Redis as a model: one script a document; entries expire, and a restart may lose everything."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from apex_dagster.errors import StageMissing
from apex_dagster.records import Publication, SagaId, StagedVersion, VersionRef
from apex_dagster.simulation.model_store import Item, ModelStore, item_of, what
from apex_dagster.simulation.network import Network


class ModelCache(ModelStore):
    name = "redis"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._staged: dict[SagaId, Item] = {}
        self.live: dict[str, Item] = {}
        self._fences: dict[str, int] = {}

    def items(self) -> list[Item]:
        return [*self._staged.values(), *self.live.values()]

    def expire(self) -> None:
        """The time of every entry is over; fences have a longer one."""
        self._staged.clear()
        self.live.clear()

    def forget(self) -> None:
        """A restart of a cache without persistence."""
        self.expire()
        self._fences.clear()

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                self._landed(version.ref.saga_id)
                if not self._is_live(version.ref):
                    self._staged.setdefault(version.ref.saga_id, item_of(version))

        self._request(what("stage", [v.ref for v in batch]), apply)

    def _is_live(self, ref: VersionRef) -> bool:
        entry = self.live.get(ref.document_id)
        return entry is not None and entry.ref.saga_id == ref.saga_id

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            missing = [p.ref.saga_id for p in batch if not self._publish(p.ref)]
            if missing:
                raise StageMissing(self.name, missing)

        self._request(what("publish", [p.ref for p in batch]), apply)

    def _publish(self, ref: VersionRef) -> bool:
        if ref.version < self._fence(ref):
            return True
        if ref.saga_id not in self._staged:
            return self._is_live(ref)
        self.live[ref.document_id] = replace(self._staged.pop(ref.saga_id), status="committed")
        self._fences[ref.document_id] = ref.version
        return True

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        for item in older:
            self._staged.pop(item.ref.saga_id, None)
        if self._fence(ref) <= ref.version:
            self._fences[ref.document_id] = ref.version
            self.live.pop(ref.document_id, None)

    def _fence(self, ref: VersionRef) -> int:
        return self._fences.get(ref.document_id, 0)

    def _remove(
        self, batch: Sequence[VersionRef], verb: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        counts = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                self.removed.add(ref.saga_id)
                counts[ref.saga_id] = int(self._staged.pop(ref.saga_id, None) is not None)
                if verb == "discard" and self._is_live(ref):
                    del self.live[ref.document_id]

        self._request(what(verb, batch), apply)
        return counts
