"""Whether everything that was promised has been kept, once the load is over and all is up."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from apex_dagster.chaos import census, direct_reads, history
from apex_dagster.chaos.callers import Submission
from apex_dagster.chaos.census import Live
from apex_dagster.chaos.fingerprints import expected, seen
from apex_dagster.chaos.pivots import pivots
from apex_dagster.chaos.readers import Readers
from apex_dagster.composition import Application
from apex_dagster.errors import ApexError
from apex_dagster.ingestion import audit
from apex_dagster.ingestion.codec import unpack
from apex_dagster.records import VersionRef
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.chaos", "census.sql")

_PARALLEL_READS = 4
_SWEEP_SAGAS = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class Violation:
    """A promise that was broken."""

    promise: str  # "half documents", "lost acknowledgements", ...
    document_id: str
    saga_id: str
    what: str

    def __str__(self) -> str:
        about = f"{self.document_id} ({self.saga_id})" if self.saga_id else self.document_id
        return f"{self.promise}: {about}: {self.what}" if about else f"{self.promise}: {self.what}"

    def as_json(self) -> dict[str, Any]:
        """What the report's JSON form holds."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What was looked at, and what is wrong; nothing is if there are no violations."""

    violations: list[Violation]
    live_documents: int
    items: int  # in all four stores
    late_writes: int  # of dead sagas, which waited for a sweep
    reads: int
    direct_reads: int
    audit_events: int
    took_s: float


def judge(app: Application, submissions: Sequence[Submission], readers: Readers) -> Verdict:
    """Look at everything. Nobody may be writing any more. Brings all later sweeps forward."""
    began = time.monotonic()
    live = live_versions(app)
    documents: dict[str, str] = {each.ref.saga_id: each.ref.document_id for each in live}
    before = census.take_census(app.endpoints, app.settings)
    everything = list(census.discrepancies(before, live, late_writes=True))
    visible = list(census.discrepancies(before, live, late_writes=False))
    found = list(_half(visible, documents))
    sweep_everything(app)
    after = census.take_census(app.endpoints, app.settings)
    found += _half(census.discrepancies(after, live, late_writes=True), documents)
    found += _half(census.entity_discrepancies(after, live), documents)
    contents = {s.offer.content_hash: s.offer.fingerprints or {} for s in submissions}
    found += wrong_contents(app, live, contents)
    found += lost(app, live, submissions)
    found += _failed(app)
    if not any(submission.completed for submission in submissions):
        nothing = "nothing was acknowledged as completed, so the run proves nothing"
        found.append(Violation(promise="load", document_id="", saga_id="", what=nothing))
    found += _misread(app, readers, contents)
    report = audit.verify(app.ledger, app.stores)
    found += [
        Violation(
            promise="audit",
            document_id=difference.document_id or "",
            saga_id=difference.saga_id or "",
            what=f"{difference.place}: expected {difference.expected}; found {difference.found}",
        )
        for difference in report.differences
    ]
    return Verdict(
        violations=list(dict.fromkeys(found)),
        live_documents=len(live),
        items=after.total,
        late_writes=len(everything) - len(visible),
        reads=len(readers.reads),
        direct_reads=len(readers.direct_reads),
        audit_events=report.events,
        took_s=time.monotonic() - began,
    )


def live_versions(app: Application) -> list[Live]:
    """What the ledger's pointers name, with what it was staged from."""
    with app.ledger.transaction() as tx:
        rows = tx.execute(_SQL["live"]).fetchall()
    return [
        Live(
            ref=VersionRef(
                document_id=row["document_id"], version=row["version"], saga_id=row["saga_id"]
            ),
            arrival=row["arrival"],
            content_hash=row["content_hash"],
            extraction=unpack(bytes(row["body"])) if row["body"] else None,
        )
        for row in rows
    ]


def sweep_everything(app: Application) -> None:
    """Look for late writes of every dead saga once more, as recovery does over the next day."""
    with app.ledger.transaction() as tx:
        tx.execute(_SQL["bring_sweeps_forward"])
    while app.ingestion.sweep(limit=_SWEEP_SAGAS):
        pass


def _failed(app: Application) -> Iterator[Violation]:
    """Every store came back, so that no undo had a reason to fail for good."""
    with app.ledger.transaction() as tx:
        rows = tx.execute(_SQL["failed_sagas"]).fetchall()
    for row in rows:
        errors = {
            step: undo["error"] for step, undo in row["undone_steps"].items() if "error" in undo
        }
        yield Violation(
            promise="sagas that wait for an operator",
            document_id=row["document_id"],
            saga_id=row["saga_id"],
            what=f"failed: {errors}",
        )


# What each live document has to show


def wrong_contents(
    app: Application, live: Sequence[Live], contents: Mapping[str, Mapping[str, str]]
) -> Iterator[Violation]:
    """Read every live document from all four stores, and compare it with the stored extraction and
    with what its caller had sent."""

    def check(each: Live) -> list[str]:
        if each.extraction is None:
            return ["the ledger has lost the extraction of what is live"]
        due = expected(each.extraction)
        sent = contents.get(each.content_hash)
        faults = [] if due == sent else ["what is live is not what was sent"]
        try:
            document = app.reader.read_document(each.ref.document_id)
        except ApexError as error:
            return [*faults, f"it cannot be read: {error}"]
        parts = seen(document) if document else {}
        return faults + [
            f"{store} holds other content than the stored extraction"
            for store, fingerprint in due.items()
            if store not in parts
            or parts[store].ref != each.ref
            or parts[store].fingerprint != fingerprint
        ]

    with ThreadPoolExecutor(_PARALLEL_READS) as pool:
        for each, faults in zip(live, pool.map(check, live), strict=True):
            for fault in faults:
                yield Violation(
                    promise="half documents",
                    document_id=each.ref.document_id,
                    saga_id=each.ref.saga_id,
                    what=fault,
                )


def _half(found: Iterable[census.Discrepancy], documents: Mapping[str, str]) -> Iterator[Violation]:
    for one in found:
        yield Violation(
            promise="half documents",
            document_id=documents.get(one.saga_id, ""),
            saga_id=one.saga_id,
            what=one.what,
        )


# What callers were promised


def lost(
    app: Application, live: Sequence[Live], submissions: Sequence[Submission]
) -> Iterator[Violation]:
    """Acknowledgements that the end does not bear out, by the ledger's order and by the callers'
    own clock."""
    with app.ledger.transaction() as tx:
        sagas = {row["saga_id"]: row for row in tx.execute(_SQL["sagas"]).fetchall()}
    by_document: dict[str, list[Submission]] = {}
    for submission in submissions:
        by_document.setdefault(submission.offer.document.document_id, []).append(submission)
    now = {each.ref.document_id: each for each in live}
    for document_id, own in by_document.items():
        for fault, saga_id in lost_of_document(own, now.get(document_id), sagas):
            yield Violation(
                promise="lost acknowledgements",
                document_id=document_id,
                saga_id=saga_id,
                what=fault,
            )


def lost_of_document(
    own: Sequence[Submission], live: Live | None, sagas: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """What is wrong, and with which saga. `own`: the submissions of one document; `sagas`: rows of
    the ledger by id."""
    yield from _broken_openings(own, sagas)
    yield from _lost_by_arrival(own, live, sagas)
    yield from _lost_by_clock(own, live)


def _broken_openings(
    own: Sequence[Submission], sagas: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """A submission that was opened has a saga that ended; poison never becomes live; and no caller
    is told of an error that nobody foresaw."""
    for submission in own:
        if submission.refused and submission.refused.startswith("5"):
            yield f"its caller was told: {submission.refused}", ""
        for answer in (*submission.opened, *submission.ended):
            saga = sagas.get(answer.saga_id)
            if saga is None:
                yield "its caller was told of a saga that the ledger does not know", answer.saga_id
            elif answer.status == "completed" and saga["status"] != "completed":
                yield f"acknowledged as completed, and is {saga['status']}", answer.saga_id
            elif submission.offer.fingerprints is None and saga["status"] == "completed":
                yield "poison has become live", answer.saga_id


def _lost_by_arrival(
    own: Sequence[Submission], live: Live | None, sagas: Mapping[str, Mapping[str, Any]]
) -> Iterator[tuple[str, str]]:
    """What is live arrived no earlier than anything that was acknowledged, and was sent."""
    promised = [
        # Not every front door says the arrival.
        (sagas[a.saga_id]["arrival"] if a.arrival is None else a.arrival, a.saga_id, s)
        for s in own
        for a in s.completed
        if a.saga_id in sagas
    ]
    if live is None:
        for arrival, saga_id, _ in promised:
            yield f"acknowledged with arrival {arrival}, and nothing is live", saga_id
        return
    if live.content_hash not in {s.offer.content_hash for s in own}:
        yield "what is live was never sent", live.ref.saga_id
    if not promised:
        return
    arrival, saga_id, submission = max(promised, key=lambda each: each[:2])
    if live.arrival < arrival:
        yield f"acknowledged with arrival {arrival}, but arrival {live.arrival} is live", saga_id
    if live.arrival == arrival and live.content_hash != submission.offer.content_hash:
        yield f"arrival {arrival} is live with other content than was acknowledged", saga_id


def _lost_by_clock(own: Sequence[Submission], live: Live | None) -> Iterator[tuple[str, str]]:
    """Nothing was acknowledged that was sent only after all submissions of the live content were
    open, which fixes their order: then it would have to be live instead."""
    if live is None:
        return
    same = [s for s in own if s.offer.content_hash == live.content_hash and s.attempts]
    if not same or any(s.unanswered for s in same):
        return
    last_opened = max(answer.at for s in same for answer in s.opened)
    for submission in own:
        if submission in same or submission.first_sent < last_opened:
            continue
        for answer in submission.completed:
            yield "acknowledged, but what is live was opened before it was sent", answer.saga_id


def _misread(
    app: Application, readers: Readers, contents: Mapping[str, Mapping[str, str]]
) -> Iterator[Violation]:
    lives = pivots(app.ledger, contents)
    for what in (
        *history.violations(lives, readers.reads),
        *direct_reads.violations(lives, readers.direct_reads),
        *readers.crashes,
    ):
        yield Violation(promise="readers", document_id="", saga_id="", what=what)
