"""Trouble at a named place: where the engine passes a failpoint, or where a request goes out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Fault = Literal["refused", "conflict", "lost", "unanswered", "late", "twice"]
Act = Literal["stop", "die"] | Fault


@dataclass(frozen=True, slots=True, kw_only=True)
class Trap:
    """Springs once, for whoever comes to a place as the `nth`, counted from 1."""

    at: str  # a failpoint ("staged") or a request ("qdrant upsert", "ledger pivot")
    act: Act
    nth: int = 1
    delay_s: float = 0.0  # how long it is stopped, or how late the request lands

    @property
    def fault(self) -> Fault | None:
        """What becomes of the request, if it is about one."""
        return None if self.act == "stop" or self.act == "die" else self.act

    def __str__(self) -> str:
        after = f" {self.delay_s:.1f} s" if self.delay_s else ""
        return f"trap: {self.act}{after} at {self.at!r}, number {self.nth}"


class Traps:
    """The traps of one world."""

    def __init__(self, traps: Sequence[Trap]) -> None:
        self._set = {(trap.at, trap.nth): trap for trap in traps}
        self._places = {trap.at for trap in traps}
        self._arrivals: Counter[str] = Counter()
        self.sprung: set[str] = set()  # the places

    def arrive(self, place: str) -> Trap | None:
        """The trap that springs for this arrival."""
        if place not in self._places:
            return None
        self._arrivals[place] += 1
        trap = self._set.get((place, self._arrivals[place]))
        if trap:
            self.sprung.add(place)
        return trap

    def disarm(self) -> None:
        """None springs any more."""
        self._places.clear()
