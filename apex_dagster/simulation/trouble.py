"""Trouble aimed at where it hurts: between stage and pivot, pivot and publish, undo and record."""

from __future__ import annotations

import random

from apex_dagster.simulation.plan import STORES
from apex_dagster.simulation.traps import Act, Trap

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
_LATE: tuple[Act, ...] = ("late", "twice")
_UNANSWERED: tuple[Act, ...] = ("unanswered", "late")
_STOP_OR_TWICE: tuple[Act, ...] = ("stop", "twice")
_LONG_S = (31.0, 300.0)  # longer than a lease


def draw_traps(draw: random.Random) -> list[Trap]:
    """Up to four traps at places where they hurt."""
    return [kind(draw) for kind in draw.choices(_KINDS, k=draw.choice((0, 1, 2, 2, 3, 4)))]


def _stop(draw: random.Random, *places: str, nth_max: int = 2) -> Trap:
    return Trap(
        at=draw.choice(places),
        act="stop",
        nth=draw.randint(1, nth_max),
        delay_s=draw.uniform(*_LONG_S),
    )


def _zombie_in_stage(draw: random.Random) -> Trap:
    places = [f"{moment}:{step}" for moment in ("started", "written", "recorded") for step in STEPS]
    return _stop(draw, "claimed", "extracted", *places)


def _zombie_before_pivot(draw: random.Random) -> Trap:
    return _stop(draw, "staged", "ledger pivot")


def _zombie_in_publish(draw: random.Random) -> Trap:
    places = [f"published:{step}" for step in STEPS]
    requests = ("neo4j publish", "postgres publish", "redis publish", "qdrant set_payload")
    return _stop(draw, "pivoted", "marked", *places, *requests)


def _zombie_in_undo(draw: random.Random) -> Trap:
    moments = ("undoing", "undone", "undo_recorded")
    places = [f"{moment}:{step}" for moment in moments for step in STEPS]
    return _stop(draw, "compensating", "undone", *places)


def _late_stage(draw: random.Random) -> Trap:
    request = draw.choice(("neo4j stage", "postgres stage", "redis stage", *["qdrant upsert"] * 3))
    nth = draw.randint(1, 3)
    # While the next one stages, after the undo, or after the removal.
    delay_s = draw.uniform(*draw.choice(((0.05, 3.0), (3.0, 60.0), (60.0, 400.0))))
    return Trap(at=request, act=draw.choice(_LATE), nth=nth, delay_s=delay_s)


def _doubled(draw: random.Random) -> Trap:
    requests = ("neo4j publish", "postgres publish", "redis publish", "qdrant set_payload")
    removals = [f"{store} {verb}" for store in STORES for verb in ("revert", "discard")]
    places = (*requests, *removals)
    nth = draw.randint(1, 3)
    return Trap(at=draw.choice(places), act="twice", nth=nth, delay_s=draw.uniform(1.0, 200.0))


def _lost_answer(draw: random.Random) -> Trap:
    closes = ("close_published", "_end")
    transactions = ("pivot", "pivot", "take_over", "advance", *closes)
    at = f"ledger {draw.choice(transactions)}"
    return Trap(
        at=at,
        act=draw.choice(_UNANSWERED),
        nth=draw.randint(1, 2),
        delay_s=draw.uniform(13.0, 90.0),
    )


def _late_pivot(draw: random.Random) -> Trap:
    """It lands when its sender has given up, and perhaps undone what it wanted to make live."""
    delay_s = draw.uniform(12.5, 30.0)
    return Trap(at="ledger pivot", act="late", nth=draw.randint(1, 2), delay_s=delay_s)


def _late_publish(draw: random.Random) -> Trap:
    """Late enough for a successor to have been published."""
    requests = ("neo4j publish", "qdrant set_payload", "redis publish")
    return Trap(
        at=draw.choice(requests),
        act=draw.choice(_STOP_OR_TWICE),
        nth=draw.choice((1, 1, 2)),
        delay_s=draw.uniform(1.0, 250.0),
    )


def _restart(draw: random.Random) -> Trap:
    moments = ("started", "sent", "written", "recorded", "published", "undoing", "undone")
    places = [f"{moment}:{step}" for moment in moments for step in STEPS]
    at = draw.choice(("opened", "claimed", "staged", "pivoted", "marked", "compensating", *places))
    return Trap(at=at, act="die", nth=draw.randint(1, 3))


_KINDS = (
    _zombie_in_stage,
    _zombie_before_pivot,
    _zombie_in_publish,
    _zombie_in_publish,
    _zombie_in_undo,
    _late_stage,
    _late_stage,
    _doubled,
    _lost_answer,
    _late_pivot,
    _late_publish,
    _restart,
)
