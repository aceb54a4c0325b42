"""The whole proof: the audit log in itself, and the four stores against what its events imply."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

from apex_dagster.records import SagaId, VersionRef
from apex_dagster.saga.audit import (
    DeadVersion,
    Difference,
    LedgerAudit,
    LiveVersion,
    dead_versions,
    live_versions,
    places,
    verify_ledger,
)
from apex_dagster.saga.engine import SWEEP_AGAIN_S
from apex_dagster.saga.ledger import Ledger
from apex_dagster.stores.protocol import Store

VERSIONS_A_REQUEST = 500

# What `Store.holdings` counts, by the receipt that staging gave for it.
_COUNTED = {"neo4j": "entities", "postgres": "chunks", "qdrant": "chunks", "redis": "entries"}
_SWEEPS = 1 + len(SWEEP_AGAIN_S)
_CACHE_MARGIN_S = 5.0  # of clocks and rounding, at the end of a cache entry's life

Counts = Mapping[SagaId, int]
V = TypeVar("V", LiveVersion, DeadVersion)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """What was looked at and what is wrong; nothing is if `differences` is empty."""

    sagas: int
    events: int
    anchors: int
    live: int  # versions that must be in every store
    dead: int  # versions that must be in none
    differences: list[Difference]

    def as_json(self) -> dict[str, Any]:
        """What `apex audit verify --json` prints."""
        return asdict(self)


def verify(
    ledger: Ledger,
    stores: Mapping[str, Store],
    *,
    cache_ttl_s: float,
    dead_max: int | None = None,
    noted_anchor: str | None = None,
) -> AuditReport:
    """Check the audit log, then ask every store what it holds of each version that is settled.

    Changes nothing, and leaves out sagas that somebody drives. Of versions that must be gone it
    asks for the `dead_max` newest, default all. A cache entry may be missing once `cache_ttl_s` is
    over. Raises StoreUnavailable or OutcomeUnknown when one of the servers gives no answer.
    """
    in_itself = verify_ledger(ledger, noted_anchor=noted_anchor)
    live = _Tally()
    for lives in live_versions(ledger, page=VERSIONS_A_REQUEST):
        judge = partial(_judge_live, cache_ttl_s=cache_ttl_s)
        live.add(lives, _differences(ledger, stores, lives, judge))
    dead = _Tally()
    for deads in dead_versions(ledger, page=VERSIONS_A_REQUEST, sweeps=_SWEEPS, limit=dead_max):
        dead.add(deads, _differences(ledger, stores, deads, _judge_dead))
    return _report(in_itself, live, dead)


class _Tally:
    def __init__(self) -> None:
        self.count, self.differences = 0, list[Difference]()

    def add(self, versions: Sequence[object], differences: Sequence[Difference]) -> None:
        self.count += len(versions)
        self.differences += differences


def _report(in_itself: LedgerAudit, live: _Tally, dead: _Tally) -> AuditReport:
    return AuditReport(
        sagas=in_itself.sagas,
        events=in_itself.events,
        anchors=in_itself.anchors,
        live=live.count,
        dead=dead.count,
        differences=[*in_itself.differences, *live.differences, *dead.differences],
    )


def _differences(
    ledger: Ledger,
    stores: Mapping[str, Store],
    versions: Sequence[V],
    judge: Callable[[V, str, int], Difference | None],
) -> list[Difference]:
    """What is still wrong at a second look, while the saga and its document stood still."""
    suspects = {v.ref.saga_id for v, _ in _judged(stores, versions, judge)}
    if not suspects:
        return []
    again = list(_judged(stores, [v for v in versions if v.ref.saga_id in suspects], judge))
    now = places(ledger, sorted(suspects))
    return [difference for v, difference in again if now.get(v.ref.saga_id) == v.place]


def _judged(
    stores: Mapping[str, Store],
    versions: Sequence[V],
    judge: Callable[[V, str, int], Difference | None],
) -> Iterator[tuple[V, Difference]]:
    counts = _count(stores, [version.ref for version in versions])
    for version in versions:
        for store in stores:
            difference = judge(version, store, counts[store].get(version.ref.saga_id, 0))
            if difference:
                yield version, difference


def _count(stores: Mapping[str, Store], refs: Sequence[VersionRef]) -> dict[str, Counts]:
    """The stores' own counts, all four asked at once."""
    with ThreadPoolExecutor(len(stores)) as pool:
        answers = pool.map(lambda store: store.holdings(refs), stores.values())
        return dict(zip(stores, answers, strict=True))


def _judge_live(
    version: LiveVersion, store: str, count: int, *, cache_ttl_s: float
) -> Difference | None:
    items = _COUNTED[store]
    expected = version.receipts.get(f"{store}_write", {}).get(items, 0)
    expired = version.published_for_s > cache_ttl_s - _CACHE_MARGIN_S
    if count == expected or (store == "redis" and count == 0 and expired):
        return None
    about = f"{expected} {items} of version {version.ref.version}, which is live"
    return _difference(version.ref, store, about, str(count))


def _judge_dead(version: DeadVersion, store: str, count: int) -> Difference | None:
    if count == 0:
        return None
    why = "superseded" if version.status == "completed" else version.status
    expected = f"nothing of version {version.ref.version}, which is {why}"
    return _difference(version.ref, store, expected, f"{count} {_COUNTED[store]}")


def _difference(ref: VersionRef, store: str, expected: str, found: str) -> Difference:
    return Difference(
        document_id=ref.document_id,
        saga_id=ref.saga_id,
        place=store,
        expected=expected,
        found=found,
    )
