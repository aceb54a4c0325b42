"""The failure hook of `ingest_documents`."""

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError

from apex_dagster.defs.compensation import NOTHING_LEFT, compensate_in_linked_run, open_sagas_of
from apex_dagster.defs.resources import SagasResource
from apex_dagster.defs.run import STATUS_TAG


@dg.failure_hook(name="compensate_sagas", required_resource_keys={"sagas"})
def compensate_sagas(context: dg.HookContext) -> None:
    """Undo, in a linked run, whatever the failed run leaves open.

    Dagster swallows what a hook raises and runs none when the process is killed: the ledger's
    leases, not this hook, guarantee that every saga ends.
    """
    instance = context.instance
    run = instance.get_run_by_id(context.run_id)
    sagas: SagasResource = context.resources.sagas
    saga_ids = open_sagas_of(sagas, context.run_id)
    if run is None or not saga_ids:
        return
    cancelled = _was_cancelled(context.op_exception)
    compensation = compensate_in_linked_run(
        instance,
        run,
        saga_ids,
        error_class="cancelled" if cancelled else "unexpected",
        reason="the run was cancelled" if cancelled else str(context.op_exception),
    )
    status = compensation.tags.get(STATUS_TAG, "compensating")
    if status != NOTHING_LEFT:
        instance.add_run_tags(run.run_id, {STATUS_TAG: status})


def _was_cancelled(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, DagsterExecutionInterruptedError):
            return True
        error = error.__cause__
    return False
