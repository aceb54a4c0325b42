"""Who acts in a simulation: runs, cancels, recoveries, an operator, sweepers and readers. All of
them use the real code, as the processes of an installation do."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from apex_dagster.errors import ApexError
from apex_dagster.ingestion.ingest import Ingestion, Submission
from apex_dagster.ingestion.steps import Extractions, StoreStep
from apex_dagster.records import SagaId
from apex_dagster.saga.breaker import BreakerPolicy, Breakers
from apex_dagster.saga.engine import SagaEngine
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.retry import RetryPolicy
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.states import Status
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.documents import Extractor
from apex_dagster.simulation.invariants import Invariants
from apex_dagster.simulation.model_store import ModelStore
from apex_dagster.simulation.network import Network
from apex_dagster.simulation.pace import VirtualPace
from apex_dagster.simulation.parts import Parts
from apex_dagster.simulation.plan import PlannedRun
from apex_dagster.simulation.world import Process, World, current_task

LEASE_S = 30.0
_READ_S_MAX = 10.0


class Actors:
    """Starts processes in a world."""

    def __init__(
        self,
        world: World,
        parts: Parts,
        database: Database,
        network: Network,
        stores: Mapping[str, ModelStore],
        invariants: Invariants,
        *,
        owners_notice: bool,
    ) -> None:
        self._world, self._parts, self._database = world, parts, database
        self._network, self._stores, self._invariants = network, stores, invariants
        self._owners_notice = owners_notice
        self._runs = self._recoveries = 0
        self.acknowledged: dict[SagaId, str] = {}  # saga -> document, as a caller was told
        self.over = False  # recoveries and readers end

    # -- runs --------------------------------------------------------------------------------------

    def start_run(self, run: PlannedRun, parent_owner: str | None = None) -> None:
        """A run. If it dies or falls silent, it may be executed again; or somebody cancels it."""
        self._runs += 1
        process = Process(self._world, f"run-{self._runs}")
        process.spawn(lambda: self._live(run, process.name, parent_owner))
        if run.again_after_s:
            self._world.at(run.again_after_s[0], lambda: self._again(run, process.name))
        if run.cancel_after_s is not None:
            self._world.at(run.cancel_after_s, lambda: self._cancel(process, run.cancel_kills))

    def _again(self, run: PlannedRun, parent_owner: str) -> None:
        later = PlannedRun(
            at_s=0.0,
            submissions=run.submissions,
            op_by_op=run.op_by_op,
            hook=run.hook,
            again_after_s=run.again_after_s[1:],
        )
        self.start_run(later, parent_owner)

    def _live(self, run: PlannedRun, owner: str, parent_owner: str | None) -> None:
        drive = self._run_op_by_op if run.op_by_op else self._run_at_once
        try:
            drive(run.submissions, owner, parent_owner)
        except ApexError as error:
            self._world.note(f"{owner} fails: {error}")
            if run.hook:
                self._compensate_run(owner, owner, Failure.of(error, None))

    def _run_at_once(
        self, batch: Sequence[Submission], owner: str, parent_owner: str | None
    ) -> None:
        self._acknowledge(self._ingestion().ingest(batch, owner=owner, run_id=owner))

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
                self.acknowledged[saga.saga_id] = saga.document_id

    def _cancel(self, run: Process, kills: bool) -> None:
        """The run is force-cancelled: it may be dead, or only believed to be."""
        if kills:
            run.die()

        cancelled = Failure(error_class="cancelled", step=None, message="the run was cancelled")
        owner = f"cancel {run.name}"
        process = Process(self._world, f"cancel-{run.name}")
        process.spawn(lambda: self._compensate_run(run.name, owner, cancelled))

    def _compensate_run(self, run_id: str, owner: str, failure: Failure) -> None:
        ingestion = self._ingestion()
        ids = [saga.saga_id for saga in ingestion.ledger.sagas_of_run(run_id)]
        ingestion.compensation.compensate(ids, owner=owner, failure=failure)

    # -- those who clean up ------------------------------------------------------------------------

    def start_recovery(self) -> None:
        """A daemon's recovery sensor; another process takes its place when it dies."""
        self._recoveries += 1
        process = Process(self._world, f"recovery-{self._recoveries}")
        process.on_death = lambda: self._world.at(10.0, self.start_recovery)
        process.spawn(lambda: self._recover_for_ever(process.name))

    def _recover_for_ever(self, name: str) -> None:
        ingestion, tick = self._ingestion(), 0
        while not self.over:
            tick += 1
            current_task().sleep(self._world.random.uniform(5.0, 10.0))
            if not self._database.has_overdue_work():
                continue  # a tick that would find nothing
            try:
                ingestion.recovery.recover(owner=f"{name}.{tick}")
                # Driven at once, as `apex saga recover` does, or left pending, as the sensor does.
                ingestion.recovery.retry_due(owner=f"{name}.{tick}" if tick % 2 else None)
                ingestion.sweep()
            except ApexError as error:
                self._world.note(f"{name} fails: {error}")

    def redrive(self) -> None:
        """What an operator does about sagas whose undo has failed."""

        def compensate() -> None:
            tables = self._database.tables
            failed = sorted(s for s, saga in tables.sagas.items() if saga["status"] == "failed")
            if failed:
                self._ingestion().compensation.compensate(failed, owner="operator")

        Process(self._world, "operator").spawn(compensate)

    def sweep(self) -> None:
        """Everything that is due."""

        def sweep_all() -> None:
            ingestion = self._ingestion()
            while ingestion.sweep():
                pass

        Process(self._world, "sweeper").spawn(sweep_all)

    # -- readers -----------------------------------------------------------------------------------

    def read(self) -> None:
        """A reader takes the pointer, then asks the stores one by one, for as long as it may."""
        documents = list(self._database.tables.documents.values())
        draw = self._world.random
        live = draw.choice(documents)["live_saga_id"] if documents else None
        if live:
            what = "what a reader was sent to,"
            for _ in range(3):
                delay_s = draw.uniform(0.0, _READ_S_MAX)
                self._world.at(delay_s, lambda: self._invariants.check_whole(live, what))
        if not self.over:
            self._world.at(draw.uniform(5.0, 30.0), self.read)

    # -- the code ----------------------------------------------------------------------------------

    def _ingestion(self) -> Ingestion:
        """The real use cases, as a process builds them, over the simulated ledger and stores."""
        parts, stores = self._parts, self._stores
        notice = self._owners_notice
        ledger = parts.ledger(self._database, self._network, lease_s=LEASE_S, owners_notice=notice)
        extractions = Extractions(ledger)
        retry = RetryPolicy(attempts=3, timeout_s=12.0, pace=VirtualPace(self._world))
        engine = _Engine(
            ledger,
            [StoreStep(store, extractions) for store in stores.values()],
            breakers=self._breakers(ledger),
            retry=retry,
            lease_s=LEASE_S,
            grace_s=parts.grace_s,
            staging="at_once" if self._world.seed % 2 else "in_order",
        )
        return Ingestion(
            ledger=ledger,
            engine=engine,
            compensation=parts.compensation(
                engine, retry=retry, order="lifo", schedule=parts.schedule
            ),
            extractor=Extractor(),
            extractions=extractions,
            takeovers_max=3,
            sweep_orphans=stores["neo4j"].sweep_orphans,  # type: ignore[attr-defined]
        )

    def _breakers(self, ledger: Ledger) -> Breakers:
        policy = BreakerPolicy(delay_s_max=10.0, pace=VirtualPace(self._world))
        pings = {
            name: partial(self._network.request, name, "ping", lambda: None)
            for name in self._stores
        }
        return Breakers(ledger, pings, policy=policy)


class _Engine(SagaEngine):
    """The engine, with a greenlet for the thread that renews leases."""

    @contextmanager
    def lease(self, owner: str) -> Iterator[None]:
        over = False

        def keep() -> None:
            current_task().sleep(LEASE_S / 3)
            while not over:
                try:
                    self.ledger.renew(owner)
                except ApexError as error:
                    current_task().process.world.note(f"lease of {owner} not renewed: {error}")
                current_task().sleep(LEASE_S / 3)

        current_task().process.spawn(keep)
        try:
            yield
        finally:
            over = True
