"""Reconciliation: what each store holds, against what it has to hold, and put right on demand.

The stored extraction of a live version says, to the byte, what has to be in every store, so repair
extracts nothing. What is found is looked at twice, and a document with a saga under way is left to
that saga. A version that loses its place while it is being restored is swept like any late write.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import structlog

from apex_dagster.errors import TerminalError
from apex_dagster.ingestion.audit import (
    DEAD_A_REQUEST,
    LIVE_A_REQUEST,
    SWEEPS,
    Progress,
    judge_dead,
    judge_live,
)
from apex_dagster.ingestion.steps import Extractions
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga import states
from apex_dagster.saga.audit import (
    DeadVersion,
    Difference,
    LiveVersion,
    busy_documents,
    count_versions,
    dead_versions,
    known_sagas,
    live_versions,
)
from apex_dagster.saga.engine import SagaEngine
from apex_dagster.stores.protocol import AuditedStore

log = structlog.get_logger(__name__)

INVENTORY_PAGE = 500
# Of all versions. If the ledger knows even less of what is there, it is the ledger that forgot, as
# after a restore of an old backup: removing the rest would lose documents.
ORPHANS_SHARE_MAX = 0.01
ORPHANS_FREE = 10  # so many are removed in any case

_STILL_THERE = "it is there again, or the store has published a later version of the document"

FOUND, REPAIRED, IN_FLIGHT = "found", "repaired", "in flight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One thing in one store that is not as it has to be."""

    document_id: str | None
    saga_id: SagaId | None  # the live version; of leftovers and orphans, the one they are of
    store: str
    kind: str  # "missing", "altered", "orphaned", "superseded" or "dead"
    expected: str
    found: str
    outcome: str = FOUND  # or REPAIRED, IN_FLIGHT, or why it could not be repaired

    def __str__(self) -> str:
        return (
            f"{self.document_id} ({self.saga_id}) in {self.store}: {self.kind}: expected"
            f" {self.expected}; found {self.found}: {self.outcome}"
        )


@dataclass(slots=True, kw_only=True)
class ReconcileReport:
    """What was looked at, and what was not as it has to be."""

    live: int = 0  # versions that must be in every store
    dead: int = 0  # versions of which nothing may be left
    drifts: list[Drift] = field(default_factory=list)

    @property
    def left(self) -> list[Drift]:
        """What is still not as it has to be."""
        return [drift for drift in self.drifts if drift.outcome != REPAIRED]

    def as_json(self) -> dict[str, Any]:
        """What `apex reconcile --json` prints."""
        return asdict(self)


class Reconciler:
    """Compares and repairs. For one thread."""

    def __init__(
        self,
        engine: SagaEngine,
        stores: Mapping[str, AuditedStore],
        extractions: Extractions,
        *,
        grace_s: float,
    ) -> None:
        self._engine, self._ledger = engine, engine.ledger
        self._stores, self._extractions, self._grace_s = stores, extractions, grace_s

    def reconcile(
        self,
        *,
        repair_as: str | None = None,
        document_ids: Sequence[str] | None = None,
        dead_max: int | None = None,
        all_orphans: bool = False,
        progress: Progress = lambda done, total: None,
    ) -> ReconcileReport:
        """One pass over all documents and over what stores hold of documents that nobody knows; or
        over these documents only.

        Changes nothing without `repair_as`, which the audit log then names with each repair.
        `all_orphans` removes orphans however many they are. Memory is bounded by the page and by
        what is found. Raises StoreUnavailable or OutcomeUnknown when a server gives no answer; what
        was repaired until then stays so.
        """
        report = ReconcileReport()
        total = count_versions(self._ledger, limit=dead_max, document_ids=document_ids)
        progress(0, total)
        for lives in live_versions(self._ledger, page=LIVE_A_REQUEST, document_ids=document_ids):
            report.live += len(lives)
            report.drifts += self._live(lives, repair_as)
            progress(report.live, total)
        for deads in dead_versions(
            self._ledger,
            page=DEAD_A_REQUEST,
            sweeps=SWEEPS,
            limit=dead_max,
            document_ids=document_ids,
        ):
            report.dead += len(deads)
            report.drifts += self._dead(deads, repair_as)
            progress(report.live + report.dead, total)
        if document_ids is None:
            free = max(ORPHANS_FREE, int(ORPHANS_SHARE_MAX * (report.live + report.dead)))
            for store in self._stores.values():
                report.drifts += self._orphans(store, repair_as, None if all_orphans else free)
        progress(total, total)
        return report

    # -- live versions -----------------------------------------------------------------------------

    def _live(self, versions: Sequence[LiveVersion], repair_as: str | None) -> list[Drift]:
        found = judge_live(self._ledger, self._stores, versions)
        if repair_as is None or not found:
            return [_drift(each) for each in found]
        document_ids = {each.document_id for each in found if each.document_id}
        busy = busy_documents(self._ledger, sorted(document_ids))
        mine = [each for each in found if each.document_id not in busy]
        refs = {version.ref.saga_id: version.ref for version in versions}
        failures = {
            name: self._restore(store, [each for each in mine if each.place == name], refs)
            for name, store in self._stores.items()
        }
        suspects = {each.saga_id for each in mine}
        left = judge_live(
            self._ledger, self._stores, [v for v in versions if v.ref.saga_id in suspects]
        )
        wrong = {(each.saga_id, each.place) for each in left}
        drifts = [
            _drift(each, IN_FLIGHT)
            if each.document_id in busy
            else _drift(each, _outcome(each, wrong, failures.get(each.place)))
            for each in found
        ]
        self._record(states.RESTORED, drifts, repair_as)
        self._sweep_overtaken([refs[saga_id] for saga_id in suspects if saga_id is not None])
        return drifts

    def _restore(
        self,
        store: AuditedStore,
        damage: Sequence[Difference],
        refs: Mapping[SagaId, VersionRef],
    ) -> str | None:
        """Put right what one store holds of these versions; why it could not, None if it could."""
        damaged = {
            each.saga_id for each in damage if each.kind != "orphaned" or store.name == "redis"
        }
        strays = [
            VersionRef(document_id=each.document_id or "", version=0, saga_id=each.stray_saga_id)
            for each in damage
            if each.stray_saga_id
        ]
        try:
            if strays:
                self._retried(lambda: store.discard(strays))
            if damaged:
                whole = self._extractions.of([refs[s] for s in sorted(filter(None, damaged))])
                self._retried(store.prepare)  # all of it may be lost, with collection and indexes
                self._retried(lambda: store.restore(whole))
        except TerminalError as error:
            return str(error)
        return None

    def _retried(self, operation: Callable[[], object]) -> None:
        self._engine.retried(operation, "reconcile")

    def _sweep_overtaken(self, refs: Sequence[VersionRef]) -> None:
        """A version that was replaced meanwhile may have been written after it was marked."""
        pointers = self._ledger.pointers([ref.document_id for ref in refs])
        overtaken = [
            ref.saga_id
            for ref in refs
            if pointers.get(ref.document_id, {}).get("live_saga_id") != ref.saga_id
        ]
        if overtaken:
            self._ledger.sweep_again(self._ledger.sagas(overtaken), grace_s=self._grace_s)

    # -- versions that must be gone ----------------------------------------------------------------

    def _dead(self, versions: Sequence[DeadVersion], repair_as: str | None) -> list[Drift]:
        found = judge_dead(self._ledger, self._stores, versions)
        if repair_as is None or not found:
            return [_drift(each) for each in found]
        refs = {version.ref.saga_id: version.ref for version in versions}
        for name, store in self._stores.items():
            doomed = {each.saga_id for each in found if each.place == name and each.saga_id}
            self._retried(partial(store.discard, [refs[saga_id] for saga_id in sorted(doomed)]))
        suspects = {each.saga_id for each in found}
        left = judge_dead(
            self._ledger, self._stores, [v for v in versions if v.ref.saga_id in suspects]
        )
        wrong = {(each.saga_id, each.place) for each in left}
        drifts = [_drift(each, _outcome(each, wrong, None)) for each in found]
        self._record(states.REMOVED, drifts, repair_as)
        return drifts

    # -- versions that nobody knows ----------------------------------------------------------------

    def _orphans(
        self, store: AuditedStore, repair_as: str | None, orphans_max: int | None
    ) -> list[Drift]:
        orphans: dict[SagaId, VersionRef] = {}
        for page in store.inventory(page=INVENTORY_PAGE):
            held = {ref.saga_id: ref for ref in page}
            # The saga's row comes before anything it writes, so who has none now has lost it.
            known = known_sagas(self._ledger, list(held))
            orphans |= {saga_id: ref for saga_id, ref in held.items() if saga_id not in known}
        outcomes = dict.fromkeys(orphans, FOUND)
        if repair_as is not None and orphans:
            too_many = orphans_max is not None and len(orphans) > orphans_max
            outcomes = self._removed(store, list(orphans.values()), too_many=too_many)
        return [
            Drift(
                document_id=ref.document_id,
                saga_id=saga_id,
                store=store.name,
                kind="orphaned",
                expected="nothing of a saga that the ledger does not know",
                found=f"version {ref.version}",
                outcome=outcomes[saga_id],
            )
            for saga_id, ref in orphans.items()
        ]

    def _removed(
        self, store: AuditedStore, orphans: Sequence[VersionRef], *, too_many: bool
    ) -> dict[SagaId, str]:
        if too_many:
            why = (
                f"not removed: {len(orphans)} are more than {ORPHANS_SHARE_MAX:.0%}; was the ledger"
                " restored from a backup? --all-orphans removes them"
            )
            return {ref.saga_id: why for ref in orphans}
        self._retried(lambda: store.discard(orphans))
        left = store.holdings(orphans)
        for ref in orphans:
            log.warning("orphan_removed", store=store.name, **asdict(ref))
        return {
            ref.saga_id: "not repaired" if left.get(ref.saga_id) else REPAIRED for ref in orphans
        }

    def _record(self, move: states.Move, drifts: Sequence[Drift], by: str) -> None:
        """In the audit log, once for each saga: who repaired how much in which store."""
        repaired: dict[SagaId, dict[str, int]] = {}
        for drift in drifts:
            if drift.outcome == REPAIRED and drift.saga_id is not None:
                stores = repaired.setdefault(drift.saga_id, {})
                stores[drift.store] = stores.get(drift.store, 0) + 1
        sagas = self._ledger.sagas(sorted(repaired))
        details = {saga_id: {"by": by, "drifts": stores} for saga_id, stores in repaired.items()}
        for saga in self._ledger.advance(move, sagas, details=details):
            log.warning(move.event, saga_id=saga.saga_id, document_id=saga.document_id, by=by)


def _drift(difference: Difference, outcome: str = FOUND) -> Drift:
    return Drift(
        document_id=difference.document_id,
        saga_id=difference.saga_id,
        store=difference.place,
        kind=difference.kind,
        expected=difference.expected,
        found=difference.found,
        outcome=outcome,
    )


def _outcome(
    difference: Difference, wrong: Set[tuple[SagaId | None, str]], failure: str | None
) -> str:
    if (difference.saga_id, difference.place) not in wrong:
        return REPAIRED
    if difference.place == "extraction":
        return "not repaired: what it was staged from is lost; ingest the document again"
    return f"not repaired: {failure or _STILL_THERE}"
