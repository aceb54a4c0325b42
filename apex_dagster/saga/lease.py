"""How long the owners in this process may count on their leases.

The database's clock alone decides when a lease runs out. An owner that was stopped for a while, or
whose renewals do not get through, has to notice that by itself: it counts from before it asked for
the lease, so by its own clock the lease is over no later than by the database's.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable

from apex_dagster.records import SagaId

# Goes on while the machine sleeps. Where there is none (macOS), the other one does.
_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_KNOWN_MAX = 10_000  # a process that lives for months must not remember every saga


class LeaseClock:
    """Remembers when each saga's lease was asked for. Safe to use from several threads."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s, self._lock = lease_s, threading.Lock()
        self._asked_at: dict[SagaId, float] = {}

    def now(self) -> float:
        """Seconds since the machine was started."""
        return time.clock_gettime(_CLOCK)

    def granted(self, saga_ids: Iterable[SagaId], *, asked_at: float) -> None:
        """The leases of these sagas were asked for then, and are there."""
        with self._lock:
            for saga_id in saga_ids:
                self._asked_at.pop(saga_id, None)  # the newest stand last
                self._asked_at[saga_id] = asked_at
            while len(self._asked_at) > _KNOWN_MAX:
                del self._asked_at[next(iter(self._asked_at))]

    def remaining_s(self, saga_id: SagaId) -> float:
        """Seconds until the lease is over; 0 or less when it is, or nothing is known of it."""
        asked_at = self._asked_at.get(saga_id)
        return 0.0 if asked_at is None else asked_at + self._lease_s - self.now()
