"""What an op knows of the run it is in, and how it reports on it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import dagster as dg
from dagster._core.errors import DagsterExecutionInterruptedError
from dagster._core.storage.dagster_run import NOT_FINISHED_STATUSES
from dagster._core.storage.runs.schema import RunTagsTable
from dagster._core.storage.runs.sql_run_storage import SqlRunStorage

from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import ENDED, Status

STATUS_TAG = "saga/status"
ID_TAG = "saga/id"
DOCUMENT_TAG = "saga/document_id"
KIND_TAG = "saga/kind"  # "delete", of runs and events of a deletion; others have none
COMPENSATES_TAG = "saga/compensates"
COMPENSATION_RUN_TAG = "saga/compensation_run"
REFUSED_TAG = "saga/refused"  # the store that was down, so that the run took nothing in


@dataclass(frozen=True, slots=True, kw_only=True)
class SagaRun:
    """A Dagster run as an owner of sagas."""

    run_id: str
    owner: str  # holds the leases; a new process of the same run is the same owner
    parent_owner: str | None  # set in a re-execution: the run that it repeats

    @classmethod
    def of(cls, context: dg.OpExecutionContext) -> "SagaRun":
        """The run of this op."""
        parent = context.run.parent_run_id
        return cls(
            run_id=context.run_id,
            owner=owner_of(context.run_id),
            parent_owner=owner_of(parent) if parent else None,
        )


def owner_of(run_id: str) -> str:
    """The owner of the sagas that a run drives."""
    return f"run:{run_id}"


@contextmanager
def interrupts_as_failures() -> Iterator[None]:
    """Turn a cancelled run's interrupt into a failure of the op, so that the failure hook fires.

    Left alone, the interrupt ends the run without any hook.
    """
    try:
        yield
    except DagsterExecutionInterruptedError as interrupt:
        raise dg.Failure("the run was cancelled", allow_retries=False) from interrupt


def tag_run(
    context: dg.OpExecutionContext, sagas: Sequence[Saga], *, status: str, **counts: int
) -> None:
    """Show in the runs list how the sagas of this run stand; `counts` that are 0 are left out.

    Only ever called by the run's own worker: Dagster reads, changes and writes back all tags of a
    run at once, so a second writer would lose some.
    """
    tags = {STATUS_TAG: status, **identity_tags(sagas)}
    tags |= {f"saga/{name}": str(count) for name, count in counts.items() if count}
    if context.run.parent_run_id and COMPENSATION_RUN_TAG in context.run.tags:
        tags[COMPENSATION_RUN_TAG] = ""  # inherited: it belongs to the run that was repeated
    context.instance.add_run_tags(context.run_id, tags)


def status_of(everything: Sequence[Saga]) -> str:
    """What the saga/status tag of a run says at the end: the worst that is left."""
    statuses = {saga.status.value for saga in everything}
    for status in ("failed", "compensating", "in_progress", "completed", "compensated"):
        if status in statuses:
            return status
    return "unchanged"


def tag_ended_by_others(
    instance: dg.DagsterInstance, ledger: Ledger, sagas: Sequence[Saga]
) -> None:
    """Show in the runs of these sagas how they ended after all, when their runs had ended before
    them; in the compensation runs as well that left them waiting for a store."""
    for run_id in sorted({saga.run_id for saga in sagas if saga.run_id}):
        status = {STATUS_TAG: status_of(ledger.sagas_of_run(run_id))}
        undone_by = dg.RunsFilter(tags={COMPENSATES_TAG: run_id, STATUS_TAG: "compensating"})
        own = instance.get_run_by_id(run_id)
        for run in [*([own] if own else []), *instance.get_runs(undone_by)]:
            if run.is_finished:
                instance.add_run_tags(run.run_id, status)


def identity_tags(sagas: Sequence[Saga]) -> dict[str, str]:
    """Tags of a run by which the runs list finds it: its one saga, or how many of what kind."""
    if len(sagas) == 1:
        [saga] = sagas
        kind = {KIND_TAG: saga.kind} if saga.deletes else {}
        return {ID_TAG: saga.saga_id, DOCUMENT_TAG: saga.document_id} | kind
    if not sagas:
        return {}
    deletions = sum(saga.deletes for saga in sagas)
    # Only how they ended: a tag can be changed, but never taken away again.
    ended = Counter(saga.status.value for saga in sagas if saga.status in ENDED)
    counts = {"count": len(sagas)} | ({"deletions": deletions} if deletions else {}) | ended
    return {f"saga/{name}": str(count) for name, count in counts.items()}


def index_documents(instance: dg.DagsterInstance, run_id: str, sagas: Sequence[Saga]) -> None:
    """Let the runs list find a batch by each of its documents and sagas, by the same tags that a
    run of one document has.

    Straight into the table that tag filters read, in one statement: a run holds one value of a
    tag only, and hundreds of tags of their own would drown the others on its page.
    """
    storage = instance.run_storage
    if len(sagas) < 2 or not isinstance(storage, SqlRunStorage):
        return
    rows = [
        {"run_id": run_id, "key": key, "value": value}
        for saga in sagas
        for key, value in ((ID_TAG, saga.saga_id), (DOCUMENT_TAG, saga.document_id))
    ]
    if any(saga.deletes for saga in sagas):
        rows.append({"run_id": run_id, "key": KIND_TAG, "value": "delete"})
    with storage.connect() as connection:
        connection.execute(RunTagsTable.insert(), rows)


def outcome_table(sagas: Sequence[Saga], notes: Mapping[SagaId, str]) -> dg.TableMetadataValue:
    """One row a document. `notes` overrides the reason, by saga."""
    records = [
        dg.TableRecord(
            {
                "document_id": saga.document_id,
                "version": saga.version,
                "status": saga.status.value,
                "duration_ms": round(saga.duration_ms or 0.0, 1),
                "reason": notes.get(saga.saga_id) or reason_of(saga) or _kind_of(saga),
                "saga_id": saga.saga_id,
            }
        )
        for saga in sagas
    ]
    columns = [
        dg.TableColumn("document_id"),
        dg.TableColumn("version", "int"),
        dg.TableColumn("status"),
        dg.TableColumn("duration_ms", "float"),
        dg.TableColumn("reason"),
        dg.TableColumn("saga_id"),
    ]
    return dg.MetadataValue.table(records, schema=dg.TableSchema(columns))


def _kind_of(saga: Saga) -> str:
    return "the document is deleted" if saga.deletes and saga.status is Status.COMPLETED else ""


def reason_of(saga: Saga) -> str:
    """Why it did not complete; empty when it did."""
    return str(saga.error["message"]) if saga.error else ""


def end_runs_within(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Mark as failed the compensation runs that were executed in a run's process and have died with
    it: nobody else watches them. That makes `failed_run_sensor` look after them in turn."""
    for compensation in unfinished_compensations(instance, run):
        if compensation.parent_run_id == run.run_id:
            instance.report_run_failed(
                compensation, f"The process of run {run.run_id}, which executed it, has ended."
            )


def unfinished_compensations(
    instance: dg.DagsterInstance, run: dg.DagsterRun
) -> list[dg.DagsterRun]:
    tags = {COMPENSATES_TAG: run.run_id}
    return list(instance.get_runs(dg.RunsFilter(tags=tags, statuses=NOT_FINISHED_STATUSES)))
