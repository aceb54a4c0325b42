"""Where the time of a document goes between its arrival and its end, as the ledger has it."""

from __future__ import annotations

import time
from datetime import datetime
from typing import Any

import psycopg
from pydantic import SecretStr

from apex_dagster.sql import load_queries

POLL_S = 0.25

_SQL = load_queries("apex_dagster.bench", "timeline.sql")


class Timeline:
    """Reads the audit log, by its database's clock. For one thread."""

    def __init__(self, postgres_url: SecretStr) -> None:
        self._url = postgres_url

    def now(self) -> datetime:
        """The moment from which on a load is looked at."""
        now: datetime = self._ask("now")[0][0]
        return now

    def parts(self, since: datetime) -> dict[str, float]:
        """Milliseconds by part, in order: medians of the sagas that were opened since and have
        completed. Empty where there are none."""
        return {
            name: round(ms, 3) for name, ms in self._ask("parts", since=since) if ms is not None
        }

    def completed(self, since: datetime) -> int:
        """Sagas opened since that have completed and are published."""
        return int(self._ask("completed", since=since)[0][0])

    def wait_ended(self, before: datetime, *, timeout_s: float) -> int:
        """How many sagas opened before a moment are open still: 0, or those at the time-out."""
        deadline = time.monotonic() + timeout_s
        while (left := int(self._ask("open", before=before)[0][0])) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return left

    def last_ended_s(self, before: datetime) -> float:
        """From that moment on until the last saga opened before it had ended; 0 if all had."""
        return float(self._ask("last_ended", before=before)[0][0])

    def _ask(self, query: str, **values: datetime) -> list[tuple[Any, ...]]:
        with psycopg.connect(self._url.get_secret_value()) as connection:
            return connection.execute(_SQL[query], values).fetchall()
