"""Many seeds, over several processes. A seed's outcome does not depend on how many there are."""

from __future__ import annotations

import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from apex_dagster.logs import configure_logs
from apex_dagster.simulation.scenario import Outcome, simulate

_SEEDS_PER_TASK = 20  # half a second: often enough for a progress bar


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """What became of some seeds."""

    seeds: int = 0
    violations: dict[int, str] = field(default_factory=dict)  # seed -> what was broken
    sagas: Counter[str] = field(default_factory=Counter)  # by status
    faults: Counter[str] = field(default_factory=Counter)  # by kind

    def __add__(self, other: Tally) -> Tally:
        return Tally(
            seeds=self.seeds + other.seeds,
            violations=self.violations | other.violations,
            sagas=self.sagas + other.sagas,
            faults=self.faults + other.faults,
        )


def simulate_many(first: int, count: int, *, jobs: int) -> Iterator[Tally]:
    """Tallies of the seeds from `first` on, in order, as they come in."""
    starts = range(first, first + count, _SEEDS_PER_TASK)
    tasks = [(start, min(_SEEDS_PER_TASK, first + count - start)) for start in starts]
    if jobs == 1:
        yield from map(_tally, tasks)
        return
    # Forked ones would inherit whatever threads and connections this process has.
    context = multiprocessing.get_context("spawn")
    # Not multiprocessing's own pool, which waits for ever when a worker is killed.
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_be_quiet) as pool:
        yield from pool.map(_tally, tasks)


def _be_quiet() -> None:
    configure_logs(level=logging.CRITICAL)


def _tally(task: tuple[int, int]) -> Tally:
    start, count = task
    return tally_of([simulate(seed) for seed in range(start, start + count)])


def tally_of(outcomes: Sequence[Outcome]) -> Tally:
    """Their figures."""
    return Tally(
        seeds=len(outcomes),
        violations={o.seed: o.violation for o in outcomes if o.violation},
        sagas=sum((Counter(o.sagas) for o in outcomes), Counter[str]()),
        faults=sum((Counter(o.faults) for o in outcomes), Counter[str]()),
    )
