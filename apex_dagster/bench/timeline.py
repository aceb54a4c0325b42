"""Where the time of a document goes between its arrival and its end, as the ledger has it."""

from __future__ import annotations

from datetime import datetime

import psycopg
from pydantic import SecretStr

from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.bench", "timeline.sql")


class Timeline:
    """Reads the audit log, by its database's clock. For one thread."""

    def __init__(self, postgres_url: SecretStr) -> None:
        self._url = postgres_url

    def now(self) -> datetime:
        """The moment from which on a load is looked at."""
        with psycopg.connect(self._url.get_secret_value()) as connection:
            row = connection.execute(_SQL["now"]).fetchone()
        assert row is not None
        found: datetime = row[0]
        return found

    def parts(self, since: datetime) -> dict[str, float]:
        """Milliseconds by part, in order: medians of the sagas that were opened since and have
        completed. Empty where there are none."""
        with psycopg.connect(self._url.get_secret_value()) as connection:
            rows = connection.execute(_SQL["parts"], {"since": since}).fetchall()
        return {name: round(ms, 3) for name, ms in rows if ms is not None}
