"""Dagster's storage as dagster.yaml configures it."""

from __future__ import annotations

import time

import dagster as dg
from dagster._core.events import DagsterEvent, DagsterEventType, StepMaterializationData
from dagster._core.events.log import EventLogEntry

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


def test_instances_of_one_process_share_their_connections(instance: dg.DagsterInstance) -> None:
    """A code server makes one for every tick of every sensor."""
    [storage] = {instance.run_storage._engine, instance.event_log_storage._engine}
    for _ in range(8):
        with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
            assert again.get_runs(limit=1) == []
    with storage.connect() as connection:
        assert connection.exec_driver_sql(CONNECTIONS).scalar() <= 4


def test_materializations_written_together_are_the_history_of_their_asset(
    instance: dg.DagsterInstance,
) -> None:
    key, run = dg.AssetKey("together"), "run-of-three"
    entries = [_materialized(key, run, str(number)) for number in range(3)]
    instance.event_log_storage.store_event_batch(entries)
    found = instance.fetch_materializations(key, limit=10).records
    assert [_tag(record.asset_materialization) for record in reversed(found)] == ["0", "1", "2"]
    latest = instance.get_latest_materialization_event(key)
    assert latest is not None
    assert _tag(latest.asset_materialization) == "2"
    [asset] = instance.event_log_storage.get_asset_records([key])
    assert asset.asset_entry.last_materialization_storage_id == found[0].storage_id


def _materialized(key: dg.AssetKey, run_id: str, number: str) -> EventLogEntry:
    event = dg.AssetMaterialization(key, tags={"number": number})
    return EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=time.time(),
        dagster_event=DagsterEvent(
            event_type_value=DagsterEventType.ASSET_MATERIALIZATION.value,
            job_name="job",
            event_specific_data=StepMaterializationData(event),
        ),
    )


def _tag(event: dg.AssetMaterialization | None) -> str:
    assert event is not None
    return str((event.tags or {})["number"])
