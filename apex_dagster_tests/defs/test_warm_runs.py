"""Runs in warm workers: the pool is the real process, launched to as the UI and the daemon do."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dagster as dg
import psutil
import pytest
from dagster._core.launcher.base import WorkerStatus
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster_graphql.client.query import LAUNCH_PIPELINE_EXECUTION_MUTATION
from dagster_graphql.test.utils import execute_dagster_graphql

from apex_dagster.composition import Application
from apex_dagster.defs.instance.dispatch import create_dispatched_run
from apex_dagster.defs.instance.worker_pool import QUEUE_MAX
from apex_dagster.defs.origin import LOCATION, reconstructable_job, remote_job_origin
from apex_dagster.errors import StoreRejected, StoreUnavailable
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.states import ENDED, Status
from apex_dagster_tests.applications import assert_whole, copies, expire_leases
from apex_dagster_tests.defs.conftest import instance_over
from apex_dagster_tests.defs.pool import RunningPool, running_pool, wait_until
from apex_dagster_tests.documents import document, open_pending, submission
from apex_dagster_tests.ingestion.files import drop, make_due, mend, take_in

pytestmark = pytest.mark.timeout(900)  # seconds on an idle machine

INGEST = "ingest_documents"
LAUNCHER = {"module": "apex_dagster.defs.instance.launcher", "class": "WarmRunLauncher"}
COORDINATOR = {"module": "dagster._core.run_coordinator", "class": "DefaultRunCoordinator"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the pools of this module listen, one after the other."""
    return tmp_path_factory.mktemp("pool")


@pytest.fixture(scope="module")
def instance(stack: Any, home: Path) -> Iterator[dg.DagsterInstance]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APEX_POOL_SOCKET", str(home / "socket"))
        with instance_over(stack, run_launcher=LAUNCHER, run_coordinator=COORDINATOR) as made:
            yield made


@pytest.fixture
def workspace(
    instance: dg.DagsterInstance, dagster_app: Application
) -> Iterator[WorkspaceProcessContext]:
    with code_server(instance) as context:
        yield context


@contextlib.contextmanager
def code_server(instance: dg.DagsterInstance) -> Iterator[WorkspaceProcessContext]:
    """As the webserver has it: one of its own."""
    target = ModuleTarget("apex_dagster.definitions", None, str(Path.cwd()), LOCATION)
    # Dagster gives the server a few seconds to end, and a busy machine takes longer.
    with (
        contextlib.suppress(subprocess.TimeoutExpired),
        WorkspaceProcessContext(instance, target) as context,
    ):
        yield context


def test_runs_launched_in_the_ui_share_a_warm_process(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    workspace: WorkspaceProcessContext,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    with running_pool(instance, home, workers=1) as pool:
        [pid] = pool.ready_pids()
        names = [f"{unique}-{index}" for index in range(2)]
        run_ids = [launch_in_ui(workspace, write(tmp_path, name)) for name in names]
        runs = [finished(instance, run_id, pool) for run_id in run_ids]
        assert {pid_of(instance, run_id) for run_id in run_ids} == {pid}
        assert {run.status for run in runs} == {dg.DagsterRunStatus.SUCCESS}
        for name in names:
            assert_whole(dagster_app, name)

        isolated = launch_in_ui(workspace, write(tmp_path, f"{unique}-own"), isolated=True)
        assert finished(instance, isolated, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, isolated) != pid

        again = re_execute_in_ui(workspace, instance.get_run_by_id(run_ids[0]))
        assert finished(instance, again, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, again) == pid
    # With the pool gone, the same launch gets a process of its own, inherited tags or not.
    late = re_execute_in_ui(workspace, instance.get_run_by_id(run_ids[0]))
    assert finished(instance, late, pool).status is dg.DagsterRunStatus.SUCCESS
    assert not psutil.pid_exists(pid)
    run = instance.get_run_by_id(late)
    assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING


def test_a_terminated_run_is_undone_and_its_worker_lives_on(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    dagster_app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(dagster_app, unique)
    failpoint = {"APEX_FAILPOINTS": "sent:qdrant_write=hang:60*1"}
    with running_pool(instance, home, workers=1, **failpoint) as pool:
        [pid] = pool.ready_pids()
        path = write(tmp_path, unique, edition=2)
        run_id = launch(instance, path)
        waiting = launch(instance, write(tmp_path, f"{unique}-waits"))
        wait_until(lambda: in_step(dagster_app, run_id, "qdrant_write"), pool.describe)
        assert instance.run_launcher.terminate(waiting)
        assert instance.get_run_by_id(waiting).status is dg.DagsterRunStatus.CANCELED
        assert instance.run_launcher.terminate(run_id)
        run = finished(instance, run_id, pool)
        assert run.status is dg.DagsterRunStatus.CANCELED
        assert run.tags["saga/status"] == "compensated"
        assert copies(dagster_app, unique) == before
        wait_until(lambda: pool.pid_of(run_id) is None, pool.describe)
        assert not instance.run_launcher.terminate(run_id)
        again = finished(instance, launch(instance, path), pool)
        assert again.status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, again.run_id) == pid
    assert dagster_app.ledger.sagas_of_run(waiting) == []


def test_kill_9_of_a_worker_fails_its_run_at_once_and_another_takes_its_place(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    failpoint = {"APEX_FAILPOINTS": "sent:qdrant_write=hang:5*1"}
    with running_pool(instance, home, workers=1, **failpoint) as pool:
        [pid] = pool.ready_pids()
        run_id = launch(instance, write(tmp_path, unique))
        waiting = launch(instance, write(tmp_path, f"{unique}-waits"))
        wait_until(lambda: in_step(dagster_app, run_id, "qdrant_write"), pool.describe)
        os.kill(pid, signal.SIGKILL)
        run = finished(instance, run_id, pool)
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert any("was killed by SIGKILL" in message for message in messages(instance, run_id))
        # The one that waited is executed by the next worker.
        assert finished(instance, waiting, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pool.wait_ready(1) != [pid]
    expire_leases(dagster_app)
    dagster_app.ingestion.recovery.recover(owner="recovery")
    [saga] = dagster_app.ledger.sagas_of_run(run_id)
    assert saga.status in ENDED
    assert_whole(dagster_app, unique)


def test_workers_die_with_their_pool_and_the_next_one_reports_their_runs(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    failpoint = {"APEX_FAILPOINTS": "sent:qdrant_write=hang:600*1"}
    with running_pool(instance, home, workers=2, **failpoint) as pool:
        pids = pool.ready_pids()
        run_ids = [launch(instance, write(tmp_path, f"{unique}-{n}")) for n in range(2)]
        wait_until(
            lambda: all(in_step(dagster_app, run_id, "qdrant_write") for run_id in run_ids),
            pool.describe,
        )
        run, undone = (instance.get_run_by_id(run_id) for run_id in run_ids)
        assert instance.run_launcher.check_run_worker_health(run).status is WorkerStatus.RUNNING
        # One cannot undo anything: a stopped process whose parent dies is hung up on by the system.
        os.kill(pool.pid_of(run.run_id) or 0, signal.SIGSTOP)
        pool.process.kill()
        pool.process.wait()
        wait_until(lambda: not any(psutil.pid_exists(pid) for pid in pids), pool.describe)
        health = instance.run_launcher.check_run_worker_health(run)
        assert health.status is WorkerStatus.FAILED
    # The other was interrupted, and has undone its run.
    [saga] = dagster_app.ledger.sagas_of_run(undone.run_id)
    assert (saga.status, saga.error["class"]) == (Status.COMPENSATED, "cancelled")
    assert instance.get_run_by_id(undone.run_id).status is dg.DagsterRunStatus.FAILURE
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.STARTED
    with running_pool(instance, home, workers=0):
        wait_until(lambda: instance.get_run_by_id(run.run_id).is_finished)
    assert instance.get_run_by_id(run.run_id).status is dg.DagsterRunStatus.FAILURE


def test_isolation_is_one_setting_away(
    dagster_app: Application,
    stack: Any,
    home: Path,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APEX_POOL_SOCKET", str(home / "socket"))
    monkeypatch.setenv("APEX_ISOLATE_RUNS", "true")
    with (
        instance_over(stack, run_launcher=LAUNCHER, run_coordinator=COORDINATOR) as instance,
        code_server(instance) as workspace,
        running_pool(instance, home, workers=1) as pool,
    ):
        run_id = launch_in_ui(workspace, write(tmp_path, unique))
        assert finished(instance, run_id, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, run_id) not in pool.ready_pids()


def test_runs_beyond_those_that_may_wait_get_processes_of_their_own(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    workspace: WorkspaceProcessContext,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    failpoint = {"APEX_FAILPOINTS": "sent:qdrant_write=hang:60*1"}
    with running_pool(instance, home, workers=1, **failpoint) as pool:
        [pid] = pool.ready_pids()
        hangs = launch(instance, write(tmp_path, f"{unique}-hangs"))
        wait_until(lambda: pool.pid_of(hangs) == pid, pool.describe)
        path = write(tmp_path, f"{unique}-waits")
        waiting = [launch(instance, path) for _ in range(QUEUE_MAX)]
        beyond = launch_in_ui(workspace, write(tmp_path, unique))
        assert finished(instance, beyond, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, beyond) != pid
        for run_id in [*waiting, hangs]:
            assert instance.run_launcher.terminate(run_id)
        assert finished(instance, hangs, pool).status is dg.DagsterRunStatus.CANCELED


@pytest.mark.parametrize(
    "limit",
    [{"APEX_WORKER_RUNS_MAX": "1"}, {"APEX_WORKER_MEMORY_MB_MAX": "256"}],
    ids=["runs", "memory"],  # with its imports and the model a worker has more than that
)
def test_a_worker_that_has_had_enough_is_replaced_and_no_run_is_lost(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    home: Path,
    unique: str,
    tmp_path: Path,
    limit: dict[str, str],
) -> None:
    with running_pool(instance, home, workers=1, **limit) as pool:
        [pid] = pool.ready_pids()
        first = launch(instance, write(tmp_path, f"{unique}-first"))
        assert finished(instance, first, pool).status is dg.DagsterRunStatus.SUCCESS
        second = launch(instance, write(tmp_path, f"{unique}-second"))
        assert finished(instance, second, pool).status is dg.DagsterRunStatus.SUCCESS
        wait_until(lambda: not psutil.pid_exists(pid), pool.describe)
        assert len(pool.wait_ready(1)) == 1
        third = launch(instance, write(tmp_path, f"{unique}-third"))
        assert finished(instance, third, pool).status is dg.DagsterRunStatus.SUCCESS
        assert pid_of(instance, third) != pid == pid_of(instance, first)


def test_a_worker_that_stands_still_keeps_nobody_waiting(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    home: Path,
    unique: str,
    tmp_path: Path,
) -> None:
    failpoint = {"APEX_FAILPOINTS": "sent:qdrant_write=stop*1"}
    with running_pool(instance, home, workers=1, **failpoint) as pool:
        [pid] = pool.ready_pids()
        stands_still = launch(instance, write(tmp_path, unique))
        stopped = psutil.Process(pid)
        wait_until(lambda: stopped.status() == psutil.STATUS_STOPPED, pool.describe)
        other = launch(instance, write(tmp_path, f"{unique}-other"))
        wait_until(lambda: pool.pid_of(other), pool.describe)  # another worker has begun with it
        helper = psutil.Process(pool.pid_of(other))
        wait_until(lambda: helper.status() == psutil.STATUS_STOPPED, pool.describe)
        for worker in (helper, stopped):
            worker.send_signal(signal.SIGCONT)
        for run_id in (stands_still, other):
            assert finished(instance, run_id, pool).status is dg.DagsterRunStatus.SUCCESS
        wait_until(lambda: len(pool.ready_pids()) == 1, pool.describe)


def test_sagas_that_wait_share_runs_in_which_each_is_found(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    workspace: WorkspaceProcessContext,
    home: Path,
    unique: str,
) -> None:
    names = [f"{unique}-{index}" for index in range(200)]
    opened = [open_pending(dagster_app, name, chunks=1) for name in names]
    with running_pool(instance, home, workers=2) as pool:
        wait_until(lambda: all_ended(dagster_app, opened), pool.describe)
        sagas = dagster_app.ledger.sagas([saga.saga_id for saga in opened])
        assert {saga.status for saga in sagas} == {Status.COMPLETED}
        run_ids = {str(saga.run_id) for saga in sagas}
        assert 4 <= len(run_ids) <= 8
        for saga in (sagas[0], sagas[99], sagas[199]):
            for tag in ({"saga/document_id": saga.document_id}, {"saga/id": saga.saga_id}):
                [found] = instance.get_runs(dg.RunsFilter(tags=tag))
                assert found.run_id == saga.run_id
        for run_id in run_ids:
            run = finished(instance, run_id, pool)
            assert run.status is dg.DagsterRunStatus.SUCCESS
            assert run.tags["saga/source"] == "api"

        # One document alone is woken for, and has its tags to itself.
        alone = open_pending(dagster_app, f"{unique}-alone")
        wait_until(lambda: all_ended(dagster_app, [alone]), pool.describe)
        [found] = instance.get_runs(dg.RunsFilter(tags={"saga/document_id": f"{unique}-alone"}))
        assert finished(instance, found.run_id, pool).tags["saga/id"] == alone.saga_id

        # A run that the UI repeats drives nothing twice.
        before = copies(dagster_app, f"{unique}-alone")
        again = re_execute_in_ui(workspace, found)
        assert finished(instance, again, pool).status is dg.DagsterRunStatus.SUCCESS
        assert copies(dagster_app, f"{unique}-alone") == before


def test_a_file_is_tried_again_in_a_run_of_its_own(
    dagster_app: Application, instance: dg.DagsterInstance, home: Path, unique: str
) -> None:
    path = drop(dagster_app, unique)
    with armed("started:qdrant_write=unavailable"):
        take_in(dagster_app, path)
    mend(dagster_app)
    make_due(dagster_app)
    [again] = dagster_app.ingestion.recovery.retry_due()
    with running_pool(instance, home, workers=1) as pool:
        wait_until(lambda: all_ended(dagster_app, [again]), pool.describe)
        [run] = instance.get_runs(dg.RunsFilter(tags={"saga/document_id": unique}))
        assert finished(instance, run.run_id, pool).status is dg.DagsterRunStatus.SUCCESS
        wait_until(lambda: not path.exists(), pool.describe)
    [saga] = dagster_app.ledger.sagas([again.saga_id])
    assert (saga.status, saga.run_id) == (Status.COMPLETED, run.run_id)
    assert (dagster_app.inbox.folder / "processed" / path.name).exists()


def test_a_worker_killed_in_a_shared_run_leaves_no_saga_open(
    dagster_app: Application, instance: dg.DagsterInstance, home: Path, unique: str
) -> None:
    opened = [open_pending(dagster_app, f"{unique}-{n}", chunks=1) for n in range(60)]
    variables = {
        "APEX_FAILPOINTS": "sent:qdrant_write=hang:5*1",
        "APEX_DISPATCH_DOCUMENTS": "20",
    }
    with running_pool(instance, home, workers=1, **variables) as pool:
        [pid] = pool.ready_pids()
        wait_until(
            lambda: any(s.current_step == "qdrant_write" for s in now(dagster_app, opened)),
            pool.describe,
        )
        os.kill(pid, signal.SIGKILL)
        # The others go on in the next worker, without anybody's help.
        wait_until(
            lambda: sum(s.status in ENDED for s in now(dagster_app, opened)) == 40, pool.describe
        )
    recover_all(dagster_app, opened)
    for saga in opened:
        assert_whole(dagster_app, saga.document_id)
    killed = {s.run_id for s in now(dagster_app, opened) if s.takeovers}
    assert len(killed) == 1
    assert instance.get_run_by_id(str(killed.pop())).status is dg.DagsterRunStatus.FAILURE


def test_a_worker_killed_between_claim_and_run_leaves_no_saga_open(
    dagster_app: Application, instance: dg.DagsterInstance, home: Path, unique: str
) -> None:
    with running_pool(instance, home, workers=1, APEX_FAILPOINTS="dispatched=kill") as pool:
        [pid] = pool.ready_pids()
        opened = [open_pending(dagster_app, f"{unique}-{n}") for n in range(3)]
        wait_until(lambda: not psutil.pid_exists(pid), pool.describe)
        assert {s.status for s in now(dagster_app, opened)} == {Status.IN_PROGRESS}
        assert len(pool.wait_ready(1)) == 1
    recover_all(dagster_app, opened)
    assert {s.status for s in now(dagster_app, opened)} == {Status.COMPLETED}
    for saga in opened:
        assert_whole(dagster_app, saga.document_id)


def test_sagas_wait_on_while_a_store_is_down(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    """Claimed, they could only hold up a worker, or be undone."""
    saga = open_pending(dagster_app, unique)
    run_ids = [str(uuid.uuid4()) for _ in range(2)]
    dagster_app.breakers.note("neo4j", StoreUnavailable("neo4j", "a test says so"))
    with dagster_app.ledger.transaction() as tx:  # or the next look would find it up
        tx.execute("UPDATE apex.breaker SET next_probe_at = now() + interval '1 hour'")
    assert not create_dispatched_run(instance, dagster_app, run_id=run_ids[0], pool_id="test")
    assert now(dagster_app, [saga])[0].status is Status.PENDING
    assert instance.get_run_by_id(run_ids[0]) is None
    assert dagster_app.breakers.probe(at_once=True) == ["neo4j"]
    assert create_dispatched_run(instance, dagster_app, run_id=run_ids[1], pool_id="test")
    assert now(dagster_app, [saga])[0].run_id == run_ids[1]


def launch(instance: dg.DagsterInstance, path: Path) -> str:
    """As the daemon does with a run from the queue."""
    job = reconstructable_job(INGEST)
    run = instance.create_run_for_job(
        job.get_definition(),
        run_config={"ops": {"extract": {"config": {"paths": [str(path)]}}}},
        remote_job_origin=remote_job_origin(INGEST),
        job_code_origin=job.get_python_origin(),
    )
    instance.launch_run(run.run_id, workspace=None)
    return run.run_id


def launch_in_ui(workspace: WorkspaceProcessContext, path: Path, *, isolated: bool = False) -> str:
    """By the launchpad's mutation."""
    tags = [{"key": "apex/isolated", "value": "true"}] if isolated else []
    config = {"ops": {"extract": {"config": {"paths": [str(path)]}}}}
    return launched(
        workspace,
        {"runConfigData": config, "mode": "default", "executionMetadata": {"tags": tags}},
    )


def re_execute_in_ui(workspace: WorkspaceProcessContext, run: dg.DagsterRun) -> str:
    """By the mutation behind "Re-execute all"."""
    query = """mutation Again($params: ReexecutionParams!) {
        launchPipelineReexecution(reexecutionParams: $params) {
            __typename
            ... on LaunchRunSuccess { run { runId } }
            ... on PythonError { message stack } } }"""
    params = {"parentRunId": run.run_id, "strategy": "ALL_STEPS"}
    return run_id_of(workspace, query, {"params": params})


def launched(workspace: WorkspaceProcessContext, params: dict[str, Any]) -> str:
    selector = {
        "repositoryLocationName": LOCATION,
        "repositoryName": "__repository__",
        "pipelineName": INGEST,
    }
    variables = {"executionParams": {"selector": selector, **params}}
    return run_id_of(workspace, LAUNCH_PIPELINE_EXECUTION_MUTATION, variables)


def run_id_of(workspace: WorkspaceProcessContext, query: str, variables: dict[str, Any]) -> str:
    answer = execute_dagster_graphql(workspace.create_request_context(), query, variables)
    [(_, result)] = answer.data.items()
    assert result["__typename"] in ("LaunchRunSuccess", "LaunchPipelineRunSuccess"), result
    return str(result["run"]["runId"])


def finished(instance: dg.DagsterInstance, run_id: str, pool: RunningPool) -> dg.DagsterRun:
    def is_over() -> bool:
        run = instance.get_run_by_id(run_id)
        return run is not None and run.is_finished

    wait_until(is_over, pool.describe)
    return instance.get_run_by_id(run_id)


def pid_of(instance: dg.DagsterInstance, run_id: str) -> int:
    """The process that has executed the run, as its log says."""
    found = [
        match
        for message in messages(instance, run_id)
        if (match := re.search(r"Started process for run \(pid: (\d+)\)", message))
    ]
    assert len(found) == 1, messages(instance, run_id)
    return int(found[0][1])


def messages(instance: dg.DagsterInstance, run_id: str) -> list[str]:
    return [entry.message for entry in instance.all_logs(run_id)]


def in_step(app: Application, run_id: str, step: str) -> bool:
    """Whether the store of the step holds something of the run."""
    refs = [s.ref for s in app.ledger.sagas_of_run(run_id) if s.current_step == step]
    store = app.stores[step.removesuffix("_write")]
    # While the very first write creates the collection.
    with contextlib.suppress(StoreRejected, StoreUnavailable):
        return bool(refs) and any(store.holdings(refs).values())
    return False


def now(app: Application, opened: list[Any]) -> list[Any]:
    return app.ledger.sagas([saga.saga_id for saga in opened])


def all_ended(app: Application, opened: list[Any]) -> bool:
    return all(saga.published_at or saga.status == "compensated" for saga in now(app, opened))


def recover_all(app: Application, opened: list[Any]) -> None:
    """As recovery_sensor does, once the leases of the dead have run out."""
    expire_leases(app)
    while app.ingestion.recovery.recover(owner="recovery"):
        pass
    assert all_ended(app, opened)


def write(folder: Path, name: str, **fields: Any) -> Path:
    path = folder / f"{name}.json"
    path.write_bytes(document(name, **fields).content)
    return path
