"""Parts with one mechanism switched off each: the simulation has to find out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga.saga import Saga
from apex_dagster.simulation.ledger import SimulatedLedger
from apex_dagster.simulation.scenario import Parts
from apex_dagster.simulation.stores import Item, ModelCache, ModelVectors


class UpsertingVectors(ModelVectors):
    """A late stage request overwrites what is there."""

    def _insert(self, points: Sequence[tuple[tuple[SagaId, int], Item]]) -> None:
        self._points.update(points)


class UnfencedCache(ModelCache):
    """A late publish replaces a newer entry."""

    def _fence(self, ref: VersionRef) -> int:
        return 0


class StuckLedger(SimulatedLedger):
    """Never gives anybody a saga whose owner has died."""

    def take_over(self, owner: str, **more: Any) -> list[Saga]:
        return []


BROKEN = {
    "stage overwrites": Parts(vectors=UpsertingVectors),
    "publish without a fence": Parts(cache=UnfencedCache),
    "no take-over": Parts(ledger=StuckLedger),
    "removal at once": Parts(grace_s=-1.0),
}
