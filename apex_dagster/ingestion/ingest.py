"""The story of a document, on one screen: open, extract, stage in four stores, pivot, publish.

Each method takes a batch and is safe to repeat; Dagster's ops call them one by one, `ingest` calls
them in a row. `owner` names who drives the sagas: nobody else moves them while its lease runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

import structlog

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.codec import pack
from apex_dagster.ingestion.steps import Extractions
from apex_dagster.records import Document, Extraction, SagaId
from apex_dagster.saga.compensation import Compensation
from apex_dagster.saga.engine import VERSION_CONFLICT, Commit, SagaEngine, Staging
from apex_dagster.saga.extractions import store_extractions, submitted_documents
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.opening import (
    Opened,
    Opening,
    Refused,
    deletion,
    open_sagas,
    open_successors,
    used_up_restarts,
    waiting_restarts,
)
from apex_dagster.saga.recovery import Recovery
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.states import CLAIMED, ENDED, Status
from apex_dagster.saga.sweeps import due_sweeps, finish_sweeps

log = structlog.get_logger(__name__)

_ORPHANS_MAX = 10_000  # entities a sweep removes at most: they stay locked until it commits


class Extractor(Protocol):
    """What this module needs of `apex_dagster.extraction`."""

    def extract(self, document: Document) -> Extraction:
        """Raises DocumentRejected."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Submission:
    """A document as it came in. With `rejection` it could not even be read: it gets a saga all the
    same, so that its failure is explained like any other."""

    document: Document
    client: str = "shell"
    body_hash: str | None = None  # of the file it came in; default: of the document's content
    rejection: str | None = None
    extraction: Extraction | None = None  # of a document that comes with one; else extracted here
    deletes: bool = False  # the document is to be deleted; nothing but its id counts

    @classmethod
    def deletion(cls, document_id: str, *, client: str = "shell") -> Submission:
        """The wish that a document be deleted."""
        document = Document(document_id=document_id, name="", content=b"")
        return cls(document=document, client=client, deletes=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch between two ops: sagas this owner holds, and how the others stand."""

    alive: list[Saga] = field(default_factory=list)
    failed: list[Saga] = field(default_factory=list)  # to be compensated
    # Nothing to do for these: the content is live already, or under way elsewhere.
    unchanged: list[Saga] = field(default_factory=list)
    joined: list[Saga] = field(default_factory=list)


class Ingestion:
    """The use cases of writing. Built by the composition root, one for each process."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        engine: SagaEngine,
        compensation: Compensation,
        extractor: Extractor,
        extractions: Extractions,
        takeovers_max: int,
        sweep_orphans: Callable[[int], int],
    ) -> None:
        self.ledger, self.engine, self.compensation = ledger, engine, compensation
        self._extractor, self._extractions = extractor, extractions
        self._sweep_orphans = sweep_orphans
        self.recovery = Recovery(
            engine, compensation, resume=self._resume, takeovers_max=takeovers_max
        )

    def ingest(
        self, submissions: Sequence[Submission], *, owner: str, run_id: str | None = None
    ) -> list[Saga]:
        """The whole story for a batch; its sagas as they ended, by arrival."""
        with self.engine.lease(owner):
            opened = self.open(submissions, owner=owner, run_id=run_id)
            staged = self.stage(self.engine.step_names[-1], opened.alive)
            commit = self.commit(staged.alive, owner=owner, run_id=run_id)
            failed = opened.failed + staged.failed + commit.failed
            self._undo(failed, owner=owner)
        restarted = [saga for saga in commit.completed if saga.predecessor_saga_id]
        everything = [*opened.alive, *opened.failed, *opened.unchanged, *opened.joined, *restarted]
        return self.ledger.sagas(sorted({saga.saga_id for saga in everything}))

    def open(
        self,
        submissions: Sequence[Submission],
        *,
        owner: str,
        run_id: str | None = None,
        dead_owner: str | None = None,
    ) -> Batch:
        """Make a ledger row for each document, then claim them.

        Of two submissions of one document in a batch the later wins. To delete what was never
        submitted leads to no saga. Content that is under way in
        a saga nobody drives any more (or that `dead_owner` drove) is taken over.
        """
        newest = {s.document.document_id: s for s in submissions}
        openings = [_opening(submission) for submission in newest.values()]
        opened = open_sagas(self.ledger, openings, run_id=run_id)
        reach("opened")
        fresh = _sagas(opened, "opened")
        for saga in fresh:
            if (extraction := newest[saga.document_id].extraction) is not None:
                self._extractions.keep(saga.saga_id, extraction)
        claimed = self.engine.move(CLAIMED, fresh, owner=owner)
        joined = _sagas(opened, "joined")
        taken = self._adopt(joined, owner=owner, run_id=run_id, dead_owner=dead_owner)
        reach("claimed")
        alive = [*claimed, *taken]
        rejections = {
            saga.saga_id: Failure(error_class="permanent", step=None, message=rejection)
            for saga in alive
            if (rejection := newest[saga.document_id].rejection)
        }
        failed = self.engine.fail([s for s in alive if s.saga_id in rejections], rejections)
        held = {saga.saga_id for saga in alive}
        return Batch(
            alive=[saga for saga in alive if saga.saga_id not in rejections],
            failed=failed,
            unchanged=_sagas(opened, "unchanged"),
            joined=[saga for saga in joined if saga.saga_id not in held],
        )

    def hold(
        self,
        saga_ids: Sequence[str],
        *,
        owner: str,
        run_id: str | None = None,
        parent_owner: str | None = None,
    ) -> list[Saga]:
        """Those of the sagas that can go on under `owner`, which then holds them.

        `parent_owner` is set in a re-executed run and names the run it repeats: what that run left
        in progress is taken over, and what was compensated since starts again as a successor saga.
        """
        held = self.ledger.owned(saga_ids, owner=owner)
        going = [saga for saga in held if saga.status is Status.IN_PROGRESS]
        if parent_owner is None:
            return going
        rest = self.ledger.sagas(sorted(set(saga_ids) - {saga.saga_id for saga in held}))
        going += self._adopt(rest, owner=owner, run_id=run_id, dead_owner=parent_owner)
        ended = [s for s in rest if s.status is Status.COMPENSATED and s.run_id != run_id]
        if ended and run_id:
            successors = open_successors(self.ledger, ended, run_id=run_id)
            going += self.engine.move(CLAIMED, successors, owner=owner)
            mine = self.ledger.held([s.saga_id for s in successors], owner=owner)
            known = {saga.saga_id for saga in going}
            going += [s for s in mine if s.status is Status.IN_PROGRESS and s.saga_id not in known]
        return going

    def take(
        self,
        saga_ids: Sequence[str],
        *,
        owner: str,
        run_id: str,
        parent_owner: str | None = None,
    ) -> Batch:
        """Those of sagas opened before that `owner` drives from now on: what it holds, what waits
        for a driver, and, in a re-executed run, what `hold` takes up again."""
        alive = self.hold(saga_ids, owner=owner, run_id=run_id, parent_owner=parent_owner)
        others = self.ledger.sagas(sorted(set(saga_ids) - {saga.saga_id for saga in alive}))
        waiting = [saga for saga in others if saga.status is Status.PENDING]
        alive += self.engine.move(CLAIMED, waiting, owner=owner, run_id=run_id)
        held = {saga.saga_id for saga in alive}
        others = [saga for saga in others if saga.saga_id not in held]
        return Batch(
            alive=alive,
            unchanged=[saga for saga in others if saga.status in ENDED],
            joined=[saga for saga in others if saga.status not in ENDED],
        )

    def extract(self, sagas: Sequence[Saga]) -> Batch:
        """Turn raw documents into stored extractions; sagas that have theirs already pass."""
        if not sagas:
            return Batch()
        documents = submitted_documents(self.ledger, [saga.saga_id for saga in sagas])
        bodies: dict[SagaId, bytes] = {}
        failures: dict[SagaId, Failure] = {}
        for saga_id, document in documents.items():
            try:
                extraction = self._extractor.extract(document)
                bodies[saga_id] = pack(extraction)
                self._extractions.keep(saga_id, extraction)
            except Exception as error:
                failures[saga_id] = _extraction_failure(error)
        raw = [saga for saga in sagas if saga.saga_id in bodies]
        kept = store_extractions(self.ledger, raw, bodies) if raw else set()
        reach("extracted")
        return Batch(
            alive=[s for s in sagas if s.saga_id not in documents or s.saga_id in kept],
            failed=self.engine.fail([s for s in sagas if s.saga_id in failures], failures),
        )

    def stage(self, step: str, sagas: Sequence[Saga]) -> Staging:
        """Stage in one store, and in those before it where that is still to be done."""
        # Sagas taken over or started again may lack theirs; what is in memory is in the ledger too.
        ready = [saga for saga in sagas if saga.saga_id in self._extractions]
        extracted = self.extract([saga for saga in sagas if saga.saga_id not in self._extractions])
        staging = self.engine.stage_through(step, [*ready, *extracted.alive])
        return Staging(alive=staging.alive, failed=extracted.failed + staging.failed)

    def commit(
        self,
        sagas: Sequence[Saga],
        *,
        owner: str,
        run_id: str | None = None,
        undo: Callable[[Sequence[Saga]], object] | None = None,
    ) -> Commit:
        """Pivot and publish; stages whatever is still missing first.

        A saga that finds another version live than the one it builds on is undone (by `undo`,
        default: here) and starts again as a new saga on that one, unless what is live was
        submitted later. So of several submissions the last one wins, whoever is faster.
        """
        outcome = self._commit_once(sagas, owner=owner)
        completed, failed = outcome.completed, list[Saga]()
        while losers := _losers(outcome.failed):
            failed += [saga for saga in outcome.failed if saga not in losers]
            failed += used_up_restarts(self.ledger, losers)
            undo_losers = undo or partial(self._undo, owner=owner)
            undo_losers(losers)
            restarted = waiting_restarts(self.ledger, losers)
            claimed = self.engine.move(CLAIMED, restarted, owner=owner, run_id=run_id)
            outcome = self._commit_once(claimed, owner=owner)
            completed = completed + outcome.completed
        return Commit(completed=completed, failed=failed + outcome.failed)

    def _commit_once(self, sagas: Sequence[Saga], *, owner: str) -> Commit:
        staging = self.stage(self.engine.step_names[-1], sagas)
        commit = self.engine.commit(staging.alive, owner=owner)
        return Commit(completed=commit.completed, failed=staging.failed + commit.failed)

    def _undo(self, sagas: Sequence[Saga], *, owner: str) -> None:
        if sagas:
            self.compensation.compensate([saga.saga_id for saga in sagas], owner=owner)

    def sweep(self, *, limit: int = 200) -> int:
        """Remove superseded versions whose grace is over, and late writes of dead sagas; then the
        entities that no document mentions any more. How many sagas were swept."""
        sweeps = due_sweeps(self.ledger, limit=limit)
        if not sweeps:
            return 0
        refs = [sweep.ref for sweep in sweeps]
        for step in self.engine.steps:
            # Beside publishing, Neo4j reports deadlocks: one locks edges, the other their nodes.
            removed = self.engine.retried(partial(step.discard, refs), f"discard {step.name}")
            log.info("swept", step_name=step.name, items=sum(removed.values()))
        orphans = partial(self._sweep_orphans, _ORPHANS_MAX)
        log.info("orphans_swept", entities=self.engine.retried(orphans, "sweep_orphans"))
        finish_sweeps(self.ledger, sweeps)
        return len(sweeps)

    def _resume(self, sagas: Sequence[Saga], owner: str) -> None:
        self._undo(self.commit(sagas, owner=owner).failed, owner=owner)

    def _adopt(
        self, sagas: Sequence[Saga], *, owner: str, run_id: str | None, dead_owner: str | None
    ) -> list[Saga]:
        open_ids = [saga.saga_id for saga in sagas if saga.status not in ENDED]
        if not open_ids:
            return []
        taken = self.ledger.take_over(
            owner, among=open_ids, dead_owner=dead_owner, run_id=run_id, again=True
        )
        return [saga for saga in taken if saga.status is Status.IN_PROGRESS]


def _opening(submission: Submission) -> Opening:
    document, extraction = submission.document, submission.extraction
    if submission.deletes:
        return deletion(document.document_id, client=submission.client)
    return Opening(
        document=document,
        content_hash=extraction.content_hash if extraction else content_hash(document),
        body_hash=submission.body_hash or hashlib.sha256(document.content).hexdigest(),
        client=submission.client,
        body=pack(extraction) if extraction else None,
    )


def _losers(failed: Sequence[Saga]) -> list[Saga]:
    return [saga for saga in failed if (saga.error or {}).get("class") == VERSION_CONFLICT]


def _sagas(opened: Sequence[Opened | Refused], disposition: str) -> list[Saga]:
    # Files have neither keys nor versions that they expect, so only a deletion may be refused.
    taken = [one for one in opened if isinstance(one, Opened)]
    return [one.saga for one in taken if one.disposition == disposition]


def _extraction_failure(error: Exception) -> Failure:
    if isinstance(error, DocumentRejected):
        return Failure(error_class="permanent", step="extract", message=error.reason)
    log.exception("extraction_crashed")
    return Failure.of(error, "extract")
