"""What became of a submission: for whoever waits for its saga, and for whoever sends it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from psycopg.rows import DictRow

from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "submissions.sql")

# Why a saga was compensated, where sending the same thing again cannot end otherwise. A conflict is
# among them as it ends a submission only if that named the version it builds on.
_FINAL_CLASSES = frozenset({"permanent", "superseded", "requested"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a request was told, to the byte."""

    status: int  # of HTTP
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Earlier:
    """A submission that used an idempotency key before."""

    submission_id: int
    body_hash: str
    answer: Answer | None
    saga: Saga  # that stands for it now

    @property
    def may_try_again(self) -> bool:
        """Whether it came to nothing for a reason that may have passed."""
        if self.answer is not None or self.saga.status is not Status.COMPENSATED:
            return False
        return not is_final(self.saga.error, pinned=self.saga.pinned)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """How the saga that stands for a submission has ended."""

    asked_saga_id: SagaId  # the one that was asked for; the submission's first
    saga_id: SagaId
    document_id: str
    version: int
    status: Status
    error: Mapping[str, Any] | None
    pinned: bool
    published: bool


def is_final(error: Mapping[str, Any] | None, *, pinned: bool) -> bool:
    """Whether a saga that was compensated for this reason would be again."""
    error_class = (error or {}).get("class")
    return error_class in _FINAL_CLASSES or (pinned and error_class == "version_conflict")


def earlier_submissions(
    tx: Transaction, clients_and_keys: Iterable[tuple[str, str | None]]
) -> dict[tuple[str, str | None], Earlier]:
    """Those of the (client, key) pairs that were used before; pairs without a key are left out."""
    pairs = [(client, key) for client, key in clients_and_keys if key is not None]
    if not pairs:
        return {}
    values = {"clients": [client for client, _ in pairs], "keys": [key for _, key in pairs]}
    rows = tx.execute(_SQL["earlier_submissions"], values).fetchall()
    if not rows:
        return {}
    saga_ids = [row["saga_id"] for row in rows]
    standing = {
        row["asked_saga_id"]: saga_of(row)
        for row in tx.execute(_SQL["standing_sagas"], {"saga_ids": saga_ids}).fetchall()
    }
    return {
        (row["client"], row["idempotency_key"]): Earlier(
            submission_id=row["submission_id"],
            body_hash=row["body_hash"],
            answer=_answer(row),
            saga=standing[row["saga_id"]],
        )
        for row in rows
    }


def hand_on_key(tx: Transaction, earlier: Earlier, saga: Saga) -> None:
    """From now on this saga answers the key."""
    values = {"submission_id": earlier.submission_id, "saga_id": saga.saga_id}
    tx.execute(_SQL["hand_on_key"], values)


def ended_sagas(ledger: Ledger, saga_ids: Sequence[SagaId]) -> list[Ending]:
    """Those of the submissions, named by their first sagas, whose saga has ended."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["ended_sagas"], {"saga_ids": list(saga_ids)}).fetchall()
    return [Ending(**cast("Any", row | {"status": Status(row["status"])})) for row in rows]


def keep_answers(
    ledger: Ledger, answers: Mapping[tuple[str, str], Answer]
) -> dict[tuple[str, str], Answer]:
    """Store what (client, key) is told, unless it was told something before: then that counts."""
    pairs = sorted(answers)
    values = {
        "clients": [client for client, _ in pairs],
        "keys": [key for _, key in pairs],
        "statuses": [answers[pair].status for pair in pairs],
        "bodies": [answers[pair].body for pair in pairs],
    }
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["keep_answers"], values).fetchall()
    kept = {(row["client"], row["idempotency_key"]): _answer(row) for row in rows}
    # A key that has been forgotten meanwhile is answered all the same.
    return {pair: kept.get(pair) or answer for pair, answer in answers.items()}


def forget_keys(ledger: Ledger, *, after_s: float, limit: int = 1000) -> int:
    """Free idempotency keys so old that nobody repeats them, with their answers; how many."""
    with ledger.transaction() as tx:
        values = {"after_s": after_s, "limit": limit}
        return tx.execute(_SQL["forget_keys"], values).rowcount


def _answer(row: DictRow) -> Answer | None:
    if row["answer"] is None:
        return None
    return Answer(status=row["answer_status"], body=bytes(row["answer"]))
