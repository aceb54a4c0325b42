"""Documents as one asset: its events are the history of every document, filterable by tag."""

import time
from collections.abc import Sequence

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry

from apex_dagster.defs.run import KIND_TAG, reason_of
from apex_dagster.saga.saga import Saga

# An asset or a partition for each document would make the UI grow without bound.
documents = dg.AssetSpec(
    "documents",
    group_name="corpus",
    kinds={"neo4j", "postgres", "qdrant", "redis"},
    description="Every version of every document that a saga made live, or failed to, and every "
    "deletion.",
)


def report_materializations(context: dg.OpExecutionContext, sagas: Sequence[Saga]) -> None:
    """Log an event for each version that has become live, and each deletion, in one statement.

    One by one, as `context.log_event` does, they cost more than all else that Dagster does in a
    run of many documents.
    """
    if not sagas:
        return
    key = context.get_step_execution_context().step.key
    entries = [
        EventLogEntry(  # type: ignore[no-untyped-call]
            error_info=None,
            level=10,  # as all events that Dagster itself logs
            user_message=str(event.description),
            run_id=context.run_id,
            timestamp=time.time(),
            step_key=key,
            job_name=context.job_name,
            dagster_event=DagsterEvent(
                event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
                job_name=context.job_name,
                step_key=key,
                event_specific_data=StepMaterializationData(event),
                message=event.description,
            ),
        )
        for event in map(materialization, sagas)
    ]
    context.instance.event_log_storage.store_event_batch(entries)


def materialization(saga: Saga) -> dg.AssetMaterialization:
    """A version has become live in all four stores, or a document has been deleted."""
    what = f"version {saga.version} is live"
    if saga.deletes:
        what = f"is deleted, as of version {saga.version}"
        what += "" if saga.published_at else "; its removal goes on"
    return dg.AssetMaterialization(
        documents.key,
        description=f"{saga.document_id} {what}",
        metadata=_metadata(saga),
        tags=_tags(saga),
    )


def observation(saga: Saga) -> dg.AssetObservation:
    """A version was undone, or could not be."""
    return dg.AssetObservation(
        documents.key,
        description=f"{saga.document_id} version {saga.version}: {saga.status.value}",
        metadata=_metadata(saga),
        tags=_tags(saga),
    )


def _metadata(saga: Saga) -> dict[str, dg.MetadataValue]:
    metadata: dict[str, dg.MetadataValue] = {
        "document_id": dg.MetadataValue.text(saga.document_id),
        "version": dg.MetadataValue.int(saga.version),
        "saga_id": dg.MetadataValue.text(saga.saga_id),
        "status": dg.MetadataValue.text(saga.status.value),
        "published": dg.MetadataValue.bool(saga.published_at is not None),
        "duration_ms": dg.MetadataValue.float(saga.duration_ms or 0.0),
        "receipts": dg.MetadataValue.json(dict(saga.completed_steps)),
    }
    if saga.error:
        metadata["reason"] = dg.MetadataValue.text(reason_of(saga))
    return metadata


def _tags(saga: Saga) -> dict[str, str]:
    return {"saga/status": saga.status.value} | ({KIND_TAG: saga.kind} if saga.deletes else {})
