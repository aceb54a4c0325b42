"""Deletions: what they remove, what they erase of the ledger, and the receipt of both.

A deletion is a saga whose steps look and write nothing, so undoing one has nothing to do. Its pivot
takes the pointer away; what follows is forward only, and every part of it safe to repeat, late and
beside a later version: it concerns versions older than the deletion, which can never be live again.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import orjson
import structlog
from psycopg.rows import DictRow

from apex_dagster.errors import ApexError
from apex_dagster.records import Removal, SagaId, VersionRef
from apex_dagster.saga import states
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.saga import Saga
from apex_dagster.sql import load_queries

log = structlog.get_logger(__name__)

_SQL = load_queries("apex_dagster.saga", "removal.sql")

RECEIPT_FORM = "apex_dagster deletion receipt 1"

ReadBack = Mapping[str, Mapping[str, int]]  # store -> query path -> what it still shows


@dataclass(frozen=True, slots=True, kw_only=True)
class DeletionReceipt:
    """What a deletion found, removed and read back, as the ledger keeps it."""

    saga_id: SagaId
    document_id: str
    body: bytes  # canonical JSON: sorted keys, no spaces
    signature: bytes | None = None  # Ed25519 over `body`; 64 bytes
    public_key: bytes | None = None  # 32 bytes

    @property
    def sha256(self) -> str:
        """Hex; the audit log names the receipt by it."""
        return hashlib.sha256(self.body).hexdigest()


class Seal(Protocol):
    """What this module needs of `access.receipt_key`."""

    def sign(self, body: bytes) -> tuple[bytes, bytes]:
        """(signature, public key)."""
        ...


def removals(ledger: Ledger, sagas: Sequence[Saga]) -> list[Removal]:
    """What deletions in progress would remove as things stand, by saga."""
    rows = _rows(ledger, "removable", saga_ids=[saga.saga_id for saga in sagas])
    return [_removal(row) for row in rows]


def erase_earlier(ledger: Ledger, sagas: Sequence[Saga]) -> None:
    """Erase what the ledger keeps of submissions that came before these deletions: extractions,
    what waits in quarantine, and stored answers. What that was is in the deletions' audit trails.
    The files that they came in are deleted by `Inbox.settle`, on the machine that has them.
    """
    saga_ids = [saga.saga_id for saga in sagas]
    with ledger.transaction() as tx:
        counts = {saga_id: Counter[str]() for saga_id in saga_ids}
        _drop_quarantined(ledger, tx, saga_ids, counts)
        for name in ("extractions", "answers"):
            rows = tx.execute(_SQL[f"erase_{name}"], {"saga_ids": saga_ids}).fetchall()
            for row in rows:
                counts[row["saga_id"]][name] += row["erased"]
        tx.execute(_SQL["unsettle_earlier"], {"saga_ids": saga_ids})
        cleared = [saga for saga in sagas if counts[saga.saga_id]]
        details = {saga_id: {"erased": dict(count)} for saga_id, count in counts.items()}
        ledger.advance(states.STORE_CLEARED, cleared, details=details, tx=tx)


def _drop_quarantined(
    ledger: Ledger,
    tx: Transaction,
    saga_ids: Sequence[SagaId],
    counts: Mapping[SagaId, Counter[str]],
) -> None:
    rows = tx.execute(_SQL["earlier_in_quarantine"], {"saga_ids": saga_ids}).fetchall()
    if not rows:
        return
    because = {row["saga_id"]: row["deletion_saga_id"] for row in rows}
    values = {"saga_ids": list(because), "because": list(because.values())}
    tx.execute(_SQL["drop_entries"], values)
    details = {
        saga_id: {"by": "deletion", "because": deletion} for saga_id, deletion in because.items()
    }
    dropped = {row["saga_id"]: saga_of(row) for row in rows}
    ledger.advance(states.QUARANTINE_DROPPED, list(dropped.values()), details=details, tx=tx)
    for deletion in because.values():
        counts[deletion]["quarantined"] += 1


def kept_of_earlier(ledger: Ledger, sagas: Sequence[Saga]) -> dict[SagaId, int]:
    """Extractions that the ledger keeps although a deletion came after them; none: not listed."""
    rows = _rows(ledger, "kept_of_earlier", saga_ids=[saga.saga_id for saga in sagas])
    return {row["saga_id"]: row["kept"] for row in rows}


def receipt_of(
    ledger: Ledger, saga: Saga, read_back: ReadBack, *, seal: Seal | None
) -> DeletionReceipt:
    """The receipt of a deletion whose removal is over, signed if there is a `seal`."""
    events = ledger.events(saga.saga_id)
    body = orjson.dumps(
        _account(saga, events, read_back), option=orjson.OPT_SORT_KEYS | orjson.OPT_UTC_Z
    )
    signature, public_key = _sealed(body, seal)
    return DeletionReceipt(
        saga_id=saga.saga_id,
        document_id=saga.document_id,
        body=body,
        signature=signature,
        public_key=public_key,
    )


def _sealed(body: bytes, seal: Seal | None) -> tuple[bytes | None, bytes | None]:
    """Without a key that can be used there is no signature: the document is gone all the same."""
    if seal is None:
        return None, None
    try:
        return seal.sign(body)
    except (OSError, ValueError, ApexError) as error:
        log.error("receipt_not_signed", error=str(error))
        return None, None


def _account(saga: Saga, events: Sequence[DictRow], read_back: ReadBack) -> dict[str, Any]:
    stores: dict[str, dict[str, Any]] = {
        step.removesuffix("_write"): {"held": held, "removed": 0}
        for step, held in saga.completed_steps.items()
    }
    erased = Counter[str]()
    moments: dict[str, datetime] = {}
    for event in events:
        moments[event["event"]] = event["at"]
        if event["event"] == states.STORE_CLEARED.event:
            erased.update(event["detail"].get("erased", {}))
            if event["step"]:
                store = stores[event["step"].removesuffix("_write")]
                store["removed"] += event["detail"]["removed"]
    return {
        "form": RECEIPT_FORM,
        "document_id": saga.document_id,
        "saga_id": saga.saga_id,
        "version": saga.version,
        "removed_saga_id": saga.replaces_saga_id,
        "requested_at": moments["saga_opened"],
        "deleted_at": moments["saga_completed"],
        "cleared_at": moments.get(states.STORE_CLEARED.event),
        "stores": stores,
        "erased": dict(erased),
        "read_back": read_back,
    }


def insert_receipts(tx: Transaction, receipts: Sequence[DeletionReceipt]) -> None:
    """Keep receipts; the first of a deletion stays."""
    columns = {
        "saga_ids": [receipt.saga_id for receipt in receipts],
        "document_ids": [receipt.document_id for receipt in receipts],
        "bodies": [receipt.body for receipt in receipts],
        "signatures": [receipt.signature for receipt in receipts],
        "public_keys": [receipt.public_key for receipt in receipts],
    }
    tx.execute(_SQL["insert_receipts"], columns)


def find_receipt(ledger: Ledger, name: str) -> DeletionReceipt | None:
    """The receipt of this saga, or the newest of this document; None where there is none."""
    for row in _rows(ledger, "receipts", name=name):
        return DeletionReceipt(
            saga_id=row["saga_id"],
            document_id=row["document_id"],
            body=bytes(row["body"]),
            signature=_bytes(row["signature"]),
            public_key=_bytes(row["public_key"]),
        )
    return None


def _bytes(value: Any) -> bytes | None:
    return None if value is None else bytes(value)


def _removal(row: DictRow) -> Removal:
    document_id, live = row["document_id"], row["live_saga_id"]
    removed = (
        VersionRef(document_id=document_id, version=row["live_version"], saga_id=live)
        if live
        else None
    )
    ref = VersionRef(document_id=document_id, version=row["version"], saga_id=row["saga_id"])
    return Removal(ref=ref, removed=removed)


def _rows(ledger: Ledger, query: str, **values: object) -> list[DictRow]:
    with ledger.transaction(single=True) as tx:
        return tx.execute(_SQL[query], values).fetchall()
