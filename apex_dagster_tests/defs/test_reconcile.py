"""The asset check of the UI and its schedule: drift fails it, a repair passes it."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository

from apex_dagster.composition import Application
from apex_dagster.definitions import defs
from apex_dagster_tests.documents import submission

OP = "documents_stores_agree"


@pytest.fixture(scope="session")
def reconcile_job() -> ReconstructableJob:
    repository = ReconstructableRepository.for_module("apex_dagster.definitions", "defs")
    return repository.get_reconstructable_job("reconcile_stores")


def run(
    job: ReconstructableJob, instance: dg.DagsterInstance, config: dict[str, Any]
) -> tuple[dg.AssetCheckEvaluation, str]:
    """The check's result, and the id of its run."""
    with dg.execute_job(
        job, instance=instance, run_config={"ops": {OP: {"config": config}}}
    ) as result:
        [evaluation] = result.get_asset_check_evaluations()
        return evaluation, result.run_id


def test_drift_fails_the_check_until_it_is_repaired(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    reconcile_job: ReconstructableJob,
    unique: str,
) -> None:
    [saga] = dagster_app.ingestion.ingest([submission(unique)], owner="test")
    dagster_app.stores["qdrant"].discard([saga.ref])
    mine = {"document_ids": [unique]}

    looked, _ = run(reconcile_job, instance, mine)
    assert not looked.passed
    assert (looked.metadata["drifts"].value, looked.metadata["left"].value) == (1, 1)
    [row] = looked.metadata["found"].records
    assert (row.data["store"], row.data["kind"], row.data["document_id"]) == (
        "qdrant",
        "missing",
        unique,
    )

    repaired, run_id = run(reconcile_job, instance, mine | {"repair": True})
    assert repaired.passed
    assert repaired.description == "1 drifts, 1 repaired, 0 left"
    event = dagster_app.ledger.events(saga.saga_id)[-1]
    assert (event["event"], event["detail"]["by"]) == ("version_restored", f"run {run_id}")
    again, _ = run(reconcile_job, instance, mine)
    assert again.passed
    assert again.metadata["drifts"].value == 0


def test_the_schedule_repairs_every_night() -> None:
    schedule = defs.get_schedule_def("reconcile_schedule")
    with dg.build_schedule_context() as context:
        [request] = schedule.evaluate_tick(context).run_requests
    assert request.run_config["ops"][OP]["config"] == {"repair": True}
    assert dg.validate_run_config(defs.resolve_job_def("reconcile_stores"), request.run_config)
