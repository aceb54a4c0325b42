"""Breakers: which stores are down. While one is open, nothing is sent to its store but one probe at
a time, and no new saga is admitted (`admission.py`).

The state is shared by all processes, in `apex.breaker`. That is why it is no library's: those there
are keep it in one process, or in a Redis, which is one of the stores that may be down; and a probe
has to be claimed so that one process at a time sends one, and no other call with it. What cannot
stand in that table is that its own PostgreSQL is down: this each process remembers for itself.
"""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from threading import Lock
from typing import TypeVar

import structlog
from psycopg.rows import DictRow

from apex_dagster.errors import ApexError, OutcomeUnknown, StoreUnavailable, Unavailable
from apex_dagster.records import SagaId
from apex_dagster.saga import states
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.retry import Pace, RealPace, RetryPolicy, call_with_retry
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

_SQL = load_queries("apex_dagster.saga", "breaker.sql")

T = TypeVar("T")

POSTGRES = "postgres"  # also the ledger's server
_LEDGER = "ledger"  # what the ledger calls it in its errors
_UNREACHABLE = (StoreUnavailable, OutcomeUnknown)
_FLAP_S = 60.0  # a store that is down again so soon keeps its long delays
_CLAIM_S = 10.0  # beyond the time-out of a probe: whoever claimed it has died
_VIEW_S = 1.0  # how old the state may be that a step goes by: it costs one query a second a process


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """How a store that is down is probed, and how admission restarts when it is back."""

    timeout_s: float = 5.0  # for one probe
    delay_s: float = 1.0  # before the first probe at most, doubling with each that fails
    delay_s_max: float = 30.0
    ramp_s: float = 15.0  # from a store's return until admission is unbounded again
    pace: Pace = field(default_factory=RealPace, compare=False)

    def delay_after_s(self, failed_probes: int) -> float:
        """Seconds before the next probe, after so many failed in a row: full jitter."""
        longest_s = min(self.delay_s_max, self.delay_s * 2.0 ** min(failed_probes, 30))
        return random.uniform(0.0, longest_s)  # noqa: S311  jitter is no secret


@dataclass(frozen=True, slots=True, kw_only=True)
class Breaker:
    """One row of `apex.breaker`, as it was when it was read."""

    store: str
    reason: str
    opened_at: datetime
    closed_at: datetime | None  # None: open, the store is down
    failed_probes: int
    probe_in_s: float
    closed_for_s: float | None

    def refusal(self, *, retry_after_s: float | None = None) -> Unavailable:
        """What a caller is told who needs the store."""
        since = f"down since {self.opened_at:%H:%M:%S} UTC: {self.reason}"
        after_s = self.probe_in_s if retry_after_s is None else retry_after_s
        return Unavailable(self.store, since, retry_after_s=max(1.0, after_s))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Outage:
    """The ledger's own PostgreSQL is out of reach, as this process found."""

    reason: str
    began: float  # by the pace's clock
    failed: int
    next_look: float  # by the pace's clock
    since: datetime


class Breakers:
    """The breakers of all stores as one process sees and moves them. Safe for several threads.

    `pings` answers by store, raising ApexError where the store does not. A process that has none
    only looks, and leaves probing to others.
    """

    def __init__(
        self,
        ledger: Ledger,
        pings: Mapping[str, Callable[[], object]],
        *,
        policy: BreakerPolicy | None = None,
    ) -> None:
        self.policy = policy or BreakerPolicy()
        self._ledger, self._pings, self._pace = ledger, pings, self.policy.pace
        self._outage: _Outage | None = None
        self._seen: Mapping[str, Breaker] = {}
        self._seen_at = float("-inf")
        self._looking = Lock()  # only ever tried: who finds it held goes by what was seen last

    # -- looking ---------------------------------------------------------------------------------

    def all(self) -> list[Breaker]:
        """All breakers, read now. Raises StoreUnavailable when the ledger cannot be reached."""
        return list(self._read().values())

    def down(self) -> list[Breaker]:
        """The open ones, as seen in the last second; a probe that is due is sent first."""
        down = self._down()
        if any(self._is_due(breaker) for breaker in down.values()):
            self._try_probe()
            down = self._down()
        return sorted(down.values(), key=lambda breaker: breaker.store)

    def restarting(self) -> list[Breaker]:
        """Those that closed so shortly ago that admission is bounded still."""
        self._down()  # looks, where the last look is too old
        return [b for b in self._seen.values() if (b.closed_for_s or 1e9) < self.policy.ramp_s]

    def refuse(self, store: str) -> None:
        """Raise Unavailable while the store's breaker is open: nothing is to be sent there."""
        for breaker in self.down():
            if breaker.store == store:
                raise breaker.refusal()

    def _down(self) -> dict[str, Breaker]:
        self._look()
        if self._outage is not None:
            return {POSTGRES: self._as_breaker(self._outage)}
        return {name: b for name, b in self._seen.items() if b.closed_at is None}

    def _is_due(self, breaker: Breaker) -> bool:
        return self._outage is None and self._seen_at + breaker.probe_in_s <= self._pace.monotonic()

    def _look(self) -> None:
        """Read the table, unless that was done a moment ago or somebody is at it."""
        now, outage = self._pace.monotonic(), self._outage
        if now < (outage.next_look if outage else self._seen_at + _VIEW_S):
            return
        if not self._looking.acquire(blocking=False):
            return
        try:
            self._seen = self._read()
            self._seen_at = self._pace.monotonic()
            if outage is not None:
                self._end_outage(outage)
        except _UNREACHABLE as error:
            self._begin_outage(error)
        finally:
            self._looking.release()

    def _read(self) -> dict[str, Breaker]:
        rows = self._bounded(lambda: self._run("read_breakers"), "read_breakers")
        return {row["store"]: Breaker(**row) for row in rows}

    # -- opening ---------------------------------------------------------------------------------

    def note(self, store: str, error: BaseException) -> str | None:
        """The store that is down, if that is what `error` means, which used up its retries.

        Opens its breaker. A time-out alone may be a slow write: the store is asked first.
        """
        if isinstance(error, Unavailable):
            return error.store
        if getattr(error, "store", None) == _LEDGER:
            store = POSTGRES
        error_class = getattr(error, "error_class", None)
        if error_class == "unknown_outcome":
            if self._ping_error(store) is None:
                return None
        elif error_class != "store_down":
            return None
        self._open(store, str(error))
        return store

    def _open(self, store: str, reason: str) -> None:
        values = {"store": store, "reason": reason, "flap_s": _FLAP_S, **self._delays()}
        try:
            opened = self._bounded(lambda: self._run("open_breaker", **values), "open_breaker")
        except _UNREACHABLE as error:
            self._begin_outage(error)
            return
        self._seen_at = float("-inf")
        if opened:
            log.error("breaker_opened", store=store, reason=reason)

    # -- probing ---------------------------------------------------------------------------------

    def probe(self, *, at_once: bool = False) -> list[str]:
        """Probe the stores whose time has come, and that nobody probes now; those that are back.

        Raises StoreUnavailable when the ledger cannot be reached.
        """
        owner = f"{os.getpid()}:{secrets.token_hex(6)}"
        claim_s = self.policy.timeout_s + _CLAIM_S
        stores = sorted(self._pings)
        claim = {"owner": owner, "claim_s": claim_s, "at_once": at_once, "stores": stores}
        claimed = self._bounded(lambda: self._run("claim_probes", **claim), "claim_probes")
        return [row["store"] for row in claimed if self._probe(row["store"], owner)]

    def _probe(self, store: str, owner: str) -> bool:
        error = self._ping_error(store)
        ended = {"store": store, "owner": owner}
        if error is None:
            closed = self._bounded(lambda: self._run("close_breaker", **ended), "close_breaker")
            if closed:
                log.warning("breaker_closed", store=store)
        else:
            values = ended | self._delays() | {"reason": str(error)}
            self._bounded(lambda: self._run("delay_probe", **values), "delay_probe")
            log.warning("probe_failed", store=store, error=str(error))
        self._seen_at = float("-inf")
        return error is None

    def _try_probe(self) -> None:
        try:
            self.probe()
        except _UNREACHABLE as error:
            self._begin_outage(error)

    def _ping_error(self, store: str) -> Exception | None:
        try:
            self._bounded(self._pings[store], f"probe {store}", attempts=1)
        except ApexError as error:
            return error
        return None

    # -- when the table cannot be reached ----------------------------------------------------------

    def _begin_outage(self, error: Exception) -> None:
        now, known = self._pace.monotonic(), self._outage
        failed = known.failed + 1 if known else 0
        self._outage = _Outage(
            reason=str(error),
            began=known.began if known else now,
            failed=failed,
            next_look=now + self.policy.delay_after_s(failed),
            since=known.since if known else datetime.now(UTC),
        )
        if known is None:
            log.error("breaker_opened", store=POSTGRES, reason=str(error))

    def _end_outage(self, outage: _Outage) -> None:
        lasted_s = self._pace.monotonic() - outage.began
        values = {"store": POSTGRES, "reason": outage.reason, "lasted_s": lasted_s}
        self._bounded(lambda: self._run("record_outage", **values), "record_outage")
        self._outage, self._seen_at = None, float("-inf")
        log.warning("breaker_closed", store=POSTGRES)

    def _as_breaker(self, outage: _Outage) -> Breaker:
        return Breaker(
            store=POSTGRES,
            reason=outage.reason,
            opened_at=outage.since,
            closed_at=None,
            failed_probes=outage.failed,
            probe_in_s=max(0.0, outage.next_look - self._pace.monotonic()),
            closed_for_s=None,
        )

    # -- the table -------------------------------------------------------------------------------

    def admit(self, wanted: int, *, partly: bool) -> int:
        """Count new sagas against what the breakers that closed lately let through; how many may
        go. All or none of them, unless `partly`."""
        if not self.restarting():
            return wanted
        with self._ledger.transaction() as tx:
            values = {"ramp_s": self.policy.ramp_s}
            rows = tx.execute(_SQL["lock_restarting"], values).fetchall()
            left: list[int] = [
                self._allowance(row["closed_for_s"]) - row["admitted"] for row in rows
            ]
            granted = min([wanted, *left])
            if granted < wanted and not partly:
                granted = 0
            counted = {"documents": granted, "stores": [row["store"] for row in rows]}
            tx.execute(_SQL["count_admitted"], counted)
        return max(0, granted)

    def _allowance(self, closed_for_s: float) -> int:
        """Sagas admitted at most so long after a store's return: 10, doubling six times."""
        return int(10 * 2.0 ** (6 * closed_for_s / self.policy.ramp_s))

    def _delays(self) -> dict[str, float]:
        policy = self.policy
        return {
            "jitter": random.uniform(0.0, 1.0),  # noqa: S311
            "delay_s": policy.delay_s,
            "delay_s_max": policy.delay_s_max,
        }

    def _run(self, query: str, **values: object) -> list[DictRow]:
        with self._ledger.transaction(single=True) as tx:
            return tx.execute(_SQL[query], values).fetchall()

    def _bounded(self, call: Callable[[], T], name: str, *, attempts: int = 3) -> T:
        """Within the time-out of a probe, whatever the driver does about a frozen server."""
        policy = RetryPolicy(attempts=attempts, timeout_s=self.policy.timeout_s, pace=self._pace)
        return call_with_retry(call, policy, name=name)


def hand_back(ledger: Ledger, sagas: Sequence[Saga], stores: Sequence[str]) -> list[Saga]:
    """Leave sagas to recovery, for when these stores are up again."""
    details = {SagaId(saga.saga_id): {"stores": list(stores)} for saga in sagas}
    with ledger.transaction() as tx:
        moved = ledger.advance(states.WAITED, sagas, details=details, tx=tx)
        values = {
            "saga_ids": [saga.saga_id for saga in moved],
            "epochs": [saga.epoch for saga in moved],
            "stores": list(stores),
        }
        tx.execute(_SQL["hand_back"], values)
    return moved
