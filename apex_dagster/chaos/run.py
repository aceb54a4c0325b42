"""A run from start to end: servers, load, readers, disturbances; then quiet, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path

from apex_dagster.chaos.callers import Callers
from apex_dagster.chaos.disturbances import Disturbances
from apex_dagster.chaos.front_door import FrontDoor, Workers
from apex_dagster.chaos.http_door import HttpFrontDoor
from apex_dagster.chaos.offers import Offers
from apex_dagster.chaos.plan import RECOVERY, Plan, environment_of_run
from apex_dagster.chaos.processes import Child, Server, Victim
from apex_dagster.chaos.readers import Readers
from apex_dagster.chaos.report import Report
from apex_dagster.chaos.verdict import Violation, judge
from apex_dagster.chaos.watch import Watch
from apex_dagster.composition import Application, build
from apex_dagster.embedded.stack import ALL, Stack

_CALLERS_WAIT_S = 180.0  # for what is still queued when the load ends

Say = Callable[[str], None]

FRONT_DOORS: Mapping[str, type[Workers] | type[HttpFrontDoor]] = {
    "workers": Workers,
    "api": HttpFrontDoor,
}


def run(plan: Plan, *, home: Path, say: Say) -> Report:
    """Do it. `home` holds no servers yet; they are left running.

    Raises ServerNotStarted where a server cannot be started (again).
    """
    with environment_of_run(home) as settings, ExitStack() as stack:
        say(f"servers and records are in {home}; starting the servers")
        app = build(settings, Stack(home).ensure())
        stack.callback(app.close)
        records = home / "chaos"
        records.mkdir()
        callers = Callers(records / "callers.jsonl")
        stack.callback(callers.close)
        recovery = Child(RECOVERY, ["apex_dagster.chaos.recovery"], log=records / "recovery.log")
        stack.callback(recovery.stop)
        front_door: FrontDoor = FRONT_DOORS[plan.front_door](plan.workers, callers, log_dir=records)
        stack.callback(front_door.close)
        return ChaosRun(plan, app, callers, front_door, recovery, say=say).to_the_end()


class ChaosRun:
    """One run over servers that are up."""

    def __init__(
        self,
        plan: Plan,
        app: Application,
        callers: Callers,
        front_door: FrontDoor,
        recovery: Child,
        *,
        say: Say,
    ) -> None:
        self._plan, self._app, self._callers, self._say = plan, app, callers, say
        self._front_door, self._recovery = front_door, recovery
        self._offers = Offers(seed=plan.seed, embedding_dim=app.settings.embedding_dim)
        self._readers = Readers(
            app.reader,
            app.endpoints.postgres_url.get_secret_value(),
            self._offers.worth_reading,
            seed=plan.seed,
        )
        victims: dict[str, Victim] = {name: Server(app.settings.home, name) for name in ALL}
        self._disturbances = Disturbances(
            plan.disturbances(lease_s=app.settings.lease_s),
            {**victims, **front_door.victims, RECOVERY: recovery},
            say=say,
        )
        self._watch = Watch(
            app.ledger,
            bound_s=app.settings.saga_bound_s,
            clock=self._disturbances.service_clock,
        )
        self._waiting_max = 0

    def to_the_end(self) -> Report:
        """Load and disturbances, quiet, verdict."""
        for store in self._app.stores.values():
            store.prepare()  # building its indexes takes a fresh Neo4j seconds
        self._recovery.start()
        self._front_door.open()
        self._readers.start()
        self._watch.start()
        try:
            load_s = self._load()
            self._say("all servers are up; waiting for callers and sagas")
            self._wait_for_callers()
            drained_s, violations = self._watch.wait_until_all_have_ended()
            # Superseded versions stay for the grace, and readers may still be at them.
            time.sleep(self._app.settings.grace_s)
        finally:
            self._disturbances.abandon()
            self._readers.stop()
            overdue = self._watch.stop()
            self._front_door.close()
            self._recovery.stop()
        self._say("nobody writes any more; looking at every document in every store")
        return self._report(load_s, drained_s, [*violations, *overdue])

    def _load(self) -> float:
        """Open loop: each document is handed in when it is due, however the earlier ones fare.
        Returns how long it took, in seconds."""
        self._disturbances.start()
        began = time.monotonic()
        for number in range(int(self._plan.seconds * self._plan.rate)):
            offer = self._offers.next()
            time.sleep(max(0.0, began + number / self._plan.rate - time.monotonic()))
            self._callers.offer(offer)
            self._front_door.submit(offer)
            self._waiting_max = max(self._waiting_max, self._front_door.unfinished)
        took_s = time.monotonic() - began
        self._disturbances.finish()
        return took_s

    def _wait_for_callers(self) -> None:
        deadline = time.monotonic() + _CALLERS_WAIT_S
        while self._front_door.unfinished and time.monotonic() < deadline:
            time.sleep(0.1)

    def _report(self, load_s: float, drained_s: float, violations: list[Violation]) -> Report:
        submissions = self._callers.all()
        verdict = judge(self._app, submissions, self._readers)
        return Report.of(
            self._app,
            plan=self._plan,
            disturbances=self._disturbances.done,
            submissions=submissions,
            readers=self._readers,
            verdict=verdict,
            violations=violations + verdict.violations,
            waiting_max=self._waiting_max,
            load_s=load_s,
            drained_s=drained_s,
        )
