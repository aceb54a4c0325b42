"""Transactions over the ledger's tables. The Python around them is the real one: see `ledger.py`.

A transaction happens in one instant here; in PostgreSQL row locks, always taken in one order, have
that effect. A test holds every statement here to what PostgreSQL does with the same values.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime

from apex_dagster.simulation.breaker_statements import BreakerStatements
from apex_dagster.simulation.ledger_statements import LedgerStatements, is_unfinished
from apex_dagster.simulation.opening_statements import OpeningStatements
from apex_dagster.simulation.removal_statements import RemovalStatements
from apex_dagster.simulation.retry_statements import RetryStatements
from apex_dagster.simulation.tables import Row, Tables, Values
from apex_dagster.sql import load_queries

_FILES = (
    *("ledger", "opening", "extractions", "sweeps", "removal"),
    *("scheduled_retry", "wakeup", "breaker"),
)
# The text of a statement -> its name, "file:name".
STATEMENTS = {
    text: f"{file}:{name}"
    for file in _FILES
    for name, text in load_queries("apex_dagster.saga", f"{file}.sql").items()
}
_WRITES = re.compile(r"\b(INSERT INTO|UPDATE|DELETE FROM) apex\.")
_WRITING = frozenset(name for text, name in STATEMENTS.items() if _WRITES.search(text))


class Database(
    LedgerStatements, OpeningStatements, RetryStatements, RemovalStatements, BreakerStatements
):
    """Tables and statements. `name_saga` may replace the random id of a saga about to be inserted,
    so that a seed replays: ids decide the order in which sagas are locked, moved and returned."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        name_saga: Callable[[str, str], str] = lambda saga_id, document_id: saga_id,
    ) -> None:
        self.now, self.name_saga = now, name_saga
        self.tables, self.arrival = Tables(), 0
        self._before: Tables | None = None
        # Called with the tables as they were before each transaction that has changed them.
        self.on_commit: Callable[[Tables], None] = lambda before: None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block's statements, or none if it raises."""
        self._before = None
        try:
            yield
        except BaseException:
            if self._before is not None:
                self.tables = self._before
            raise
        if self._before is not None:
            self.on_commit(self._before)

    def execute(self, query: str, values: Values) -> list[Row]:
        """Run the statement called "file:name"; the rows it returns, or changes."""
        if query in _WRITING and self._before is None:
            self._before = self.tables.copy()
        _, _, name = query.partition(":")
        special = {"opening:lock_documents": "lock_documents_to_open"}.get(query, name)
        statement: Callable[[Values], Iterable[Row]] | None = getattr(self, f"_{special}", None)
        if statement is None:
            raise LookupError(f"no model of the statement {query}: add a method _{special}")
        return list(statement(values))

    def has_overdue_work(self) -> bool:
        """Whether a recovery or a sweep would find something to do."""
        now, tables = self.now(), self.tables
        if any(retry["due_at"] < now for retry in tables.retries.values()):
            return True
        if any(due_at < now for _, due_at in tables.sweeps):
            return True
        return any(is_unfinished(s) and s["lease_expires_at"] < now for s in tables.sagas.values())

    def next_sweep(self) -> datetime | None:
        """When the next one is due."""
        return min((due_at for _, due_at in self.tables.sweeps), default=None)
