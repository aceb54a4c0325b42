"""Drives sagas that the HTTP API has opened, in batches: `python -m apex_dagster.chaos.driver`"""

from __future__ import annotations

import itertools
import logging
import os
import threading

import structlog

from apex_dagster.chaos.processes import say_ready, wait_for_end_of_input
from apex_dagster.chaos.worker import application_over_known_servers
from apex_dagster.composition import Application
from apex_dagster.errors import ApexError
from apex_dagster.logs import configure_logs
from apex_dagster.saga.pending import claim_pending

log = structlog.get_logger(__name__)

_BATCH_BYTES_MAX = 64 * 1024 * 1024
_IDLE_S = 0.1


def main() -> None:
    """Drive until standard input ends."""
    configure_logs(level=logging.WARNING)
    app = application_over_known_servers()
    over = threading.Event()
    threading.Thread(target=wait_for_end_of_input, args=[over], daemon=True).start()
    say_ready()
    for number in itertools.count(1):
        if over.is_set():
            return
        try:
            owner = f"chaos-driver:{os.getpid()}:{number}"
            driven = 0 if app.admission.refusal() else drive(app, owner=owner)
        except ApexError as error:  # what it has claimed is left to recovery
            log.warning("batch_left", error=str(error))
            driven = 0
        if not driven:
            over.wait(_IDLE_S)


def drive(app: Application, *, owner: str) -> int:
    """Take the oldest that wait, and end them; how many there were."""
    with app.engine.lease(owner):
        sagas = claim_pending(
            app.ledger,
            owner=owner,
            run_id=owner,
            limit=app.settings.batch_documents,
            bytes_max=_BATCH_BYTES_MAX,
        )
        commit = app.ingestion.commit(sagas, owner=owner, run_id=owner)
        app.compensation.compensate([saga.saga_id for saga in commit.failed], owner=owner)
    return len(sagas)


if __name__ == "__main__":
    main()
