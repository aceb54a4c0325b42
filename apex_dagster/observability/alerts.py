"""Alerts: what is wrong by the ledger's own figures, told when it begins and when it is over.

What fires is written down and claimed before it is told, and marked as told afterwards, so that of
several evaluators one tells it, and a crash in between tells it again rather than never.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

import structlog
from psycopg.types.json import Jsonb

from apex_dagster.saga.bound import overdue_count
from apex_dagster.saga.breaker import Breaker
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.recent import Recent, recent
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

Severity = Literal["critical", "high", "medium", "low"]

COMPENSATION_RATIO_MAX = 0.05
SUCCESS_RATIO_MIN = 0.95
P90_S_MAX = 2.0
CLAIM_S = 60.0  # longer than telling takes
SAGAS_MIN = 20  # fewer say nothing of a rate or a percentile

_SQL = load_queries("apex_dagster.observability", "alerts.sql")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A rule whose condition holds at this moment."""

    name: str
    severity: Severity
    summary: str  # for people: what, how much, and what to do


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice:
    """What is to be told: an alert has begun, goes on, or is over."""

    name: str
    severity: Severity
    status: Literal["firing", "resolved"]
    summary: str
    since: datetime
    resolved_at: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        """The body that a webhook gets."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Signs:
    """The figures that rules look at."""

    recent: Recent
    overdue: int
    breakers: Sequence[Breaker]  # of stores that are down


def findings(signs: Signs) -> Iterator[Finding]:
    """Every rule whose condition holds."""
    now = signs.recent
    if now.waiting_for_operator:
        yield Finding(
            name="compensation_failed",
            severity="critical",
            summary=f"{now.waiting_for_operator} sagas could not be undone and wait for somebody:"
            " apex saga list --status failed, then apex saga compensate",
        )
    if signs.overdue:
        yield Finding(
            name="sagas_overdue",
            severity="high",
            summary=f"{signs.overdue} sagas are open longer than promised: apex saga bound",
        )
    for breaker in signs.breakers:
        yield Finding(
            name=f"store_down:{breaker.store}",
            severity="high",
            summary=f"{breaker.store} is down, nothing new is taken in: {breaker.reason}",
        )
    yield from _rates(now)
    for (step, error_class), sagas in now.failures.items():
        yield Finding(
            name=f"step_failed:{step}:{error_class}",
            severity="low",
            summary=f"{sagas} sagas failed in {step} ({error_class}) within {now.window_s:g} s:"
            " apex saga list --status compensated",
        )


def _rates(now: Recent) -> Iterator[Finding]:
    if now.ended >= SAGAS_MIN:
        of = f"of {now.ended} sagas within {now.window_s:g} s"
        compensated, succeeded = now.compensation_ratio or 0.0, now.success_ratio or 0.0
        if compensated > COMPENSATION_RATIO_MAX:
            yield Finding(
                name="compensation_rate",
                severity="high",
                summary=f"{compensated:.0%} {of} were compensated, more than"
                f" {COMPENSATION_RATIO_MAX:.0%}",
            )
        if succeeded < SUCCESS_RATIO_MIN:
            yield Finding(
                name="success_rate",
                severity="medium",
                summary=f"{succeeded:.0%} {of} succeeded, less than {SUCCESS_RATIO_MIN:.0%}",
            )
    if now.completed >= SAGAS_MIN and now.p90_s is not None and now.p90_s > P90_S_MAX:
        yield Finding(
            name="latency_p90",
            severity="medium",
            summary=f"P90 of {now.completed} sagas within {now.window_s:g} s is {now.p90_s:.1f} s,"
            f" more than {P90_S_MAX:g} s",
        )


Tell = Callable[[Notice], None]  # raises when it could not be told


class Alerts:
    """The book of what fires, in the ledger's database."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        window_s: float,
        bound_s: float,
        repeat_s: float,
        down: Callable[[], Sequence[Breaker]],
    ) -> None:
        self._ledger, self._window_s, self._bound_s = ledger, window_s, bound_s
        self._repeat_s, self._down = repeat_s, down

    def evaluate(self, tell: Sequence[Tell]) -> list[Notice]:
        """Look, write down what begins, goes on and ends, and tell what has not been told: when it
        begins, every `repeat_s` while it goes on, and when it is over.

        Returns what was told by all of `tell`; what one of them could not tell is told again by all
        of them, CLAIM_S later. Raises StoreUnavailable without a ledger.
        """
        signs = Signs(
            recent=recent(self._ledger, window_s=self._window_s),
            overdue=overdue_count(self._ledger, bound_s=self._bound_s),
            breakers=self._down(),
        )
        found = list(findings(signs))
        with self._ledger.transaction() as tx:
            tx.execute(_SQL["fire"], {"found": Jsonb([asdict(each) for each in found])})
            tx.execute(_SQL["resolve"], {"names": [each.name for each in found]})
            values = {"repeat_s": self._repeat_s, "claim_s": CLAIM_S}
            untold = [Notice(**row) for row in tx.execute(_SQL["claim_untold"], values).fetchall()]
        told = [notice for notice in untold if _told_by_all(tell, notice)]
        with self._ledger.transaction() as tx:
            tx.execute(_SQL["told"], {"names": [notice.name for notice in told]})
        return told

    def firing(self) -> list[Notice]:
        """What fires, as of the last evaluation, the most severe first."""
        with self._ledger.transaction() as tx:
            return [Notice(**row) for row in tx.execute(_SQL["firing"]).fetchall()]


def _told_by_all(tell: Sequence[Tell], notice: Notice) -> bool:
    outcomes = [_told(one, notice) for one in tell]  # none is left out because another failed
    return all(outcomes)


def _told(tell: Tell, notice: Notice) -> bool:
    try:
        tell(notice)
    except Exception as error:  # whatever stands at the other end of a webhook
        log.error("alert_not_told", alert=notice.name, error=f"{type(error).__name__}: {error}")
        return False
    return True
