"""Sensors on runs that have ended: what their own process left open is undone in a linked run.

The second safety net. A process that is killed, or marked as cancelled while it hangs, runs no
failure hook; Dagster, however, sees it end. The undo is a run of `compensate_documents`, requested
rather than executed in the tick: people see it, it may take longer than a tick, and if its process
dies as well the same sensors see that run end. Whatever they miss is left to `recovery_sensor`.
"""

from collections.abc import Mapping
from typing import Any, cast

import dagster as dg

from apex_dagster.defs.compensation import FIRST_OP, CompensateConfig, run_config
from apex_dagster.defs.jobs import compensate_documents, ingest_documents
from apex_dagster.defs.resources import SagasResource
from apex_dagster.defs.run import (
    COMPENSATES_TAG,
    ID_TAG,
    STATUS_TAG,
    end_runs_within,
    owner_of,
    unfinished_compensations,
)
from apex_dagster.saga.states import OPEN

ATTEMPT_TAG = "saga/compensation_attempt"
# A compensation that dies so often in a row is left to recovery, which waits for leases.
ATTEMPTS_MAX = 3
_JOBS = [ingest_documents, compensate_documents]


@dg.run_failure_sensor(
    monitored_jobs=_JOBS,
    request_job=compensate_documents,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Undoes what a run left open that has failed, or whose process was killed.",
)
def failed_run_sensor(
    context: dg.RunFailureSensorContext, sagas: SagasResource
) -> dg.RunRequest | dg.SkipReason:
    """Undo, rather than go on: Dagster and the user have seen the run fail."""
    end_runs_within(context.instance, context.dagster_run)
    return _request_undo(
        context,
        sagas,
        error_class="interrupted",
        reason="the run ended without undoing what it had begun",
    )


@dg.run_status_sensor(
    run_status=dg.DagsterRunStatus.CANCELED,
    monitored_jobs=_JOBS,
    request_job=compensate_documents,
    minimum_interval_seconds=5,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Undoes what a cancelled run left open, also when its process hangs.",
)
def cancelled_run_sensor(
    context: dg.RunStatusSensorContext, sagas: SagasResource
) -> dg.RunRequest | dg.SkipReason:
    """The process may live on, if the run was only marked as cancelled: epochs fence it off."""
    return _request_undo(context, sagas, error_class="cancelled", reason="the run was cancelled")


def _request_undo(
    context: dg.RunStatusSensorContext, sagas: SagasResource, *, error_class: str, reason: str
) -> dg.RunRequest | dg.SkipReason:
    run = context.dagster_run
    dead_owners = [owner_of(run.run_id), *_config_of(run).get("dead_owners", [])]
    saga_ids = _left_open(sagas, run, dead_owners)
    if not saga_ids:
        return dg.SkipReason(f"run {run.run_id} left no saga open")
    attempt = int(run.tags.get(ATTEMPT_TAG, "0")) + 1
    if attempt > ATTEMPTS_MAX:
        context.log.error(f"{ATTEMPTS_MAX} runs could not undo {', '.join(saga_ids)}")
        return dg.SkipReason("left to recovery_sensor, when the leases have run out")
    if _is_requested(context.instance, run):
        return dg.SkipReason(f"run {run.run_id} is being compensated already")
    config = CompensateConfig(
        saga_ids=saga_ids,
        error_class=error_class,
        reason=reason,
        dead_owners=dead_owners,
        left_at=_end_of(context.instance, run),
    )
    tags = {
        COMPENSATES_TAG: run.run_id,
        STATUS_TAG: "compensating",
        ATTEMPT_TAG: str(attempt),
        "dagster/priority": "10",  # before new work: it frees what a dead run holds
    }
    if len(saga_ids) == 1:
        tags[ID_TAG] = saga_ids[0]
    return dg.RunRequest(run_key=run.run_id, run_config=run_config(config), tags=tags)


def _left_open(sagas: SagasResource, run: dg.DagsterRun, dead_owners: list[str]) -> list[str]:
    """The run's open sagas that nobody else has taken over since: not the ones that its hook, a
    re-execution or recovery is at."""
    ledger = sagas.application().ledger
    if run.job_name == compensate_documents.name:
        driven = ledger.sagas(_config_of(run).get("saga_ids", []))
    else:
        driven = ledger.sagas_of_run(run.run_id)
    return [
        saga.saga_id
        for saga in driven
        if saga.status in OPEN
        and saga.lease_owner in (None, *dead_owners)
        and not saga.is_waiting  # for a store: recovery_sensor goes on when that is back
    ]


def _end_of(instance: dg.DagsterInstance, run: dg.DagsterRun) -> float | None:
    record = instance.get_run_record_by_id(run.run_id)
    return record.end_time if record else None


def _is_requested(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Whether a run that a sensor requested for it is under way: both sensors may see a run that
    was marked as cancelled, and failed after that."""
    return any(other.parent_run_id is None for other in unfinished_compensations(instance, run))


def _config_of(run: dg.DagsterRun) -> Mapping[str, Any]:
    """What a run of `compensate_documents` was told to do; empty for other jobs."""
    ops = cast("Mapping[str, Any]", run.run_config.get("ops", {}))
    return cast("Mapping[str, Any]", ops.get(FIRST_OP, {}).get("config", {}))
