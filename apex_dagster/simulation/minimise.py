"""Cuts a plan that shows a violation down to what it takes, and its trace to what matters."""

from __future__ import annotations

import re
from collections.abc import Sequence

from apex_dagster.simulation.parts import Parts
from apex_dagster.simulation.plan import Plan
from apex_dagster.simulation.scenario import Outcome, play

_SAGA = re.compile(r"ingest_(\w+)_[0-9a-f]{16}")
_TRIES_MAX = 300  # each plays the plan once: a few seconds in all


def minimise(plan: Plan, parts: Parts | None = None) -> tuple[Plan, Outcome]:
    """Leave out one thing after another for as long as some promise is still broken.

    Deterministic. Returns the plan and its outcome, which may show another fault of the same code.
    """
    outcome, tries = play(plan, parts), 0
    smaller = True
    while smaller:
        smaller = False
        for candidate in plan.parts():
            tries += 1
            tried = play(candidate, parts)
            if tried.violation:
                plan, outcome, smaller = candidate, tried, True
                break
            if tries >= _TRIES_MAX:
                return plan, outcome
    return plan, outcome


def relevant_lines(outcome: Outcome) -> list[str]:
    """The lines about the documents that the violation names, and about the fate of servers and of
    the processes in these lines."""
    documents = set(_SAGA.findall(outcome.violation or ""))
    if not documents:
        return list(outcome.trace)
    about = {line for line in outcome.trace if documents & set(_SAGA.findall(line))}
    processes = {_process(line) for line in about}
    return [
        line
        for line in outcome.trace
        if line in about or (not _SAGA.search(line) and _matters(line, processes))
    ]


def _matters(line: str, processes: set[str]) -> bool:
    """Not about a saga: what happens to a server, or to one of these processes but for requests
    that simply succeeded."""
    words: Sequence[str] = line.split()
    if words[1].partition("-")[0] not in ("run", "recovery", "cancel", "operator", "sweeper"):
        return True
    uneventful = len(words) > 3 and words[2] == "ledger" and not line.endswith(")")
    return _process(line) in processes and not uneventful


def _process(line: str) -> str:
    return line.split()[1]
