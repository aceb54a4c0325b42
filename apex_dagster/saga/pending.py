"""Sagas that wait for a driver: opened by a process that drives none itself, claimed in batches.

A batch is claimed in one transaction, under the run that is going to drive it. Whoever dies after
that leaves a lease which runs out, and recovery finishes the sagas.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from psycopg.rows import DictRow

from apex_dagster.saga import states
from apex_dagster.saga.ledger import Ledger, saga_of
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "pending.sql")

# Of so many times the batch, some are left when documents were submitted several times over.
_LOOK_AHEAD = 2


def pending_count(ledger: Ledger) -> int:
    """How many sagas wait; answered from an index that holds nothing else."""
    with ledger.transaction() as tx:
        [row] = tx.execute(_SQL["pending_count"], {}).fetchall()
    return int(row["pending"])


def claim_pending(
    ledger: Ledger, *, owner: str, run_id: str, limit: int, bytes_max: int
) -> list[Saga]:
    """The oldest waiting sagas, now in progress under `owner` and of run `run_id`; by saga_id.

    At most `limit`, at most one of a document, and at most `bytes_max` of stored extraction, but
    for a single larger one. None of them has been driven before: what was is never pending again.
    """
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["claimable"], {"limit": _LOOK_AHEAD * limit}).fetchall()
        batch = list(_batch(rows, limit, bytes_max))
        return ledger.advance(states.CLAIMED, batch, owner=owner, run_id=run_id, tx=tx)


def _batch(rows: Sequence[DictRow], limit: int, bytes_max: int) -> Iterator[Saga]:
    document_ids, size = set[str](), 0
    for row in rows:
        if row["document_id"] in document_ids:
            continue
        size += row["bytes"]
        full = len(document_ids) >= limit or size > bytes_max
        if full and document_ids:
            return
        document_ids.add(row["document_id"])
        yield saga_of(row)
