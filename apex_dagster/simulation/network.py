"""Between a process and its servers: requests refused, lost, late, doubled or unanswered."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from apex_dagster.errors import ApexError, OutcomeUnknown, StoreConflict, StoreUnavailable
from apex_dagster.simulation.world import World, current_task

T = TypeVar("T")

Fault = Literal["refused", "conflict", "lost", "unanswered", "late", "twice"]

_TIMEOUT_S = 5.0  # after which a caller stops waiting


class Network:
    """Carries requests. A server that is down refuses all of them."""

    def __init__(self, world: World, *, transactional: frozenset[str]) -> None:
        self._world, self._transactional = world, transactional
        self.down: set[str] = set()

    def request(self, server: str, what: str, apply: Callable[[], T]) -> T:
        """Let `apply` change the server's state in one go, or not, or later, or twice.

        Raises StoreUnavailable or StoreConflict when nothing was changed, OutcomeUnknown when the
        caller cannot know.
        """
        world, process = self._world, current_task().process
        world.hop()
        fault = self._fault(server)
        world.note(f"{process.name} {server} {what}{f' ({fault})' if fault else ''}")
        if fault == "refused":
            raise _nothing_written(StoreUnavailable(server, "connection refused"))
        if fault == "conflict":
            raise _nothing_written(StoreConflict(server, "deadlock detected"))
        if fault in ("lost", "late"):
            if fault == "late":
                self._land_later(server, what, apply)
            self._time_out(server)
        result = apply()
        if fault == "twice":
            self._land_later(server, what, apply)
        if fault == "unanswered":
            self._time_out(server)
        world.hop()
        return result

    def outcome(self, server: str, what: str) -> Fault | None:
        """The fault that a transaction meets whose effects need its caller's code: never late."""
        self._world.hop()
        fault = self._fault(server)
        fault = {"late": "lost", "twice": None}.get(fault or "", fault)
        self._world.note(
            f"{current_task().process.name} {server} {what}{f' ({fault})' if fault else ''}"
        )
        return fault

    def answer(self) -> None:
        """The way back of a transaction's answer."""
        self._world.hop()

    def _fault(self, server: str) -> Fault | None:
        if server in self.down:
            return "refused"
        if not self._world.chance(self._world.weather.fault):
            return None
        faults: tuple[Fault, ...] = ("refused", "lost", "unanswered", "late", "twice")
        if server in self._transactional:
            faults = ("conflict", *faults)
        return self._world.random.choice(faults)

    def _land_later(self, server: str, what: str, apply: Callable[[], object]) -> None:
        # Most late writes are a little late; some are so late that everybody has given them up.
        delay_s = self._world.random.random() ** 4 * self._world.weather.late_s_max

        def land() -> None:
            self._world.note(f"(late) {server} {what}")
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
