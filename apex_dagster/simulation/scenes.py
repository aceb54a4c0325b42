"""Interleavings that take several things going wrong in one order, set up on purpose."""

from __future__ import annotations

import random
from dataclasses import replace

from apex_dagster.simulation.documents import deletion, submission
from apex_dagster.simulation.plan import Plan, PlannedRun
from apex_dagster.simulation.traps import Trap
from apex_dagster.simulation.world import Weather


def late_stage_late_mark(draw: random.Random, plan: Plan) -> Plan:
    """The residual of a store without transactions: a version is replaced and removed, staged once
    more by a request that lands late, and marked by a publisher that looked long ago."""
    traps = (
        Trap(at="qdrant upsert", act="twice", nth=1, delay_s=draw.uniform(100.0, 200.0)),
        Trap(at="qdrant set_payload", act="stop", nth=1, delay_s=draw.uniform(150.0, 400.0)),
    )
    return _fair(plan, traps, _run(draw, 0.0), _run(draw, draw.uniform(35.0, 60.0)))


def late_publish_of_an_expired_entry(draw: random.Random, plan: Plan) -> Plan:
    """A publisher is stopped before the cache; its successor's entry expires before it goes on."""
    traps = (Trap(at="redis publish", act="stop", nth=1, delay_s=draw.uniform(120.0, 300.0)),)
    scene = _fair(plan, traps, _run(draw, 0.0), _run(draw, draw.uniform(35.0, 60.0)))
    return replace(scene, expiries_s=(draw.uniform(60.0, 120.0),))


def late_mark_of_a_superseded_version(draw: random.Random, plan: Plan) -> Plan:
    """The request that marks a version lands once more when its successor has been published."""
    request = draw.choice(("qdrant set_payload", "qdrant set_payload", "neo4j publish"))
    traps = (Trap(at=request, act="twice", nth=1, delay_s=draw.uniform(5.0, 60.0)),)
    return _fair(plan, traps, _run(draw, 0.0), _run(draw, draw.uniform(1.0, 10.0)))


def late_stage_of_a_live_saga(draw: random.Random, plan: Plan) -> Plan:
    """A write lands once more when its version has been published."""
    request = draw.choice(("neo4j stage", "postgres stage", "qdrant upsert", "redis stage"))
    traps = (Trap(at=request, act="twice", nth=1, delay_s=draw.uniform(0.5, 30.0)),)
    return _fair(plan, traps, _run(draw, 0.0))


def late_stage_of_a_dead_saga(draw: random.Random, plan: Plan) -> Plan:
    """A write of a cancelled saga lands when the next one for its document is being written."""
    request = draw.choice(("neo4j stage", "qdrant upsert", "qdrant upsert", "qdrant upsert"))
    traps = (
        Trap(at=request, act="twice", nth=1, delay_s=draw.uniform(1.5, 4.0)),
        Trap(at=draw.choice(("written:redis_write", "staged")), act="die", nth=1),
    )
    first = replace(_run(draw, 0.0), cancel_after_s=1.0, cancel_kills=True)
    return _fair(plan, traps, first, _run(draw, draw.uniform(3.0, 8.0)))


def late_pivot_of_a_dead_saga(draw: random.Random, plan: Plan) -> Plan:
    """A pivot lands when its sender has given up, and has undone what it wanted to make live."""
    delay_s = draw.uniform(12.0, 14.0)
    traps = (Trap(at="ledger pivot", act="late", nth=1, delay_s=delay_s),)
    return _fair(plan, traps, replace(_run(draw, 0.0), hook=True))


def three_rivals(draw: random.Random, plan: Plan) -> Plan:
    """The first wins, the second starts again and wins, the third still builds on nothing."""
    step = draw.choice(("recorded:qdrant_write", "recorded:redis_write", "staged"))
    traps = (Trap(at=step, act="stop", nth=draw.randint(2, 3), delay_s=draw.uniform(2.0, 25.0)),)
    return _fair(plan, traps, *(_run(draw, draw.uniform(0.0, 0.2)) for _ in range(3)))


def late_mark_of_a_deleted_version(draw: random.Random, plan: Plan) -> Plan:
    """A publisher is stopped before a store, or its request lands once more, when the document has
    been deleted."""
    request = draw.choice(("redis publish", "neo4j publish", "qdrant set_payload", "qdrant facet"))
    trap = Trap(
        at=request, act=draw.choice(("stop", "twice")), nth=1, delay_s=draw.uniform(60.0, 200.0)
    )
    return _fair(plan, (trap,), _run(draw, 0.0), _deletion(draw, draw.uniform(35.0, 55.0)))


def late_removal(draw: random.Random, plan: Plan) -> Plan:
    """A removal lands once more when the document has been submitted again."""
    store = draw.choice(("neo4j", "postgres", "qdrant", "redis"))
    delay_s = draw.uniform(5.0, 100.0)
    traps = (Trap(at=f"{store} remove", act="twice", nth=1, delay_s=delay_s),)
    again = _run(draw, draw.uniform(3.0, 8.0))
    return _fair(plan, traps, _run(draw, 0.0), _deletion(draw, 2.0), again)


def deletion_between_rivals(draw: random.Random, plan: Plan) -> Plan:
    """What was submitted before a deletion comes to its pivot when that is over."""
    step = draw.choice(("recorded:qdrant_write", "recorded:redis_write", "staged"))
    traps = (Trap(at=step, act="stop", nth=draw.randint(1, 2), delay_s=draw.uniform(2.0, 25.0)),)
    early = (_run(draw, 0.0), _run(draw, draw.uniform(0.0, 0.5)))
    return _fair(plan, traps, *early, _deletion(draw, draw.uniform(0.5, 1.5)))


def deletion_left_half_way(draw: random.Random, plan: Plan) -> Plan:
    """Whoever deletes dies, and somebody else goes on."""
    moments = ("pivoted", "erasing", "erased", "read_back", "marked", "closed")
    steps = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
    places = [f"{moment}:{step}" for moment in ("removing", "removed") for step in steps]
    traps = (Trap(at=draw.choice((*moments, *places)), act="die", nth=1),)
    return _fair(plan, traps, _run(draw, 0.0), _deletion(draw, draw.uniform(2.0, 8.0)))


def _deletion(draw: random.Random, at_s: float) -> PlannedRun:
    op_by_op = draw.random() < 0.5
    return PlannedRun(at_s=at_s, submissions=(deletion("d1"),), op_by_op=op_by_op, hook=True)


def _run(draw: random.Random, at_s: float) -> PlannedRun:
    chunks = draw.randint(1, 3)
    document = submission("d1", edition=draw.randint(1, 9), chunks=chunks, trouble=None)
    op_by_op = draw.random() < 0.5
    return PlannedRun(at_s=at_s, submissions=(document,), op_by_op=op_by_op, hook=True)


def _fair(plan: Plan, traps: tuple[Trap, ...], *runs: PlannedRun) -> Plan:
    """Nothing but these, as anything else would mostly prevent what is set up."""
    return Plan(seed=plan.seed, weather=Weather(), runs=runs, traps=traps)


SCENES = (
    late_stage_late_mark,
    late_publish_of_an_expired_entry,
    late_mark_of_a_superseded_version,
    late_stage_of_a_live_saga,
    late_stage_of_a_dead_saga,
    late_pivot_of_a_dead_saga,
    three_rivals,
    late_mark_of_a_deleted_version,
    late_removal,
    deletion_between_rivals,
    deletion_left_half_way,
)
