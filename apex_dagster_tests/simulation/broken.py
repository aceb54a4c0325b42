"""Parts with one mechanism switched off each: the simulation has to find out."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from apex_dagster.records import Removal, SagaId, StagedVersion, VersionRef
from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.saga import Saga
from apex_dagster.simulation.cache import ModelCache
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.graph import ModelGraph
from apex_dagster.simulation.ledger import SimulatedLedger
from apex_dagster.simulation.model_store import Item, item_of
from apex_dagster.simulation.parts import Parts
from apex_dagster.simulation.relational import ModelRelational
from apex_dagster.simulation.tables import Row, Values
from apex_dagster.simulation.vectors import ModelVectors

# -- the ledger ------------------------------------------------------------------------------------


class EpochsUnchecked(Database):
    """A move is taken whatever epoch it was decided on."""

    def _advance(self, v: Values) -> Iterable[Row]:
        sagas = self.tables.sagas
        epochs = [sagas[saga_id]["epoch"] for saga_id in v["saga_ids"] if saga_id in sagas]
        return super()._advance({**v, "epochs": epochs})


class TakeOverKeepsEpoch(Database):
    """Recovery gives itself the lease, and leaves the epoch as it was."""

    def _advance(self, v: Values) -> Iterable[Row]:
        return super()._advance({**v, "epoch_step": v["epoch_step"] * (1 - v["takeover"])})


class PivotByEpochOnly(Database):
    """The pivot does not look at the status, and an owner that begins to undo keeps its epoch."""

    def _lock_sagas(self, v: Values) -> Iterable[Row]:
        return [saga | {"status": "in_progress"} for saga in super()._lock_sagas(v)]

    def _advance(self, v: Values) -> Iterable[Row]:
        if v["event"] == "compensation_started":
            v = {**v, "epoch_step": 0}
        elif v["event"] == "saga_completed":
            v = {**v, "source": ["in_progress", "compensating", "compensated"]}
        return super()._advance(v)


class PivotOnAnyVersion(Database):
    """The pivot does not compare the live version with the one that a saga builds on."""

    def _lock_sagas(self, v: Values) -> Iterable[Row]:
        documents = self.tables.documents
        for saga in super()._lock_sagas(v):
            document = documents[saga["document_id"]]
            head_version = document["live_version"] or document["tombstone_version"]
            yield saga | {"expected_version": head_version}


class PivotOverUnpublished(Database):
    """The pivot replaces a version that has not been published yet."""

    def _lock_documents(self, v: Values) -> Iterable[Row]:
        return [row | {"head_is_unpublished": False} for row in super()._lock_documents(v)]


class PivotAgainstArrival(Database):
    """The pivot replaces a version that was submitted later."""

    def _lock_documents(self, v: Values) -> Iterable[Row]:
        return [row | {"head_arrival": None} for row in super()._lock_documents(v)]


class RestartArrivesAnew(Database):
    """A saga that starts again after a conflict counts as submitted now."""

    def _insert_sagas(self, v: Values) -> Iterable[Row]:
        return super()._insert_sagas({**v, "arrivals": [None] * len(v["arrivals"])})


class SweepsWhatIsNotLive(Database):
    """The sweep takes "version <> live" for dead."""

    def _due_sweeps(self, v: Values) -> Iterable[Row]:
        found = list(super()._due_sweeps(v))
        for saga in self._all():
            live = self.tables.documents[saga["document_id"]]["live_saga_id"]
            if found and saga["saga_id"] != live and saga["status"] == "in_progress":
                found.append({**found[0], "saga_id": saga["saga_id"], "version": saga["version"]})
        return found


class VersionsUsedAgain(Database):
    """A version number comes from the live version, so that a dead one's is given out again."""

    def _lock_documents_to_open(self, v: Values) -> Iterable[Row]:
        for row in super()._lock_documents_to_open(v):
            versions = [
                saga["version"]
                for saga in self.tables.sagas.values()
                if saga["document_id"] == row["document_id"]
                and saga["status"] not in ("compensated", "failed")
            ]
            yield row | {"last_version": max(versions, default=0)}

    def _refuse_duplicates(self, new: Row, run_id: str | None) -> None:
        """Without the unique constraint that gives it away."""


class StuckLedger(SimulatedLedger):
    """Never gives anybody a saga whose owner has died."""

    def take_over(self, owner: str, **more: Any) -> list[Saga]:
        return []


# -- the engine ------------------------------------------------------------------------------------


class UndoesWhatIsRecorded(Compensation):
    """Undoes completed steps, and not the one that failed."""

    def undo(self, step_name: str, sagas: Sequence[Saga]) -> list[Saga]:
        return super().undo(step_name, [replace(saga, started_steps=()) for saga in sagas])


# -- the stores ------------------------------------------------------------------------------------


class UpsertingVectors(ModelVectors):
    """A late stage request overwrites what is there."""

    def _insert(self, points: Sequence[tuple[Hashable, Item]]) -> None:
        super()._insert(points)
        self._points.update(points)


class UpsertingGraph(ModelGraph):
    """As above."""

    def _create(self, version: StagedVersion) -> None:
        super()._create(version)
        self._versions[version.ref.saga_id] = item_of(version)


class MarkingVectors(ModelVectors):
    """Publishing marks what is superseded, too."""

    def _may_mark(self, item: Item, source: str) -> bool:
        return True


class VectorsById(ModelVectors):
    """Ids follow from document and version, not from the saga."""

    def _id(self, ref: VersionRef, ordinal: int) -> Hashable:
        return ref.document_id, ref.version, ordinal


class UnfencedGraph(ModelGraph):
    """A late publish replaces a newer version."""

    def _fence(self, ref: VersionRef) -> int:
        return 0


class UnfencedCache(ModelCache):
    """A late publish replaces a newer entry."""

    def _fence(self, ref: VersionRef) -> int:
        return 0


class FenceExpires(ModelCache):
    """The fence has the same time to live as its entry."""

    def expire(self) -> None:
        super().expire()
        self._fences.clear()


class CacheServesStaged(ModelCache):
    """Staging writes the live entry straight away."""

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        super()._stage(batch)
        for version in batch:
            self.live[version.ref.document_id] = replace(item_of(version), status="committed")


# -- deletions -------------------------------------------------------------------------------------


class TombstoneIsNoHead(Database):
    """A pivot takes a deleted document for one that never was."""

    def _lock_documents(self, v: Values) -> Iterable[Row]:
        nothing = dict.fromkeys(("head_version", "head_saga_id", "head_arrival"))
        for row in super()._lock_documents(v):
            yield row if row["live_saga_id"] else row | nothing | {"head_is_unpublished": False}

    def _lock_documents_to_open(self, v: Values) -> Iterable[Row]:
        return [row | {"tombstone_version": None} for row in super()._lock_documents_to_open(v)]


class SweepsTombstones(Database):
    """The sweep of what a deletion removed takes that along."""

    def _due_sweeps(self, v: Values) -> Iterable[Row]:
        for row in list(super()._due_sweeps(v)):
            yield row
            tombstone = self.tables.documents[row["document_id"]]["tombstone_saga_id"]
            if tombstone:
                yield row | {"saga_id": tombstone}


class ErasesNothing(Database):
    """A deletion leaves the ledger what it keeps of the document, and does not look."""

    def _erase_extractions(self, v: Values) -> Iterable[Row]:
        return []

    def _kept_of_earlier(self, v: Values) -> Iterable[Row]:
        return []


class ForgetsReceipts(Database):
    """A deletion ends without a receipt."""

    def _insert_receipts(self, v: Values) -> Iterable[Row]:
        return []


class UnguardedGraph(ModelGraph):
    """A removal takes whatever there is of the document."""

    def older_than(self, ref: VersionRef) -> list[Item]:
        return [item for item in self.items() if item.ref.document_id == ref.document_id]


class UnguardedVectors(ModelVectors):
    """As above, but for its own tombstone."""

    def older_than(self, ref: VersionRef) -> list[Item]:
        mine = [item for item in self.items() if item.ref.document_id == ref.document_id]
        return [item for item in mine if item.ref != ref]


class NoTombstoneInCache(ModelCache):
    """A removal leaves the fence where it was."""

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        before = self._fences.get(ref.document_id, 0)
        super()._bury(ref, older)
        self._fences[ref.document_id] = before


class NoTombstoneInGraph(ModelGraph):
    """As above."""

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        before = self._fences.get(ref.document_id, 0)
        super()._bury(ref, older)
        self._fences[ref.document_id] = before


class NoTombstoneInVectors(ModelVectors):
    """Nothing stays in the place of a deleted document."""

    def _entomb(self, refs: Sequence[VersionRef]) -> None:
        pass


class KeepsDeletedRows(ModelRelational):
    """A deletion that forgets a store, and does not look."""

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        pass

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        return {removal.ref.saga_id: {"items": 0} for removal in batch}


# -- what is tried again ---------------------------------------------------------------------------


class ForgetsRetries(Database):
    """A file that failed for a passing cause is never tried again."""

    def _schedule_retries(self, v: Values) -> Iterable[Row]:
        return []


class KeepsRetries(Database):
    """A retry stays, though its successor was opened."""

    def _forget_retries(self, v: Values) -> Iterable[Row]:
        return []


class CountsOneTry(Database):
    """Every failure is taken for the first one."""

    def _tries(self, v: Values) -> Iterable[Row]:
        return [row | {"tries": 1} for row in super()._tries(v)]


# In which each of these has to be found. The rarest shows in one seed of fifty; which one that is
# changes with every request that the engine sends more or less.
SEEDS_MAX = 1000

BROKEN: dict[str, Parts] = {
    "moves ignore the epoch": Parts(database=EpochsUnchecked),
    "recovery keeps the epoch": Parts(database=TakeOverKeepsEpoch),
    "pivot ignores the status": Parts(database=PivotByEpochOnly),
    "pivot ignores the expected version": Parts(database=PivotOnAnyVersion),
    "pivot over an unpublished version": Parts(database=PivotOverUnpublished),
    "pivot ignores the order of arrival": Parts(database=PivotAgainstArrival),
    "a restart arrives anew": Parts(database=RestartArrivesAnew),
    "sweep of what is not live": Parts(database=SweepsWhatIsNotLive),
    "ids from a version that is used again": Parts(database=VersionsUsedAgain, vectors=VectorsById),
    "no take-over": Parts(ledger=StuckLedger),
    "undo skips the failed step": Parts(compensation=UndoesWhatIsRecorded),
    "stage overwrites vectors": Parts(vectors=UpsertingVectors),
    "stage overwrites the graph": Parts(graph=UpsertingGraph),
    "publish marks more than staged": Parts(vectors=MarkingVectors),
    "no fence in the graph": Parts(graph=UnfencedGraph),
    "no fence in the cache": Parts(cache=UnfencedCache),
    "the cache's fence expires": Parts(cache=FenceExpires),
    "the cache serves what is staged": Parts(cache=CacheServesStaged),
    "removal at once": Parts(grace_s=-1.0),
    "a deletion is no head": Parts(database=TombstoneIsNoHead),
    "sweep takes a tombstone for dead": Parts(database=SweepsTombstones),
    "erasing is forgotten": Parts(database=ErasesNothing),
    "a deletion without a receipt": Parts(database=ForgetsReceipts),
    "removal of later versions from the graph": Parts(graph=UnguardedGraph),
    "removal of later versions from vectors": Parts(vectors=UnguardedVectors),
    "no tombstone in the cache": Parts(cache=NoTombstoneInCache),
    "no tombstone in the graph": Parts(graph=NoTombstoneInGraph),
    "no tombstone among vectors": Parts(vectors=NoTombstoneInVectors),
    "a store that is forgotten": Parts(relational=KeepsDeletedRows),
    "retries are forgotten": Parts(database=ForgetsRetries),
    "a retry outlives its successor's opening": Parts(database=KeepsRetries),
    "retries are not counted": Parts(database=CountsOneTry),
}
