"""Time by part, and the processor time of every process that takes part."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import psutil


class Stopwatch:
    """Adds up the seconds spent in named parts. Parts that overlap may add up to more than all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block as `name`."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            took_s = time.perf_counter() - begun
            with self._lock:
                self._seconds[name] += took_s

    def take(self) -> Mapping[str, float]:
        """Seconds by part since the last call."""
        with self._lock:
            seconds, self._seconds = dict(self._seconds), defaultdict(float)
        return seconds


class Processors:
    """Processor seconds of this process and of the servers, with their children.

    On a machine that does other things as well, a ratio of processor times says more than one of
    durations.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._client = psutil.Process()

    def seconds(self) -> Mapping[str, float]:
        """By name, since each was started. A child that has ended takes its seconds along."""
        spent = {
            name: _seconds([process, *process.children(recursive=True)])
            for name, process in self._processes.items()
        }
        # Without its children: the servers may be among them, if it has started them.
        return spent | {"client": _seconds([self._client])}


def _seconds(processes: list[psutil.Process]) -> float:
    total = 0.0
    for each in processes:
        try:
            times = each.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total
