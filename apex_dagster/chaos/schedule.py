"""When which server or process is killed or frozen: decided by a seed, before anything starts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "freeze"]
KINDS: tuple[Kind, ...] = ("kill", "freeze")

_QUIET_S = 3.0  # at either end of the load, so that every disturbance meets one
_DOWN_S_MAX = 4.0  # between a kill and the start that follows


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Something that can be disturbed, and how long it stays frozen when it is."""

    name: str
    frozen_s: tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Disturbance:
    """One SIGKILL with the start that follows, or one SIGSTOP with its SIGCONT."""

    at_s: float  # after the load began
    target: str
    kind: Kind
    for_s: float  # killed: until it is started again; frozen: until it goes on

    def __str__(self) -> str:
        until = "started again after" if self.kind == "kill" else "for"
        return f"{self.at_s:6.1f} s  {self.kind:6} {self.target:10} {until} {self.for_s:.1f} s"


def schedule(
    targets: Sequence[Target], *, seed: int, seconds: float, every_s: float
) -> list[Disturbance]:
    """One disturbance each `every_s`, a third of that earlier or later. All targets are killed and
    frozen once, in an order of the seed's choosing, before one of them has its turn again."""
    rng = random.Random(f"schedule {seed}")  # noqa: S311  reproducible, not secret
    turns: list[tuple[Target, Kind]] = []
    disturbances = []
    at_s = _QUIET_S
    while at_s < seconds - _QUIET_S:
        if not turns:
            turns = [(target, kind) for target in targets for kind in KINDS]
            rng.shuffle(turns)
        target, kind = turns.pop()
        span = (0.0, _DOWN_S_MAX) if kind == "kill" else target.frozen_s
        disturbances.append(
            Disturbance(
                at_s=round(at_s, 1),
                target=target.name,
                kind=kind,
                for_s=round(rng.uniform(*span), 1),
            )
        )
        at_s += every_s * rng.uniform(2 / 3, 4 / 3)
    return disturbances
