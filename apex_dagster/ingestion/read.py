"""Reads through the project: one version of a document, whole, whatever is being written meanwhile.

PostgreSQL's pointer and content come from one snapshot; what the other stores give back counts only
if it is of that very version. A superseded version stays for a grace time that is longer than a
read, so a read finds what its snapshot named; if it does not, it starts again with a new one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from typing import TypeVar

import structlog

from apex_dagster.errors import IncompleteVersion, TransientError
from apex_dagster.records import VersionRef
from apex_dagster.stores.reading import (
    CacheEntry,
    Graph,
    LiveVersion,
    Part,
    Points,
    SnapshotReader,
    VersionReader,
)

log = structlog.get_logger(__name__)

T = TypeVar("T")

SNAPSHOTS_MAX = 3
_ASKED_MAX = 3  # times that one store is asked with one snapshot
_ASK_AGAIN_AFTER_S = 0.02
_CACHE_WAIT_S = 2.0  # a frozen cache costs a read no more; one that works answers in milliseconds


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LiveDocument:
    """A version that was live at one moment of the read, as each store holds it."""

    version: LiveVersion
    graph: Graph
    points: Points
    cached: CacheEntry | None  # None: a miss, which means nothing
    snapshots: int  # how many were taken; 1 unless something was removed too early, or is lost

    @property
    def ref(self) -> VersionRef:
        """Which version it is."""
        return self.version.ref


class DocumentReader:
    """Reads documents from all four stores. Safe to use from several threads."""

    def __init__(
        self,
        *,
        snapshots: SnapshotReader,
        graphs: VersionReader[Graph],
        points: VersionReader[Points],
        cache: VersionReader[CacheEntry | None],
        timeout_s: float,
    ) -> None:
        self._snapshots, self._graphs, self._points = snapshots, graphs, points
        self._cache, self._timeout_s = cache, timeout_s

    def read_document(self, document_id: str) -> LiveDocument | None:
        """The live version; None where none is.

        Each try has `timeout_s`; a slower one is started again. Raises IncompleteVersion when
        `SNAPSHOTS_MAX` tries found no whole version in time, and StoreUnavailable, StoreConflict or
        OutcomeUnknown when a store other than the cache cannot be asked.
        """
        missing = ""
        for snapshot in range(1, SNAPSHOTS_MAX + 1):
            try:
                return self._read(document_id, snapshot)
            except _NotWhole as error:
                missing = str(error)
                log.warning("read_started_again", document_id=document_id, missing=missing)
        raise IncompleteVersion(document_id, missing)

    def _read(self, document_id: str, snapshot: int) -> LiveDocument | None:
        deadline = time.monotonic() + self._timeout_s
        # Not as a context: a store that is frozen must not keep the caller waiting at its end.
        pool = ThreadPoolExecutor(3, thread_name_prefix="read")
        try:
            live = _within(deadline, pool, lambda: self._snapshots.read_live(document_id))
            if live is None:
                return None
            _check(live, "postgres", frozenset({live.ref}), {"chunks": len(live.chunks)})
            graph = pool.submit(_whole_part, self._graphs, live, deadline)
            points = pool.submit(_whole_part, self._points, live, deadline)
            cached = self._cached(live.ref, deadline, pool)
            return LiveDocument(
                version=live,
                graph=graph.result(_left_s(deadline)),
                points=points.result(_left_s(deadline)),
                cached=cached,
                snapshots=snapshot,
            )
        except FutureTimeout:
            raise _NotWhole(f"no answer within {self._timeout_s:g} s") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _cached(
        self, ref: VersionRef, deadline: float, pool: ThreadPoolExecutor
    ) -> CacheEntry | None:
        """The cache's entry if it is of that version. No answer is a miss like any other: nothing
        in an entry is missing from the other three stores."""
        wait_until = min(deadline, time.monotonic() + _CACHE_WAIT_S)
        try:
            entry = _within(wait_until, pool, lambda: self._cache.read_version(ref))
        except (TransientError, FutureTimeout) as error:
            log.warning("cache_not_read", document_id=ref.document_id, error=str(error))
            return None
        return entry if entry and _is_of(entry, ref) else None


class _NotWhole(Exception):
    """Some store does not hold, or did not show in time, all of the version in the snapshot."""


PartT = TypeVar("PartT", Graph, Points)


def _whole_part(store: VersionReader[PartT], live: LiveVersion, deadline: float) -> PartT:
    """The store's part of `live`, asked for again while it is of another version or not all there.

    Reads of Neo4j and Qdrant are no snapshots, so one that runs beside a write may miss items.
    """
    asked = 0
    while True:
        part = store.read_version(live.ref)
        asked += 1
        try:
            _check(live, store.name, part.refs, part.items)
        except _NotWhole:
            if asked == _ASKED_MAX or time.monotonic() + _ASK_AGAIN_AFTER_S > deadline:
                raise
            time.sleep(_ASK_AGAIN_AFTER_S)
        else:
            return part


def _check(live: LiveVersion, store: str, refs: frozenset[VersionRef], items: object) -> None:
    expected = live.receipts[f"{store}_write"]
    if not refs <= {live.ref} or items != expected:
        raise _NotWhole(f"{store} shows {items} of version {live.ref.version}, not {expected}")


def _is_of(part: Part, ref: VersionRef) -> bool:
    return part.refs == {ref}


def _within(deadline: float, pool: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    return pool.submit(call).result(_left_s(deadline))


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - time.monotonic())
