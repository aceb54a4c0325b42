"""Metrics of the ledger, computed when they are asked for: no process has to count along, so they
are right whoever ends a saga, and after every restart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from apex_dagster.saga.bound import RecoveryTimes, open_work, overdue_count, recovery_times
from apex_dagster.saga.breaker import Breaker
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.quarantine import waiting_counts
from apex_dagster.saga.recent import Recent, recent
from apex_dagster.saga.states import Status

STORES = ("neo4j", "postgres", "qdrant", "redis")


def render_metrics(
    ledger: Ledger, *, bound_s: float, window_s: float, down: Callable[[], Sequence[Breaker]]
) -> bytes:
    """All metrics in Prometheus' text format 0.0.4. Raises StoreUnavailable without a ledger."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(LedgerCollector(ledger, bound_s=bound_s, window_s=window_s, down=down))
    return generate_latest(registry)


class LedgerCollector(Collector):
    """Reads the ledger at every scrape."""

    def __init__(
        self,
        ledger: Ledger,
        *,
        bound_s: float,
        window_s: float,
        down: Callable[[], Sequence[Breaker]],
    ) -> None:
        self._ledger, self._bound_s, self._window_s = ledger, bound_s, window_s
        self._down = down

    def describe(self) -> list[Metric]:
        """Nothing, so that to be registered needs no database."""
        return []

    def collect(self) -> Iterator[Metric]:
        yield from self._open_sagas()
        yield GaugeMetricFamily(
            "apex_overdue_sagas",
            "Sagas that nobody has ended within APEX_SAGA_BOUND_S of their lease running out.",
            value=overdue_count(self._ledger, bound_s=self._bound_s),
        )
        yield self._waiting_documents()
        yield from _of_late(recent(self._ledger, window_s=self._window_s))
        yield _stores(self._down())
        yield _recoveries(recovery_times(self._ledger, bound_s=self._bound_s))

    def _waiting_documents(self) -> Metric:
        count = GaugeMetricFamily(
            "apex_waiting_documents",
            "Documents in quarantine, for somebody to decide; files in retry, for their next try.",
            labels=["place", "error_class"],
        )
        for (place, error_class), documents in waiting_counts(self._ledger).items():
            count.add_metric([place, error_class], documents)
        return count

    def _open_sagas(self) -> Iterator[Metric]:
        count = GaugeMetricFamily(
            "apex_open_sagas",
            "Sagas that have not ended; completed: not published.",
            labels=["status"],
        )
        age = GaugeMetricFamily(
            "apex_oldest_open_saga_age_seconds",
            "Since the oldest of them was opened.",
            labels=["status"],
        )
        for status, work in open_work(self._ledger).items():
            name = "unpublished" if status is Status.COMPLETED else status.value
            count.add_metric([name], work.sagas)
            age.add_metric([name], work.oldest_s)
        yield count
        yield age


def _of_late(now: Recent) -> Iterator[Metric]:
    """Gauges of what was opened within the window; sagas in it may still change their outcome."""
    window = f"within {now.window_s:g} s"
    ended = GaugeMetricFamily(
        "apex_recent_sagas", f"Sagas opened {window}, by how they ended.", labels=["outcome"]
    )
    for outcome in ("completed", "compensated", "failed", "gave_way"):
        ended.add_metric([outcome], getattr(now, outcome))
    yield ended
    for name, ratio in (("success", now.success_ratio), ("compensation", now.compensation_ratio)):
        gauge = GaugeMetricFamily(f"apex_saga_{name}_ratio", f"Of the sagas that ended, {window}.")
        if ratio is not None:
            gauge.add_metric([], ratio)
        yield gauge
    latency = GaugeMetricFamily(
        "apex_saga_latency_seconds", f"From opened to published, {window}.", labels=["quantile"]
    )
    for quantile, seconds in (("0.5", now.p50_s), ("0.9", now.p90_s), ("0.99", now.p99_s)):
        if seconds is not None:
            latency.add_metric([quantile], seconds)
    yield latency
    failures = GaugeMetricFamily(
        "apex_saga_failures", f"Sagas opened {window} that failed.", labels=["step", "error_class"]
    )
    for (step, error_class), sagas in now.failures.items():
        failures.add_metric([step, error_class], sagas)
    yield failures


def _stores(down: Sequence[Breaker]) -> Metric:
    """By the breakers: what processes found that had to do with the stores."""
    up = GaugeMetricFamily("apex_store_up", "0: its breaker is open.", labels=["store"])
    for store in STORES:
        up.add_metric([store], float(all(breaker.store != store for breaker in down)))
    return up


def _recoveries(times: RecoveryTimes) -> Metric:
    buckets = [(str(edge_s), float(count)) for edge_s, count in times.within.items()]
    return HistogramMetricFamily(
        "apex_saga_recovery_seconds",
        "From when a saga was left by its owner until another has ended it.",
        buckets=[*buckets, ("+Inf", float(times.recoveries))],
        sum_value=times.total_s,
    )
