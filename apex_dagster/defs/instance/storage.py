"""Dagster's own storage in PostgreSQL: connections pooled, and an address found by itself."""

import os
from collections.abc import Mapping
from functools import cache
from typing import Any

import sqlalchemy as sa
from dagster._config import Field, IntSource, Noneable, StringSource, UserConfigSchema
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import create_pg_engine, retry_pg_connection_fn

from apex_dagster.defs.instance.event_log import BufferedEventLogStorage
from apex_dagster.embedded.stack import Stack
from apex_dagster.settings import Settings

_URL_VARIABLE = "DAGSTER_POSTGRES_URL"
# Any fixed number: webserver, daemon and workers may all find an empty database at once.
_ADVISORY_LOCK = 0x44414753


class PooledPostgresStorage(DagsterPostgresStorage):
    """Run, event and schedule storage that share one connection pool.

    The stock storage opens a connection for each statement, which costs more than all else in a
    short run. In dagster.yaml:

        storage:
          custom:
            module: apex_dagster.defs.instance.storage
            class: PooledPostgresStorage

    Without `postgres_url`, the address comes from DAGSTER_POSTGRES_URL, else from the embedded
    server, which is started when it is not running.
    """

    def __init__(
        self,
        postgres_url: str,
        pool_size: int = 4,
        inst_data: ConfigurableClassData | None = None,
    ) -> None:
        engine = _engine(postgres_url, pool_size, os.getpid())
        with retry_pg_connection_fn(engine.connect) as connection:
            # Held while tables are created, and released with the connection's session.
            connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _ADVISORY_LOCK})
            try:
                super().__init__(postgres_url, inst_data=inst_data)
                self._event_log_storage = BufferedEventLogStorage(postgres_url)
            finally:
                connection.execute(
                    sa.text("SELECT pg_advisory_unlock(:key)"), {"key": _ADVISORY_LOCK}
                )
        for storage in (self._run_storage, self._event_log_storage, self._schedule_storage):
            storage._engine = engine
            # The webserver would give each of the three a pool of its own.
            storage.optimize_for_webserver = _keep_pool  # type: ignore[method-assign]
        # Asked for every run several times, by three statements each; the release that asks has
        # made the tables.
        for name in ("has_run_stats_index_cols", "has_backfill_id_column"):
            setattr(self._run_storage, name, cache(getattr(self._run_storage, name)))

    @classmethod
    def config_type(cls) -> UserConfigSchema:
        return {
            "postgres_url": Field(
                Noneable(StringSource),
                is_required=False,
                default_value=None,
                description=f"Default: {_URL_VARIABLE}, else the embedded server.",
            ),
            "pool_size": Field(IntSource, is_required=False, default_value=4),
        }

    @classmethod
    def from_config_value(
        cls, inst_data: ConfigurableClassData | None, config_value: Mapping[str, Any]
    ) -> "PooledPostgresStorage":
        url = config_value.get("postgres_url") or os.environ.get(_URL_VARIABLE)
        return cls(
            url or _embedded_url(Settings()),
            pool_size=config_value.get("pool_size", 4),
            inst_data=inst_data,
        )


@cache
def _engine(postgres_url: str, pool_size: int, _pid: int) -> sa.Engine:
    """One for the process, and one more for a fork of it.

    A code server makes an instance for every tick of a sensor and forgets it. With an engine each,
    their idle connections would add up to all that PostgreSQL has.
    """
    return create_pg_engine(
        postgres_url,
        isolation_level="AUTOCOMMIT",
        pool_size=pool_size,
        max_overflow=8,
        pool_recycle=1800,
        pool_pre_ping=True,
        # A crash of PostgreSQL may lose what it confirmed in the last half second, never a part
        # of it out of order. Dagster reports here; what must not get lost is in the ledger.
        connect_args={"options": "-c synchronous_commit=off"},
    )


def _keep_pool(statement_timeout: int, pool_recycle: int, max_overflow: int) -> None:
    """Stands in for `optimize_for_webserver`: the pool is there already."""


def _embedded_url(settings: Settings) -> str:
    """The embedded server's database for Dagster, beside the ledger's."""
    servers = Stack(settings.home).ensure(["postgres"])
    return servers.postgres_database("dagster").get_secret_value()
