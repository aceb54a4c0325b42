"""What an operator does to sagas by hand. Safe beside a running Dagster: the ledger's claims let
one of them through."""

from __future__ import annotations

from collections.abc import Sequence

from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion.ingest import Ingestion
from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.states import Status

RETRIES_A_BATCH = 25  # files that are tried again together


def recover_all(ingestion: Ingestion, *, owner: str) -> list[Saga]:
    """Take over and finish sagas until no lease is expired; all of them, as they are now."""
    finished: dict[SagaId, Saga] = {}
    while taken := ingestion.recovery.recover(owner=owner):
        news = [saga for saga in taken if saga.saga_id not in finished]
        finished |= {saga.saga_id: saga for saga in taken}
        if not news:
            break  # a publish that cannot finish comes back as soon as its lease runs out
    return list(finished.values())


def retry_all(ingestion: Ingestion, *, owner: str) -> list[Saga]:
    """Try every file again whose time has come; the sagas that did, as they ended.

    None while a store is down, and fewer than there are while admission restarts.
    """
    tried: list[Saga] = []
    while some := ingestion.recovery.retry_due(limit=RETRIES_A_BATCH, owner=owner):
        tried += some
    return tried


def sweep_all(ingestion: Ingestion) -> int:
    """Remove everything that is due; how many versions that was."""
    swept = 0
    while count := ingestion.sweep():
        swept += count
    return swept


def known_sagas(ledger: Ledger, saga_ids: Sequence[str]) -> list[Saga]:
    """These sagas, each once, in the order given. Raises InvalidInput, naming those unknown."""
    found = {str(saga.saga_id): saga for saga in ledger.sagas(saga_ids)}
    if unknown := [saga_id for saga_id in saga_ids if saga_id not in found]:
        raise InvalidInput(
            f"no saga has the id {', '.join(unknown)}: `apex saga list` shows those there are"
        )
    return [found[saga_id] for saga_id in dict.fromkeys(saga_ids)]


def failed_sagas(ledger: Ledger) -> list[Saga]:
    """All that wait for an operator, the newest first."""
    return ledger.list_sagas(statuses=[Status.FAILED], limit=10_000)


def compensate(
    ingestion: Ingestion, saga_ids: Sequence[str], *, owner: str, reason: str
) -> list[Saga]:
    """Undo sagas and close them; all of them, as they are now. Compensated ones pass.

    Raises InvalidInput for unknown ids and for completed sagas: after the pivot there is no way
    back. `reason` is recorded for those that have no error yet.
    """
    sagas = known_sagas(ingestion.ledger, saga_ids)
    if live := [saga.saga_id for saga in sagas if saga.status is Status.COMPLETED]:
        raise InvalidInput(
            f"{', '.join(live)}: completed, so there is nothing to undo. Submit a newer version of "
            "the document instead"
        )
    failure = Failure(error_class="requested", step=None, message=reason)
    ids = [saga.saga_id for saga in sagas]
    ingestion.compensation.compensate(ids, owner=owner, failure=failure)
    return known_sagas(ingestion.ledger, ids)
