"""Reconciliation in the UI: a check of the asset `documents`, and the schedule that runs it."""

import dagster as dg
from pydantic import Field

from apex_dagster.defs.assets import documents
from apex_dagster.defs.resources import SagasResource
from apex_dagster.ingestion.reconcile import Drift, ReconcileReport

DRIFTS_SHOWN_MAX = 100
_OP = "documents_stores_agree"


class ReconcileConfig(dg.Config):
    """What to do about what is found. As it stands it only looks."""

    repair: bool = Field(
        default=False,
        description="Restore what is missing or altered from its stored extraction, and remove what"
        " must be gone.",
    )
    document_ids: list[str] = Field(
        default=[], description="Look at these documents only. Default: at all, and for orphans."
    )


@dg.asset_check(
    asset=documents.key,
    name="stores_agree",
    description="All four stores hold every live version as it was extracted, and nothing else.",
)
def stores_agree(
    context: dg.AssetCheckExecutionContext, config: ReconcileConfig, sagas: SagasResource
) -> dg.AssetCheckResult:
    """Passes when nothing is left that is not as it has to be."""
    report = sagas.application().reconciler.reconcile(
        repair_as=f"run {context.run.run_id}" if config.repair else None,
        document_ids=config.document_ids or None,
    )
    for drift in report.left[:DRIFTS_SHOWN_MAX]:
        context.log.error(str(drift))
    return dg.AssetCheckResult(
        passed=not report.left,
        severity=dg.AssetCheckSeverity.ERROR,
        description=_in_words(report),
        metadata={
            "live": report.live,
            "must_be_gone": report.dead,
            "drifts": len(report.drifts),
            "left": len(report.left),
            "found": _table(report.drifts),
        },
    )


reconcile_stores = dg.define_asset_job(
    "reconcile_stores",
    selection=dg.AssetSelection.checks(stores_agree),
    executor_def=dg.in_process_executor,
    description="Compare what the four stores hold with what they have to hold.",
)

reconcile_schedule = dg.ScheduleDefinition(
    name="reconcile_schedule",
    job=reconcile_stores,
    cron_schedule="17 3 * * *",
    run_config={"ops": {_OP: {"config": {"repair": True}}}},
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Compares the stores every night, and repairs what is not as it has to be.",
)


def _in_words(report: ReconcileReport) -> str:
    repaired = len(report.drifts) - len(report.left)
    return f"{len(report.drifts)} drifts, {repaired} repaired, {len(report.left)} left"


def _table(drifts: list[Drift]) -> dg.TableMetadataValue:
    columns = ("document_id", "store", "kind", "expected", "found", "outcome", "saga_id")
    return dg.MetadataValue.table(
        [
            dg.TableRecord({name: str(getattr(drift, name)) for name in columns})
            for drift in drifts[:DRIFTS_SHOWN_MAX]
        ],
        schema=dg.TableSchema([dg.TableColumn(name) for name in columns]),
    )
