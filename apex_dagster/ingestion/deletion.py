"""Deleting a document: a saga is opened like any other, and its end waited for."""

from __future__ import annotations

import time
from dataclasses import dataclass

from apex_dagster.errors import InvalidInput
from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.opening import Opened, deletion, open_sagas
from apex_dagster.saga.removal import DeletionReceipt, find_receipt
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.saga.submissions import ended_sagas

_LOOK_EVERY_S = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Deletion:
    """How a deletion stands."""

    saga: Saga  # that stands for it now; another than was opened, if that lost to another version
    receipt: DeletionReceipt | None  # None while the removal is open, or where it came to nothing


def open_deletion(ledger: Ledger, document_id: str, *, client: str) -> Opened:
    """Open the saga, or find the one that is under way, or was the last word on the document.

    Raises InvalidInput where nothing was ever submitted under this id.
    """
    [opened] = open_sagas(ledger, [deletion(document_id, client=client)], announce=True)
    if not isinstance(opened, Opened):
        raise InvalidInput(
            f"nothing was ever submitted as {document_id!r}: `apex status` lists the documents"
        )
    return opened


def deletion_of(ledger: Ledger, saga_id: SagaId) -> Deletion:
    """How the deletion stands that was opened as this saga."""
    endings = ended_sagas(ledger, [saga_id])
    [saga] = ledger.sagas([endings[0].saga_id if endings else saga_id])
    return Deletion(saga=saga, receipt=find_receipt(ledger, saga.saga_id))


def await_deletion(ledger: Ledger, saga_id: SagaId, *, wait_s: float) -> Deletion:
    """How it stands when it is over, or after `wait_s`."""
    give_up_at = time.monotonic() + wait_s
    while True:
        found = deletion_of(ledger, saga_id)
        if found.receipt or _came_to_nothing(found.saga) or time.monotonic() > give_up_at:
            return found
        time.sleep(_LOOK_EVERY_S)


def is_driven(ledger: Ledger, saga_id: SagaId, *, within_s: float) -> bool:
    """Whether somebody drives the saga, or has driven it, at the latest after `within_s`."""
    give_up_at = time.monotonic() + within_s
    while True:
        [saga] = ledger.sagas([saga_id])
        if saga.status is not Status.PENDING or time.monotonic() > give_up_at:
            return saga.status is not Status.PENDING
        time.sleep(_LOOK_EVERY_S)


def _came_to_nothing(saga: Saga) -> bool:
    return saga.status in (Status.COMPENSATED, Status.FAILED)
