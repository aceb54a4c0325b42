"""The sensors on ended runs: what no hook has undone is undone in a run that they request."""

from __future__ import annotations

import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob

from apex_dagster.composition import Application
from apex_dagster.definitions import defs
from apex_dagster.defs.resources import resources_from_environment
from apex_dagster.defs.run import owner_of
from apex_dagster.ingestion.overdue import report_overdue
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies, events, expire_leases
from apex_dagster_tests.defs.test_cancel import start_worker, wait_until_in_step
from apex_dagster_tests.documents import document, submission

INGEST, COMPENSATE = "ingest_documents", "compensate_documents"


@pytest.fixture
def compensate_job(ingest_job: ReconstructableJob) -> ReconstructableJob:
    return ingest_job.repository.get_reconstructable_job(COMPENSATE)


def test_what_a_killed_run_left_is_undone_and_both_runs_name_each_other(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    compensate_job: ReconstructableJob,
    unique: str,
) -> None:
    dagster_app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(dagster_app, unique)
    run = killed_run(dagster_app, instance, unique, point="written:qdrant_write")
    request = requested(failed(instance, run))
    assert execute(compensate_job, instance, request).success
    [saga] = dagster_app.ledger.sagas_of_run(run.run_id)
    assert saga.status is Status.COMPENSATED
    assert saga.error is not None
    assert saga.error["class"] == "interrupted"
    assert copies(dagster_app, unique) == before
    tags = tags_of(instance, run.run_id)
    assert tags["saga/status"] == "compensated"
    assert tags_of(instance, tags["saga/compensation_run"])["saga/compensates"] == run.run_id
    assert "left no saga open" in skipped(failed(instance, run))


def test_a_run_that_recovery_has_finished_is_left_alone(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    compensate_job: ReconstructableJob,
    unique: str,
) -> None:
    """In either order: before the sensor looks, and between its request and the run."""
    run = killed_run(dagster_app, instance, unique, point="written:qdrant_write")
    request = requested(failed(instance, run))
    expire_leases(dagster_app)
    [saga] = dagster_app.ingestion.recovery.recover(owner="recovery")
    assert saga.status is Status.COMPLETED
    assert execute(compensate_job, instance, request).success
    assert dagster_app.ledger.sagas_of_run(run.run_id) == [saga]
    assert "left no saga open" in skipped(failed(instance, run))
    assert tags_of(instance, run.run_id).get("saga/status") != "compensated"
    assert_whole(dagster_app, unique)


def test_a_saga_that_somebody_drives_again_is_not_undone(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    compensate_job: ReconstructableJob,
    unique: str,
) -> None:
    """A re-execution has taken over: the undo of the first run comes too late, and knows it."""
    run = killed_run(dagster_app, instance, unique, point="written:postgres_write")
    request = requested(failed(instance, run))
    [saga] = dagster_app.ledger.sagas_of_run(run.run_id)
    [held] = dagster_app.ingestion.hold(
        [saga.saga_id], owner="run:again", run_id="again", parent_owner=owner_of(run.run_id)
    )
    assert execute(compensate_job, instance, request).success
    assert dagster_app.ledger.sagas([saga.saga_id]) == [held]
    assert dagster_app.ingestion.commit([held], owner="run:again").completed
    assert_whole(dagster_app, unique)


def test_a_compensation_that_is_killed_half_way_is_finished_without_waiting_for_its_lease(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    compensate_job: ReconstructableJob,
    unique: str,
) -> None:
    """Also when it was the failed run's own process that died in its hook."""
    run = killed_run(dagster_app, instance, unique, point="written:redis_write")
    saga_ids = [saga.saga_id for saga in dagster_app.ledger.sagas_of_run(run.run_id)]
    within = new_run(
        instance,
        COMPENSATE,
        parent_run_id=run.run_id,
        root_run_id=run.run_id,
        tags={"saga/compensates": run.run_id},
        run_config={"ops": {"redis_compensate": {"config": {"saga_ids": saga_ids}}}},
    )
    with armed("undone:qdrant_write=raise"), pytest.raises(SimulatedCrash):
        dagster_app.compensation.compensate(saga_ids, owner=owner_of(within.run_id))
    assert "left no saga open" in skipped(failed(instance, run))
    within = instance.get_run_by_id(within.run_id)
    assert within.status is dg.DagsterRunStatus.FAILURE
    request = requested(failed(instance, within))
    assert execute(compensate_job, instance, request).success
    [saga] = dagster_app.ledger.sagas(saga_ids)
    assert saga.status is Status.COMPENSATED
    assert copies(dagster_app, unique) == {name: {} for name in dagster_app.stores}
    assert tags_of(instance, run.run_id)["saga/status"] == "compensated"


def test_requests_end_after_three_compensations_that_died(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    run = killed_run(dagster_app, instance, unique, point="written:neo4j_write")
    attempts = []
    for _ in range(3):
        request = requested(failed(instance, run))
        attempts.append(request.tags["saga/compensation_attempt"])
        run = new_run(instance, COMPENSATE, tags=request.tags, run_config=request.run_config)
    assert attempts == ["1", "2", "3"]
    assert "left to recovery_sensor" in skipped(failed(instance, run))


def test_one_run_is_requested_although_it_was_cancelled_and_failed_after_that(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    run = killed_run(dagster_app, instance, unique, point="written:neo4j_write")
    request = requested(cancelled(instance, run))
    new_run(instance, COMPENSATE, tags=request.tags, run_config=request.run_config)
    assert "being compensated already" in skipped(failed(instance, run))


def test_a_frozen_run_marked_as_cancelled_wakes_up_to_find_itself_fenced(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    compensate_job: ReconstructableJob,
    frozen_run: tuple[dg.DagsterRun, subprocess.Popen[str]],
    unique: str,
) -> None:
    run, worker = frozen_run
    request = requested(cancelled(instance, run))
    assert execute(compensate_job, instance, request).success
    [saga] = dagster_app.ledger.sagas_of_run(run.run_id)
    assert saga.status is Status.COMPENSATED
    assert saga.error is not None
    assert saga.error["class"] == "cancelled"
    trail = events(dagster_app, saga.saga_id)
    worker.send_signal(signal.SIGCONT)
    output, _ = worker.communicate(timeout=60)
    assert events(dagster_app, saga.saga_id) == trail, output
    assert copies(dagster_app, unique) == {name: {} for name in dagster_app.stores}


def test_sagas_past_the_bound_are_reported_and_no_others(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str
) -> None:
    killed_run(dagster_app, instance, unique, point="written:neo4j_write")
    assert report_overdue(dagster_app.ledger, bound_s=60) == []
    expire_leases(dagster_app)
    assert report_overdue(dagster_app.ledger, bound_s=7200) == []
    [overdue] = report_overdue(dagster_app.ledger, bound_s=60)
    assert overdue.document_id == unique
    dagster_app.ingestion.recovery.recover(owner="recovery")
    assert report_overdue(dagster_app.ledger, bound_s=60) == []


@pytest.fixture
def frozen_run(
    dagster_app: Application, instance: dg.DagsterInstance, unique: str, tmp_path: Path
) -> Iterator[tuple[dg.DagsterRun, subprocess.Popen[str]]]:
    """A run whose process is stopped just after Qdrant has taken its points."""
    dagster_app.stores["qdrant"].prepare()  # it can be asked from now on
    path = tmp_path / f"{unique}.json"
    path.write_bytes(document(unique).content)
    run_id = str(uuid.uuid4())
    worker = start_worker(instance, run_id, path, failpoints="sent:qdrant_write=hang:3")
    try:
        wait_until_in_step(dagster_app, run_id, "qdrant_write", worker)
        worker.send_signal(signal.SIGSTOP)
        yield instance.get_run_by_id(run_id), worker
    finally:
        worker.kill()
        worker.communicate()


def killed_run(
    app: Application, instance: dg.DagsterInstance, document_id: str, *, point: str
) -> dg.DagsterRun:
    """A run whose process died at `point`, so that no hook ran. Its lease runs still."""
    run = new_run(instance, INGEST)
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        app.ingestion.ingest(
            [submission(document_id, edition=2)], owner=owner_of(run.run_id), run_id=run.run_id
        )
    return run


def new_run(instance: dg.DagsterInstance, job_name: str, **fields: object) -> dg.DagsterRun:
    return instance.create_run_for_job(
        defs.resolve_job_def(job_name), status=dg.DagsterRunStatus.STARTED, **fields
    )


def failed(
    instance: dg.DagsterInstance, run: dg.DagsterRun
) -> dg.RunRequest | dg.SkipReason | None:
    """What the sensor says once Dagster has noticed that the run's process is gone."""
    instance.report_run_failed(run)
    return evaluate(instance, run, "failed_run_sensor", dg.DagsterEventType.RUN_FAILURE)


def cancelled(
    instance: dg.DagsterInstance, run: dg.DagsterRun
) -> dg.RunRequest | dg.SkipReason | None:
    """The same for a run marked as cancelled, whatever its process does."""
    instance.report_run_canceled(run)
    return evaluate(instance, run, "cancelled_run_sensor", dg.DagsterEventType.RUN_CANCELED)


def evaluate(
    instance: dg.DagsterInstance, run: dg.DagsterRun, sensor: str, event: dg.DagsterEventType
) -> dg.RunRequest | dg.SkipReason | None:
    [*_, record] = instance.all_logs(run.run_id, of_type=event)
    context = dg.build_run_status_sensor_context(
        sensor_name=sensor,
        dagster_event=record.dagster_event,
        dagster_instance=instance,
        dagster_run=instance.get_run_by_id(run.run_id),
        resources={"sagas": resources_from_environment()["sagas"]},
    )
    if event is dg.DagsterEventType.RUN_FAILURE:
        context = context.for_run_failure()
    with context:
        return defs.resolve_sensor_def(sensor)(context)


def requested(answer: object) -> dg.RunRequest:
    assert isinstance(answer, dg.RunRequest), answer
    return answer


def skipped(answer: object) -> str:
    assert isinstance(answer, dg.SkipReason), answer
    return str(answer.skip_message)


def execute(
    job: ReconstructableJob, instance: dg.DagsterInstance, request: dg.RunRequest
) -> dg.JobExecutionResult:
    """As the launcher would."""
    with dg.execute_job(
        job, instance=instance, run_config=request.run_config, tags=request.tags
    ) as result:
        return result


def tags_of(instance: dg.DagsterInstance, run_id: str) -> dict[str, str]:
    return dict(instance.get_run_by_id(run_id).tags)
