"""How long sagas take to end after their owner left them: the promise of a bound, measured.

The audit log has it all: see `bound.sql`. What is still open is measured by its age.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.states import Status
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "bound.sql")

# Edges of the histogram: sensors look every five seconds, recovery every fifteen.
EDGES_S = (1.0, 2.5, 5.0, 10.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveryTimes:
    """Seconds from when sagas were left to their end, for those that somebody else has ended."""

    recoveries: int
    total_s: float
    over_bound: int
    p50_s: float | None  # None where there is no recovery
    p90_s: float | None
    max_s: float | None
    within: Mapping[float, int]  # edge in seconds -> recoveries that took no longer


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWork:
    """Sagas that have not ended, or not been published."""

    sagas: int
    oldest_s: float  # since the oldest was opened


def recovery_times(ledger: Ledger, *, bound_s: float) -> RecoveryTimes:
    """Of all sagas in the ledger."""
    with ledger.transaction() as tx:
        values = {"bound_s": bound_s, "edges_s": list(EDGES_S)}
        [row] = tx.execute(_SQL["recovery_times"], values).fetchall()
    within = dict(zip(EDGES_S, row.pop("within"), strict=True))
    return RecoveryTimes(**row, within=within)


def open_work(ledger: Ledger) -> dict[Status, OpenWork]:
    """Every status that may need work, also where no saga has it."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["open_work"], {}).fetchall()
    found = {row["status"]: OpenWork(sagas=row["sagas"], oldest_s=row["oldest_s"]) for row in rows}
    none = OpenWork(sagas=0, oldest_s=0.0)
    statuses = (Status.PENDING, Status.IN_PROGRESS, Status.COMPENSATING, Status.COMPLETED)
    return {status: found.get(status.value, none) for status in statuses}


def overdue_count(ledger: Ledger, *, bound_s: float) -> int:
    """Open work that nobody has ended within `bound_s` of its lease running out."""
    with ledger.transaction() as tx:
        [row] = tx.execute(_SQL["overdue_count"], {"bound_s": bound_s}).fetchall()
    return int(row["overdue"])
