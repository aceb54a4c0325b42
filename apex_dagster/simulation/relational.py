"""PostgreSQL's part of the corpus as a model: one transaction a call, which sees the ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from apex_dagster.errors import StageMissing
from apex_dagster.records import Publication, SagaId, StagedVersion, VersionRef
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.model_store import Item, ModelStore, item_of, what
from apex_dagster.simulation.network import Network


class ModelRelational(ModelStore):
    name = "postgres"

    def __init__(self, network: Network, database: Database) -> None:
        super().__init__(network)
        self._database = database
        self._versions: dict[SagaId, Item] = {}

    def items(self) -> list[Item]:
        return list(self._versions.values())

    def of_saga(self, saga_id: SagaId) -> list[Item]:
        item = self._versions.get(saga_id)
        return [item] if item else []

    def _stage(self, batch: Sequence[StagedVersion]) -> None:
        def apply() -> None:
            for version in batch:
                if self._may_stage(version.ref):
                    self._landed(version.ref.saga_id)
                    self._versions.setdefault(version.ref.saga_id, item_of(version))

        self._request(what("stage", [v.ref for v in batch]), apply)

    def _may_stage(self, ref: VersionRef) -> bool:
        status = self._database.tables.sagas[ref.saga_id]["status"]
        live = self._live(ref.document_id)[0] == ref.saga_id
        return status in ("pending", "in_progress") or (status == "completed" and live)

    def _live(self, document_id: str) -> tuple[str | None, int]:
        row = self._database.tables.documents[document_id]
        return row["live_saga_id"], row["live_version"] or row["tombstone_version"] or 0

    def _bury(self, ref: VersionRef, older: Sequence[Item]) -> None:
        live_saga_id, _ = self._live(ref.document_id)
        for item in older:
            if item.ref.saga_id != live_saga_id:
                del self._versions[item.ref.saga_id]

    def publish(self, batch: Sequence[Publication]) -> None:
        def apply() -> None:
            missing = [p.ref.saga_id for p in batch if not self._publish(p)]
            if missing:
                raise StageMissing(self.name, missing)

        self._request(what("publish", [p.ref for p in batch]), apply)

    def _publish(self, publication: Publication) -> bool:
        ref, old = publication.ref, publication.replaced
        live_saga_id, live_version = self._live(ref.document_id)
        if live_version > ref.version:
            return True
        if ref.saga_id not in self._versions:
            return False
        if live_saga_id == ref.saga_id:
            self._mark(ref.saga_id, "staged", "committed")
            if old:
                self._mark(old.saga_id, "committed", "superseded")
        return True

    def _mark(self, saga_id: SagaId, source: str, target: str) -> None:
        item = self._versions.get(saga_id)
        if item and item.status == source:
            self._versions[saga_id] = replace(item, status=target)

    def _remove(
        self, batch: Sequence[VersionRef], verb: str, doomed: Callable[[Item], bool]
    ) -> Mapping[SagaId, int]:
        counts = {ref.saga_id: 0 for ref in batch}

        def apply() -> None:
            for ref in batch:
                item = self._versions.get(ref.saga_id)
                live = self._live(ref.document_id)[0] == ref.saga_id
                if not live:
                    self.removed.add(ref.saga_id)
                if item and doomed(item) and not live:
                    del self._versions[ref.saga_id]
                    counts[ref.saga_id] = 1

        self._request(what(verb, batch), apply)
        return counts
