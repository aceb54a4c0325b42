"""Between a process and its servers: requests refused, lost, late, doubled or unanswered."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from apex_dagster.errors import ApexError, OutcomeUnknown, StoreConflict, StoreUnavailable
from apex_dagster.simulation.traps import Fault, Traps
from apex_dagster.simulation.world import World, current_task

T = TypeVar("T")

_TIMEOUT_S = 5.0  # after which a caller stops waiting


class Network:
    """Carries requests. A server that is down refuses all of them."""

    def __init__(self, world: World, *, transactional: frozenset[str], traps: Traps) -> None:
        self._world, self._transactional, self._traps = world, transactional, traps
        self.down: set[str] = set()
        # Called with the name of a server whose state may have changed.
        self.on_change: Callable[[str], None] = lambda server: None

    def request(self, server: str, what: str, apply: Callable[[], T]) -> T:
        """Let `apply` change the server's state in one go, or not, or later, or twice.

        Raises StoreUnavailable or StoreConflict when nothing was changed, OutcomeUnknown when the
        caller cannot know.
        """
        fault, delay_s = self._set_out(server, what)
        if fault == "refused":
            raise _nothing_written(StoreUnavailable(server, "connection refused"))
        if fault == "conflict":
            raise _nothing_written(StoreConflict(server, "deadlock detected"))
        if fault in ("lost", "late"):
            if fault == "late":
                self._land_later(server, what, apply, delay_s)
            self._time_out(server)
        self.on_change(server)
        result = apply()
        if fault == "twice":
            self._land_later(server, what, apply, delay_s)
        if fault == "unanswered":
            self._time_out(server)
        self._world.hop()
        return result

    def outcome(self, server: str, what: str) -> Fault | None:
        """The fault that a transaction meets whose effects need its caller's code.

        So it can be late only where the caller has been given up by then, and never comes twice.
        """
        fault, delay_s = self._set_out(server, what)
        if fault == "late" and current_task().may_be_abandoned:
            current_task().sleep(delay_s or self._world.random.uniform(1.0, 60.0))
            self._world.note(f"(late) {current_task().process.name} {server} {what}")
            fault = None
        fault = {"late": "lost", "twice": None}.get(fault or "", fault)
        if fault in ("lost", "unanswered"):
            current_task().sleep(_TIMEOUT_S if fault == "lost" else 0.0)
        return fault

    def answer(self) -> None:
        """The way back of a transaction's answer."""
        self._world.hop()

    def _set_out(self, server: str, what: str) -> tuple[Fault | None, float]:
        """The way there; what goes wrong, and by how much if that is known."""
        world, process = self._world, current_task().process
        world.hop()
        trap = self._traps.arrive(f"{server} {what.partition(' ')[0]}")
        fault = trap.fault if trap else None
        if trap and not trap.fault:
            world.note(f"{process.name} is about to send: {server} {what}")
            world.strike(trap.act, trap.delay_s)
        if server in self.down:
            fault = "refused"
        fault = fault or self._fault(server)
        world.count(fault)
        told = f" ({fault})" if fault else ""
        world.note(f"{process.name} {server} {what}{told}")
        return fault, trap.delay_s if trap else 0.0

    def _fault(self, server: str) -> Fault | None:
        if not self._world.chance(self._world.weather.fault):
            return None
        faults: tuple[Fault, ...] = ("refused", "lost", "unanswered", "late", "twice")
        if server in self._transactional:
            faults = ("conflict", *faults)
        return self._world.random.choice(faults)

    def _land_later(
        self, server: str, what: str, apply: Callable[[], object], delay_s: float
    ) -> None:
        # Most late writes are a little late; some are so late that everybody has given them up.
        delay_s = delay_s or self._world.random.random() ** 4 * self._world.weather.late_s_max

        def land() -> None:
            self._world.note(f"(late) {server} {what}")
            self._world.count("landed late")
            self.on_change(server)
            try:
                apply()
            except ApexError:
                self._world.note(f"(late) {server} refused it")

        self._world.at(delay_s, land)

    def _time_out(self, server: str) -> None:
        current_task().sleep(_TIMEOUT_S)
        raise OutcomeUnknown(server, after_s=_TIMEOUT_S)


def _nothing_written(error: ApexError) -> ApexError:
    error.nothing_written = True
    return error
