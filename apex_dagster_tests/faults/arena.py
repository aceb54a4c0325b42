"""A victim to be hit, and a rescuer who does what hooks, sensors, recovery and operators do."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from apex_dagster.composition import build
from apex_dagster.ingestion.audit import verify
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.saga.failpoints import parked
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import OPEN, Status
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.applications import QUICK, copies
from apex_dagster_tests.faults.victims import make_impatient, wait_until
from apex_dagster_tests.ingestion.contents import edition, seen, submitted


class Arena:
    """Applications in one process stand for owners in several: the ledger knows no difference."""

    def __init__(
        self, servers: Endpoints, token: str, *, home: Path, collection: str, prefix: str
    ) -> None:
        self.servers, self.token = servers, token
        # Leases last until `expire_leases`, and a time-out is what `Impatient` says.
        self.settings: dict[str, Any] = QUICK | {
            "home": home,
            "qdrant_collection": collection,
            "redis_prefix": prefix,
            "lease_s": 3600.0,
            "step_timeout_s": 60.0,
            "undo_timeout_s": 60.0,
            "step_attempts": 5,
        }
        self.victim = build(Settings(**self.settings), servers)
        self.rescuer = build(Settings(**self.settings), servers)
        self.pace = make_impatient(self.victim, lambda call: call.ident in parked())

    def close(self) -> None:
        self.victim.close()
        self.rescuer.close()

    def edition(self, document_id: str, number: int) -> Submission:
        """Content that differs from other editions in every store, and shares entities."""
        return edition(document_id, number, shared=self.token)

    def ingest(self, document_id: str, number: int) -> Saga:
        """By an owner whom nothing hits."""
        one = self.edition(document_id, number)
        [saga] = self.rescuer.ingestion.ingest([one], owner=f"before-{number}")
        assert saga.status is Status.COMPLETED
        return saga

    def sagas(self, document_id: str) -> list[Saga]:
        """By version."""
        sagas = self.rescuer.ledger.list_sagas(document_id=document_id)
        return sorted(sagas, key=lambda saga: saga.version)

    def copies(self, document_id: str) -> dict[str, dict[int, str]]:
        """Store -> version -> digest of its copy."""
        return copies(self.rescuer, document_id)

    # -- what the nets do ------------------------------------------------------------------------

    def run_failure_hook(self, document_id: str) -> None:
        """An exception has left the engine: compensate what the run has left open."""
        left = [saga.saga_id for saga in self.sagas(document_id) if saga.status in OPEN]
        self.rescuer.compensation.compensate(left, owner="victim")

    def recover(self, document_id: str) -> list[Saga]:
        """All leases of the document run out, and somebody takes over; whom it took."""
        with self.rescuer.ledger.transaction() as tx:
            tx.execute(
                "UPDATE apex.saga_state SET lease_expires_at = '2000-01-01' WHERE document_id = %s",
                [document_id],
            )
        return self.rescuer.ingestion.recovery.recover(owner="rescuer")

    def claim_during(self, document_id: str, land: Callable[[], None]) -> None:
        """The hook claims a saga whose pivot is still to commit: it waits, and is refused."""
        left = [saga.saga_id for saga in self.sagas(document_id) if saga.status in OPEN]
        with ThreadPoolExecutor(1) as pool:
            claim = pool.submit(self.rescuer.compensation.compensate, left, owner="victim")
            wait_until(self._somebody_waits_for_a_lock)
            land()
            assert claim.result(timeout=60) == []

    def _somebody_waits_for_a_lock(self) -> bool:
        with self.rescuer.ledger.transaction() as tx:
            waiting = tx.execute(
                "SELECT FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            ).fetchall()
        return bool(waiting)

    def drive_failed(self, document_id: str) -> list[Saga]:
        """An operator does what an alert asks for: undo again; which sagas that were."""
        failed = [saga for saga in self.sagas(document_id) if saga.status is Status.FAILED]
        if failed:
            waiting = {entry["saga_id"] for entry in self.rescuer.ledger.quarantined(limit=1000)}
            assert {saga.saga_id for saga in failed} <= waiting
            ids = [saga.saga_id for saga in failed]
            self.rescuer.compensation.compensate(ids, owner="operator")
        return failed

    def sweep(self, document_id: str) -> None:
        """All sweeps of the document's sagas are due, and done."""
        with self.rescuer.ledger.transaction() as tx:
            tx.execute(
                "UPDATE apex.sweep SET due_at = due_at - interval '2 days' WHERE saga_id IN"
                " (SELECT saga_id FROM apex.saga_state WHERE document_id = %s)",
                [document_id],
            )
        while self.rescuer.ingestion.sweep():
            pass

    # -- what has to hold ------------------------------------------------------------------------

    def assert_reads_one_of(self, document_id: str, *editions: int) -> None:
        """A reader sees all of one version, in all four stores, at the first try."""
        document = self.rescuer.reader.read_document(document_id)
        assert document is not None
        parts = {name: part.fingerprint for name, part in seen(document).items()}
        assert parts in [submitted(self.edition(document_id, number)) for number in editions]
        assert document.snapshots == 1

    def assert_audit_agrees(self, document_id: str) -> None:
        """The audit log, the ledger and the four stores say the same."""
        report = verify(
            self.rescuer.ledger,
            self.rescuer.stores,
            document_ids=[document_id],
        )
        assert report.differences == []
