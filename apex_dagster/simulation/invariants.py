"""What must be true of the stores: at every step, and once everything has come to rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta

from apex_dagster.records import SagaId
from apex_dagster.simulation.cache import ModelCache
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.graph import ModelGraph
from apex_dagster.simulation.ledger_statements import failures_of, head_of
from apex_dagster.simulation.model_store import ModelStore
from apex_dagster.simulation.parts import SCHEDULE
from apex_dagster.simulation.tables import Row, Tables
from apex_dagster.simulation.world import World

_UNFINISHED = ("pending", "in_progress", "compensating")
_PASSING = ("transient", "store_down", "unknown_outcome", "interrupted")
_SWEEP_S_MAX = 60.0  # how long after it is due a sweep is over, in fair weather


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
        self.found: list[str] = []
        self._changed: set[str] = set()
        self.entries_were_lost = self.fences_were_lost = False
        self.sweeps_are_prompt = False
        self.residual_s = 0.0  # time in which a direct reader of Qdrant could see a dead version
        self._residual_since: float | None = None
        world.on_step = self._check_step

    def note_change(self, server: str) -> None:
        """What `server` holds may be something else after this step."""
        self._changed.add(server)

    @property
    def _tables(self) -> Tables:
        return self._database.tables

    # -- at every step -----------------------------------------------------------------------------

    def _check_step(self) -> None:
        if not self._changed and self._residual_since is None:
            return
        everywhere = "ledger" in self._changed
        changed = set(self._stores) if everywhere else self._changed & set(self._stores)
        self._changed.clear()
        for document in self._tables.documents.values():
            if document["live_saga_id"]:
                self._check_whole(document["live_saga_id"], "the live version", changed)
        for name in sorted(changed):
            self._check_committed(name)
        if "redis" in changed:
            self._check_cache()
        self._check_deleted(changed)
        self._check_direct_readers()
        self.raise_found()

    def check_whole(self, saga_id: SagaId, what: str) -> None:
        """A reader that was sent to this version finds all of it in every store, unless it has been
        deleted meanwhile: content goes at once then, and the reader has to look again."""
        if not self._is_deleted(self._tables.sagas[saga_id]):
            self._check_whole(saga_id, what, set(self._stores))

    def _is_deleted(self, saga: Row) -> bool:
        """Whether its document was deleted after it."""
        return any(
            other["kind"] == "delete"
            and other["status"] == "completed"
            and other["document_id"] == saga["document_id"]
            and other["version"] > saga["version"]
            for other in self._tables.sagas.values()
        )

    def _check_whole(self, saga_id: SagaId, what: str, names: set[str]) -> None:
        saga = self._tables.sagas[saga_id]
        content = saga["content_hash"]
        for name in ("neo4j", "postgres", "qdrant"):
            if name not in names:
                continue
            items = self._stores[name].of_saga(saga_id)
            wanted = self._chunks[content] if name == "qdrant" else 1
            if len(items) != wanted or any(item.content != content for item in items):
                self.found.append(f"{what} {saga_id} is not whole in {name}: {items}")
        entry = self._cache.live.get(saga["document_id"])
        if entry and entry.ref.saga_id == saga_id and entry.content != content:
            self.found.append(f"{what} {saga_id} is something else in the cache: {entry}")

    @property
    def _cache(self) -> ModelCache:
        cache = self._stores["redis"]
        assert isinstance(cache, ModelCache)
        return cache

    def _check_committed(self, name: str) -> None:
        """A direct reader sees nothing that was never live, and where a store can promise it, one
        version of a document."""
        versions: dict[str, set[SagaId]] = {}
        for item in self._stores[name].items():
            if item.status != "committed":
                continue
            versions.setdefault(item.ref.document_id, set()).add(item.ref.saga_id)
            if self._tables.sagas[item.ref.saga_id]["status"] != "completed":
                self.found.append(f"{name} shows {item.ref.saga_id}, which was never live")
        for document_id, shown in versions.items():
            if len(shown) > 1 and name != "qdrant":
                self.found.append(f"{name} shows {sorted(shown)} of {document_id} at once")

    def _check_cache(self) -> None:
        """Once a version is published, no older one comes back into the cache."""
        if self.fences_were_lost:
            return
        published = self._newest_published()
        for document_id, entry in self._cache.live.items():
            if entry.ref.version < published.get(document_id, 0):
                self.found.append(f"the cache has gone back to {entry.ref.saga_id}")

    def _newest_published(self) -> dict[str, int]:
        newest: Counter[str] = Counter()
        for saga in self._tables.sagas.values():
            if saga["published_at"] is not None:
                document_id = saga["document_id"]
                newest[document_id] = max(newest[document_id], saga["version"])
        return newest

    def _check_deleted(self, names: set[str]) -> None:
        """Once a deletion is over, no store shows anything older than it; Qdrant: see below."""
        over = [
            saga
            for saga in self._tables.sagas.values()
            if saga["kind"] == "delete" and saga["published_at"] is not None
        ]
        for saga in over:
            if saga["saga_id"] not in self._tables.receipts:
                self.found.append(f"{saga['saga_id']} is over, and there is no receipt of it")
            self._check_erased(saga, at_rest=False)
            for name in sorted(names - {"qdrant"}):
                if name == "redis" and self.fences_were_lost:
                    continue
                for item in self._stores[name].items():
                    older = item.ref.version < saga["version"] and item.status != "staged"
                    if older and item.ref.document_id == saga["document_id"]:
                        self.found.append(f"{name} shows {item}, deleted by {saga['saga_id']}")

    # -- the residual ------------------------------------------------------------------------------

    def _check_direct_readers(self) -> None:
        """Qdrant can neither change two versions at once nor compare one with another.

        So it may show a version that is live no more: while its successor is being published, and
        where a request landed after the removal and was marked by a publisher that had looked
        before. The latter lasts until the next sweep, and one has to be due.
        """
        dead = self._dead_versions_shown()
        for saga_id in dead:
            self._check_residual(saga_id)
        now_s = self._world.now_s
        if self._residual_since is not None:
            self.residual_s += now_s - self._residual_since
        self._residual_since = now_s if dead else None

    def _dead_versions_shown(self) -> list[SagaId]:
        shown = {i.ref for i in self._stores["qdrant"].items() if i.status == "committed"}
        tables, dead = self._tables, []
        for ref in sorted(shown):
            head_saga_id = head_of(tables.documents[ref.document_id])
            head = tables.sagas.get(head_saga_id or "")
            if head_saga_id != ref.saga_id and head and head["published_at"] is not None:
                dead.append(ref.saga_id)
        return dead

    def _check_residual(self, saga_id: SagaId) -> None:
        if saga_id not in self._stores["qdrant"].relanded:
            self.found.append(f"qdrant still shows {saga_id}, whose successor is published")
        due = [due_at for swept, due_at in self._tables.sweeps if swept == saga_id]
        if not due:
            self.found.append(f"qdrant shows {saga_id} for good: no sweep of it is due")
        elif self.sweeps_are_prompt:
            late = self._world.now() - min(due)
            if late > timedelta(seconds=_SWEEP_S_MAX):
                self.found.append(f"qdrant shows {saga_id} {late} after its next sweep was due")

    # -- at the end --------------------------------------------------------------------------------

    def check_ended(self, *, opened_before: datetime | None = None) -> None:
        """No saga has work left; none of those, with `opened_before`."""
        for saga in self._tables.sagas.values():
            if opened_before is not None and saga["created_at"] >= opened_before:
                continue
            unpublished = saga["status"] == "completed" and saga["published_at"] is None
            if unpublished or saga["status"] in _UNFINISHED:
                self.found.append(f"{saga['saga_id']} is {saga['status']} past the bound")
        self.raise_found()

    def check_retries(self) -> None:
        """Files that failed for a passing cause were tried again, and not too often."""
        sagas, quarantine = self._tables.sagas, self._tables.quarantine
        self.found += [f"{saga_id} is still to be tried again" for saga_id in self._tables.retries]
        files = {s["saga_id"] for s in self._tables.submissions.values() if s["source_uri"]}
        succeeded = {saga["predecessor_saga_id"] for saga in sagas.values()}
        for saga_id in sorted(files - succeeded):
            saga, entry = sagas[saga_id], quarantine.get(saga_id)
            passing = saga["status"] == "compensated" and saga["error"]["class"] in _PASSING
            if self._is_deleted(saga):
                continue  # which overrules it, unless it was asked for again
            if passing and (entry is None or entry["released_at"]):
                self.found.append(f"{saga_id} has failed for a passing cause and is forgotten")
        for saga in sagas.values():
            if (tries := len(failures_of(sagas.values(), saga))) > SCHEDULE.attempts_max:
                self.found.append(f"the submission of {saga['saga_id']} was tried {tries} times")
        self.raise_found()

    def check_rest(self, acknowledged: Mapping[SagaId, str]) -> None:
        """The stores hold the live versions, committed, and nothing else; nothing that a caller was
        told (`acknowledged`: saga -> document) is lost."""
        for document_id, document in self._tables.documents.items():
            self._check_document(document_id, document)
        live = {d["live_saga_id"] for d in self._tables.documents.values()}
        tombstones = {d["tombstone_saga_id"] for d in self._tables.documents.values()} - {None}
        for name, store in self._stores.items():
            for item in store.items():
                # In Redis, what lands late after its live entry expired goes by its own TTL.
                right = item.status == "committed" or name == "redis"
                is_tombstone = item.status == "deleted" and item.ref.saga_id in tombstones
                if (item.ref.saga_id not in live or not right) and not is_tombstone:
                    self.found.append(f"{name} still holds {item}")
        for saga in self._tables.sagas.values():
            if saga["kind"] == "delete" and saga["status"] == "completed":
                self._check_erased(saga, at_rest=True)
        # What a late publish of an older version meets there.
        entombed = {i.ref.saga_id for i in self._stores["qdrant"].items() if i.status == "deleted"}
        lost = sorted(tombstones - entombed)
        self.found += [f"qdrant has lost the tombstone {saga_id}" for saga_id in lost]
        graph = self._stores["neo4j"]
        assert isinstance(graph, ModelGraph)
        if graph.entities != frozenset[str]().union(*(graph.mentioned(s) for s in live if s)):
            self.found.append("neo4j holds entities that nothing mentions")
        for saga_id in acknowledged:
            if self._tables.sagas[saga_id]["status"] != "completed":
                self.found.append(f"{saga_id} was acknowledged and is lost")
        self.found += [f"sweep left: {sweep}" for sweep in self._tables.sweeps.values()]
        self.raise_found()

    def _check_erased(self, deletion: Row, *, at_rest: bool) -> None:
        """Nothing is kept of what was submitted before this deletion. What ended after the pivot of
        that is erased by its sweep, so it may be there until everything is at rest."""
        for saga_id in self._tables.extractions:
            saga = self._tables.sagas[saga_id]
            same = deletion["document_id"] == saga["document_id"]
            if not same or deletion["arrival"] <= saga["arrival"]:
                continue
            if self._database.is_in_quarantine(saga_id):
                continue  # an undo had failed, and an operator has not dropped it yet
            if at_rest or (saga["ended_at"] and saga["ended_at"] < deletion["ended_at"]):
                self.found.append(f"{saga_id} is kept, deleted by {deletion['saga_id']}")

    def _check_document(self, document_id: str, document: Row) -> None:
        sagas = [s for s in self._tables.sagas.values() if s["document_id"] == document_id]
        completed = [saga for saga in sagas if saga["status"] == "completed"]
        newest = max(completed, key=lambda saga: saga["arrival"], default=None)
        if (newest["saga_id"] if newest else None) != head_of(document):
            self.found.append(f"{document_id} shows {head_of(document)}, not {newest}")
        deleted = newest is not None and newest["kind"] == "delete"
        if deleted != (document["tombstone_saga_id"] is not None):
            self.found.append(f"{document_id} is shown, or not, against {newest}")
        cached = {item.ref.saga_id for item in self._cache.items()}
        is_lost = newest and not deleted and newest["saga_id"] not in cached
        if newest and is_lost and not self.entries_were_lost:
            self.found.append(f"the cache lost {newest['saga_id']}")
        for saga in sagas:
            if saga["status"] not in ("completed", "compensated"):
                self.found.append(f"{saga['saga_id']} ended as {saga['status']}")
            if saga["status"] == "compensated" and not saga["error"]:
                self.found.append(f"{saga['saga_id']} was compensated without a reason")

    def raise_found(self) -> None:
        """Raises Violation when something was found."""
        if self.found:
            raise Violation("; ".join(dict.fromkeys(self.found)))
