"""Whether every saga ends in time: looked at all the time, and waited for at the end."""

from __future__ import annotations

import threading
import time

from apex_dagster.chaos.disturbances import ServiceClock
from apex_dagster.chaos.verdict import Violation
from apex_dagster.errors import ApexError
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

OPEN_PAST_BOUND = "sagas open past the bound"

_SQL = load_queries("apex_dagster.chaos", "census.sql")
_EVERY_S = 2.0
_EXPIRED_MAX = 1000


class Watch:
    """A thread that notes sagas which are open still `bound_s` after their lease ran out. Seconds
    in which a server or process is out of service do not count: no saga can end without them."""

    def __init__(self, ledger: Ledger, *, bound_s: float, clock: ServiceClock) -> None:
        self._ledger, self._bound_s, self._clock = ledger, bound_s, clock
        self._expired: dict[tuple[str, int], float] = {}  # saga and epoch: when it was seen first
        self._found: dict[str, Violation] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> list[Violation]:
        """What was found."""
        self._stop.set()
        self._thread.join()
        return list(self._found.values())

    def wait_until_all_have_ended(self) -> tuple[float, list[Violation]]:
        """Returns how long that took, and what is still open when lease and bound are over."""
        began = time.monotonic()
        limit_s = self._ledger.lease_s + self._bound_s
        while True:
            still_open = self._still_open()
            waited_s = time.monotonic() - began
            if not still_open or waited_s > limit_s:
                return waited_s, still_open
            time.sleep(0.2)

    def _run(self) -> None:
        while not self._stop.wait(_EVERY_S):
            try:
                expired = self._ledger.overdue_sagas(bound_s=0.0, limit=_EXPIRED_MAX)
            except ApexError:
                continue  # PostgreSQL is down, perhaps by our own doing
            now_s = self._clock.now_s()
            for saga in expired:
                since_s = self._expired.setdefault((saga.saga_id, saga.epoch), now_s)
                if now_s - since_s > self._bound_s:
                    self._found.setdefault(saga.saga_id, _overdue(saga))

    def _still_open(self) -> list[Violation]:
        with self._ledger.transaction() as tx:
            rows = tx.execute(_SQL["open_sagas"]).fetchall()
        return [
            Violation(
                promise=OPEN_PAST_BOUND,
                document_id=row["document_id"],
                saga_id=row["saga_id"],
                what=f"{row['status']}, although all servers have been up for lease and bound",
            )
            for row in rows
        ]


def _overdue(saga: Saga) -> Violation:
    return Violation(
        promise=OPEN_PAST_BOUND,
        document_id=saga.document_id,
        saga_id=saga.saga_id,
        what=f"was still {saga.status} during the load",
    )
