"""How long sagas take that are taken over, whoever takes them."""

from __future__ import annotations

import pytest

from apex_dagster.chaos.report import _SQL
from apex_dagster.composition import Application
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster_tests.applications import expire_leases
from apex_dagster_tests.documents import submission


def test_what_its_sender_takes_up_again_counts_as_what_recovery_does(
    app: Application, unique: str
) -> None:
    for name in ("by-recovery", "by-sender"):
        with armed("sent:qdrant_write=raise"), pytest.raises(SimulatedCrash):
            app.ingestion.ingest([submission(f"{unique}-{name}")], owner="dead")
    expire_leases(app)
    app.ingestion.ingest([submission(f"{unique}-by-sender")], owner="alive")
    app.ingestion.recovery.recover(owner="recovery")
    with app.ledger.transaction() as tx:
        rows = tx.execute(_SQL["recovery_times"], {}).fetchall()
    assert len(rows) == 2
