"""Wakes whoever waits for sagas to be driven, or to end, so that nobody has to poll often.

A notification is a hint: it is lost when nobody listens at that moment. A listener therefore looks
at the ledger when it starts, after each wake-up, and once in a while without one.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Protocol

import psycopg
import structlog

from apex_dagster.records import SagaId
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

_SQL = load_queries("apex_dagster.saga", "wakeup.sql")

# Sagas were opened that nobody drives yet. The payload is empty, so that a thousand make one.
PENDING = "apex_pending"
# Sagas have ended: published, not publishable for now, compensated or failed. The payload is one
# saga_id; at 512 characters a document_id leaves it far below the 8000 bytes that fit.
ENDED = "apex_ended"

_CONNECT_TIMEOUT_S = 5


class _Executes(Protocol):
    def execute(self, query: Any, values: Any, /) -> Any: ...


def announce_pending(tx: _Executes) -> None:
    """Wake the dispatcher when `tx` is committed."""
    tx.execute(_SQL["announce"], {"channel": PENDING, "payloads": [""]})


def announce_ended(tx: _Executes, saga_ids: Sequence[SagaId]) -> None:
    """Wake those who wait for these sagas when `tx` is committed."""
    if saga_ids:
        tx.execute(_SQL["announce"], {"channel": ENDED, "payloads": list(saga_ids)})


class Listener:
    """Hears one channel, on a connection of its own that it makes again when it is lost. For one
    thread at a time."""

    def __init__(self, postgres_url: str, channel: str) -> None:
        self._url, self._channel = postgres_url, channel
        self._connection: psycopg.Connection | None = None

    def wait(self, timeout_s: float) -> list[str] | None:
        """Payloads that have come in, at the latest after `timeout_s`; [] when there were none.

        None: something may have been missed, so look at everything. That is so the first time,
        after the connection was lost, and (after `timeout_s`) while it cannot be made.
        """
        try:
            if self._connection is None:
                self._connection = self._listen()
                return None
            heard = self._connection.notifies(timeout=timeout_s, stop_after=1)
            return [notification.payload for notification in heard]
        except psycopg.OperationalError as error:
            log.warning("listener_disconnected", channel=self._channel, error=str(error))
            if self._connection is None:
                time.sleep(timeout_s)
            self.close()
            return None

    def close(self) -> None:
        """Give up the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _listen(self) -> psycopg.Connection:
        connection = psycopg.connect(
            self._url,
            autocommit=True,
            connect_timeout=_CONNECT_TIMEOUT_S,
            application_name=f"listen_{self._channel}",
            # A silent network must not look like a silent channel for long.
            keepalives_idle=10,
            keepalives_interval=5,
            keepalives_count=3,
        )
        connection.execute(f"LISTEN {self._channel}".encode())  # one of our two constants
        return connection
