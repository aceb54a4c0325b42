"""How sagas have gone of late: outcomes, latencies and failures within a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from apex_dagster.saga.ledger import Ledger
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "recent.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recent:
    """Sagas opened within the last `window_s`, as they stand now."""

    window_s: float
    completed: int  # and published
    compensated: int  # but not because a later submission had won
    failed: int
    gave_way: int  # to a later submission
    p50_s: float | None  # from opened to published; None where none is
    p90_s: float | None
    p99_s: float | None
    failures: Mapping[tuple[str, str], int]  # (step, error class) -> sagas
    waiting_for_operator: int  # sagas with status failed, of any age

    @property
    def ended(self) -> int:
        """Those that count for rates."""
        return self.completed + self.compensated + self.failed

    @property
    def success_ratio(self) -> float | None:
        """None while none has ended."""
        return self.completed / self.ended if self.ended else None

    @property
    def compensation_ratio(self) -> float | None:
        """None while none has ended."""
        return (self.compensated + self.failed) / self.ended if self.ended else None


def recent(ledger: Ledger, *, window_s: float) -> Recent:
    """From one look at the ledger. Costs the window, not the history."""
    values = {"window_s": window_s}
    with ledger.transaction() as tx:
        [outcomes] = tx.execute(_SQL["recent"], values).fetchall()
        failures = tx.execute(_SQL["recent_failures"], values).fetchall()
        [waiting] = tx.execute(_SQL["failed_sagas"], {}).fetchall()
    return Recent(
        window_s=window_s,
        **outcomes,
        failures={(row["step"], row["error_class"]): row["sagas"] for row in failures},
        waiting_for_operator=waiting["sagas"],
    )
