"""What must be true: at every step, and once everything has come to rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from apex_dagster.simulation.database import Database, Row, Tables
from apex_dagster.simulation.stores import ModelCache, ModelGraph, ModelStore
from apex_dagster.simulation.world import World

# Written out once more on purpose: a wrong table in saga/states.py is to be found, not repeated.
_ALLOWED = frozenset(
    {
        ("pending", "in_progress"),
        ("in_progress", "completed"),
        ("in_progress", "compensating"),
        ("compensating", "compensated"),
        ("compensating", "failed"),
        ("failed", "compensating"),
    }
)
_UNFINISHED = ("pending", "in_progress", "compensating")


class Violation(Exception):
    """A promise was broken."""


class Invariants:
    """Watches a ledger's tables and four stores. `chunks`: content hash -> chunks of a document."""

    def __init__(
        self,
        world: World,
        database: Database,
        stores: Mapping[str, ModelStore],
        chunks: Mapping[str, int],
    ) -> None:
        self._world, self._database, self._stores, self._chunks = world, database, stores, chunks
        self._found: list[str] = []
        self._seen = 0
        self.cache_was_lost = False
        self.mixed_qdrant_s = 0.0  # time in which a direct reader of Qdrant saw a dead version
        self._mixed_since: float | None = None
        database.on_commit = self._check_moves
        world.on_step = self._check_step

    # -- at every step ---------------------------------------------------------------------------

    def _check_step(self) -> None:
        if len(self._world.trace) == self._seen:
            return  # nothing reached a server
        self._seen = len(self._world.trace)
        for document in self._database.tables.documents.values():
            if document["live_saga_id"]:
                self.check_whole(document["live_saga_id"], "the live version")
        for name in ("neo4j", "postgres"):
            self._check_one_committed(name)
        self._measure_qdrant()
        if self._found:
            raise Violation("; ".join(self._found))

    def check_whole(self, saga_id: str, what: str) -> None:
        """A reader that was sent to this version finds all of it in every store."""
        saga = self._database.tables.sagas[saga_id]
        wanted = {"neo4j": 1, "postgres": 1, "qdrant": self._chunks[saga["content_hash"]]}
        for name, count in wanted.items():
            items = [i for i in self._stores[name].items() if i.ref.saga_id == saga_id]
            if len(items) != count or any(i.content != saga["content_hash"] for i in items):
                self._found.append(f"{what} {saga_id} is not whole in {name}: {items}")
        cache = self._stores["redis"]
        assert isinstance(cache, ModelCache)
        entry = cache.live.get(saga["document_id"])
        if entry and entry.ref.saga_id == saga_id and entry.content != saga["content_hash"]:
            self._found.append(f"{what} {saga_id} is something else in the cache: {entry}")

    def _check_one_committed(self, name: str) -> None:
        committed = Counter(
            item.ref.document_id
            for item in self._stores[name].items()
            if item.status == "committed"
        )
        for document_id, versions in committed.items():
            if versions > 1:
                self._found.append(f"{name} shows {versions} versions of {document_id} at once")

    def _measure_qdrant(self) -> None:
        live = {d["live_saga_id"] for d in self._database.tables.documents.values()}
        committed = {i.ref for i in self._stores["qdrant"].items() if i.status == "committed"}
        sagas = self._database.tables.sagas
        mixed = any(
            ref.saga_id not in live and sagas[ref.saga_id]["published_at"] is not None
            for ref in committed
            if any(other != ref and other.document_id == ref.document_id for other in committed)
        )
        if self._mixed_since is not None:
            self.mixed_qdrant_s += self._world.now_s - self._mixed_since
        self._mixed_since = self._world.now_s if mixed else None

    def _check_moves(self, before: Tables) -> None:
        tables = self._database.tables
        for saga_id, saga in tables.sagas.items():
            was = before.sagas.get(saga_id)
            if was is not None and was is not saga:
                self._check_move(was, saga)
        for document_id, document in tables.documents.items():
            was = before.documents.get(document_id)
            if was is not None and was is not document:
                self._check_pointer(was, document)

    def _check_move(self, was: Row, saga: Row) -> None:
        move = (was["status"], saga["status"])
        if move[0] != move[1]:
            self._world.note(f"    {saga['saga_id']} {move[0]} -> {move[1]}")
            if move not in _ALLOWED:
                self._found.append(f"{saga['saga_id']} went from {move[0]} to {move[1]}")
        if saga["epoch"] < was["epoch"]:
            self._found.append(f"the epoch of {saga['saga_id']} fell")

    def _check_pointer(self, was: Row, document: Row) -> None:
        if was["live_saga_id"] == document["live_saga_id"]:
            return
        sagas = self._database.tables.sagas
        live, old = sagas[document["live_saga_id"]], sagas.get(was["live_saga_id"] or "")
        if live["status"] != "completed" or live["version"] != document["live_version"]:
            self._found.append(f"the pointer names {live['saga_id']}, which is {live['status']}")
        if old and (live["version"] <= old["version"] or live["arrival"] <= old["arrival"]):
            self._found.append(f"the pointer went back from {old['saga_id']}, which came later")

    # -- at the end --------------------------------------------------------------------------------

    def check_ended(self) -> None:
        """No saga has work left."""
        for saga in self._database.tables.sagas.values():
            unpublished = saga["status"] == "completed" and saga["published_at"] is None
            if unpublished or saga["status"] in _UNFINISHED:
                self._found.append(f"{saga['saga_id']} is {saga['status']} past the bound")
        self._raise()

    def check_rest(self, acknowledged: Mapping[str, str]) -> None:
        """The stores hold the live versions, committed, and nothing else; nothing that a caller was
        told (`acknowledged`: saga -> document) is lost."""
        tables = self._database.tables
        for document_id, document in tables.documents.items():
            self._check_document(document_id, document)
        live = {d["live_saga_id"] for d in tables.documents.values()}
        for name, store in self._stores.items():
            for item in store.items():
                if item.ref.saga_id not in live or item.status != "committed":
                    self._found.append(f"{name} still holds {item}")
        graph = self._stores["neo4j"]
        assert isinstance(graph, ModelGraph)
        if graph.entities != frozenset[str]().union(*(graph.mentioned(s) for s in live if s)):
            self._found.append("neo4j holds entities that nothing mentions")
        for saga_id in acknowledged:
            if tables.sagas[saga_id]["status"] != "completed":
                self._found.append(f"{saga_id} was acknowledged and is lost")
        self._found += [f"sweep left: {sweep}" for sweep in tables.sweeps.values()]
        self._raise()

    def _check_document(self, document_id: str, document: Row) -> None:
        tables = self._database.tables
        sagas = [s for s in tables.sagas.values() if s["document_id"] == document_id]
        completed = [saga for saga in sagas if saga["status"] == "completed"]
        newest = max(completed, key=lambda saga: saga["arrival"], default=None)
        if (newest["saga_id"] if newest else None) != document["live_saga_id"]:
            self._found.append(f"{document_id} shows {document['live_saga_id']}, not {newest}")
        if newest and not self.cache_was_lost:
            cache = self._stores["redis"]
            if not any(item.ref.saga_id == newest["saga_id"] for item in cache.items()):
                self._found.append(f"the cache lost {newest['saga_id']}")
        for saga in sagas:
            if saga["status"] not in ("completed", "compensated"):
                self._found.append(f"{saga['saga_id']} ended as {saga['status']}")
            if saga["status"] == "compensated" and not saga["error"]:
                self._found.append(f"{saga['saga_id']} was compensated without a reason")

    def _raise(self) -> None:
        if self._found:
            raise Violation("; ".join(self._found))
