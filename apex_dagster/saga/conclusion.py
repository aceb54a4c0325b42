"""How a deletion ends, once every store was told: what is kept of the document is erased, all that
could show it is asked, and where nothing is left that is put down as a receipt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import structlog

from apex_dagster.records import Removal, SagaId
from apex_dagster.saga import states
from apex_dagster.saga.failpoints import reach
from apex_dagster.saga.ledger import Transaction
from apex_dagster.saga.removal import (
    DeletionReceipt,
    Seal,
    erase_earlier,
    insert_receipts,
    kept_of_earlier,
    receipt_of,
)
from apex_dagster.saga.saga import Failure, Saga, log_fields
from apex_dagster.saga.step import SagaStep, store_of

if TYPE_CHECKING:
    from apex_dagster.saga.engine import SagaEngine

log = structlog.get_logger(__name__)


class Conclusion:
    """The part of publishing that only deletions have. `seal` signs their receipts."""

    def __init__(self, engine: SagaEngine, *, seal: Seal | None) -> None:
        self._engine, self._seal = engine, seal

    def conclude(self, deletions: Sequence[Saga]) -> dict[SagaId, DeletionReceipt]:
        """Erase what the ledger keeps of deleted documents, then read back; the receipts of those
        of which nothing is left. The others stay open work."""
        if not deletions:
            return {}
        engine, ledger = self._engine, self._engine.ledger
        reach("erasing")
        engine.retried(partial(erase_earlier, ledger, deletions), "erase_earlier")
        reach("erased")
        changes = [Removal(ref=saga.ref) for saga in deletions]
        shown = {store_of(s.name): self._read_back(s, changes, deletions) for s in engine.steps}
        kept = engine.retried(partial(kept_of_earlier, ledger, deletions), "kept_of_earlier")
        shown["ledger"] = {s.saga_id: {"extractions": kept.get(s.saga_id, 0)} for s in deletions}
        reach("read_back")
        receipts: dict[SagaId, DeletionReceipt] = {}
        for saga in deletions:
            read_back = {store: paths[saga.saga_id] for store, paths in shown.items() if paths}
            if len(read_back) < len(shown):
                continue  # reported already
            if any(count for paths in read_back.values() for count in paths.values()):
                self._report_left(saga, read_back)
                continue
            build = partial(receipt_of, ledger, saga, read_back, seal=self._seal)
            receipts[saga.saga_id] = engine.retried(build, "receipt_of")
        return receipts

    def _read_back(
        self, step: SagaStep, changes: Sequence[Removal], deletions: Sequence[Saga]
    ) -> Mapping[SagaId, Mapping[str, int]]:
        """What the store still shows; nothing where it could not be asked, which is logged."""
        try:
            self._engine.breakers.refuse(store_of(step.name))
            ask = partial(step.read_back, changes)
            return self._engine.retried(ask, f"read back {step.name}")
        except Exception as error:
            self._engine.report_unpublished(step, deletions, error)
            return {}

    def _report_left(self, saga: Saga, read_back: Mapping[str, Mapping[str, int]]) -> None:
        message = f"something of the document is left: {dict(read_back)}"
        failure = Failure(error_class="transient", step=None, message=message).as_detail()
        self._engine.move(states.PUBLISH_FAILED, [saga], details={saga.saga_id: failure})
        log.error("removal_incomplete", **log_fields(saga), read_back=dict(read_back))


def keep_receipts(
    receipts: Mapping[SagaId, DeletionReceipt], tx: Transaction, published: Sequence[Saga]
) -> None:
    """Keep the receipts of deletions with the row that says that their removal is over."""
    kept = [receipts[saga.saga_id] for saga in published if saga.saga_id in receipts]
    if kept:
        insert_receipts(tx, kept)
