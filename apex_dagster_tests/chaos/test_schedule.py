"""The schedule follows from its seed, and spares nobody."""

from __future__ import annotations

from itertools import pairwise

from apex_dagster.chaos.plan import Plan
from apex_dagster.chaos.schedule import KINDS
from apex_dagster.embedded.stack import ALL


def plan(seed: int) -> Plan:
    return Plan(seed=seed, seconds=600.0, rate=10.0, every_s=8.0, workers=3)


def test_one_seed_gives_one_schedule() -> None:
    assert plan(1).disturbances(lease_s=5.0) == plan(1).disturbances(lease_s=5.0)
    assert plan(1).disturbances(lease_s=5.0) != plan(2).disturbances(lease_s=5.0)


def test_everything_is_killed_and_frozen_before_anything_has_its_turn_again() -> None:
    targets = {*ALL, "worker-1", "worker-2", "worker-3", "recovery"}
    turns = [(one.target, one.kind) for one in plan(3).disturbances(lease_s=5.0)]
    every = {(target, kind) for target in targets for kind in KINDS}
    assert len(turns) > 3 * len(every)
    for start in range(0, len(turns) - len(every), len(every)):
        assert set(turns[start : start + len(every)]) == every


def test_disturbances_come_one_after_the_other_and_while_there_is_load() -> None:
    times = [one.at_s for one in plan(4).disturbances(lease_s=5.0)]
    assert times[0] >= 3.0
    assert times[-1] <= 597.0
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert min(gaps) > 8.0 * 0.6
    assert max(gaps) < 8.0 * 1.4


def test_a_process_is_sometimes_frozen_for_longer_than_its_lease() -> None:
    frozen_s = [
        one.for_s
        for one in plan(5).disturbances(lease_s=5.0)
        if one.kind == "freeze" and one.target not in ALL
    ]
    assert min(frozen_s) < 5.0 < max(frozen_s)
