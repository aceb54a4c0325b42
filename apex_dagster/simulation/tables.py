"""The ledger's tables in memory. Rows are replaced, never changed, so a copy of the tables'
dictionaries is a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

from psycopg.errors import UniqueViolation

Row = dict[str, Any]
Values = Mapping[str, Any]


@dataclass(kw_only=True)
class Tables:
    """Schema `apex`, as far as sagas need it."""

    sagas: dict[str, Row] = field(default_factory=dict)
    documents: dict[str, Row] = field(default_factory=dict)
    extractions: dict[str, Row] = field(default_factory=dict)
    submissions: dict[int, Row] = field(default_factory=dict)
    sweeps: dict[tuple[str, datetime], Row] = field(default_factory=dict)
    retries: dict[str, Row] = field(default_factory=dict)
    quarantine: dict[str, Row] = field(default_factory=dict)
    events: dict[tuple[str, int], Row] = field(default_factory=dict)
    breakers: dict[str, Row] = field(default_factory=dict)
    receipts: dict[str, Row] = field(default_factory=dict)

    def copy(self) -> Tables:
        """A snapshot."""
        return Tables(**{name: dict(getattr(self, name)) for name in _TABLES})


_TABLES = tuple(each.name for each in fields(Tables))


class Statements:
    """What statements work on. A subclass has a method for each: `_advance` for `advance`."""

    tables: Tables
    now: Callable[[], datetime]

    def _all(self) -> list[Row]:
        sagas = self.tables.sagas
        return [sagas[saga_id] for saga_id in sorted(sagas)]

    def _chosen(self, v: Values) -> list[Row]:
        sagas = self.tables.sagas
        return [sagas[saga_id] for saga_id in sorted(set(v["saga_ids"])) if saga_id in sagas]

    def _documents(self, v: Values) -> list[Row]:
        rows = self.tables.documents
        return [rows[each] for each in sorted(set(v["document_ids"])) if each in rows]

    def _put(self, saga: Row) -> Row:
        self.tables.sagas[saga["saga_id"]] = saga
        return saga

    def _refuse_second_successor(self, saga: Row, run_id: str | None) -> None:
        """The unique constraint on (predecessor_saga_id, run_id)."""
        predecessor = saga["predecessor_saga_id"]
        if predecessor is None or run_id is None:
            return
        for other in self.tables.sagas.values():
            same = other["predecessor_saga_id"] == predecessor and other["run_id"] == run_id
            if same and other["saga_id"] != saga["saga_id"]:
                raise UniqueViolation(f"{saga['saga_id']} and {other['saga_id']} in one run")
