"""The real `Ledger` over tables in memory: only its SQL is replaced, by `database.py`."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

from apex_dagster.errors import StoreConflict, StoreUnavailable
from apex_dagster.records import SagaId
from apex_dagster.saga.lease import LeaseClock
from apex_dagster.saga.ledger import Ledger, Transaction
from apex_dagster.simulation.database import STATEMENTS, Database
from apex_dagster.simulation.network import Network
from apex_dagster.simulation.tables import Row


class SimulatedLedger(Ledger):
    """A ledger whose transactions run on a `Database`, reached over a network, if there is one."""

    def __init__(
        self,
        database: Database,
        network: Network | None,
        *,
        lease_s: float,
        owners_notice: bool = False,
    ) -> None:
        # Not the parent's: there is no pool of connections, and what still asks for one shall fail.
        self.lease_s = lease_s
        self.leases = _VirtualClock(database, lease_s) if owners_notice else _NoClock(lease_s)
        self._database, self._network = database, network

    def close(self) -> None:
        """There is nothing to give up."""

    @contextmanager
    def transaction(self, *, single: bool = False) -> Iterator[Transaction]:
        """One transaction, in one instant, unless the network loses the request or the answer."""
        fault = self._network.outcome("ledger", _caller()) if self._network else None
        if fault in ("refused", "lost"):
            raise StoreUnavailable("ledger", "connection lost")
        if fault == "conflict":
            raise StoreConflict("ledger", "deadlock detected")
        with self._database.transaction():
            yield cast("Transaction", _Connection(self._database))
        if fault == "unanswered":
            raise StoreUnavailable("ledger", "connection lost during COMMIT")
        if self._network:
            self._network.answer()


def _caller() -> str:
    """The function that opened the transaction, to name it in traces and for traps: "pivot"."""
    frame = sys._getframe(3)  # past this one, `transaction` and contextlib's __enter__
    while frame.f_code.co_name == "_rows" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_name


class _VirtualClock(LeaseClock):
    """The owner's clock in the simulated world."""

    def __init__(self, database: Database, lease_s: float) -> None:
        super().__init__(lease_s)
        self._database = database

    def now(self) -> float:
        return self._database.now().timestamp()


class _NoClock(LeaseClock):
    """No owner notices that its lease is over: safety has to rest on epochs, conditions and ids."""

    def granted(self, saga_ids: Iterable[SagaId], *, asked_at: float) -> None:
        pass

    def remaining_s(self, saga_id: SagaId) -> float:
        return math.inf


class _Connection:
    """As much of a psycopg connection as the ledger's code uses."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def execute(self, query: str, values: Mapping[str, Any]) -> _Cursor:
        return _Cursor(self._database, self._database.execute(STATEMENTS[query], values))


class _Cursor:
    def __init__(self, database: Database, rows: list[Row]) -> None:
        self._database, self._rows = database, rows
        self.rowcount = len(rows)

    def fetchall(self) -> list[Row]:
        return self._rows
