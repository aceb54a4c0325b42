"""Carries a schedule out, and measures how long each target was out of service."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from apex_dagster.chaos.processes import Victim
from apex_dagster.chaos.schedule import Disturbance


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """A disturbance as it was carried out."""

    planned: Disturbance
    out_of_service_s: float

    def as_json(self) -> dict[str, Any]:
        """What the report's JSON form holds."""
        return {**asdict(self.planned), "out_of_service_s": round(self.out_of_service_s, 3)}


class ServiceClock:
    """Seconds during which everything was in service: the clock stands still meanwhile."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out, self._stopped_s, self._stopped_at = 0, 0.0, 0.0

    def now_s(self) -> float:
        """Differences of two readings mean something; one alone does not."""
        with self._lock:
            now = self._stopped_at if self._out else time.monotonic()
            return now - self._stopped_s

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Something is out of service for the length of the block."""
        with self._lock:
            if not self._out:
                self._stopped_at = time.monotonic()
            self._out += 1
        try:
            yield
        finally:
            with self._lock:
                self._out -= 1
                if not self._out:
                    self._stopped_s += time.monotonic() - self._stopped_at


class Disturbances:
    """A thread for each disturbance: one may begin while another still lasts, but never two of one
    target."""

    def __init__(
        self,
        planned: Sequence[Disturbance],
        victims: Mapping[str, Victim],
        *,
        say: Callable[[str], None],
    ) -> None:
        self.done: list[Done] = []
        self._victims, self._say = victims, say
        self._locks = {name: threading.Lock() for name in victims}
        self._errors: list[Exception] = []
        self._abandoned = threading.Event()
        self._began = 0.0
        self.service_clock = ServiceClock()
        self._threads = [
            threading.Thread(target=self._run, args=[one], name=f"{one.kind} {one.target}")
            for one in planned
        ]

    def start(self) -> None:
        """The load begins now."""
        self._began = time.monotonic()
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Wait until all are done and everything is in service. Raises what went wrong with one,
        such as ServerNotStarted."""
        for thread in self._threads:
            thread.join()
        if self._errors:
            raise self._errors[0]

    def abandon(self) -> None:
        """Begin none that has not begun; wait for the others."""
        self._abandoned.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, one: Disturbance) -> None:
        if self._abandoned.wait(max(0.0, self._began + one.at_s - time.monotonic())):
            return
        with self._locks[one.target]:
            began = time.monotonic()
            self._say(f"{began - self._began:6.1f} s  {one.kind} {one.target}")
            try:
                with self.service_clock.stopped():
                    self._disturb(self._victims[one.target], one)
            except Exception as error:
                self._errors.append(error)
                self._say(f"{one.kind} {one.target}: {error}")
                return
            out_s = time.monotonic() - began
            self.done.append(Done(planned=one, out_of_service_s=out_s))
            at_s = time.monotonic() - self._began
            self._say(f"{at_s:6.1f} s  {one.target} is back after {out_s:.1f} s")

    def _disturb(self, victim: Victim, one: Disturbance) -> None:
        if one.kind == "kill":
            victim.kill()
            self._abandoned.wait(one.for_s)
            victim.start()
            return
        victim.freeze()
        try:
            self._abandoned.wait(one.for_s)
        finally:
            victim.thaw()
