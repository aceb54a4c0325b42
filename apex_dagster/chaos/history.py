"""Checks a recorded history of reads against the history of live versions.

A version is live from its pivot to the next one of its document. The instant of a pivot is known
within bounds: it is no earlier than the ledger's event, written just before the commit, and no
later than anything that could only follow from it. A read is in order if it saw exactly one whole
version, which may have been live at some instant between the read's start and its end.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from apex_dagster.records import VersionRef

STORES = frozenset({"neo4j", "postgres", "qdrant"})
CACHE = "redis"  # may have nothing, which is a miss


@dataclass(frozen=True, slots=True, kw_only=True)
class Pivot:
    """A version became live."""

    ref: VersionRef
    began: float  # seconds since 1970: not live yet just before
    ended: float = math.inf  # live by then
    content: Mapping[str, str]  # by store: a fingerprint of what was submitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One store's part of what a read returned."""

    ref: VersionRef
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Read:
    """One read of one document."""

    document_id: str
    began: float
    ended: float
    parts: Mapping[str, Seen]  # by store; empty: no version was live


def violations(pivots: Iterable[Pivot], reads: Iterable[Read]) -> list[str]:
    """What is wrong with the reads; nothing if each is in order, and none goes back in time."""
    lives: dict[str, list[Pivot]] = {}
    for pivot in sorted(pivots, key=lambda pivot: pivot.began):
        lives.setdefault(pivot.ref.document_id, []).append(pivot)
    seen: dict[str, list[tuple[Read, int]]] = {}
    found = []
    for read in reads:
        versions = lives.get(read.document_id, [])
        faults = list(_faults(read, versions))
        found += [f"{read.document_id}, read {read.began:.6f}: {fault}" for fault in faults]
        if not faults:
            position = _position(read, versions)
            seen.setdefault(read.document_id, []).append((read, position))
    for document_id, placed in seen.items():
        found += [f"{document_id}, {fault}" for fault in _steps_back(placed)]
    return found


def _faults(read: Read, versions: Sequence[Pivot]) -> Iterator[str]:
    if read.parts and (missing := STORES - set(read.parts)):
        yield f"nothing of {', '.join(sorted(missing))}"
        return
    refs = {seen.ref for seen in read.parts.values()}
    if len(refs) > 1:
        yield f"a mixture of versions {sorted((ref.version, ref.saga_id) for ref in refs)}"
        return
    if refs and not refs & {pivot.ref for pivot in versions}:
        yield f"version {min(refs).version}, which was never live"
        return
    position = _position(read, versions)
    if position >= 0:
        live = versions[position]
        for store, seen in sorted(read.parts.items()):
            if seen.fingerprint != live.content.get(store):
                yield f"{store} shows other content than version {live.ref.version} has"
        if read.ended < live.began:
            yield f"version {live.ref.version} before it was live"
    following = versions[position + 1 :]
    if following and read.began > following[0].ended:
        name = f"version {versions[position].ref.version}" if position >= 0 else "no version"
        yield f"{name} after version {following[0].ref.version} had become live"


def _position(read: Read, versions: Sequence[Pivot]) -> int:
    """Which of the versions it saw; -1 for none."""
    refs = {seen.ref for seen in read.parts.values()}
    return next((n for n, pivot in enumerate(versions) if pivot.ref in refs), -1)


def _steps_back(placed: Sequence[tuple[Read, int]]) -> Iterator[str]:
    """Reads that saw an older version than a read that had ended before they began."""
    by_end = sorted(placed, key=lambda each: each[0].ended)
    newest, index = -1, 0
    for read, position in sorted(placed, key=lambda each: each[0].began):
        while index < len(by_end) and by_end[index][0].ended < read.began:
            newest = max(newest, by_end[index][1])
            index += 1
        if position < newest:
            yield f"read {read.began:.6f}: an older version than an earlier read"
