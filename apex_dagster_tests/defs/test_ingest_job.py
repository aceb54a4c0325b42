"""`ingest_documents` on the real stores: what a person sees in the UI's runs, tags and events."""

from __future__ import annotations

import logging
from pathlib import Path

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob
from dagster._core.utils import make_new_run_id

from apex_dagster.composition import Application
from apex_dagster.defs.instance.dispatch import create_dispatched_run
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.opening import Opened, deletion, open_sagas
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies
from apex_dagster_tests.defs.conftest import ingest
from apex_dagster_tests.documents import document, open_pending

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
BOTH = pytest.mark.parametrize("staging", ["in_order", "at_once"])
UNDO = ("redis_compensate", "qdrant_compensate", "postgres_compensate", "neo4j_compensate")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the test's files lie."""
    path = tmp_path / "files"
    path.mkdir()
    return path


def write(folder: Path, name: str, *, edition: int = 1, **fields: object) -> Path:
    path = folder / f"{name}.json"
    content = document(name, edition=edition, **fields).content
    path.write_bytes(content)
    return path


def test_a_run_puts_a_document_into_all_stores_and_says_so(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    result = ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    assert result.success
    [saga] = dagster_app.ledger.sagas_of_run(result.run_id)
    assert saga.status is Status.COMPLETED
    assert_whole(dagster_app, unique)
    tags = instance.get_run_by_id(result.run_id).tags
    assert tags["saga/status"] == "completed"
    assert tags["saga/id"] == saga.saga_id
    assert tags["saga/document_id"] == unique
    [event] = materializations(instance, result.run_id)
    assert event.metadata["document_id"].value == unique
    assert event.metadata["version"].value == 1


def test_a_run_deletes_a_document_beside_others_and_says_so(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    [opened] = open_sagas(dagster_app.ledger, [deletion(unique, client="test")])
    assert isinstance(opened, Opened)
    other = open_pending(dagster_app, f"{unique}-other")
    ids = [opened.saga.saga_id, other.saga_id]
    result = ingest(ingest_job, instance, saga_ids=ids)
    assert result.success
    assert_whole(dagster_app, unique)
    assert_whole(dagster_app, f"{unique}-other")
    events = {event.metadata["document_id"].value: event for event in materializations(
        instance, result.run_id)}  # fmt: skip
    assert events[unique].description == f"{unique} is deleted, as of version 2"
    assert events[unique].tags == {"saga/status": "completed", "saga/kind": "delete"}
    assert "saga/kind" not in events[f"{unique}-other"].tags
    assert instance.get_run_by_id(result.run_id).tags["saga/count"] == "2"
    assert instance.get_run_by_id(result.run_id).tags["saga/deletions"] == "1"


def test_the_runs_list_finds_a_deletion(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    open_sagas(dagster_app.ledger, [deletion(unique, client="test")])
    run_id = make_new_run_id()
    assert create_dispatched_run(instance, dagster_app, run_id=run_id, pool_id="pool")
    tags = {"saga/kind": "delete", "saga/document_id": unique}
    assert [run.run_id for run in instance.get_runs(dg.RunsFilter(tags=tags))] == [run_id]


@BOTH
@pytest.mark.parametrize("step", STEPS)
def test_a_failed_run_is_compensated_by_a_linked_run_in_reverse_order(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
    step: str,
) -> None:
    ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    before = copies(dagster_app, unique)
    path = write(folder, unique, edition=2)
    with armed(f"started:{step}=unavailable"):
        result = ingest(ingest_job, instance, paths=[str(path)])
    assert not result.success
    assert [event.step_key for event in result.all_events if event.is_step_failure] == [step]
    [saga] = dagster_app.ledger.sagas_of_run(result.run_id)
    assert saga.status is Status.COMPENSATED
    assert copies(dagster_app, unique) == before

    failed = instance.get_run_by_id(result.run_id)
    compensation = instance.get_run_by_id(failed.tags["saga/compensation_run"])
    assert (failed.status, failed.tags["saga/status"]) == (
        dg.DagsterRunStatus.FAILURE,
        "compensated",
    )
    assert compensation.status is dg.DagsterRunStatus.SUCCESS
    assert compensation.parent_run_id == failed.run_id
    assert compensation.tags["saga/compensates"] == failed.run_id
    assert succeeded_steps(instance, compensation.run_id) == [*UNDO, "close_sagas"]


@BOTH
def test_one_poisoned_document_leaves_the_batch_and_the_run_succeeds(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    for index in range(99):
        write(folder, f"{unique}-{index}", chunks=1)
    write(folder, f"{unique}-bad", chunks=1, poison=True)
    result = ingest(ingest_job, instance, paths=[str(folder)])
    assert result.success
    run = instance.get_run_by_id(result.run_id)
    assert (run.tags["saga/completed"], run.tags["saga/compensated"]) == ("99", "1")
    assert run.tags["saga/status"] == "completed"
    compensation = instance.get_run_by_id(run.tags["saga/compensation_run"])
    assert compensation.status is dg.DagsterRunStatus.SUCCESS
    assert f"leaves the batch: {unique}-bad" in errors(instance, run.run_id)["postgres_write"]
    [entry] = dagster_app.ledger.quarantined()
    assert entry["document_id"] == f"{unique}-bad"
    assert_whole(dagster_app, f"{unique}-bad")
    assert_whole(dagster_app, f"{unique}-0")


@BOTH
@pytest.mark.parametrize("step", STEPS)
def test_re_execution_from_failure_gives_a_complete_document(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
    step: str,
) -> None:
    with armed(f"started:{step}=unavailable"):
        failed = ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    assert not failed.success
    again = re_execute(ingest_job, instance, failed.run_id, from_failure=True)
    assert again.success
    assert "extract" not in succeeded_steps(instance, again.run_id)
    assert_whole(dagster_app, unique)
    [saga] = dagster_app.ledger.sagas_of_run(again.run_id)
    assert saga.status is Status.COMPLETED
    tags = instance.get_run_by_id(again.run_id).tags
    assert tags["saga/status"] == "completed"
    assert not tags.get("saga/compensation_run")


def test_re_execution_of_content_that_is_live_meanwhile_makes_no_new_version(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    path = str(write(folder, unique))
    with armed("started:qdrant_write=unavailable"):
        failed = ingest(ingest_job, instance, paths=[path])
    assert ingest(ingest_job, instance, paths=[path]).success
    before = copies(dagster_app, unique)
    assert re_execute(ingest_job, instance, failed.run_id, from_failure=True).success
    assert copies(dagster_app, unique) == before


def test_re_executing_a_run_that_succeeded_doubles_nothing(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    first = ingest(ingest_job, instance, paths=[str(write(folder, unique))])
    before = copies(dagster_app, unique)
    again = re_execute(ingest_job, instance, first.run_id, from_failure=False)
    assert again.success
    assert copies(dagster_app, unique) == before
    assert len(dagster_app.ledger.list_sagas(document_id=unique)) == 1


def test_a_run_in_which_every_document_is_rejected_fails_and_says_why(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    ingest_job: ReconstructableJob,
    folder: Path,
    unique: str,
) -> None:
    empty = folder / f"{unique}.txt"
    empty.write_text(" ")
    result = ingest(ingest_job, instance, paths=[str(empty)])
    assert not result.success
    [saga] = dagster_app.ledger.sagas_of_run(result.run_id)
    assert saga.status is Status.COMPENSATED
    failure = result.failure_data_for_node("extract")
    assert "text" in failure.user_failure_data.description


def re_execute(
    job: ReconstructableJob, instance: dg.DagsterInstance, run_id: str, *, from_failure: bool
) -> dg.JobExecutionResult:
    if from_failure:
        options = dg.ReexecutionOptions.from_failure(run_id, instance)
    else:
        options = dg.ReexecutionOptions(parent_run_id=run_id)
    parent = instance.get_run_by_id(run_id)
    with dg.execute_job(
        job, instance=instance, run_config=parent.run_config, reexecution_options=options
    ) as result:
        return result


def succeeded_steps(instance: dg.DagsterInstance, run_id: str) -> list[str | None]:
    records = instance.all_logs(run_id, of_type=dg.DagsterEventType.STEP_SUCCESS)
    return [record.step_key for record in records]


def errors(instance: dg.DagsterInstance, run_id: str) -> dict[str | None, str]:
    """What was logged as an error, by step."""
    entries = [entry for entry in instance.all_logs(run_id) if entry.level == logging.ERROR]
    return {entry.step_key: entry.user_message for entry in entries}


def materializations(instance: dg.DagsterInstance, run_id: str) -> list[dg.AssetMaterialization]:
    records = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    return [record.asset_materialization for record in records]
