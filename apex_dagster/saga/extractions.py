"""What documents were submitted as, and what was extracted from them, kept by saga.

Raw input is kept until its packed extraction replaces it; that stays while its saga may stage
again, and while its version is live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from apex_dagster.records import Document, SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "extractions.sql")


def submitted_documents(ledger: Ledger, saga_ids: Sequence[str]) -> dict[SagaId, Document]:
    """The raw documents of those sagas that have not been extracted yet."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["submitted_documents"], {"saga_ids": list(saga_ids)}).fetchall()
    return {
        row["saga_id"]: Document(
            document_id=row["document_id"],
            name=row["name"],
            content=bytes(row["source"]),
            media_type=row["media_type"],
            collection=row["collection"],
            metadata=row["metadata"],
            source_uri=row["source_uri"],
        )
        for row in rows
    }


def store_extractions(
    ledger: Ledger, sagas: Sequence[Saga], bodies: Mapping[SagaId, bytes]
) -> set[SagaId]:
    """Replace raw input by its packed extraction; the sagas still held by the caller."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(
            _SQL["store_extractions"],
            {
                "saga_ids": [saga.saga_id for saga in sagas],
                "epochs": [saga.epoch for saga in sagas],
                "bodies": [bodies[saga.saga_id] for saga in sagas],
            },
        ).fetchall()
    return {row["saga_id"] for row in rows}


def extraction_bodies(ledger: Ledger, saga_ids: Sequence[str]) -> dict[SagaId, bytes]:
    """Packed extractions by saga; sagas without one are left out."""
    with ledger.transaction(single=True) as tx:
        rows = tx.execute(_SQL["extraction_bodies"], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"]: bytes(row["body"]) for row in rows}
