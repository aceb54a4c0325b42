"""A request's way in: a durable saga, the wait for its end, the answer.

Nothing depends on the process that waits. The saga is in the ledger before anybody drives it, so a
client that goes away, or a restart of this process, changes nothing; whoever sends the same again
waits for the same saga, or is told what the first was told.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Literal

import structlog

from apex_dagster.errors import ApexError, QueueFull
from apex_dagster.ingestion.endings import Endings
from apex_dagster.ingestion.gathering import Gatherer
from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.opening import Opened, Opening, Refused, open_sagas
from apex_dagster.saga.pending import pending_count
from apex_dagster.saga.states import Status
from apex_dagster.saga.submissions import Answer, Ending, is_final, keep_answers

log = structlog.get_logger(__name__)

_OPENINGS_MAX = 64  # to a transaction: beyond that its cost a document hardly falls
_OPENINGS_BYTES_MAX = 8 * 1024 * 1024
_GATHER_S = 0.002
_COUNT_EVERY_S = 0.1
_DOCUMENTS_PER_S = 100  # a cautious guess, for saying when a full queue may have room again
_RESUBMISSIONS_MAX = 5

Verdict = Literal[
    "success",
    "compensated",  # for `reason`; every store is as before
    "failed",  # could not be undone: an operator is needed
    "conflict",  # another version is live than the one that was expected
    "superseded",  # what is live was submitted later
    "key_reused",
    "unknown",  # there is nothing to delete, and never was anything submitted of it
    "still_open",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a request."""

    verdict: Verdict
    document_id: str
    saga_id: SagaId | None = None
    version: int | None = None  # success: of this content; conflict: the live one, 0 for none
    published: bool = False
    unchanged: bool = False
    step: str | None = None
    error_class: str | None = None
    reason: str | None = None
    is_final: bool = True  # sent again under its key, it is told the same


class Intake:
    """Takes requests in. For one event loop; the ledger is called from `executor`'s threads.

    `admit(n)`, called from those threads, raises unless `n` documents may come in now: a store may
    be down. `answer_of` puts an outcome into the words of the protocol in use; those are what is
    kept under an idempotency key.
    """

    def __init__(
        self,
        ledger: Ledger,
        endings: Endings,
        executor: Executor,
        *,
        answer_of: Callable[[Outcome], Answer],
        admit: Callable[[int], None],
        pending_max: int,
        answer_wait_s: float,
    ) -> None:
        self._ledger, self._endings, self._executor = ledger, endings, executor
        self._answer_of, self._admit = answer_of, admit
        self._answer_wait_s = answer_wait_s
        self._depth = _Depth(lambda: pending_count(ledger), pending_max)
        self._openings: Gatherer[Opening, Opened | Refused] = Gatherer(
            self._open,
            executor,
            items_max=_OPENINGS_MAX,
            bytes_max=_OPENINGS_BYTES_MAX,
            wait_s=_GATHER_S,
            size_of=lambda o: len(o.body if o.body is not None else o.document.content),
            claims=_claims,
        )
        self._answers: Gatherer[tuple[Opening, Answer], Answer] = Gatherer(
            self._keep,
            executor,
            items_max=_OPENINGS_MAX,
            bytes_max=_OPENINGS_BYTES_MAX,
            claims=lambda item: {item[0].idempotency_key: object()},
        )

    async def answer(self, opening: Opening) -> Answer:
        """Open a saga, or find the one that it repeats, and wait until that has ended.

        Raises QueueFull, StoreUnavailable and whatever `admit` raises; then nothing was opened, or
        (a connection lost at the worst moment) a saga that the same request finds again.
        """
        self._depth.check(self._openings.waiting)
        for _ in range(_RESUBMISSIONS_MAX):
            opened = await self._openings.put(opening)
            if isinstance(opened, Opened) and opened.answer is not None:
                return opened.answer
            outcome = await self._outcome(opening, opened)
            if not _lost_for_another(opening, opened, outcome):
                break
        answer = self._answer_of(outcome)
        if opening.idempotency_key is None or not outcome.is_final:
            return answer
        return await self._kept(opening, opened, answer)

    async def _outcome(self, opening: Opening, opened: Opened | Refused) -> Outcome:
        if isinstance(opened, Refused):
            return _refusal(opening, opened)
        if opened.disposition == "unchanged":
            return Outcome(
                verdict="success",
                document_id=opening.document_id,
                saga_id=opened.saga.saga_id,
                version=opened.saga.version,
                published=opened.saga.published_at is not None,
                unchanged=True,
            )
        look_now = opened.disposition != "opened"
        try:
            ending = await asyncio.wait_for(
                self._endings.wait(opened.saga.saga_id, look_now=look_now), self._answer_wait_s
            )
        except TimeoutError:
            return Outcome(
                verdict="still_open",
                document_id=opening.document_id,
                saga_id=opened.saga.saga_id,
                is_final=False,
            )
        return _outcome_of(ending)

    def _open(self, openings: Sequence[Opening]) -> list[Opened | Refused]:
        self._admit(len(openings))
        self._depth.admit(len(openings))
        return open_sagas(self._ledger, openings, announce=True)

    async def _kept(self, opening: Opening, opened: Opened | Refused, answer: Answer) -> Answer:
        if isinstance(opened, Refused):
            return answer  # no submission was made of it, so there is nothing to keep it with
        try:
            return await self._answers.put((opening, answer))
        except ApexError as error:  # true all the same; the next to ask finds the saga ended
            log.warning("answer_not_kept", document_id=opening.document_id, error=str(error))
            return answer

    def _keep(self, items: Sequence[tuple[Opening, Answer]]) -> list[Answer]:
        pairs = [(opening.client, opening.idempotency_key or "") for opening, _ in items]
        answers = [answer for _, answer in items]
        kept = keep_answers(self._ledger, dict(zip(pairs, answers, strict=True)))
        return [kept[pair] for pair in pairs]


class _Depth:
    """How many documents wait to be driven, counted now and then, and the limit."""

    def __init__(self, count: Callable[[], int], depth_max: int) -> None:
        self._count, self._depth_max = count, depth_max
        self._depth, self._counted_at = 0, -math.inf

    def check(self, more: int) -> None:
        """Raises QueueFull if, with `more`, too many waited when they were last counted."""
        if self._depth + more >= self._depth_max and more:
            self._refuse(self._depth + more)

    def admit(self, more: int) -> None:
        """Raises QueueFull unless `more` still fit."""
        if time.monotonic() - self._counted_at > _COUNT_EVERY_S:
            self._depth, self._counted_at = self._count(), time.monotonic()
        if self._depth + more > self._depth_max:
            self._refuse(self._depth)
        self._depth += more

    def _refuse(self, depth: int) -> None:
        raise QueueFull(depth=depth, retry_after_s=max(1, math.ceil(depth / _DOCUMENTS_PER_S)))


def _claims(opening: Opening) -> dict[Hashable, Hashable]:
    """What openings may share a transaction: one content of a document, one use of a key."""
    claims: dict[Hashable, Hashable] = {
        opening.document_id: (opening.content_hash, opening.expected_version)
    }
    if opening.idempotency_key is not None:
        claims[(opening.client, opening.idempotency_key)] = object()
    return claims


def _refusal(opening: Opening, refused: Refused) -> Outcome:
    if refused.reason == "key_reused":
        return Outcome(verdict="key_reused", document_id=opening.document_id)
    if refused.reason == "unknown":
        return Outcome(verdict="unknown", document_id=opening.document_id)
    return Outcome(
        verdict="conflict", document_id=opening.document_id, version=refused.live_version
    )


def _outcome_of(ending: Ending) -> Outcome:
    error = ending.error or {}
    verdict: Verdict = "compensated"
    if ending.status is Status.COMPLETED:
        verdict = "success"
    elif ending.status is Status.FAILED:
        verdict = "failed"
    elif error.get("class") == "superseded":
        verdict = "superseded"
    elif error.get("class") == "version_conflict" and ending.pinned:
        verdict = "conflict"
    return Outcome(
        verdict=verdict,
        document_id=ending.document_id,
        saga_id=ending.saga_id,
        version=ending.version if verdict == "success" else None,
        published=ending.published,
        step=error.get("step"),
        error_class=error.get("class"),
        reason=error.get("message"),
        is_final=verdict == "success"
        or (verdict != "failed" and is_final(ending.error, pinned=ending.pinned)),
    )


def _lost_for_another(opening: Opening, opened: Opened | Refused, outcome: Outcome) -> bool:
    """It joined a saga of somebody who expected a certain version, which it did not."""
    joined = isinstance(opened, Opened) and opened.disposition == "joined"
    return joined and outcome.verdict == "conflict" and opening.expected_version is None
