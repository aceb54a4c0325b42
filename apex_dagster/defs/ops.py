"""The ops of `ingest_documents`, in the order in which they run.

They hand on saga ids. What a saga has done stands in the ledger, so an op that is re-executed after
a compensation first stages again whatever is missing before its own step.
"""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from pydantic import Field

from apex_dagster.composition import Application
from apex_dagster.defs.assets import report_materializations
from apex_dagster.defs.compensation import compensate_in_linked_run
from apex_dagster.defs.resources import SagasResource
from apex_dagster.defs.run import (
    REFUSED_TAG,
    SagaRun,
    index_documents,
    interrupts_as_failures,
    outcome_table,
    reason_of,
    status_of,
    tag_run,
)
from apex_dagster.ingestion.ingest import Batch
from apex_dagster.ingestion.sources import SAMPLES
from apex_dagster.saga.saga import Saga


class IngestConfig(dg.Config):
    """What to ingest. As it stands it runs on the sample corpus."""

    paths: list[str] = Field(
        default=[SAMPLES],
        description='What to ingest, in order: "samples:" is the corpus that comes with the '
        'project, "inbox:" everything in the inbox, "inbox:reports/q3.pdf" one file or folder of '
        "it; anything else is a file or folder on the machine that runs the job. Formats: txt, md, "
        "html, pdf, docx, json, jsonl, csv and parquet (a document a row), and whatever else the "
        "parser knows. NAME.meta.json beside a file NAME states its collection, metadata, columns.",
    )
    saga_ids: list[str] = Field(
        default=[],
        description="Instead of paths: sagas that were opened already, and are driven by this run.",
    )
    collection: str | None = Field(
        default=None,
        description="Put all documents into this collection. Default: what the file's .meta.json "
        'says, the first folder below the inbox, else "default".',
    )
    metadata: dict[str, Any] = Field(
        default={}, description="JSON values to store with every document, for example a source."
    )


@dg.op
def extract(
    context: dg.OpExecutionContext, config: IngestConfig, sagas: SagasResource
) -> list[str]:
    """Read the files, open a saga for each document, and extract chunks, entities, relations and
    embeddings. A document that cannot be read gets a saga too, which ends compensated."""
    run, app = SagaRun.of(context), sagas.application()
    if not config.saga_ids:  # those were admitted before they were opened
        _refuse_while_a_store_is_down(context, app)
    with interrupts_as_failures(), app.engine.lease(run.owner):
        opened = _open(run, app, config)
        if run.parent_owner or not config.saga_ids:  # else the run was created with its tags
            started = [*opened.alive, *opened.failed]
            tag_run(context, started, status="in_progress", unchanged=len(opened.unchanged))
            index_documents(context.instance, run.run_id, started)
        extracted = app.ingestion.extract(opened.alive)
        failed = [*opened.failed, *extracted.failed]
        _leave_batch(context, sagas, alive=extracted.alive, failed=failed)
    skipped = {s.saga_id: "unchanged: this content is live already" for s in opened.unchanged}
    skipped |= {s.saga_id: "under way in another run" for s in opened.joined}
    everything = [*extracted.alive, *failed, *opened.unchanged, *opened.joined]
    context.add_output_metadata(
        {
            "opened": len(opened.alive) + len(opened.failed),
            "unchanged": len(opened.unchanged),
            "under_way_elsewhere": len(opened.joined),
            "rejected": len(failed),
            "documents": outcome_table(everything, skipped),
        }
    )
    return [saga.saga_id for saga in extracted.alive]


def _open(run: SagaRun, app: Application, config: IngestConfig) -> Batch:
    """Hold the sagas that were opened before, or open new ones."""
    if config.saga_ids:
        return app.ingestion.take(
            config.saga_ids, owner=run.owner, run_id=run.run_id, parent_owner=run.parent_owner
        )
    submissions = app.sources.read(
        config.paths, collection=config.collection, metadata=config.metadata
    )
    return app.ingestion.open(
        submissions, owner=run.owner, run_id=run.run_id, dead_owner=run.parent_owner
    )


@dg.op
def neo4j_write(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Stage entities and relations beside the live version."""
    return _stage(context, sagas, "neo4j_write", saga_ids)


@dg.op
def postgres_write(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Stage metadata, chunk texts and embeddings beside the live version."""
    return _stage(context, sagas, "postgres_write", saga_ids)


@dg.op
def qdrant_write(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Stage chunk vectors beside the live version."""
    return _stage(context, sagas, "qdrant_write", saga_ids)


@dg.op
def redis_write(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]
) -> list[str]:
    """Stage the cache entry."""
    return _stage(context, sagas, "redis_write", saga_ids)


@dg.op(out=dg.Out(dg.Nothing))
def commit(context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: list[str]) -> None:
    """The pivot: one PostgreSQL transaction makes the new versions live; then tell the stores."""
    run, app = SagaRun.of(context), sagas.application()
    with interrupts_as_failures(), app.engine.lease(run.owner):
        held = _hold(context, sagas, saga_ids)
        outcome = app.ingestion.commit(
            held,
            owner=run.owner,
            run_id=run.run_id,
            undo=lambda losers: compensate_in_linked_run(
                context.instance, context.run, [saga.saga_id for saga in losers]
            ),
        )
        report_materializations(context, outcome.completed)
        _leave_batch(context, sagas, alive=outcome.completed, failed=outcome.failed)
        app.inbox.settle(app.ledger)
    everything = app.ledger.sagas_of_run(run.run_id)
    tag_run(context, everything, status=status_of(everything))
    context.add_output_metadata(
        {
            "completed": sum(saga.status == "completed" for saga in everything),
            "compensated": sum(saga.status == "compensated" for saga in everything),
            "documents": outcome_table(everything, {}),
        }
    )


def _stage(
    context: dg.OpExecutionContext, sagas: SagasResource, step: str, saga_ids: Sequence[str]
) -> list[str]:
    """Stage the batch in one store; a bad document leaves the batch, not the run.

    Where stores are staged all at once, the first op has them all written, and each document that
    fails goes on to the op of the store that failed it, and leaves the batch there.
    """
    run, app = SagaRun.of(context), sagas.application()
    later = set(app.engine.step_names[app.engine.step_names.index(step) + 1 :])
    with interrupts_as_failures(), app.engine.lease(run.owner):
        held = _hold(context, sagas, saga_ids)
        staging = app.ingestion.stage(step, [saga for saga in held if not saga.error])
        failed = [*(saga for saga in held if saga.error), *staging.failed]
        going = [*staging.alive, *(saga for saga in failed if _failed_step(saga) in later)]
        leaving = [saga for saga in failed if _failed_step(saga) not in later]
        _leave_batch(context, sagas, alive=going, failed=leaving)
    context.add_output_metadata({"staged": len(staging.alive), "failed": len(leaving)})
    return [saga.saga_id for saga in going]


def _failed_step(saga: Saga) -> str | None:
    return (saga.error or {}).get("step")


def _hold(
    context: dg.OpExecutionContext, sagas: SagasResource, saga_ids: Sequence[str]
) -> list[Saga]:
    run = SagaRun.of(context)
    held = sagas.application().ingestion.hold(
        saga_ids, owner=run.owner, run_id=run.run_id, parent_owner=run.parent_owner
    )
    if run.parent_owner:
        tag_run(context, held, status="in_progress")
    if len(held) < len(saga_ids):
        context.log.warning(f"{len(saga_ids) - len(held)} sagas have ended or changed owner")
    return held


def _refuse_while_a_store_is_down(context: dg.OpExecutionContext, app: Application) -> None:
    """Take nothing in, rather than open sagas that could only be compensated."""
    if refusal := app.admission.refusal():
        context.instance.add_run_tags(context.run_id, {REFUSED_TAG: refusal.store})
        retry_after = {"retry_after_s": dg.MetadataValue.float(refusal.retry_after_s)}
        raise dg.Failure(str(refusal), metadata=retry_after, allow_retries=False)


def _leave_batch(
    context: dg.OpExecutionContext,
    sagas: SagasResource,
    *,
    alive: Sequence[Saga],
    failed: Sequence[Saga],
) -> None:
    """Compensate documents that cannot go on. Nobody left: fail, and let the failure hook do it."""
    if not failed:
        return
    reasons = [f"{saga.document_id}: {reason_of(saga)}" for saga in failed]
    if not alive:
        raise dg.Failure(
            description="; ".join(reasons[:5]) + ("; …" if len(reasons) > 5 else ""),
            metadata={"documents": outcome_table(failed, {})},
            allow_retries=False,
        )
    for reason in reasons:
        context.log.error(f"leaves the batch: {reason}")
    compensate_in_linked_run(context.instance, context.run, [saga.saga_id for saga in failed])
