"""What a seed has in store: who submits what and when, and the trouble that meets them.

Drawn (by `draw.py`) before anything happens, so that a plan can be cut down to what a violation
needs.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

from apex_dagster.ingestion.ingest import Submission
from apex_dagster.simulation.traps import Trap
from apex_dagster.simulation.world import Weather

FAULTS_S = 150.0  # then the weather calms down
STORES = ("neo4j", "postgres", "qdrant", "redis")
SERVERS = (*STORES, "ledger")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """A run, and how often somebody executes it again or cancels it."""

    at_s: float
    submissions: tuple[Submission, ...]
    op_by_op: bool  # as Dagster's ops do; otherwise in one call
    hook: bool  # whether its failure hook runs, or only later nets find what it left
    again_after_s: tuple[float, ...] = ()  # each after the one before it, dead or alive
    cancel_after_s: float | None = None
    cancel_kills: bool = False  # otherwise it is only believed to be dead


@dataclass(frozen=True, slots=True, kw_only=True)
class Outage:
    """A server that refuses every request for a while."""

    server: str
    at_s: float
    for_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is drawn beforehand."""

    seed: int
    weather: Weather
    runs: tuple[PlannedRun, ...]
    traps: tuple[Trap, ...] = ()
    outages: tuple[Outage, ...] = ()
    expiries_s: tuple[float, ...] = ()  # when whatever has a TTL leaves the cache
    owners_notice: bool = False  # that their leases are over; if not, less keeps them from harm
    losses_s: tuple[float, ...] = ()  # when the cache loses everything

    def parts(self) -> list[Plan]:
        """The plans with one thing less, the largest things first."""
        smaller = [
            replace(self, **{name: items[:n] + items[n + 1 :]})
            for name in ("runs", "outages", "losses_s", "expiries_s", "traps")
            for items in [getattr(self, name)]
            for n in range(len(items))
        ]
        for rate in ("crash", "pause", "slow", "fault"):
            if getattr(self.weather, rate):
                smaller.append(replace(self, weather=replace(self.weather, **{rate: 0.0})))
        return [plan for plan in smaller if plan.runs]

    def lines(self) -> list[str]:
        """The plan for people."""
        told = [
            f"run at {run.at_s:.1f} s: "
            + ", ".join(_told(submission) for submission in run.submissions)
            + (f"; again after {run.again_after_s} s" if run.again_after_s else "")
            + (f"; cancelled after {run.cancel_after_s:.1f} s" if run.cancel_after_s else "")
            for run in self.runs
        ]
        told += [str(trap) for trap in self.traps]
        told += [f"{o.server} is down at {o.at_s:.1f} s for {o.for_s:.1f} s" for o in self.outages]
        told += [f"the cache's entries expire at {at_s:.1f} s" for at_s in self.expiries_s]
        told += [f"the cache loses everything at {at_s:.1f} s" for at_s in self.losses_s]
        rates = {f.name: getattr(self.weather, f.name) for f in fields(self.weather)}
        rates = {n: rates[n] for n in ("crash", "pause", "slow", "fault") if rates[n]}
        return [
            *told,
            "weather: " + (", ".join(f"{n} {r:.3f}" for n, r in rates.items()) or "fair"),
        ]


def _told(submission: Submission) -> str:
    document = submission.document
    if submission.deletes:
        return f"delete {document.document_id}"
    return f"{document.document_id} {document.content!r}"
