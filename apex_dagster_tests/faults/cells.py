"""The fault matrix: where a saga is hit, what hits it, and how it has to end.

Where: each step, each undo, each store's part of publish, and the pivot; before the write, after it
(the store has it, the caller was not told), and before the ledger row that records it.

What hits it:
reject       an error that will never heal
unavailable  one that heals: the same call succeeds when it is repeated
late         time-out with late landing: the caller gives up, or its owner is paused until it has
             been taken over; then what was about to happen happens, after the undo or the takeover
repeat       an attempt times out, the next one succeeds, and the first one lands when all is over
kill         SIGKILL of the process
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from apex_dagster.saga.states import Status

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")

# Failpoints: before the write, after it, before its ledger row.
STAGE = ("started:{step}", "sent:{step}", "written:{step}")
UNDO = ("undoing:{step}", "undo_sent:{step}", "undone:{step}")
PUBLISH = ("publishing:{step}", "publish_sent:{step}", "published:{step}")
PIVOT = ("staged", "pivoting", "pivoted")  # the write and its ledger row are one transaction

ACTIONS = {
    "reject": "reject*1",
    "unavailable": "unavailable*1",
    "late": "park*1",
    "repeat": "park*1",
    "kill": "kill",
}
# What makes a saga fail once everything is staged, so that there is something to undo everywhere.
FAILS_LAST = "sent:redis_write=reject*1"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One fault at one point."""

    act: str  # "stage", "undo", "publish" or "pivot"
    step: str | None  # None for the pivot
    point: str
    fault: str
    ends: Status

    @property
    def failpoints(self) -> str:
        """What to arm."""
        hit = f"{self.point}={ACTIONS[self.fault]}"
        return f"{FAILS_LAST};{hit}" if self.act == "undo" else hit

    @property
    def is_staged_late(self) -> bool:
        """The stage request reaches its store after the saga has been undone."""
        return (self.act, self.fault) == ("stage", "late") and self.point.startswith("started")

    def __str__(self) -> str:
        return f"{self.act}-{self.point}-{self.fault}"


def cells() -> Iterator[Cell]:
    """All of them."""
    for act, points in (("stage", STAGE), ("undo", UNDO), ("publish", PUBLISH)):
        for step in STEPS:
            for position, point in enumerate(points):
                # The last point is outside of what is retried: nothing there is a store's error.
                yield from _faults(act, step, point.format(step=step), heals=position < 2)
    for point in PIVOT:
        yield from _faults("pivot", None, point, heals=point == "pivoting")


def _faults(act: str, step: str | None, point: str, *, heals: bool) -> Iterator[Cell]:
    for fault in ACTIONS:
        # Inside of the pivot's transaction the second attempt would wait for the first one's locks.
        repeats = heals and act != "pivot"
        if {"unavailable": heals, "repeat": repeats}.get(fault, True):
            ends = _end(act, point, fault)
            yield Cell(act=act, step=step, point=point, fault=fault, ends=ends)


def _end(act: str, point: str, fault: str) -> Status:
    """Undone is what failed before the pivot, or whose caller gave up. An owner that died or was
    paused did nothing wrong: whoever takes over goes on. After the pivot there is no way back."""
    if act == "undo":
        return Status.COMPENSATED
    if act == "publish" or point == "pivoted":
        return Status.COMPLETED
    gave_up = fault == "late" and point.startswith(("started", "sent"))
    return Status.COMPENSATED if fault == "reject" or gave_up else Status.COMPLETED
