"""A world of processes under a virtual clock: everything that happens in it follows from a seed.

A process is a set of greenlets. Exactly one greenlet runs at a time, and gives way only where it
waits for the clock; what runs next is the earliest waiter, and latencies come from the seeded
generator. So a seed replays exactly, and thousands of seconds pass in milliseconds.
"""

from __future__ import annotations

import hashlib
import heapq
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from greenlet import GreenletExit, getcurrent, greenlet

from apex_dagster.errors import ApexError
from apex_dagster.saga.failpoints import SimulatedCrash

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """How likely things go wrong, and how long they take. The default is fair weather."""

    crash: float = 0.0  # a process dies, at each request
    pause: float = 0.0  # a process is stopped for up to `pause_s_max`, at each request
    pause_s_max: float = 200.0
    slow: float = 0.0  # a request takes up to `slow_s_max`
    slow_s_max: float = 10.0
    fault: float = 0.0  # a request meets one of the faults in `network.py`
    late_s_max: float = 1500.0  # how late a write may land that nobody waits for any more


class Process:
    """One operating system process: its greenlets crash and pause together."""

    def __init__(self, world: World, name: str) -> None:
        self.world, self.name = world, name
        self.alive, self.stopped, self.wakes_when_calm = True, False, True
        self.on_death: Callable[[], None] = lambda: None
        self._tasks: list[Task] = []
        self._held: list[Callable[[], None]] = []  # wake-ups that came while it was stopped
        world.processes.append(self)

    def spawn(self, run: Callable[[], object]) -> Task:
        """Start a greenlet of this process, now."""
        task = Task(self, run)
        self._tasks = [other for other in self._tasks if not other.dead]
        self._tasks.append(task)
        task.wake_in(0.0)
        return task

    def stop(self, pause_s: float) -> None:
        """As by SIGSTOP, and SIGCONT after `pause_s`."""
        self.stopped = True
        self.world.count("stops")
        self.world.note(f"{self.name} is stopped for {pause_s:.1f} s")
        self.world.at(pause_s, self.go_on)

    def go_on(self) -> None:
        """As by SIGCONT."""
        if self.stopped and self.alive:
            self.world.note(f"{self.name} goes on")
        self.stopped, held = False, self._held
        self._held = []
        for wake in held:
            self.world.at(0.0, wake)

    def hold(self, wake: Callable[[], None]) -> None:
        """Keep a wake-up for when it goes on."""
        self._held.append(wake)

    def die(self) -> None:
        """As by SIGKILL: nothing of it runs any more, no handler either."""
        if not self.alive:
            return
        self.alive = False
        self.world.count("deaths")
        self.world.note(f"{self.name} dies")
        self.world.at(0.0, self._bury)

    def bury(self) -> None:
        """End its greenlets where they stand."""
        self.alive = False
        for task in self._tasks:
            task.bury()
        self._tasks.clear()

    def _bury(self) -> None:
        self.bury()
        self.on_death()


class Task(greenlet):  # type: ignore[misc]
    """One greenlet of a process."""

    def __init__(self, process: Process, run: Callable[[], object]) -> None:
        super().__init__(self._run, parent=process.world.hub)
        self.process, self._body = process, run
        self.may_be_abandoned = False  # a call with a deadline, which somebody else waits for
        self._waits = 0  # every wake-up names the wait that it is meant for

    def sleep(self, delay_s: float) -> None:
        """Give way until `delay_s` from now; ends here if the process has died."""
        self.wake_in(delay_s)
        self.wait()

    def wait(self) -> None:
        """Give way until somebody wakes it."""
        if self.process.alive:
            self.process.world.hub.switch()
        self._waits += 1
        if not self.process.alive:
            raise GreenletExit

    def waker(self) -> Callable[[], None]:
        """What ends the wait that comes next, and no other one."""
        waits = self._waits
        return lambda: self._wake(waits)

    def wake_in(self, delay_s: float) -> None:
        """Wake it `delay_s` from now, unless something else does so before."""
        self.process.world.at(delay_s, self.waker())

    def bury(self) -> None:
        """End it where it stands."""
        if not self.dead:
            self.throw(GreenletExit)

    def _wake(self, waits: int) -> None:
        if waits != self._waits or self.dead or not self.process.alive:
            return
        if self.process.stopped:
            self.process.hold(lambda: self._wake(waits))
        else:
            self.switch()

    def _run(self) -> None:
        try:
            self._body()
        except ApexError as error:
            self.process.world.note(f"{self.process.name} gives up: {error}")
        except SimulatedCrash:
            self.process.die()


@dataclass(kw_only=True)
class World:
    """The clock, the queue of what happens next, and the trace of what has happened."""

    seed: int
    weather: Weather = field(default_factory=Weather)
    now_s: float = 0.0
    trace: list[str] = field(default_factory=list)
    processes: list[Process] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)  # what went wrong, by its kind
    on_step: Callable[[], None] = lambda: None  # called after everything that happens

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)  # noqa: S311 - reproducible on purpose
        self.hub = getcurrent()
        self._queue: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def at(self, delay_s: float, happen: Callable[[], object]) -> None:
        """Let something happen `delay_s` from now, outside of any process."""
        self._count += 1
        heapq.heappush(self._queue, (self.now_s + delay_s, self._count, happen))

    def run(self, until_s: float) -> None:
        """Let happen what is due until then."""
        while self._queue and self._queue[0][0] <= until_s:
            self.now_s, _, happen = heapq.heappop(self._queue)
            happen()
            self.on_step()
        self.now_s = until_s

    def calm(self) -> None:
        """Fair weather from now on; whoever is stopped goes on, but for those in a long trap."""
        self.weather = Weather()
        for process in self.processes:
            if process.wakes_when_calm:
                process.go_on()

    def end(self) -> None:
        """Let go of everything that still waits."""
        for process in self.processes:
            process.bury()
        self._queue.clear()

    def note(self, event: str) -> None:
        """Add a line to the trace."""
        self.trace.append(f"{self.now_s:10.3f} {event}")

    def count(self, kind: str | None) -> None:
        """Something went wrong once more."""
        if kind:
            self.counts[kind] += 1

    def trace_hash(self) -> str:
        """Equal for two runs if and only if the same things happened at the same times."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def now(self) -> datetime:
        """The virtual moment."""
        return _EPOCH + timedelta(seconds=self.now_s)

    def chance(self, probability: float) -> bool:
        """True in this share of cases."""
        return probability > 0 and self.random.random() < probability

    def hop(self) -> None:
        """One way to or from a server: time passes, and with luck the process is still there."""
        task, weather = current_task(), self.weather
        if self.chance(weather.crash):
            task.process.die()
        elif self.chance(weather.pause):
            task.process.stop(self.random.uniform(1.0, weather.pause_s_max))
        slow_s = weather.slow_s_max if self.chance(weather.slow) else 0.02
        task.sleep(self.random.uniform(0.001, slow_s))

    def strike(self, act: str, delay_s: float) -> None:
        """Let the process that runs die, or stop for so long, here and now."""
        task = current_task()
        if act == "die":
            task.process.die()
        else:
            # Recoveries have to be back for the bound that is checked after the faults.
            task.process.wakes_when_calm = not task.process.name.startswith("run-")
            task.process.stop(delay_s)
        task.sleep(0.0)


def current_task() -> Task:
    """The greenlet that runs; only code of a process may ask."""
    task = getcurrent()
    assert isinstance(task, Task), "this runs outside of every simulated process"
    return task
