"""The time of retries in a simulated world."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

from apex_dagster.saga.failpoints import SimulatedCrash
from apex_dagster.saga.retry import StillRunning
from apex_dagster.simulation.world import World, current_task

T = TypeVar("T")


class VirtualPace:
    """A `saga.retry.Pace` that goes by the world's clock."""

    def __init__(self, world: World) -> None:
        self._world = world

    def monotonic(self) -> float:
        return self._world.now_s

    def sleep(self, delay_s: float) -> None:
        current_task().sleep(delay_s)

    def call_until(self, operation: Callable[[], T], deadline: float, name: str) -> T:
        """In a greenlet of its own, as it is in a thread of its own elsewhere: what has not come
        back by the deadline goes on, and may land."""
        results: list[T] = []
        errors: list[BaseException] = []
        caller = current_task()
        wake = caller.waker()

        def run() -> None:
            try:
                results.append(operation())
            except (Exception, SimulatedCrash) as error:
                errors.append(error)
            self._world.at(0.0, wake)

        caller.process.spawn(run).may_be_abandoned = True
        caller.wake_in(max(0.0, deadline - self._world.now_s))
        caller.wait()
        if errors:
            raise errors[0]
        if not results:
            raise StillRunning(name)
        return results[0]

    def run_all(self, operations: Sequence[Callable[[], T]]) -> list[T]:
        """A greenlet each, as it is a thread each elsewhere."""
        if not operations:
            return []
        results, errors, left = dict[int, T](), list[BaseException](), len(operations)
        caller = current_task()
        wake = caller.waker()

        def run(number: int, operation: Callable[[], T]) -> None:
            nonlocal left
            try:
                results[number] = operation()
            except (Exception, SimulatedCrash) as error:
                errors.append(error)
            left -= 1
            if not left:
                self._world.at(0.0, wake)

        for number, operation in enumerate(operations):
            caller.process.spawn(partial(run, number, operation))
        caller.wait()
        if errors:
            raise errors[0]
        return [results[number] for number in range(len(operations))]
