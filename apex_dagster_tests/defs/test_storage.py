"""Dagster's storage as dagster.yaml configures it."""

from __future__ import annotations

import dagster as dg

CONNECTIONS = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"


def test_instances_of_one_process_share_their_connections(instance: dg.DagsterInstance) -> None:
    """A code server makes one for every tick of every sensor."""
    [storage] = {instance.run_storage._engine, instance.event_log_storage._engine}
    for _ in range(8):
        with dg.DagsterInstance.from_ref(instance.get_ref()) as again:
            assert again.get_runs(limit=1) == []
    with storage.connect() as connection:
        assert connection.exec_driver_sql(CONNECTIONS).scalar() <= 4
