"""`POST /documents/ingest` under load: fixed arrival rates, saturation, killed workers."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any

import psutil

from apex_dagster.bench.open_loop import Load, arrivals, one_request, saturated
from apex_dagster.bench.service import Service
from apex_dagster.bench.timeline import Timeline
from apex_dagster.errors import ServerNotStarted

RATES_PER_S = (10, 50)
CLIENTS = 256  # of the saturated load: four full runs of documents
# From the first answer on, or it would be the workers' imports that warm up: the API does not wait
# for them. Neo4j plans its queries, and its JVM compiles them.
WARM_UP_S = 20.0
FIRST_ANSWER_TIMEOUT_S = 180.0
KILL_AFTER_S = 3.0
AFTER_KILL_S = 10.0
ALL_ENDED_TIMEOUT_S = 300.0


def measure_rates(
    running: Service,
    bodies: Iterator[bytes],
    timeline: Timeline,
    *,
    seconds: float,
    runs: int,
    seed: int,
    on_load: Callable[[str], None] = lambda name: None,
) -> dict[str, dict[str, Any]]:
    """Every load `runs` times, in turn. By load: each run's figures, their medians, all answers,
    and where the time of the last run went."""
    url = f"{running.url}/documents/ingest"
    on_load("warm-up")
    _await_first_answer(url, bodies)
    saturated(url, bodies, clients=32, seconds=min(WARM_UP_S, 2 * seconds))
    kinds: dict[str, Callable[[int], Load]] = {
        f"at_{rate}_per_s": partial(_arrivals, url, bodies, rate, seconds, seed)
        for rate in RATES_PER_S
    }
    kinds["saturated"] = lambda run: saturated(url, bodies, clients=CLIENTS, seconds=seconds)
    loads: dict[str, list[Load]] = {name: [] for name in kinds}
    parts: dict[str, Mapping[str, float]] = {}
    for run in range(runs):
        for name, load in kinds.items():
            on_load(name)
            begun = timeline.now()
            loads[name].append(load(run))
            parts[name] = timeline.parts(begun)
    return {name: combined(some) | {"ms_by_part": parts[name]} for name, some in loads.items()}


def _arrivals(
    url: str, bodies: Iterator[bytes], rate: int, seconds: float, seed: int, run: int
) -> Load:
    return arrivals(url, bodies, rate_per_s=rate, seconds=seconds, seed=seed + run)


def _await_first_answer(url: str, bodies: Iterator[bytes]) -> None:
    """Raises ServerNotStarted."""
    give_up_at, statuses = time.monotonic() + FIRST_ANSWER_TIMEOUT_S, dict[str, int]()
    while time.monotonic() < give_up_at:
        load = saturated(url, bodies, clients=1, seconds=0.1)
        if load.succeeded:
            return
        statuses = load.statuses
    raise ServerNotStarted("workers", "no document was ingested", f"answers: {statuses}")


def measure_batches(
    running: Service, bodies: Iterator[bytes], *, documents: int, runs: int
) -> dict[str, Any]:
    """So many documents in one request of NDJSON, `runs` times."""
    url = f"{running.url}/documents/ingest/batch"
    return combined([one_request(url, bodies, documents=documents) for _ in range(runs)])


def measure_recovery(
    running: Service, bodies: Iterator[bytes], timeline: Timeline
) -> dict[str, Any]:
    """Kill -9 every worker under load: how long until the last document that was under way has
    ended, and how requests were answered. The daemon has to run: it finishes what the dead held."""
    url = f"{running.url}/documents/ingest"
    killed_at: list[datetime] = []

    def kill(_: Iterator[bytes]) -> Iterator[bytes]:
        begun = time.perf_counter()
        for body in bodies:
            if not killed_at and time.perf_counter() - begun > KILL_AFTER_S:
                killed_at.append(timeline.now())
                for process in running.worker_processes():
                    _kill(process)
            yield body

    load = saturated(url, kill(bodies), clients=64, seconds=KILL_AFTER_S + AFTER_KILL_S)
    open_sagas = timeline.wait_ended(killed_at[0], timeout_s=ALL_ENDED_TIMEOUT_S)
    return {
        "longest_answer_s": max(load.latencies_s, default=None),
        "statuses": load.statuses,
        "documents_per_s": load.succeeded / load.seconds,
        "last_ended_s": timeline.last_ended_s(killed_at[0]),
        "open_sagas": open_sagas,
    }


def combined(loads: Sequence[Load]) -> dict[str, Any]:
    """Each run's figures, the median of each figure, and how all requests were answered."""
    summaries = [load.summary() for load in loads]
    statuses: Counter[str] = Counter()
    for load in loads:
        statuses.update(load.statuses)
    return {"median": _medians(summaries), "runs": summaries, "statuses": dict(statuses)}


def _medians(summaries: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    names = [name for name, value in summaries[0].items() if isinstance(value, int | float)]
    return {name: statistics.median(s[name] for s in summaries) for name in names}


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return
