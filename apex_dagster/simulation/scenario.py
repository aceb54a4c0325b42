"""One seed: a few documents, runs that submit them, recoveries, readers, and weather to match.

Two minutes of faults, then calm. Every saga has to end within a bound after that; late writes go on
landing until the sweeps of an hour and a day later, and then the stores have to be clean.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from apex_dagster.errors import ApexError, DocumentRejected
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.ingest import Ingestion, Submission
from apex_dagster.ingestion.steps import Extractions, StoreStep
from apex_dagster.records import Chunk, Document, Entity, Extraction, entity_key
from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.engine import SagaEngine
from apex_dagster.saga.retry import RetryPolicy
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.states import Status
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.invariants import Invariants, Violation
from apex_dagster.simulation.ledger import SimulatedLedger
from apex_dagster.simulation.network import Network
from apex_dagster.simulation.stores import (
    REFUSED_BY,
    ModelCache,
    ModelGraph,
    ModelRelational,
    ModelStore,
    ModelVectors,
)
from apex_dagster.simulation.world import Process, VirtualPace, Weather, World, current_task

_LEASE_S = 30.0
_FAULTS_S = 150.0
_BOUND_S = 60.0  # after the last lease has run out, as APEX_SAGA_BOUND_S
_READ_S_MAX = 10.0
_SWEEPS_S = (4_000.0, 90_000.0)  # after an hour, after a day, each with a margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a world is made of. A test replaces one by a broken one, which has to be found out."""

    database: type[Database] = Database
    ledger: type[SimulatedLedger] = SimulatedLedger
    graph: type[ModelGraph] = ModelGraph
    relational: type[ModelRelational] = ModelRelational
    vectors: type[ModelVectors] = ModelVectors
    cache: type[ModelCache] = ModelCache
    grace_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one seed."""

    seed: int
    violation: str | None
    sagas: Mapping[str, int]  # by status
    steps: int
    deaths: int
    mixed_qdrant_s: float
    trace: Sequence[str]
    trace_hash: str


def simulate(seed: int, parts: Parts | None = None) -> Outcome:
    """Live through one seed; the same seed has the same outcome, down to the trace."""
    with _quietly(seed):
        scenario = _Scenario(seed, parts or Parts())
        violation = None
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
    def __init__(self, seed: int, parts: Parts) -> None:
        self._parts = parts
        self.world = World(seed=seed)
        self._random = self.world.random
        self._database = parts.database(self.world.now, name_saga=self._name_saga)
        self._network = Network(self.world, transactional=frozenset({"neo4j", "postgres"}))
        self._graph = parts.graph(self._network)
        self._cache = parts.cache(self._network)
        self._stores: dict[str, ModelStore] = {
            "neo4j": self._graph,
            "postgres": parts.relational(self._network, self._database),
            "qdrant": parts.vectors(self._network),
            "redis": self._cache,
        }
        self._submissions = self._drawn_submissions()
        chunks = {content_hash(s.document): _chunks(s.document) for s in self._submissions}
        self._invariants = Invariants(self.world, self._database, self._stores, chunks)
        self._acknowledged: dict[str, str] = {}
        self._runs = self._recoveries = 0
        self._over = False

    def play(self) -> None:
        """Faults, calm, rest."""
        world = self.world
        world.weather = self._drawn_weather()
        self._schedule_runs()
        self._schedule_trouble()
        for _ in range(2):
            self._start_recovery()
        for _ in range(4):
            world.at(self._random.uniform(0.0, _FAULTS_S), self._read)
        world.run(_FAULTS_S)
        self._network.down.clear()
        world.calm()
        world.note("the faults are over")
        for after_s in (20.0, 60.0):
            world.at(after_s, lambda: self._process("operator").spawn(self._redrive))
        world.run(_FAULTS_S + _LEASE_S + _BOUND_S)
        self._invariants.check_ended()
        self._over = True
        for at_s in _SWEEPS_S:
            world.run(at_s)
            self._process("sweeper").spawn(self._sweep_all)
            world.run(at_s + 100.0)
        self._invariants.check_rest(self._acknowledged)

    def outcome(self, violation: str | None) -> Outcome:
        """What is to be told of it."""
        statuses = [saga["status"] for saga in self._database.tables.sagas.values()]
        return Outcome(
            seed=self.world.seed,
            violation=violation,
            sagas={status: statuses.count(status) for status in sorted(set(statuses))},
            steps=len(self.world.trace),
            deaths=sum(line.endswith(" dies") for line in self.world.trace),
            mixed_qdrant_s=self._invariants.mixed_qdrant_s,
            trace=self.world.trace,
            trace_hash=self.world.trace_hash(),
        )

    # -- what is drawn -----------------------------------------------------------------------------

    def _drawn_submissions(self) -> list[Submission]:
        documents = self._random.choice((1, 1, 2, 3))  # versions of one document meet most often
        return [
            _submission(
                f"d{self._random.randint(1, documents)}",
                edition=self._random.randint(1, 4),
                chunks=self._random.randint(1, 3),
                trouble=self._random.choice(_TROUBLES) if self._random.random() < 0.1 else None,
            )
            for _ in range(self._random.randint(2, 4))
        ]

    def _drawn_weather(self) -> Weather:
        draw = self._random.uniform
        return Weather(
            crash=draw(0.0, 0.01),
            pause=draw(0.0, 0.02),
            pause_s_max=_FAULTS_S,
            slow=draw(0.0, 0.1),
            fault=draw(0.0, 0.12),
        )

    def _schedule_runs(self) -> None:
        left = list(self._submissions)
        while left:
            batch = [left.pop() for _ in range(min(len(left), self._random.randint(1, 2)))]
            self.world.at(self._random.uniform(0.0, 60.0), lambda batch=batch: self._start(batch))  # type: ignore[misc]

    def _schedule_trouble(self) -> None:
        draw = self._random.uniform
        for server in (*self._stores, "ledger"):
            if self._random.random() < 0.25:
                down_at_s, down_s = draw(0.0, 100.0), draw(1.0, 40.0)
                self.world.at(down_at_s, lambda server=server: self._take_down(server))  # type: ignore[misc]
                self.world.at(down_at_s + down_s, lambda server=server: self._bring_up(server))  # type: ignore[misc]
        if self._random.random() < 0.1:
            self.world.at(draw(0.0, 100.0), self._lose_cache)

    def _take_down(self, server: str) -> None:
        self.world.note(f"{server} is down")
        self._network.down.add(server)

    def _bring_up(self, server: str) -> None:
        self.world.note(f"{server} is up")
        self._network.down.discard(server)

    def _lose_cache(self) -> None:
        self.world.note("redis loses everything")
        self._invariants.cache_was_lost = True
        self._cache.forget()

    # -- processes ---------------------------------------------------------------------------------

    def _process(self, name: str) -> Process:
        return Process(self.world, name)

    def _start(self, batch: Sequence[Submission], parent_owner: str | None = None) -> None:
        """A run. If it dies or falls silent, it may be executed again; or somebody cancels it."""
        self._runs += 1
        process = self._process(f"run-{self._runs}")
        run = self._run_at_once if self._random.random() < 0.5 else self._run_op_by_op
        process.spawn(lambda: run(batch, process.name, parent_owner))
        trouble = self._random.random()
        if trouble < 0.3 and self._runs < 8:  # also of one that is only thought to have died
            delay_s = self._random.uniform(5.0, 60.0)
            self.world.at(delay_s, lambda: self._start(batch, process.name))
        elif trouble < 0.45:
            delay_s = self._random.uniform(0.0, 30.0)
            self.world.at(delay_s, lambda: self._cancel(process))

    def _run_at_once(
        self, batch: Sequence[Submission], owner: str, parent_owner: str | None
    ) -> None:
        ingestion = self._ingestion()
        self._acknowledge(ingestion.ingest(batch, owner=owner, run_id=owner))

    def _run_op_by_op(
        self, batch: Sequence[Submission], owner: str, parent_owner: str | None
    ) -> None:
        """As Dagster's ops do, each of which finds its sagas by holding them again."""
        ingestion = self._ingestion()
        engine, failed = ingestion.engine, list[Saga]()
        with engine.lease(owner):
            opened = ingestion.open(batch, owner=owner, run_id=owner, dead_owner=parent_owner)
            extracted = ingestion.extract(opened.alive)
        failed += opened.failed + extracted.failed
        ids = [saga.saga_id for saga in extracted.alive]
        for step in engine.step_names:
            with engine.lease(owner):
                held = ingestion.hold(ids, owner=owner, run_id=owner, parent_owner=parent_owner)
                staging = ingestion.stage(step, held)
            failed += staging.failed
            ids = [saga.saga_id for saga in staging.alive]
        with engine.lease(owner):
            held = ingestion.hold(ids, owner=owner, run_id=owner, parent_owner=parent_owner)
            commit = ingestion.commit(held, owner=owner, run_id=owner)
        self._acknowledge(commit.completed)
        hook = self._ingestion().compensation
        hook.compensate([saga.saga_id for saga in [*failed, *commit.failed]], owner=owner)

    def _acknowledge(self, sagas: Sequence[Saga]) -> None:
        for saga in sagas:
            if saga.status is Status.COMPLETED:
                self._acknowledged[saga.saga_id] = saga.document_id

    def _cancel(self, run: Process) -> None:
        """The run is force-cancelled: it may be dead, or only believed to be."""
        if self._random.random() < 0.5:
            run.die()

        def compensate() -> None:
            ingestion = self._ingestion()
            cancelled = Failure(error_class="cancelled", step=None, message="the run was cancelled")
            ids = [saga.saga_id for saga in ingestion.ledger.sagas_of_run(run.name)]
            ingestion.compensation.compensate(ids, owner=f"cancel {run.name}", failure=cancelled)

        self._process(f"cancel-{run.name}").spawn(compensate)

    def _start_recovery(self) -> None:
        """A daemon's recovery sensor; another process takes its place when it dies."""
        self._recoveries += 1
        process = self._process(f"recovery-{self._recoveries}")
        process.on_death = lambda: self.world.at(10.0, self._start_recovery)
        process.spawn(lambda: self._recover_for_ever(process.name))

    def _recover_for_ever(self, name: str) -> None:
        ingestion, tick = self._ingestion(), 0
        while not self._over:
            tick += 1
            current_task().sleep(self._random.uniform(5.0, 10.0))
            try:
                ingestion.recovery.recover(owner=f"{name}.{tick}")
                ingestion.sweep()
            except ApexError as error:
                self.world.note(f"{name} fails: {error}")

    def _redrive(self) -> None:
        """What an operator does about sagas whose undo has failed."""
        tables = self._database.tables
        failed = sorted(s for s, saga in tables.sagas.items() if saga["status"] == "failed")
        if failed:
            self._ingestion().compensation.compensate(failed, owner="operator")

    def _sweep_all(self) -> None:
        ingestion = self._ingestion()
        while ingestion.sweep():
            pass

    def _read(self) -> None:
        """A reader takes the pointer, then asks the stores one by one, for as long as it may."""
        documents = list(self._database.tables.documents.values())
        live = self._random.choice(documents)["live_saga_id"] if documents else None
        if live:
            what = "what a reader was sent to,"
            for _ in range(3):
                delay_s = self._random.uniform(0.0, _READ_S_MAX)
                self.world.at(delay_s, lambda: self._invariants.check_whole(live, what))
        if not self._over:
            self.world.at(self._random.uniform(5.0, 30.0), self._read)

    def _ingestion(self) -> Ingestion:
        """The real use cases, as a process builds them, over the simulated ledger and stores."""
        ledger = self._parts.ledger(self._database, self._network, lease_s=_LEASE_S)
        extractions = Extractions(ledger)
        retry = RetryPolicy(attempts=3, timeout_s=12.0, pace=VirtualPace(self.world))
        engine = _Engine(
            ledger,
            [StoreStep(store, extractions) for store in self._stores.values()],
            retry=retry,
            lease_s=_LEASE_S,
            grace_s=self._parts.grace_s,
        )
        return Ingestion(
            ledger=ledger,
            engine=engine,
            compensation=Compensation(engine, retry=retry, order="lifo"),
            extractor=_Extractor(),
            extractions=extractions,
            takeovers_max=3,
            sweep_orphans=self._graph.sweep_orphans,
        )

    def _name_saga(self, saga_id: str, document_id: str) -> str:
        return f"ingest_{document_id}_{self._random.getrandbits(64):016x}"


class _Engine(SagaEngine):
    """The engine, with a greenlet for the thread that renews leases."""

    @contextmanager
    def lease(self, owner: str) -> Iterator[None]:
        over = False

        def keep() -> None:
            current_task().sleep(_LEASE_S / 3)
            while not over:
                try:
                    self.ledger.renew(owner)
                except ApexError as error:
                    current_task().process.world.note(f"lease of {owner} not renewed: {error}")
                current_task().sleep(_LEASE_S / 3)

        current_task().process.spawn(keep)
        try:
            yield
        finally:
            over = True


class _Extractor:
    """Takes a document of `_submission` apart."""

    def extract(self, document: Document) -> Extraction:
        if document.metadata.get(REFUSED_BY) == "extractor":
            raise DocumentRejected(document.document_id, "unreadable")
        chunks = _chunks(document)
        names = (document.document_id, "Port Amaranth")
        return Extraction(
            document_id=document.document_id,
            title=document.name,
            collection=document.collection,
            content_hash=content_hash(document),
            metadata=document.metadata,
            chunks=tuple(Chunk(ordinal=n, text=f"{n}", start=n, end=n + 1) for n in range(chunks)),
            embeddings=np.eye(chunks, 2, dtype=np.float32),
            embedding_model="none",
            entities=tuple(
                Entity(key=entity_key("place", name), type="place", name=name) for name in names
            ),
            relations=(),
        )


_TROUBLES = ("extractor", "neo4j", "postgres", "qdrant")


def _submission(document_id: str, *, edition: int, chunks: int, trouble: str | None) -> Submission:
    return Submission(
        document=Document(
            document_id=document_id,
            name=f"{document_id}.txt",
            content=b"%d:%d" % (edition, chunks),
            metadata={REFUSED_BY: trouble} if trouble else {},
        )
    )


def _chunks(document: Document) -> int:
    return int(document.content.partition(b":")[2])
