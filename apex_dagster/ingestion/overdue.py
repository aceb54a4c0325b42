"""The promise that every saga ends in time, watched: those that have not are said aloud."""

from __future__ import annotations

import structlog

from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga

log = structlog.get_logger(__name__)


def report_overdue(ledger: Ledger, *, bound_s: float, limit: int = 100) -> list[Saga]:
    """Log, as errors, sagas that nobody has ended within `bound_s` of their lease running out; the
    longest first, at most `limit`.

    A completed saga counts until its version is published. One that is taken over has a lease
    again, so it counts anew: how often that may happen is bounded by `takeovers_max`.
    """
    overdue = ledger.overdue_sagas(bound_s=bound_s, limit=limit)
    for saga in overdue:
        log.error(
            "saga_overdue",
            saga_id=saga.saga_id,
            document_id=saga.document_id,
            run_id=saga.run_id,
            status=saga.status.value,
            lease_owner=saga.lease_owner,
            lease_expired_at=str(saga.lease_expires_at),
        )
    return overdue
