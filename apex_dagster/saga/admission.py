"""Whether new sagas may be opened now. Every front door asks before it takes anything in."""

from __future__ import annotations

from apex_dagster.errors import Unavailable
from apex_dagster.saga.breaker import Breakers

_RESTART_AFTER_S = 1.0  # what may be admitted doubles every few seconds


class Admission:
    """Closed while a store is down; reopens step by step, so that a store that has just come back
    is not met by everything that has waited for it."""

    def __init__(self, breakers: Breakers) -> None:
        self._breakers = breakers

    def refusal(self) -> Unavailable | None:
        """Why nothing is admitted now, or None. Where a probe is due, the store is asked first."""
        down = self._breakers.down()
        # The one that takes longest: before that, another attempt is refused as well.
        return max((b.refusal() for b in down), key=lambda r: r.retry_after_s, default=None)

    def check(self, documents: int = 1) -> None:
        """Raise Unavailable unless so many documents may come in now, all together.

        With 0 it asks only whether a store is down, and counts nothing.
        """
        if refusal := self.refusal():
            raise refusal
        if self._breakers.admit(documents, partly=False) < documents:
            raise self._restarting()

    def grant(self, wanted: int) -> int:
        """How many of `wanted` documents may come in now: all, some, or 0 while a store is down."""
        if self.refusal():
            return 0
        return self._breakers.admit(wanted, partly=True)

    def _restarting(self) -> Unavailable:
        names = " and ".join(breaker.store for breaker in self._breakers.restarting())
        reason = "it is back since a moment, and admission restarts step by step"
        return Unavailable(names or "a store", reason, retry_after_s=_RESTART_AFTER_S)
