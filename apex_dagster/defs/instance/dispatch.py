"""Sagas that wait become a run: a batch forms while the last run executes, and shares the next."""

import dagster as dg

from apex_dagster.composition import Application
from apex_dagster.defs.instance.pool_protocol import POOL_TAG
from apex_dagster.defs.origin import reconstructable_job, remote_job_origin
from apex_dagster.defs.run import STATUS_TAG, identity_tags, index_documents, owner_of
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.pending import claim_pending

JOB = "ingest_documents"
SOURCE_TAG = "saga/source"
# Of stored extractions in a batch; unpacked and on their way to the stores they take several times
# as much.
BYTES_MAX = 32 * 1024 * 1024


def create_dispatched_run(
    instance: dg.DagsterInstance, app: Application, *, run_id: str, pool_id: str
) -> bool:
    """Claim the oldest waiting sagas and make the run that is to drive them; False for none.

    While a store is down they wait on. Whoever dies between the two leaves leases that run out, and
    recovery finishes the sagas.
    """
    if app.admission.refusal():
        return False
    batch = claim_pending(
        app.ledger,
        owner=owner_of(run_id),
        run_id=run_id,
        limit=app.settings.dispatch_documents,
        bytes_max=BYTES_MAX,
    )
    if not batch:
        return False
    reach("dispatched")
    job = reconstructable_job(JOB)
    saga_ids = [saga.saga_id for saga in sorted(batch, key=lambda saga: saga.arrival)]
    instance.create_run_for_job(
        job.get_definition(),
        run_id=run_id,
        run_config={"ops": {"extract": {"config": {"saga_ids": saga_ids}}}},
        tags={
            POOL_TAG: pool_id,
            SOURCE_TAG: "api",
            STATUS_TAG: "in_progress",
            **identity_tags(batch),
        },
        remote_job_origin=remote_job_origin(JOB),
        job_code_origin=job.get_python_origin(),
    )
    index_documents(instance, run_id, batch)
    return True
