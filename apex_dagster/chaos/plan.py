"""What a run is to do, and the settings under which it does it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from apex_dagster.chaos.http_door import API
from apex_dagster.chaos.schedule import Disturbance, Target, schedule
from apex_dagster.chaos.warm_workers import POOL, WORKER
from apex_dagster.embedded.stack import ALL
from apex_dagster.settings import Settings

# Short leases, so that many sagas are taken over; the grace stays longer than a read. What the
# environment says of these wins.
TIMINGS: Mapping[str, str] = {
    "APEX_LEASE_S": "5",
    "APEX_STEP_TIMEOUT_S": "8",
    "APEX_UNDO_TIMEOUT_S": "16",
    "APEX_GRACE_S": "5",
    "APEX_READ_TIMEOUT_S": "3",
    "APEX_SAGA_BOUND_S": "60",
}
RECOVERY = "recovery"

_SERVER_FROZEN_S = (1.0, 10.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a run is to do."""

    seed: int
    seconds: float  # of load
    rate: float  # documents a second, whatever becomes of them
    every_s: float  # between two disturbances
    workers: int
    front_door: Literal["workers", "api"] = "workers"

    @property
    def processes(self) -> list[str]:
        """Ours, by the names that the front door gives them."""
        if self.front_door == "api":
            return [API, POOL, WORKER, RECOVERY]
        return [*(f"worker-{number}" for number in range(1, self.workers + 1)), RECOVERY]

    def disturbances(self, *, lease_s: float) -> list[Disturbance]:
        """The schedule that follows from the seed."""
        # Frozen for longer than its lease, a process wakes up as a zombie.
        ours_frozen_s = (0.5 * lease_s, 2.5 * lease_s)
        targets = [Target(name=name, frozen_s=_SERVER_FROZEN_S) for name in ALL]
        targets += [Target(name=name, frozen_s=ours_frozen_s) for name in self.processes]
        return schedule(targets, seed=self.seed, seconds=self.seconds, every_s=self.every_s)


@contextmanager
def environment_of_run(home: Path) -> Iterator[Settings]:
    """The environment of this process and its children: servers of `home` alone, whatever APEX_*
    says of others, and short leases. Put back at the end."""
    before = dict(os.environ)
    timings = {name: os.environ.get(name, value) for name, value in TIMINGS.items()}
    for name in before:
        if name.startswith("APEX_"):
            del os.environ[name]
    os.environ.update(timings, APEX_HOME=str(home))
    try:
        yield Settings()
    finally:
        os.environ.clear()
        os.environ.update(before)
