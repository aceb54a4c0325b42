"""Table of contents of the code location: every job, sensor, resource and asset, by name."""

import dagster as dg

from apex_dagster.defs.alert_sensor import alert_sensor
from apex_dagster.defs.assets import documents
from apex_dagster.defs.jobs import compensate_documents, ingest_documents
from apex_dagster.defs.reconcile import reconcile_schedule, reconcile_stores, stores_agree
from apex_dagster.defs.resources import resources_from_environment
from apex_dagster.defs.run_sensors import cancelled_run_sensor, failed_run_sensor
from apex_dagster.defs.sensors import inbox_sensor, recovery_sensor
from apex_dagster.logs import configure_logs

configure_logs()

defs = dg.Definitions(
    assets=[documents],
    asset_checks=[stores_agree],
    jobs=[ingest_documents, compensate_documents, reconcile_stores],
    schedules=[reconcile_schedule],
    sensors=[
        inbox_sensor,
        recovery_sensor,
        failed_run_sensor,
        cancelled_run_sensor,
        alert_sensor,
    ],
    resources=resources_from_environment(),
)
