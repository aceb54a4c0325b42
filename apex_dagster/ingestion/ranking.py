"""The rankers of one search at work: side by side, in bounded time, those that fail left out."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from apex_dagster.errors import ApexError, OutcomeUnknown, StoreRejected, TransientError
from apex_dagster.ingestion.rankers import StoreRanker
from apex_dagster.records import SagaId
from apex_dagster.stores.searching import Candidate, SearchFilter, SearchSnapshot

T = TypeVar("T")

TEXT = "text"
# From twice the depth, four times as many each time. Qdrant compares with every point whatever the
# limit, so what a larger one costs is the answer's size.
_ASKED_FACTOR, _ASKED_MAX = 4, 3200
# A filter that fewer versions pass is given to the stores as their ids; what passes a wider one is
# not rare among what they find.
PASSING_MAX = 5000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a ranker fared."""

    candidates: Sequence[Candidate] = ()  # best first
    took_ms: float = 0.0  # its store's time, and for looking up what is live
    reason: str | None = None  # why it did not answer

    def as_json(self) -> dict[str, Any]:
        """Without the candidates."""
        return {
            "answered": self.reason is None,
            "reason": self.reason,
            "took_ms": round(self.took_ms, 3),
            "candidates": len(self.candidates),
        }


class Ranking:
    """The rankers of one search over one snapshot. Used as a context, and by one thread."""

    def __init__(
        self, snapshot: SearchSnapshot, wanted: SearchFilter, *, depth: int, timeout_s: float
    ) -> None:
        self._snapshot, self._wanted, self._depth = snapshot, wanted, depth
        self._timeout_s, self._deadline = timeout_s, time.monotonic() + timeout_s
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="search")
        self._saga_ids: list[SagaId] | None = None
        if wanted:
            self._saga_ids = snapshot.passing(wanted, limit=PASSING_MAX)

    def __enter__(self) -> Ranking:
        return self

    def __exit__(self, *_: object) -> None:
        # Without waiting: a store that is frozen must not keep the caller at its end.
        self._pool.shutdown(wait=False, cancel_futures=True)

    def rank(self, rankers: Sequence[StoreRanker[Any]], query: str | None) -> dict[str, Outcome]:
        """By name, full text for `query` among them unless it is None.

        Raises what PostgreSQL raises, but for a time-out of full text.
        """
        asked = [(ranker, self._ask(ranker, 2 * self._depth)) for ranker in rankers]
        outcomes = {}
        if query is not None:
            outcomes[TEXT] = self._outcome(partial(self._text, query))
        for ranker, first in asked:
            outcomes[ranker.name] = self._outcome(partial(self._settled, ranker, first))
        return outcomes

    def _outcome(self, ranked: Callable[[], tuple[list[Candidate], float]]) -> Outcome:
        began = time.monotonic()
        try:
            candidates, took_s = ranked()
        except _NotAsked as failure:
            reason, took_s = str(failure), time.monotonic() - began
            return Outcome(reason=reason, took_ms=took_s * 1000)
        return Outcome(candidates=candidates[: self._depth], took_ms=took_s * 1000)

    def _text(self, query: str) -> tuple[list[Candidate], float]:
        try:
            return _timed(
                lambda: self._snapshot.rank_text(
                    query, self._wanted, limit=self._depth, timeout_s=self._timeout_s
                )
            )
        except OutcomeUnknown as error:
            if error.after_s != self._timeout_s:
                raise  # the connection's, with which the snapshot is gone
            raise _NotAsked(self._late("postgres")) from error

    def _settled(
        self, ranker: StoreRanker[Any], answer: Future[tuple[Any, float]]
    ) -> tuple[list[Candidate], float]:
        limit, took_s = 2 * self._depth, 0.0
        while True:
            found, asking_s = self._answer(ranker, answer)
            settle = partial(ranker.settle, found, self._snapshot, self._wanted)
            candidates, settling_s = _timed(settle)
            took_s += asking_s + settling_s
            enough = len(candidates) >= self._depth or ranker.is_all(found, limit)
            if enough or limit >= _ASKED_MAX:
                return candidates, took_s
            limit *= _ASKED_FACTOR
            answer = self._ask(ranker, limit)

    def _ask(self, ranker: StoreRanker[Any], limit: int) -> Future[tuple[Any, float]]:
        return self._pool.submit(_timed, lambda: ranker.ask(self._wanted, self._saga_ids, limit))

    def _answer(self, ranker: StoreRanker[Any], answer: Future[tuple[T, float]]) -> tuple[T, float]:
        try:
            return answer.result(max(0.0, self._deadline - time.monotonic()))
        except FutureTimeout:
            raise _NotAsked(self._late(ranker.store)) from None
        except (TransientError, StoreRejected) as error:
            # Not the driver's own words, which name addresses.
            raise _NotAsked(_in_short(ranker.store, error)) from error

    def _late(self, store: str) -> str:
        return f"{store} gave no answer within {self._timeout_s:g} s"


class _NotAsked(Exception):
    """A ranker has no answer; the message tells a reader why."""


def _in_short(store: str, error: ApexError) -> str:
    if isinstance(error, OutcomeUnknown):
        return f"{store} gave no answer within {error.after_s:g} s"
    if isinstance(error, StoreRejected):
        return f"{store} refused the query"
    return f"{store} cannot be reached at present"


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    began = time.monotonic()
    value = call()
    return value, time.monotonic() - began
