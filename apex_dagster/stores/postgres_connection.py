"""Connections of PostgresStore: pooled per process, bounded in time, errors translated."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.rows import TupleRow
from psycopg_pool import ConnectionPool, PoolTimeout

from apex_dagster.errors import (
    ApexError,
    OutcomeUnknown,
    StoreConflict,
    StoreRejected,
    StoreUnavailable,
)
from apex_dagster.sql import check_not_hung_up

STORE = "postgres"
_CONNECT_TIMEOUT_S = 10.0
# The server's own time-outs come first, as they leave a usable connection; ours is for a server
# that no longer runs while its kernel goes on acknowledging packets, so that TCP notices nothing.
_ANSWER_MARGIN_S = 1.0
_REFUSAL_POLL_S = 0.1


class BoundedConnection(psycopg.Connection[TupleRow]):
    """Gives up waiting for the server at `deadline` (monotonic seconds), and closes itself then."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.deadline = monotonic() + _CONNECT_TIMEOUT_S  # moved by whoever takes it from the pool

    def wait(self, gen: PQGen[RV], interval: float = 0.1, timeout: float | None = None) -> RV:
        left_s = max(0.0, self.deadline - monotonic())
        bound_s = left_s if timeout is None else min(left_s, timeout)
        try:
            return super().wait(gen, interval, bound_s)
        except psycopg.OperationalError:
            if monotonic() >= self.deadline:
                self.close()  # the answer may still come, and must not meet the next question
            raise

    @classmethod
    def connect(  # type: ignore[override]  # narrower: the pool is its only caller
        cls, conninfo: str = "", *, on_refusal: Callable[[psycopg.Error], None], **kwargs: Any
    ) -> BoundedConnection:
        """Connect, telling `on_refusal` what went wrong: the pool would only log it."""
        try:
            return super().connect(conninfo, **kwargs)
        except psycopg.Error as error:
            on_refusal(error)
            raise


class BoundedPool:
    """Up to `size` connections for each process; none is opened before the first use.

    `connection` is one transaction that ends, one way or another, `timeout_s` and a second after
    it began. Raises StoreUnavailable, StoreConflict, OutcomeUnknown and StoreRejected.
    """

    def __init__(self, url: str, *, timeout_s: float, size: int) -> None:
        self._url, self._timeout_s, self._size = url, timeout_s, size
        # By process id: a forked child must neither use nor close its parent's connections.
        self._pools: dict[int, _RefusalAwarePool] = {}

    @contextmanager
    def connection(self, *, timeout_s: float | None = None) -> Iterator[BoundedConnection]:
        bound_s = timeout_s or self._timeout_s
        deadline = monotonic() + bound_s + _ANSWER_MARGIN_S
        with translated_errors(after_s=bound_s):
            pool = self._of_this_process()
            connection = pool.take(deadline)
            try:
                connection.deadline = deadline
                with connection:
                    if timeout_s is not None:
                        set_timeout = "SELECT set_config('statement_timeout', %s, true)"
                        connection.execute(set_timeout, [str(_milliseconds(timeout_s))])
                    yield connection
            finally:
                connection.deadline = monotonic() + _ANSWER_MARGIN_S  # for a rollback, if need be
                pool.putconn(connection)

    def close(self) -> None:
        pool = self._pools.pop(os.getpid(), None)
        if pool is not None:
            pool.close()

    def _of_this_process(self) -> _RefusalAwarePool:
        # setdefault decides between threads without a lock, which a fork could catch locked.
        pid = os.getpid()
        pool = self._pools.get(pid) or self._pools.setdefault(
            pid, _RefusalAwarePool(self._url, timeout_s=self._timeout_s, size=self._size)
        )
        pool.open()
        return pool


class _RefusalAwarePool(ConnectionPool[BoundedConnection]):
    """A pool that says at once that the server refuses, instead of trying until a time-out."""

    def __init__(self, url: str, *, timeout_s: float, size: int) -> None:
        self._refusals = 0
        self._last_refusal = ""
        super().__init__(
            url,
            kwargs={
                "on_refusal": self._note_refusal,
                **session_parameters(url, timeout_s=timeout_s),
            },
            connection_class=BoundedConnection,
            min_size=0,
            max_size=size,
            check=check_not_hung_up,
            open=False,
            reconnect_timeout=0,  # the next caller tries again, rather than a timer
            num_workers=1,
            name="apex-postgres-store",
        )

    def take(self, deadline: float) -> BoundedConnection:
        refusals = self._refusals
        while True:
            try:
                return self.getconn(timeout=min(_REFUSAL_POLL_S, deadline - monotonic()))
            except PoolTimeout:
                if self._refusals > refusals:
                    raise StoreUnavailable(STORE, self._last_refusal) from None
                if monotonic() >= deadline:
                    detail = (
                        f"no free connection, or no answer to a new one (pool of {self.max_size})"
                    )
                    raise StoreUnavailable(STORE, detail) from None

    def _note_refusal(self, error: psycopg.Error) -> None:
        self._last_refusal = _first_line(error)
        self._refusals += 1


def session_parameters(url: str, *, timeout_s: float) -> dict[str, Any]:
    """Connection arguments that bound every wait, whatever the URL says."""
    milliseconds = _milliseconds(timeout_s)
    given = conninfo_to_dict(url)
    options = (
        # A crash must not lose what the ledger is told of afterwards: whoever has written here
        # outlives the server, and tells the ledger once it is back.
        f"-c synchronous_commit=on -c statement_timeout={milliseconds}"
        # Row locks of a worker that was frozen within a transaction must not outlive its lease.
        f" -c idle_in_transaction_session_timeout={milliseconds}"
    )
    return {
        "connect_timeout": max(1, math.ceil(min(timeout_s, _CONNECT_TIMEOUT_S))),
        "options": f"{given.get('options') or ''} {options}".strip(),
        "application_name": given.get("application_name") or "apex_dagster",
        "keepalives": 1,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": milliseconds,
    }


@contextmanager
def translated_errors(*, after_s: float) -> Iterator[None]:
    try:
        yield
    except psycopg.Error as error:
        raise translate(error, after_s=after_s) from error
    except UnicodeEncodeError as error:
        raise StoreRejected(STORE, f"not a text: {error.reason}") from error


def translate(error: psycopg.Error, *, after_s: float) -> ApexError:
    """The project's error for one of psycopg's, by SQLSTATE.

    Source: https://www.postgresql.org/docs/18/errcodes-appendix.html
    """
    state, detail = error.sqlstate or "", _first_line(error)
    if state in ("57014", "25P03", "25P04", "40003") or state.startswith("08"):
        return OutcomeUnknown(STORE, after_s=after_s)  # cancelled by a time-out, or cut off
    if state in ("23505", "55P03") or state.startswith("40"):
        return StoreConflict(STORE, detail)
    if state[:2] in ("53", "57", "58") or state == "25006":  # no room, shutting down, read-only
        return StoreUnavailable(STORE, detail)
    if state in ("3F000", "42P01", "42704"):
        return StoreRejected(STORE, f"{detail}: bring the database's schema up to date first")
    if not state and isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return OutcomeUnknown(STORE, after_s=after_s)  # the connection was lost in mid-statement
    return StoreRejected(STORE, detail)


def _first_line(error: psycopg.Error) -> str:
    lines = (error.diag.message_primary or str(error)).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _milliseconds(seconds: float) -> int:
    return max(1, math.ceil(seconds * 1000))
