"""The four stores in memory, as atomic as the real ones are and no more.

Neo4j and PostgreSQL change in one transaction a call, Redis in one script a document, Qdrant in one
request after another, each of a few points. The conformance suite holds the real stores to the same
promises.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from apex_dagster.errors import StageMissing, StoreRejected
from apex_dagster.records import (
    Extraction,
    Publication,
    Receipt,
    SagaId,
    StagedVersion,
    VersionRef,
)
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.network import Network

REFUSED_BY = "refused_by"  # metadata field: the store that refuses this document for good
_POINTS_PER_REQUEST = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """Something a store holds of a version: a node, a row, a point, an entry."""

    ref: VersionRef
    content: str  # the content hash of what it was made of
    status: str = "staged"


class ModelStore:
    """What the four have in common. `apply` functions change the state; the network calls them."""

    name = ""

    def __init__(self, network: Network) -> None:
        self._network = network

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

    def digest(self, document_id: str, version: int) -> str | None:
        found = sorted(
            f"{item.content} {item.status}"
            for item in self.items()
            if (item.ref.document_id, item.ref.version) == (document_id, version)
        )
        return " ".join(found) or None

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        items = self.items()
        return {ref.saga_id: sum(item.ref == ref for item in items) for ref in refs}

    def items(self) -> list[Item]:
        """Everything it holds: what a direct reader could see."""
        raise NotImplementedError

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        raise NotImplementedError

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        raise NotImplementedError

    def _request(self, what: str, apply: Callable[[], object]) -> None:
        self._network.request(self.name, what, apply)

    def _refuse(self, batch: Sequence[StagedVersion]) -> None:
        refused = [v for v in batch if v.extraction.metadata.get(REFUSED_BY) == self.name]
        if refused:
            # PostgreSQL is the one that does not tell which document of the batch it means.
            names = () if self.name == "postgres" else [v.ref.document_id for v in refused]
            raise StoreRejected(self.name, "too large", document_ids=names)


class ModelGraph(ModelStore):
    """Neo4j: one transaction a call; a fence on the document; entities that documents share."""

    name = "neo4j"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._versions: dict[SagaId, Item] = {}
        self._fences: dict[str, int] = {}
        self.entities: set[str] = set()
        self._mentions: dict[SagaId, frozenset[str]] = {}

    def items(self) -> list[Item]:
        return list(self._versions.values())

    def mentioned(self, saga_id: SagaId) -> frozenset[str]:
        """The entities that a version mentions and that are there."""
        return self._mentions.get(saga_id, frozenset()) & self.entities

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                saga_id = version.ref.saga_id
                if saga_id not in self._versions:
                    self._versions[saga_id] = _item(version)
                    keys = frozenset(entity.key for entity in version.extraction.entities)
                    self._mentions[saga_id] = keys
                    self.entities |= keys

        self._request(_what("stage", [v.ref for v in batch]), apply)

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            missing = [p.ref.saga_id for p in sorted(batch, key=_by_ref) if not self._publish(p)]
            if missing:
                raise StageMissing(self.name, missing)

        self._request(_what("publish", [p.ref for p in batch]), apply)

    def _publish(self, publication: Publication) -> bool:
        ref, old = publication.ref, publication.replaced
        if self._fences.get(ref.document_id, 0) > ref.version:
            return True
        if ref.saga_id not in self._versions:
            return False
        self._fences[ref.document_id] = ref.version
        self._versions[ref.saga_id] = replace(self._versions[ref.saga_id], status="committed")
        replaced = self._versions.get(old.saga_id) if old else None
        if old and replaced and old.version < ref.version and replaced.status == "committed":
            self._versions[old.saga_id] = replace(replaced, status="superseded")
        return True

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        removed = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                item = self._versions.get(ref.saga_id)
                if item and doomed(item):
                    del self._versions[ref.saga_id], self._mentions[ref.saga_id]
                    removed[ref.saga_id] = 1

        self._request(_what(what, batch), apply)
        return removed

    def sweep_orphans(self, limit: int) -> int:
        """Remove entities that nothing mentions."""

        def apply() -> None:
            self.entities &= frozenset[str]().union(*self._mentions.values())

        self._request("sweep_orphans", apply)
        return 0


class ModelRelational(ModelStore):
    """PostgreSQL: one transaction a call, which sees the ledger's rows."""

    name = "postgres"

    def __init__(self, network: Network, database: Database) -> None:
        super().__init__(network)
        self._database = database
        self._versions: dict[SagaId, Item] = {}

    def items(self) -> list[Item]:
        return list(self._versions.values())

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                if self._may_stage(version.ref):
                    self._versions.setdefault(version.ref.saga_id, _item(version))

        self._request(_what("stage", [v.ref for v in batch]), apply)

    def _may_stage(self, ref: VersionRef) -> bool:
        status = self._database.tables.sagas[ref.saga_id]["status"]
        live = self._live(ref.document_id)[0] == ref.saga_id
        return status in ("pending", "in_progress") or (status == "completed" and live)

    def _live(self, document_id: str) -> tuple[str | None, int]:
        row = self._database.tables.documents[document_id]
        return row["live_saga_id"], row["live_version"] or 0

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            missing = []
            for publication in batch:
                ref, old = publication.ref, publication.replaced
                live_saga_id, live_version = self._live(ref.document_id)
                if live_version > ref.version:
                    continue
                if ref.saga_id not in self._versions:
                    missing.append(ref.saga_id)
                elif live_saga_id == ref.saga_id:
                    self._mark(ref.saga_id, "staged", "committed")
                    if old:
                        self._mark(old.saga_id, "committed", "superseded")
            if missing:
                raise StageMissing(self.name, missing)

        self._request(_what("publish", [p.ref for p in batch]), apply)

    def _mark(self, saga_id: SagaId, source: str, target: str) -> None:
        item = self._versions.get(saga_id)
        if item and item.status == source:
            self._versions[saga_id] = replace(item, status=target)

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        removed = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                item = self._versions.get(ref.saga_id)
                live = self._live(ref.document_id)[0] == ref.saga_id
                if item and doomed(item) and not live:
                    del self._versions[ref.saga_id]
                    removed[ref.saga_id] = 1

        self._request(_what(what, batch), apply)
        return removed


class ModelVectors(ModelStore):
    """Qdrant: no transactions. Every call is a row of requests, and may stop after any of them."""

    name = "qdrant"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._points: dict[tuple[SagaId, int], Item] = {}

    def items(self) -> list[Item]:
        return list(self._points.values())

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        points = [
            ((version.ref.saga_id, chunk.ordinal), _item(version))
            for version in batch
            for chunk in version.extraction.chunks
        ]
        for start in range(0, len(points), _POINTS_PER_REQUEST):
            some = points[start : start + _POINTS_PER_REQUEST]
            self._request(f"upsert {_keys(some)}", lambda some=some: self._insert(some))  # type: ignore[misc]

    def _insert(self, points: Sequence[tuple[tuple[SagaId, int], Item]]) -> None:
        for key, item in points:
            self._points.setdefault(key, item)

    def publish(self, batch: Sequence[Publication]) -> None:
        overtaken: set[str] = set()
        held: set[SagaId] = set()
        refs = [publication.ref for publication in batch]

        def look_for_newer() -> None:
            overtaken.update(ref.document_id for ref in refs if self._is_overtaken(ref))

        def count() -> None:
            held.update(saga_id for saga_id, _ in self._points)

        self._request(_what("facet newer", refs), look_for_newer)
        current = [p for p in batch if p.ref.document_id not in overtaken]
        self._request(_what("facet", [p.ref for p in current]), count)
        live = {p.ref.saga_id for p in current} & held
        replaced = {p.replaced.saga_id for p in current if p.replaced and p.ref.saga_id in live}
        self._mark(live, "staged", "committed")
        self._mark(replaced - live, "committed", "superseded")
        if missing := sorted({p.ref.saga_id for p in current} - live):
            raise StageMissing(self.name, missing)

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
                if key[0] in saga_ids and item.status == source:
                    self._points[key] = replace(item, status=target)

        if saga_ids:
            self._request(f"set_payload {target} {sorted(saga_ids)}", apply)

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        counts = {ref.saga_id: 0 for ref in batch}

        def count() -> None:
            counts.update(dict.fromkeys(counts, 0))
            for (saga_id, _), item in self._points.items():
                if saga_id in counts and doomed(item):
                    counts[saga_id] += 1

        self._request(_what(f"facet to {what}", batch), count)
        found = {saga_id for saga_id, number in counts.items() if number}

        def apply() -> None:
            points = self._points.items()
            gone = [key for key, item in points if key[0] in found and doomed(item)]
            for key in gone:
                del self._points[key]

        if found:
            self._request(_what(what, batch), apply)
        return counts


class ModelCache(ModelStore):
    """Redis: one script a document. Loses everything when it is told to `forget`."""

    name = "redis"

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self._staged: dict[SagaId, Item] = {}
        self.live: dict[str, Item] = {}
        self._fences: dict[str, int] = {}

    def items(self) -> list[Item]:
        return [*self._staged.values(), *self.live.values()]

    def forget(self) -> None:
        """A restart of a cache without persistence."""
        self._staged.clear()
        self.live.clear()
        self._fences.clear()

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                if not self._is_live(version.ref):
                    self._staged.setdefault(version.ref.saga_id, _item(version))

        self._request(_what("stage", [v.ref for v in batch]), apply)

    def _is_live(self, ref: VersionRef) -> bool:
        entry = self.live.get(ref.document_id)
        return entry is not None and entry.ref.saga_id == ref.saga_id

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            missing = [p.ref.saga_id for p in batch if not self._publish(p.ref)]
            if missing:
                raise StageMissing(self.name, missing)

        self._request(_what("publish", [p.ref for p in batch]), apply)

    def _publish(self, ref: VersionRef) -> bool:
        if ref.version < self._fence(ref):
            return True
        if ref.saga_id not in self._staged:
            return self._is_live(ref)
        self.live[ref.document_id] = replace(self._staged.pop(ref.saga_id), status="committed")
        self._fences[ref.document_id] = ref.version
        return True

    def _fence(self, ref: VersionRef) -> int:
        return self._fences.get(ref.document_id, 0)

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, "revert", lambda item: item.status == "staged")

    def _remove(
        self, batch: Sequence[VersionRef], what: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        removed = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                removed[ref.saga_id] = int(self._staged.pop(ref.saga_id, None) is not None)
                if what == "discard" and self._is_live(ref):
                    del self.live[ref.document_id]

        self._request(_what(what, batch), apply)
        return removed


def _item(version: StagedVersion) -> Item:
    return Item(ref=version.ref, content=version.extraction.content_hash)


def _receipt(store: str, version: StagedVersion) -> Receipt:
    extraction: Extraction = version.extraction
    items = {"chunks": len(extraction.chunks)}
    return Receipt(store=store, saga_id=version.ref.saga_id, items=items)


def _by_ref(publication: Publication) -> VersionRef:
    return publication.ref


def _what(verb: str, refs: Sequence[VersionRef]) -> str:
    return f"{verb} {[ref.saga_id for ref in refs]}"


def _keys(points: Sequence[tuple[tuple[SagaId, int], Item]]) -> list[str]:
    return [f"{saga_id}#{ordinal}" for (saga_id, ordinal), _ in points]
