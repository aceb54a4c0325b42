"""Compensation as a run of its own: the ops of `compensate_documents`, and how it is started.

The run is created as a child of the one that failed and executed at once in the same process, so
that the UI shows what was undone, in which order, and links the two. It is the fast path and never
the guarantee: a killed process runs no hook. Recovery finishes what it missed, by the same
functions.
"""

import threading
from collections.abc import Sequence
from datetime import UTC, datetime

import dagster as dg
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.execution.api import execute_run
from dagster._core.origin import JobPythonOrigin
from pydantic import Field

from apex_dagster.defs.assets import observation
from apex_dagster.defs.resources import SagasResource
from apex_dagster.defs.run import (
    COMPENSATES_TAG,
    COMPENSATION_RUN_TAG,
    ID_TAG,
    STATUS_TAG,
    outcome_table,
    owner_of,
)
from apex_dagster.saga.saga import Failure
from apex_dagster.saga.states import OPEN, Status

JOB_NAME = "compensate_documents"
FIRST_OP = "redis_compensate"
NOTHING_LEFT = "unchanged"  # the status of a run that came too late: others had ended its sagas


class CompensateConfig(dg.Config):
    """Which sagas to undo."""

    saga_ids: list[str] = Field(
        description="Sagas to undo. Those that have completed, or are undone, are left alone."
    )
    error_class: str = Field(default="requested", description="For sagas that have no error yet.")
    reason: str = Field(
        default="compensation was requested", description="For sagas that have no error yet."
    )
    dead_owners: list[str] = Field(
        default=[],
        description='Owners whose runs have ended, as "run:RUN_ID": undo only what they or nobody '
        "holds, without waiting for their leases.",
    )
    left_at: float | None = Field(
        default=None, description="When those runs ended, in seconds since 1970."
    )


# An interrupt counts as a failed attempt: the undo is tried again, and the run finishes its work.
_UNDO_RETRIES = dg.RetryPolicy(max_retries=2)


@dg.op(retry_policy=_UNDO_RETRIES)
def redis_compensate(
    context: dg.OpExecutionContext, config: CompensateConfig, sagas: SagasResource
) -> list[str]:
    """Claim the sagas, so that no one else moves them, and remove what is staged in Redis."""
    failure = Failure(error_class=config.error_class, step=None, message=config.reason)
    claimed = sagas.application().compensation.begin(
        config.saga_ids,
        owner=owner_of(context.run_id),
        failure=failure,
        dead_owners=config.dead_owners,
        left_at=datetime.fromtimestamp(config.left_at, UTC) if config.left_at else None,
    )
    context.add_output_metadata({"claimed": len(claimed), "asked for": len(config.saga_ids)})
    return _undo(context, sagas, "redis_write", [saga.saga_id for saga in claimed])


@dg.op(retry_policy=_UNDO_RETRIES)
def qdrant_compensate(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Remove what is staged in Qdrant."""
    return _undo(context, sagas, "qdrant_write", saga_ids)


@dg.op(retry_policy=_UNDO_RETRIES)
def postgres_compensate(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Remove what is staged in PostgreSQL."""
    return _undo(context, sagas, "postgres_write", saga_ids)


@dg.op(retry_policy=_UNDO_RETRIES)
def neo4j_compensate(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Remove what is staged in Neo4j."""
    return _undo(context, sagas, "neo4j_write", saga_ids)


@dg.op(retry_policy=_UNDO_RETRIES, out=dg.Out(dg.Nothing))
def close_sagas(context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]) -> None:
    """End the sagas: compensated, or failed where a store could not be undone; then fail too.

    Those whose store is down stay open: `recovery_sensor` goes on with them when it is back."""
    app = sagas.application()
    held = app.ledger.held(saga_ids, owner=owner_of(context.run_id))
    ended = app.compensation.close([s for s in held if s.status is Status.COMPENSATING])
    app.inbox.settle(app.ledger)
    for saga in ended:
        context.log_event(observation(saga))
    failed = [saga for saga in ended if saga.status is Status.FAILED]
    waiting = [saga for saga in app.ledger.sagas(saga_ids) if saga.is_waiting]
    for saga in waiting:
        context.log.warning(f"{saga.document_id} waits for {', '.join(saga.waits_for or ())}")
    status = "failed" if failed else "compensating" if waiting else "compensated"
    status = status if saga_ids else NOTHING_LEFT
    context.instance.add_run_tags(context.run_id, {STATUS_TAG: status})
    if saga_ids:
        _tag_ended_runs(context.instance, context.run, status)
    table = {"documents": outcome_table([*ended, *waiting], {})}
    if failed:
        raise dg.Failure(
            f"{len(failed)} of {len(ended)} sagas could not be undone and wait for an operator: "
            "once the store is back, run `apex saga compensate`",
            metadata=table,
            allow_retries=False,
        )
    context.add_output_metadata(table)


def _tag_ended_runs(instance: dg.DagsterInstance, run: dg.DagsterRun, status: str) -> None:
    """Link the run that was compensated to this one; if that was a compensation too, the run before
    it as well. Only runs that have ended: one that has not writes its own tags."""
    compensation_run_id = run.run_id
    while run_id := run.tags.get(COMPENSATES_TAG):
        compensated = instance.get_run_by_id(run_id)
        if compensated is None or not compensated.is_finished:
            return
        tags = {STATUS_TAG: status, COMPENSATION_RUN_TAG: compensation_run_id}
        instance.add_run_tags(run_id, tags)
        run = compensated


def compensate_in_linked_run(
    instance: dg.DagsterInstance,
    run: dg.DagsterRun,
    saga_ids: Sequence[str],
    *,
    error_class: str = "unexpected",
    reason: str = "the run failed",
) -> dg.DagsterRun:
    """Undo sagas of `run` in a run of `compensate_documents`, now and in this process."""
    recon_job = _reconstructable_job(run)
    tags = {COMPENSATES_TAG: run.run_id, STATUS_TAG: "compensating"}
    if len(saga_ids) == 1:
        tags[ID_TAG] = saga_ids[0]
    config = CompensateConfig(saga_ids=list(saga_ids), error_class=error_class, reason=reason)
    compensation = instance.create_run_for_job(
        recon_job.get_definition(),
        run_config=run_config(config),
        tags=tags,
        parent_run_id=run.run_id,
        root_run_id=run.root_run_id or run.run_id,
        # Without both origins sensors do not see the run, and the UI cannot re-execute it.
        remote_job_origin=run.remote_job_origin._replace(job_name=JOB_NAME)
        if run.remote_job_origin
        else None,
        job_code_origin=recon_job.get_python_origin(),
    )
    instance.add_run_tags(run.run_id, {COMPENSATION_RUN_TAG: compensation.run_id})
    # In a thread: there an interrupt meant for the failed run does not stop its undo half-way.
    thread = threading.Thread(target=execute_run, args=(recon_job, compensation, instance))
    thread.start()
    thread.join()
    return instance.get_run_by_id(compensation.run_id) or compensation


def run_config(config: CompensateConfig) -> dict[str, object]:
    """The configuration of a run of `compensate_documents`."""
    return {"ops": {FIRST_OP: {"config": config.model_dump()}}}


def _reconstructable_job(run: dg.DagsterRun) -> ReconstructableJob:
    """The compensation job of the code location that the failed run came from."""
    if run.job_code_origin:
        origin: JobPythonOrigin = run.job_code_origin
        repository = ReconstructableRepository(
            origin.repository_origin.code_pointer,
            origin.repository_origin.container_image,
            origin.repository_origin.executable_path,
            origin.repository_origin.entry_point or (),
            origin.repository_origin.container_context,
        )
    else:
        repository = ReconstructableRepository.for_module("apex_dagster.definitions", "defs")
    return repository.get_reconstructable_job(JOB_NAME)


def open_sagas_of(sagas: SagasResource, run_id: str) -> list[str]:
    """The sagas that a run leaves open."""
    return [s.saga_id for s in sagas.application().ledger.sagas_of_run(run_id) if s.status in OPEN]


def _undo(
    context: dg.OpExecutionContext, sagas: SagasResource, step: str, saga_ids: Sequence[str]
) -> list[str]:
    app, owner = sagas.application(), owner_of(context.run_id)
    with app.engine.lease(owner):
        held = [
            saga
            for saga in app.ledger.held(saga_ids, owner=owner)
            if saga.status is Status.COMPENSATING
        ]
        undone = app.compensation.undo(step, held)
    failed = [saga for saga in undone if not saga.undone(step)]
    for saga in failed:
        context.log.error(f"{saga.document_id}: {saga.undone_steps[step]['error']}")
    context.add_output_metadata(
        {
            "undone": len(undone) - len(failed),
            "failed": len(failed),
            "items removed": sum(s.undone_steps[step].get("removed", 0) for s in undone),
        }
    )
    return [saga.saga_id for saga in held]
