"""The whole proof: the audit log in itself, and the four stores against what its events imply.

What a store holds of a live version is compared, item by item, with what the stored extraction says
has to be there; of versions that must be gone, and of sagas nobody knows, nothing may be left.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from apex_dagster.ingestion.codec import unpack
from apex_dagster.records import Extraction, SagaId, StagedVersion, VersionRef
from apex_dagster.saga.audit import (
    DeadVersion,
    Difference,
    LedgerAudit,
    LiveVersion,
    count_versions,
    dead_versions,
    live_versions,
    places,
    verify_ledger,
)
from apex_dagster.saga.engine import SWEEP_AGAIN_S
from apex_dagster.saga.extractions import extraction_bodies
from apex_dagster.saga.ledger import Ledger
from apex_dagster.stores.contents import NOTHING, Contents, Items, differences
from apex_dagster.stores.protocol import AuditedStore

DEAD_A_REQUEST = 500
LIVE_A_REQUEST = 32  # their texts and vectors are in memory twice
ITEMS_NAMED_MAX = 3  # of one version in one store; the others are counted

# What `Store.holdings` counts, by the receipt that staging gave for it.
_COUNTED = {"neo4j": "entities", "postgres": "chunks", "qdrant": "chunks", "redis": "entries"}
SWEEPS = 1 + len(SWEEP_AGAIN_S)

Counts = Mapping[SagaId, int]
Progress = Callable[[int, int], None]  # versions looked at, of how many
V = TypeVar("V", LiveVersion, DeadVersion)
Judge = Callable[[Sequence[V]], Iterator[tuple[V, Difference]]]


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
    stores: Mapping[str, AuditedStore],
    *,
    dead_max: int | None = None,
    noted_anchor: str | None = None,
    document_ids: Sequence[str] | None = None,
    progress: Progress = lambda done, total: None,
) -> AuditReport:
    """Check the audit log, then ask every store what it holds of each version that is settled.

    Changes nothing, and leaves out sagas that somebody drives. Of versions that must be gone it
    asks for the `dead_max` newest, default all. With `document_ids` the stores are asked for these
    only; the audit log is checked whole in any case. A cache entry may be missing, as it may have
    expired or been evicted; a wrong one may not be there. Memory is bounded by the page, not by
    the corpus. Raises StoreUnavailable or OutcomeUnknown when a server gives no answer.
    """
    in_itself = verify_ledger(ledger, noted_anchor=noted_anchor)
    total = count_versions(ledger, limit=dead_max, document_ids=document_ids)
    live, dead = _Tally(), _Tally()
    progress(0, total)
    for lives in live_versions(ledger, page=LIVE_A_REQUEST, document_ids=document_ids):
        live.add(lives, judge_live(ledger, stores, lives))
        progress(live.count, total)
    for deads in dead_versions(
        ledger, page=DEAD_A_REQUEST, sweeps=SWEEPS, limit=dead_max, document_ids=document_ids
    ):
        dead.add(deads, judge_dead(ledger, stores, deads))
        progress(live.count + dead.count, total)
    progress(total, total)
    return _report(in_itself, live, dead)


class _Tally:
    def __init__(self) -> None:
        self.count, self.differences = 0, list[Difference]()

    def add(self, versions: Sequence[object], found: Sequence[Difference]) -> None:
        self.count += len(versions)
        self.differences += found


def _report(in_itself: LedgerAudit, live: _Tally, dead: _Tally) -> AuditReport:
    return AuditReport(
        sagas=in_itself.sagas,
        events=in_itself.events,
        anchors=in_itself.anchors,
        live=live.count,
        dead=dead.count,
        differences=[*in_itself.differences, *live.differences, *dead.differences],
    )


def judge_live(
    ledger: Ledger, stores: Mapping[str, AuditedStore], versions: Sequence[LiveVersion]
) -> list[Difference]:
    """What the stores hold otherwise than they have to of versions that are live, and stay so while
    they are looked at."""
    return _settled(ledger, versions, lambda some: _judge_live(ledger, stores, some))


def judge_dead(
    ledger: Ledger, stores: Mapping[str, AuditedStore], versions: Sequence[DeadVersion]
) -> list[Difference]:
    """What the stores hold of versions of which nothing may be left."""
    return _settled(ledger, versions, lambda some: _judge_dead(stores, some))


def _settled(ledger: Ledger, versions: Sequence[V], judge: Judge[V]) -> list[Difference]:
    """What is still wrong at a second look, while the saga and its document stood still."""
    suspects = {version.ref.saga_id for version, _ in judge(versions)}
    if not suspects:
        return []
    again = list(judge([version for version in versions if version.ref.saga_id in suspects]))
    now = places(ledger, sorted(suspects))
    return [
        difference for version, difference in again if now.get(version.ref.saga_id) == version.place
    ]


# -- what must be live -----------------------------------------------------------------------------


def _judge_live(
    ledger: Ledger, stores: Mapping[str, AuditedStore], versions: Sequence[LiveVersion]
) -> Iterator[tuple[LiveVersion, Difference]]:
    document_ids = [version.ref.document_id for version in versions]
    held = _ask(stores, lambda store: store.contents(document_ids))
    strangers = _unknown(ledger, held.values())
    bodies = extraction_bodies(ledger, [version.ref.saga_id for version in versions])
    for version in versions:
        extraction = _unpacked(bodies.get(version.ref.saga_id))
        if isinstance(extraction, str):
            expected = f"what version {version.ref.version}, which is live, was staged from"
            yield version, _difference(version.ref, "extraction", "missing", expected, extraction)
            continue
        staged = StagedVersion(ref=version.ref, extraction=extraction)
        for name, store in stores.items():
            mine = held[name].get(version.ref.saga_id, {})
            for difference in _compared(staged, name, store.expected(staged), mine):
                yield version, difference
            for difference in _not_mine(version.ref, name, held[name], strangers):
                yield version, difference


def _unpacked(body: bytes | None) -> Extraction | str:
    """The extraction, or what is wrong with it."""
    if body is None:
        return "nothing stored"
    try:
        return unpack(body)
    except Exception as error:  # whatever the codec says of bytes that are not its own
        return f"bytes that cannot be read: {type(error).__name__}"


def _compared(
    version: StagedVersion, store: str, expected: Items, held: Items
) -> Iterator[Difference]:
    if held == expected or (store == "redis" and not held):
        return
    about = f"of version {version.ref.version}, which is live"
    if not held:
        yield _difference(version.ref, store, "missing", f"{_items(len(expected))} {about}", "none")
        return
    found = list(differences(expected, held))
    for wanted, there in found[:ITEMS_NAMED_MAX]:
        kind = "missing" if there == NOTHING else "altered"
        yield _difference(version.ref, store, kind, f"{wanted} {about}", there)
    if (more := len(found) - ITEMS_NAMED_MAX) > 0:
        yield _difference(version.ref, store, "altered", f"{_items(more)} more {about}", "others")


def _not_mine(
    ref: VersionRef, store: str, held: Contents, strangers: set[SagaId]
) -> Iterator[Difference]:
    """What is filed under the document although no saga of it has written that."""
    for saga_id, items in held.items():
        documents = {value for name, value in items.items() if name.endswith(": document_id")}
        if ref.document_id not in documents:
            continue
        if saga_id in strangers:
            expected, found = f"nothing of saga {saga_id}", _items(len(items))
            yield _difference(ref, store, "orphaned", expected, found, stray_saga_id=saga_id)
        elif store == "redis" and saga_id != ref.saga_id:
            expected = f"the entry of version {ref.version} or none"
            yield _difference(ref, store, "superseded", expected, saga_id)


def _unknown(ledger: Ledger, contents: Any) -> set[SagaId]:
    found = {saga_id for held in contents for saga_id in held}
    return found - {saga.saga_id for saga in ledger.sagas(sorted(found))}


def _items(count: int) -> str:
    return f"{count} item{'' if count == 1 else 's'}"


# -- what must be gone -----------------------------------------------------------------------------


def _judge_dead(
    stores: Mapping[str, AuditedStore], versions: Sequence[DeadVersion]
) -> Iterator[tuple[DeadVersion, Difference]]:
    refs = [version.ref for version in versions]
    counts: dict[str, Counts] = _ask(stores, lambda store: store.holdings(refs))
    for version in versions:
        for store in stores:
            if count := counts[store].get(version.ref.saga_id, 0):
                is_replaced = version.status == "completed"
                why = "superseded" if is_replaced else version.status
                expected = f"nothing of version {version.ref.version}, which is {why}"
                kind, found = "superseded" if is_replaced else "dead", f"{count} {_COUNTED[store]}"
                yield version, _difference(version.ref, store, kind, expected, found)


T = TypeVar("T")


def _ask(stores: Mapping[str, AuditedStore], question: Callable[[AuditedStore], T]) -> dict[str, T]:
    """All four at once."""
    with ThreadPoolExecutor(len(stores)) as pool:
        return dict(zip(stores, pool.map(question, stores.values()), strict=True))


def _difference(
    ref: VersionRef,
    store: str,
    kind: str,
    expected: str,
    found: str,
    *,
    stray_saga_id: SagaId | None = None,
) -> Difference:
    return Difference(
        document_id=ref.document_id,
        saga_id=ref.saga_id,
        place=store,
        expected=expected,
        found=found,
        kind=kind,
        stray_saga_id=stray_saga_id,
    )
