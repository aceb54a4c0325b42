"""One ledger on PostgreSQL, one on the simulation's tables, and the same operations for both."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from apex_dagster.saga import opening
from apex_dagster.saga.ledger import Ledger
from apex_dagster.simulation.database import Database
from apex_dagster.simulation.ledger import SimulatedLedger

LEASE_S = 500.0
_GRID_S = 250.0  # moments are compared on this grid: the two do not run at the same instant

# Table -> the columns of the model's rows that the simulation goes by.
_TABLES = {
    "sagas": "saga_state",
    "documents": "documents",
    "events": "saga_event",
    "extractions": "extraction",
    "submissions": "submission",
    "quarantine": "quarantine",
    "retries": "retry",
    "sweeps": "sweep",
    "receipts": "deletion_receipt",
}
_IGNORED = {"created_at", "updated_at", "at", "event_hash", "submission_id"}


class TwinLedgers:
    """Does everything twice and compares what comes back."""

    def __init__(self, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self._url = postgres_url
        self.real = Ledger(postgres_url, lease_s=LEASE_S)
        self._late_s = 0.0  # how far the model's clock has been put on
        self.database = Database(lambda: datetime.now(UTC) + timedelta(seconds=self._late_s))
        self.model = SimulatedLedger(self.database, None, lease_s=LEASE_S)
        self._names = _Names()
        monkeypatch.setattr(opening, "secrets", self._names)

    def close(self) -> None:
        self.real.close()

    def both(self, what: str, operation: Callable[[Ledger], Any]) -> tuple[Any, Any]:
        """What `operation` gave on PostgreSQL and on the model, which must be the same."""
        names = self._names.count
        real = _outcome(operation, self.real)
        self._names.count = names
        model = _outcome(operation, self.model)
        told, modelled = _plain(real, datetime.now(UTC)), _plain(model, self.database.now())
        assert modelled == told, what
        return real, model

    def pass_time(self, delay_s: float) -> None:
        """Everything that was to happen within this time is due."""
        self._late_s += delay_s
        with psycopg.connect(self._url) as connection:
            values = {"ago": timedelta(seconds=delay_s)}
            moments = (("saga_state", "lease_expires_at"), ("sweep", "due_at"), ("retry", "due_at"))
            for table, column in moments:
                query = f"UPDATE apex.{table} SET {column} = {column} - %(ago)s"
                connection.execute(query.encode(), values)

    def assert_equal_rows(self, what: str) -> None:
        """Every table holds the same rows, as far as the model has their columns."""
        with psycopg.connect(self._url, row_factory=dict_row) as connection:
            for name, table in _TABLES.items():
                model = list(getattr(self.database.tables, name).values())
                real = connection.execute(f"SELECT * FROM apex.{table}".encode()).fetchall()
                columns = sorted(set(model[0]) - _IGNORED) if model else []
                expected = _rows(real, columns, datetime.now(UTC))
                assert _rows(model, columns, self.database.now()) == expected, f"{table}: {what}"


def _outcome(operation: Callable[[Ledger], Any], ledger: Ledger) -> Any:
    try:
        return operation(ledger)
    except psycopg.errors.UniqueViolation:
        return "refused by a unique constraint"


class _Names:
    """Stands for the module `secrets`: both ledgers give a saga the same name."""

    count = 0

    def token_hex(self, size: int) -> str:
        self.count += 1
        return f"{self.count:0{2 * size}x}"


def _rows(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], now: datetime) -> list[str]:
    picked = [{column: row[column] for column in columns} for row in rows]
    return sorted(json.dumps(_plain(row, now), sort_keys=True) for row in picked)


def _plain(value: Any, now: datetime, name: str = "") -> Any:
    """As JSON has it; moments as steps from now, or as happened."""
    if isinstance(value, datetime):
        ahead = round((value - now).total_seconds() / _GRID_S)
        return ahead if name in ("lease_expires_at", "due_at") else "happened"
    if name == "left_at":  # a moment in an event's detail: as text
        return "happened"
    if isinstance(value, bytes | memoryview):
        return bytes(value).hex()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in _IGNORED]
        return {name: _plain(getattr(value, name), now, name) for name in names}
    if isinstance(value, Mapping):
        return {k: _plain(each, now, k) for k, each in value.items() if k not in _IGNORED}
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, list | tuple):
        return [_plain(each, now) for each in value]
    return value
