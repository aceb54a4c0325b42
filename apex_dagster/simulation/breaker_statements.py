"""What each statement of `breaker.sql` does to the tables."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from apex_dagster.simulation.tables import Row, Statements, Values


class BreakerStatements(Statements):
    """One method a statement; a row it returns is a row that the statement returns."""

    def _read_breakers(self, v: Values) -> Iterable[Row]:
        now = self.now()
        for breaker in sorted(self.tables.breakers.values(), key=lambda row: row["store"]):
            closed_at = breaker["closed_at"]
            yield {
                "store": breaker["store"],
                "reason": breaker["reason"],
                "opened_at": breaker["opened_at"],
                "closed_at": closed_at,
                "failed_probes": breaker["failed_probes"],
                "probe_in_s": max(0.0, (breaker["next_probe_at"] - now).total_seconds()),
                "closed_for_s": (now - closed_at).total_seconds() if closed_at else None,
            }

    def _open_breaker(self, v: Values) -> Iterable[Row]:
        now, known = self.now(), self.tables.breakers.get(v["store"])
        if known and known["closed_at"] is None:
            return []
        flaps = known and known["closed_at"] > now - timedelta(seconds=v["flap_s"])
        failed = known["failed_probes"] + 1 if known and flaps else 0
        opened = {"opened_at": now, "closed_at": None, "failed_probes": failed, "admitted": 0}
        return [self._put_breaker(v, **opened)]

    def _claim_probes(self, v: Values) -> Iterable[Row]:
        now, claimed = self.now(), []
        for store, breaker in sorted(self.tables.breakers.items()):
            due = breaker["next_probe_at"] <= now or v["at_once"]
            free = breaker["probe_expires_at"] is None or breaker["probe_expires_at"] < now
            if breaker["closed_at"] is None and due and free and store in v["stores"]:
                expires_at = now + timedelta(seconds=v["claim_s"])
                claim = {"probe_owner": v["owner"], "probe_expires_at": expires_at}
                self.tables.breakers[store] = breaker | claim
                claimed.append(self.tables.breakers[store])
        return claimed

    def _close_breaker(self, v: Values) -> Iterable[Row]:
        breaker = self.tables.breakers[v["store"]]
        if breaker["probe_owner"] != v["owner"] or breaker["closed_at"] is not None:
            return []
        closed = {"closed_at": self.now(), "probe_owner": None, "probe_expires_at": None}
        self.tables.breakers[v["store"]] = breaker | closed | {"admitted": 0}
        for saga in self._all():
            if v["store"] in (saga["waits_for"] or ()) and saga["lease_owner"] is None:
                self._put(saga | {"lease_expires_at": self.now()})
        return [self.tables.breakers[v["store"]]]

    def _delay_probe(self, v: Values) -> Iterable[Row]:
        breaker = self.tables.breakers[v["store"]]
        if breaker["probe_owner"] != v["owner"] or breaker["closed_at"] is not None:
            return []
        return [self._put_breaker(v, failed_probes=breaker["failed_probes"] + 1)]

    def _put_breaker(self, v: Values, **changed: Any) -> Row:
        breaker = self.tables.breakers.get(v["store"], {}) | changed | {"reason": v["reason"]}
        longest_s = min(v["delay_s_max"], v["delay_s"] * 2.0 ** min(breaker["failed_probes"], 30))
        next_probe_at = self.now() + timedelta(seconds=v["jitter"] * longest_s)
        breaker |= {"store": v["store"], "next_probe_at": next_probe_at}
        breaker |= {"probe_owner": None, "probe_expires_at": None}
        self.tables.breakers[v["store"]] = breaker
        return breaker

    def _record_outage(self, v: Values) -> Iterable[Row]:
        now, known = self.now(), self.tables.breakers.get(v["store"])
        opened_at = now - timedelta(seconds=v["lasted_s"])
        if known is None or (known["closed_at"] is not None and known["closed_at"] < opened_at):
            outage = {"jitter": 0.0, "delay_s": 0.0, "delay_s_max": 0.0} | dict(v)
            failed = known["failed_probes"] if known else 0
            told = {"opened_at": opened_at, "closed_at": now, "failed_probes": failed}
            self._put_breaker(outage, **told, admitted=0)
        return []

    def _lock_restarting(self, v: Values) -> Iterable[Row]:
        now = self.now()
        for store, breaker in sorted(self.tables.breakers.items()):
            if breaker["closed_at"] is not None:
                closed_for_s = (now - breaker["closed_at"]).total_seconds()
                if closed_for_s < v["ramp_s"]:
                    admitted = breaker["admitted"]
                    yield {"store": store, "admitted": admitted, "closed_for_s": closed_for_s}

    def _count_admitted(self, v: Values) -> Iterable[Row]:
        for store in v["stores"]:
            breaker = self.tables.breakers[store]
            counted = {"admitted": breaker["admitted"] + v["documents"]}
            self.tables.breakers[store] = breaker | counted
        return []

    def _hand_back(self, v: Values) -> Iterable[Row]:
        for saga_id, epoch in zip(v["saga_ids"], v["epochs"], strict=True):
            saga = self.tables.sagas[saga_id]
            if saga["epoch"] == epoch:
                free = {"lease_owner": None, "lease_expires_at": self.now()}
                self._put(saga | free | {"waits_for": v["stores"]})
        return []
