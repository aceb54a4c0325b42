"""Qdrant as a model: no transactions. A call is a row of requests, and may stop after any."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace

from apex_dagster.errors import ApexError, StageMissing
from apex_dagster.records import Publication, Removal, SagaId, StagedVersion, VersionRef
from apex_dagster.simulation.model_store import Item, ModelStore, item_of, tombstone, what
from apex_dagster.simulation.network import Network

_POINTS_PER_REQUEST = 2


class ModelVectors(ModelStore):
    name = "qdrant"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._points: dict[Hashable, Item] = {}

    def items(self) -> list[Item]:
        return list(self._points.values())

    def _id(self, ref: VersionRef, ordinal: int) -> Hashable:
        """Of a point: two points with one id are one."""
        return ref.saga_id, ordinal

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        points = [
            (self._id(version.ref, chunk.ordinal), item_of(version))
            for version in batch
            for chunk in version.extraction.chunks
        ]
        for start in range(0, len(points), _POINTS_PER_REQUEST):
            some = points[start : start + _POINTS_PER_REQUEST]
            refs = list({item.ref: None for _, item in some})
            told = f"{what('upsert', refs)} from {start}"
            try:
                self._request(told, lambda some=some: self._insert(some))  # type: ignore[misc]
            except ApexError as error:
                error.nothing_written &= start == 0
                raise

    def _insert(self, points: Sequence[tuple[Hashable, Item]]) -> None:
        for key, item in points:
            self._landed(item.ref.saga_id)
            self._points.setdefault(key, item)

    def publish(self, batch: Sequence[Publication]) -> None:
        overtaken: set[str] = set()
        held: set[SagaId] = set()
        refs = [publication.ref for publication in batch]

        def look_for_newer() -> None:
            overtaken.update(ref.document_id for ref in refs if self._is_overtaken(ref))

        def count() -> None:
            held.update(item.ref.saga_id for item in self._points.values())

        self._request(what("facet newer", refs), look_for_newer)
        current = [p for p in batch if p.ref.document_id not in overtaken]
        self._request(what("facet", [p.ref for p in current]), count)
        live = {p.ref.saga_id for p in current} & held
        replaced = {p.replaced.saga_id for p in current if p.replaced and p.ref.saga_id in live}
        self._mark(live, "staged", "committed")
        self._mark(replaced - live, "committed", "superseded")
        if missing := sorted({p.ref.saga_id for p in current} - live):
            raise StageMissing(self.name, missing)

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        """The tombstones, a look at what there is to remove, its removal: three requests."""
        refs = [removal.ref for removal in batch]
        counts: dict[SagaId, int] = {}

        def count() -> None:
            counts.update({ref.saga_id: len(self.older_than(ref)) for ref in refs})

        self._request(what("upsert tombstones", refs), lambda: self._entomb(refs))
        self._request(what("facet to remove before", refs), count)
        found = [removal for removal in batch if counts[removal.ref.saga_id]]
        if found:
            told = what("remove before", [removal.ref for removal in found])
            self._request(told, lambda: self._remove_older(found))
        return counts

    def _entomb(self, refs: Sequence[VersionRef]) -> None:
        for ref in refs:
            self._points.setdefault((ref.saga_id, "tombstone"), tombstone(ref))

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        gone = set(older)
        for key in [key for key, item in self._points.items() if item in gone]:
            del self._points[key]

    def _is_overtaken(self, ref: VersionRef) -> bool:
        return any(
            item.ref.document_id == ref.document_id
            and item.ref.version > ref.version
            and item.status != "staged"
            for item in self._points.values()
        )

    def _mark(self, saga_ids: set[SagaId], source: str, target: str) -> None:
        def apply() -> None:
            for key, item in self._points.items():
                if item.ref.saga_id in saga_ids and self._may_mark(item, source):
                    self._points[key] = replace(item, status=target)

        if saga_ids:
            self._request(f"set_payload {target} {sorted(saga_ids)}", apply)

    def _may_mark(self, item: Item, source: str) -> bool:
        return item.status == source

    def _remove(
        self, batch: Sequence[VersionRef], verb: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        counts = {ref.saga_id: 0 for ref in batch}

        def count() -> None:
            counts.update(dict.fromkeys(counts, 0))
            for item in self._points.values():
                if item.ref.saga_id in counts and doomed(item):
                    counts[item.ref.saga_id] += 1
            self.removed.update(saga_id for saga_id, number in counts.items() if not number)

        self._request(what(f"facet to {verb}", batch), count)
        found = {saga_id for saga_id, number in counts.items() if number}

        def apply() -> None:
            self.removed.update(found)
            points = self._points.items()
            for key in [k for k, item in points if item.ref.saga_id in found and doomed(item)]:
                del self._points[key]

        if found:
            self._request(what(verb, [ref for ref in batch if ref.saga_id in found]), apply)
        return counts
