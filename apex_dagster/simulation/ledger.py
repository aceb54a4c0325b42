"""The real `Ledger` over tables in memory: only its SQL is replaced, by `database.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

from apex_dagster.errors import StoreConflict, StoreUnavailable
from apex_dagster.saga.ledger import Ledger, Transaction
from apex_dagster.simulation.database import Database, Row
from apex_dagster.simulation.network import Network
from apex_dagster.sql import load_queries

_NAMES = {
    text: f"{file}:{name}"
    for file in ("ledger", "opening", "wakeup")
    for name, text in load_queries("apex_dagster.saga", f"{file}.sql").items()
}


class SimulatedLedger(Ledger):
    """A ledger whose transactions run on a `Database`, reached over a network, if there is one."""

    def __init__(self, database: Database, network: Network | None, *, lease_s: float) -> None:
        # Not the parent's: there is no pool of connections, and what still asks for one shall fail.
        self.lease_s = lease_s
        self._database, self._network = database, network

    def close(self) -> None:
        """There is nothing to give up."""

    @contextmanager
    def transaction(self, *, single: bool = False) -> Iterator[Transaction]:
        """One transaction, in one instant, unless the network loses the request or the answer."""
        fault = self._network.outcome("ledger", "transaction") if self._network else None
        if fault in ("refused", "lost"):
            raise StoreUnavailable("ledger", "connection lost")
        if fault == "conflict":
            raise StoreConflict("ledger", "deadlock detected")
        before = self._database.tables.copy()
        try:
            yield cast("Transaction", _Connection(self._database))
        except BaseException:
            self._database.tables = before
            raise
        self._database.on_commit(before)
        if fault == "unanswered":
            raise StoreUnavailable("ledger", "connection lost during COMMIT")
        if self._network:
            self._network.answer()


class _Connection:
    """As much of a psycopg connection as the ledger's code uses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def execute(self, query: str, values: Mapping[str, Any]) -> _Cursor:
        return _Cursor(self._database, self._database.execute(_NAMES[query], values))

    @contextmanager
    def cursor(self) -> Iterator[_Cursor]:
        yield _Cursor(self._database, [])


class _Cursor:
    def __init__(self, database: Database, rows: list[Row]) -> None:
        self._database, self._rows = database, rows
        self.rowcount = len(rows)

    def fetchall(self) -> list[Row]:
        return self._rows

    def executemany(self, query: str, values: Sequence[Mapping[str, Any]]) -> None:
        for each in values:
            self._database.execute(_NAMES[query], each)
