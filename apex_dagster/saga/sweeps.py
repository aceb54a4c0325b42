"""Sweeps that are due: sagas of which no store may hold anything any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from apex_dagster.records import VersionRef
from apex_dagster.saga.ledger import Ledger
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "sweeps.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class DueSweep:
    """A dead or superseded saga whose remains are to be looked for."""

    ref: VersionRef
    due_at: datetime


def due_sweeps(ledger: Ledger, *, limit: int = 200) -> list[DueSweep]:
    """Sweeps to do now, the longest overdue first."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["due_sweeps"], {"limit": limit}).fetchall()
    return [
        DueSweep(
            ref=VersionRef(
                document_id=row["document_id"], version=row["version"], saga_id=row["saga_id"]
            ),
            due_at=row["due_at"],
        )
        for row in rows
    ]


def finish_sweeps(ledger: Ledger, sweeps: Sequence[DueSweep]) -> None:
    """The stores hold nothing of these any more; superseded extractions go too."""
    saga_ids = [sweep.ref.saga_id for sweep in sweeps]
    due_ats = [sweep.due_at for sweep in sweeps]
    with ledger.transaction() as tx:
        tx.execute(_SQL["finish_sweeps"], {"saga_ids": saga_ids, "due_ats": due_ats})
        tx.execute(_SQL["drop_extractions"], {"saga_ids": saga_ids})
