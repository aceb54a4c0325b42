"""One seed: a few documents, runs that submit them, recoveries, readers, and trouble to match.

Some minutes of faults, then calm. Every saga has to end within a bound after that; late writes go
on landing until the sweeps of an hour and a day later, and then the stores have to be clean.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.records import SagaId
from apex_dagster.saga.failpoints import observed
from apex_dagster.simulation.actors import LEASE_S, Actors
from apex_dagster.simulation.documents import chunk_count
from apex_dagster.simulation.draw import draw_plan
from apex_dagster.simulation.invariants import Invariants, Violation
from apex_dagster.simulation.model_store import ModelStore
from apex_dagster.simulation.moves import MoveWatch
from apex_dagster.simulation.network import Network
from apex_dagster.simulation.parts import SCHEDULE, Parts
from apex_dagster.simulation.plan import FAULTS_S, Outage, Plan
from apex_dagster.simulation.tables import Tables
from apex_dagster.simulation.traps import Traps
from apex_dagster.simulation.world import World, current_task

_BOUND_S = 60.0  # after the last lease has run out, as APEX_SAGA_BOUND_S
_POSTPONED_S = 25.0  # a retry that waits for another submission's end, and the tick after that
_DAY_S = 86_400.0  # after a saga's end comes its last sweep
_MARGIN_S = 5.0
_SWEEPS_MAX = 100  # a few sagas, three sweeps each
# By then whoever was stopped by a trap has gone on, and has had its say.
_ALL_AWAKE_S = 700.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one seed."""

    seed: int
    violation: str | None
    sagas: Mapping[str, int]  # by status
    faults: Mapping[str, int]  # by kind: "deaths", "stops", "landed late", "refused", ...
    sprung: frozenset[str]  # places where a trap was waiting for somebody who came
    residual_s: float  # see Invariants
    trace: Sequence[str]
    trace_hash: str


def simulate(seed: int, parts: Parts | None = None) -> Outcome:
    """Live through one seed; the same seed has the same outcome, down to the trace."""
    return play(draw_plan(seed), parts)


def play(plan: Plan, parts: Parts | None = None) -> Outcome:
    """Live through a plan."""
    scenario = _Scenario(plan, parts or Parts())
    violation = None
    with _quietly(plan.seed), observed(scenario.pass_point):
        try:
            scenario.play()
        except Violation as found:
            violation = str(found)
        finally:
            scenario.world.end()
    return scenario.outcome(violation)


@contextmanager
def _quietly(seed: int) -> Iterator[None]:
    """Without logs, and with the jitter of retries drawn from the seed."""
    state, disabled = random.getstate(), logging.root.manager.disable
    random.seed(seed)
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        random.setstate(state)
        logging.disable(disabled)


class _Scenario:
    def __init__(self, plan: Plan, parts: Parts) -> None:
        self._plan, self.world = plan, World(seed=plan.seed)
        self._traps = Traps(plan.traps)
        self._database = parts.database(self.world.now, name_saga=self._name_saga)
        self._network = Network(
            self.world, transactional=frozenset({"neo4j", "postgres"}), traps=self._traps
        )
        self._cache = parts.cache(self._network)
        stores: dict[str, ModelStore] = {
            "neo4j": parts.graph(self._network),
            "postgres": parts.relational(self._network, self._database),
            "qdrant": parts.vectors(self._network),
            "redis": self._cache,
        }
        submissions = [s for run in plan.runs for s in run.submissions if not s.deletes]
        documents = [submission.document for submission in submissions]
        chunks = {content_hash(document): chunk_count(document) for document in documents}
        self._invariants = Invariants(self.world, self._database, stores, chunks)
        self._network.on_change = self._invariants.note_change
        watch = MoveWatch(
            self._database,
            stores,
            who=lambda: current_task().process.name,
            note=self.world.note,
            report=self._invariants.found.append,
        )

        def on_commit(before: Tables) -> None:
            self._invariants.note_change("ledger")
            watch.check(before)

        self._database.on_commit = on_commit
        self._actors = Actors(
            self.world,
            parts,
            self._database,
            self._network,
            stores,
            self._invariants,
            owners_notice=plan.owners_notice,
        )

    def play(self) -> None:
        """Faults, calm, rest."""
        world, actors = self.world, self._actors
        self._schedule()
        world.run(FAULTS_S)
        self._network.down.clear()
        self._traps.disarm()
        world.calm()
        world.note("the faults are over")
        for after_s in (20.0, 60.0):
            world.at(after_s, actors.redrive)
        calm_at = world.now()
        world.run(FAULTS_S + LEASE_S + _BOUND_S)
        self._invariants.check_ended(opened_before=calm_at)
        # The last that failed waits longest; then nobody may claim it until its lease has run out.
        world.run(world.now_s + SCHEDULE.delay_s_max + 2 * _POSTPONED_S + LEASE_S + _BOUND_S)
        self._invariants.check_ended()
        self._invariants.check_retries()
        actors.over = True
        self._sweep_until_rest()
        self._invariants.check_rest(actors.acknowledged)

    def _sweep_until_rest(self) -> None:
        """Each sweep soon after it is due, until none is left."""
        self._invariants.sweeps_are_prompt = True
        world = self.world
        for _ in range(_SWEEPS_MAX):
            due_at = self._database.next_sweep()
            if due_at is None and world.now_s > _DAY_S:
                return
            wait_s = (due_at - world.now()).total_seconds() if due_at else _DAY_S
            if world.now_s < _ALL_AWAKE_S:  # it may ask for one that is due before
                wait_s = min(wait_s, 4 * _MARGIN_S)
            world.run(world.now_s + max(0.0, wait_s) + _MARGIN_S)
            self._actors.sweep()
            world.run(world.now_s + _MARGIN_S)

    def outcome(self, violation: str | None) -> Outcome:
        """What is to be told of it."""
        statuses = [saga["status"] for saga in self._database.tables.sagas.values()]
        return Outcome(
            seed=self._plan.seed,
            violation=violation,
            sagas={status: statuses.count(status) for status in sorted(set(statuses))},
            faults=dict(self.world.counts),
            sprung=frozenset(self._traps.sprung),
            residual_s=self._invariants.residual_s,
            trace=self.world.trace,
            trace_hash=self.world.trace_hash(),
        )

    def pass_point(self, point: str) -> None:
        """The engine passes a failpoint: a trap may be there."""
        trap = self._traps.arrive(point)
        if trap and not trap.fault:
            self.world.note(f"{current_task().process.name} passes {point}")
            self.world.strike(trap.act, trap.delay_s)

    # -- the plan ----------------------------------------------------------------------------------

    def _schedule(self) -> None:
        world, plan, actors = self.world, self._plan, self._actors
        world.weather = plan.weather
        for run in plan.runs:
            world.at(run.at_s, lambda run=run: actors.start_run(run))  # type: ignore[misc]
        for outage in plan.outages:
            world.at(outage.at_s, lambda outage=outage: self._take_down(outage))  # type: ignore[misc]
        for at_s in plan.expiries_s:
            world.at(at_s, self._expire_cache)
        for at_s in plan.losses_s:
            world.at(at_s, self._lose_cache)
        for _ in range(2):
            actors.start_recovery()
        for _ in range(3):
            world.at(world.random.uniform(0.0, FAULTS_S), actors.read)

    def _take_down(self, outage: Outage) -> None:
        self.world.note(f"{outage.server} is down")
        self._network.down.add(outage.server)
        self.world.at(outage.for_s, lambda: self._bring_up(outage.server))

    def _bring_up(self, server: str) -> None:
        self.world.note(f"{server} is up")
        self._network.down.discard(server)

    def _expire_cache(self) -> None:
        self.world.note("redis: entries expire")
        self._invariants.entries_were_lost = True
        self._cache.expire()

    def _lose_cache(self) -> None:
        self.world.note("redis loses everything")
        self._invariants.entries_were_lost = self._invariants.fences_were_lost = True
        self._cache.forget()

    def _name_saga(self, saga_id: str, document_id: str) -> SagaId:
        kind = saga_id.partition("_")[0]
        return SagaId(f"{kind}_{document_id}_{self.world.random.getrandbits(64):016x}")
