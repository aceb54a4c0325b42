"""Draws what a seed has in store.

Much of the trouble is aimed (`trouble.py`, `scenes.py`): bad luck alone rarely stops a process
between two particular requests, lets a write land after its removal, and brings the rivals that
turn this into a fault.
"""

from __future__ import annotations

import random

from apex_dagster.ingestion.ingest import Submission
from apex_dagster.simulation.documents import TROUBLES, deletion, submission
from apex_dagster.simulation.plan import FAULTS_S, SERVERS, Outage, Plan, PlannedRun
from apex_dagster.simulation.scenes import SCENES
from apex_dagster.simulation.trouble import draw_traps
from apex_dagster.simulation.world import Weather

_SCENES_SHARE = 0.45  # of all seeds


def draw_plan(seed: int) -> Plan:
    """The plan of a seed."""
    draw = random.Random(f"plan {seed}")  # noqa: S311 - reproducible on purpose
    plan = Plan(
        seed=seed,
        weather=_weather(draw),
        runs=tuple(_runs(draw)),
        traps=tuple(draw_traps(draw)),
        outages=tuple(_outages(draw)),
        expiries_s=_moments(draw, 0.4, 1.7 * FAULTS_S),  # also while late ones go on
        owners_notice=draw.random() < 0.3,
        losses_s=_moments(draw, 0.1, FAULTS_S),
    )
    return draw.choice(SCENES)(draw, plan) if draw.random() < _SCENES_SHARE else plan


def _weather(draw: random.Random) -> Weather:
    # Half of all seeds leave it to their traps, whose effects foul weather would cover up.
    if draw.random() < 0.5:
        return Weather(fault=draw.uniform(0.0, 0.02))
    return Weather(
        crash=draw.uniform(0.0, 0.01),
        pause=draw.uniform(0.0, 0.02),
        pause_s_max=FAULTS_S,
        slow=draw.uniform(0.0, 0.1),
        fault=draw.uniform(0.0, 0.12),
    )


def _runs(draw: random.Random) -> list[PlannedRun]:
    documents = draw.choice((1, 1, 1, 2, 3))  # versions of one document meet most often
    deletes_share = draw.choice((0.0, 0.0, 0.3, 0.5))
    left = [
        deletion(f"d{draw.randint(1, documents)}")
        if draw.random() < deletes_share
        else submission(
            f"d{draw.randint(1, documents)}",
            edition=draw.randint(1, 9),
            chunks=draw.randint(1, 3),
            trouble=draw.choice(TROUBLES) if draw.random() < 0.08 else None,
        )
        for _ in range(draw.choice((2, 3, 3, 4)))
    ]
    # Rivals at the same time, followers while the first is being published or removed, or any mix.
    gap_s = draw.choice(((0.0, 0.3), (0.0, 3.0), (20.0, 45.0), (0.0, 60.0)))
    at_s, runs = 0.0, list[PlannedRun]()
    while left:
        batch = tuple(left.pop() for _ in range(min(len(left), draw.choice((1, 1, 2)))))
        at_s += draw.uniform(*gap_s)
        runs.append(_run(draw, min(at_s, 100.0), batch))
    return runs


def _run(draw: random.Random, at_s: float, batch: tuple[Submission, ...]) -> PlannedRun:
    trouble = draw.random()
    again = tuple(draw.uniform(2.0, 60.0) for _ in range(draw.choice((1, 1, 2))))
    return PlannedRun(
        at_s=at_s,
        submissions=batch,
        op_by_op=draw.random() < 0.5,
        hook=draw.random() < 0.7,
        again_after_s=again if trouble < 0.3 else (),
        cancel_after_s=draw.uniform(0.0, 30.0) if 0.3 <= trouble < 0.45 else None,
        cancel_kills=draw.random() < 0.5,
    )


def _outages(draw: random.Random) -> list[Outage]:
    return [
        Outage(server=server, at_s=draw.uniform(0.0, 100.0), for_s=draw.uniform(1.0, 40.0))
        for server in SERVERS
        if draw.random() < 0.15
    ]


def _moments(draw: random.Random, probability: float, until_s: float) -> tuple[float, ...]:
    return (draw.uniform(0.0, until_s),) if draw.random() < probability else ()
