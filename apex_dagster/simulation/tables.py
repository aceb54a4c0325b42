"""The ledger's tables in memory. Rows are replaced, never changed, so a copy of the tables'
dictionaries is a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any

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
    quarantine: dict[str, Row] = field(default_factory=dict)
    events: dict[tuple[str, int], Row] = field(default_factory=dict)

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
