"""What came of a run: for people, for programs, and the verdict in the last line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from apex_dagster.chaos.callers import Submission
from apex_dagster.chaos.disturbances import Done
from apex_dagster.chaos.plan import Plan
from apex_dagster.chaos.readers import Readers
from apex_dagster.chaos.verdict import Verdict, Violation
from apex_dagster.chaos.watch import OPEN_PAST_BOUND
from apex_dagster.composition import Application
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.chaos", "census.sql")

PROMISES = ("half documents", "lost acknowledgements", OPEN_PAST_BOUND)
_SHOWN_MAX = 30  # violations on the screen; the JSON form has all


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long something took, in seconds."""

    count: int
    p50: float
    p90: float
    max: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Spread:
        """Zeros for nothing."""
        if not seconds:
            return cls(count=0, p50=0.0, p90=0.0, max=0.0)
        p50, p90 = np.percentile(seconds, [50, 90])
        return cls(
            count=len(seconds),
            p50=round(float(p50), 2),
            p90=round(float(p90), 2),
            max=round(max(seconds), 2),
        )

    def __str__(self) -> str:
        return f"{self.count}; p50 {self.p50:.1f} s, p90 {self.p90:.1f} s, max {self.max:.1f} s"


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A run in figures."""

    plan: Plan
    disturbances: list[Done]
    load_s: float
    drained_s: float  # from the last caller's answer until the last saga had ended
    offers: Mapping[str, int]  # by kind
    callers: Mapping[str, int]  # what they were told
    answers_s: Spread  # from when a document was due until its caller was told how it ended
    waiting_max: int  # documents handed in and not answered
    sagas: Mapping[str, int]  # by status, compensated ones by their cause
    recovery_s: Spread  # of sagas that were taken over; the lease is part of it
    unavailable_reads: Mapping[str, int]  # by error: a store was down
    verdict: Verdict
    violations: list[Violation] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        app: Application,
        *,
        submissions: Sequence[Submission],
        readers: Readers,
        **more: Any,
    ) -> Report:
        """Count."""
        with app.ledger.transaction() as tx:
            counts = tx.execute(_SQL["saga_counts"]).fetchall()
            recovered = [row["seconds"] for row in tx.execute(_SQL["recovery_times"]).fetchall()]
        return cls(
            offers=dict(Counter(submission.offer.kind for submission in submissions)),
            callers=_callers(submissions),
            answers_s=Spread.of([s.ended[0].at - s.due for s in submissions if s.ended]),
            sagas={
                " ".join(part for part in (row["status"], row["error_class"]) if part): row["sagas"]
                for row in counts
            },
            recovery_s=Spread.of(recovered),
            unavailable_reads=dict(readers.unavailable),
            **more,
        )

    @property
    def broken(self) -> bool:
        """Whether any promise was."""
        return bool(self.violations)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            **asdict(self),
            "disturbances": [done.as_json() for done in self.disturbances],
            "out_of_service_s": {
                name: asdict(spread) for name, spread in self._out_of_service().items()
            },
            "completed_per_s": round(self.callers["completed"] / self.load_s, 2),
            "promises": self._promises(),
        }

    def lines(self, home: Path) -> Iterator[str]:
        """For people; the last line is the verdict."""
        yield from self._figures()
        for violation in self.violations[:_SHOWN_MAX]:
            yield f"  {violation}"
        if len(self.violations) > _SHOWN_MAX:
            yield f"  ... and {len(self.violations) - _SHOWN_MAX} more (--json has them all)"
        if self.violations:
            yield f"Look into them: export APEX_HOME={home}; apex up; apex audit verify;"
            yield "  apex saga list --document ID; apex saga show SAGA_ID"
            yield f"What callers were told, and the logs of all processes: {home / 'chaos'}"
        promises = ", ".join(f"{count} {promise}" for promise, count in self._promises().items())
        yield f"{'BROKEN' if self.broken else 'kept'}: {promises}"

    def _figures(self) -> Iterator[str]:
        verdict = self.verdict
        for name, spread in self._out_of_service().items():
            yield f"{name} out of service: {spread}"
        yield f"offered in {self.load_s:.0f} s: {_listed(self.offers)}"
        yield f"callers were told: {_listed(self.callers)}; at most {self.waiting_max} waited"
        yield f"completed a second: {self.callers['completed'] / self.load_s:.1f}"
        yield f"from due to answered: {self.answers_s}"
        yield f"sagas: {_listed(self.sagas)}"
        yield f"sagas taken over, from their owner's last word to their end: {self.recovery_s}"
        yield f"all sagas had ended {self.drained_s:.1f} s after the last caller"
        yield (
            f"reads: {verdict.reads} through the project, {verdict.direct_reads} of PostgreSQL; "
            f"a store was down: {_listed(self.unavailable_reads) or 'never'}"
        )
        yield (
            f"checked in {verdict.took_s:.0f} s: {verdict.live_documents} live documents, "
            f"{verdict.items} items in four stores, {verdict.audit_events} audit events; "
            f"{verdict.late_writes} late writes of dead sagas waited for their sweep"
        )

    def _out_of_service(self) -> dict[str, Spread]:
        spans: dict[str, list[float]] = {}
        for done in self.disturbances:
            name = f"{done.planned.target} ({done.planned.kind})"
            spans.setdefault(name, []).append(done.out_of_service_s)
        return {name: Spread.of(spans[name]) for name in sorted(spans)}

    def _promises(self) -> dict[str, int]:
        """How many documents or sagas break each; the three that the run is about even if none."""
        broken: dict[str, set[str]] = {promise: set() for promise in PROMISES}
        for one in self.violations:
            about = one.saga_id or one.document_id or one.what
            broken.setdefault(one.promise, set()).add(about)
        return {promise: len(subjects) for promise, subjects in broken.items()}


def _callers(submissions: Sequence[Submission]) -> dict[str, int]:
    told = Counter[str](completed=0, opened=0)
    for submission in submissions:
        told["opened"] += bool(submission.opened)
        if submission.ended:
            best = "completed" if submission.completed else submission.ended[-1].status
            told[best] += 1
        elif submission.opened:
            told["opened only"] += 1
        else:
            told["refused" if submission.refused else "nothing"] += 1
        told["sent again"] += submission.attempts - 1 if submission.attempts else 0
    return dict(told)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
