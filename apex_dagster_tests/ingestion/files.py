"""Documents that come as files in the inbox, and the time that passes for their retries."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from pathlib import Path

from apex_dagster.composition import Application
from apex_dagster.errors import ApexError
from apex_dagster.saga.saga import Saga
from apex_dagster_tests.documents import document

WAIT_S = 120.0


def drop(app: Application, document_id: str, *, edition: int = 1) -> Path:
    """A file in the inbox that holds this document."""
    app.inbox.folder.mkdir(parents=True, exist_ok=True)
    path = app.inbox.folder / f"{document_id}.json"
    path.write_bytes(document(document_id, edition=edition).content)
    return path


def take_in(app: Application, path: Path, *, owner: str = "test") -> Saga:
    """Ingest the file, as a run does that the sensor has asked for."""
    uri = f"inbox:{path.relative_to(app.inbox.folder)}"
    [saga] = app.ingestion.ingest(app.sources.read([uri]), owner=owner)
    app.inbox.settle(app.ledger)
    return saga


def newest(app: Application, document_id: str) -> Saga:
    [saga] = app.ledger.newest_sagas(document_ids=[document_id])
    return saga


def tick(app: Application) -> None:
    """What the recovery sensor does, and workers do that drive what it has opened."""
    now = time.monotonic_ns()
    app.ingestion.recovery.recover(owner=f"recovery-{now}")
    app.ingestion.recovery.retry_due(owner=f"retry-{now}")
    app.inbox.settle(app.ledger)


def tick_until(app: Application, over: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not over():
        assert time.monotonic() < deadline, app.ledger.list_sagas()
        tick(app)
        time.sleep(0.05)


def mend(app: Application) -> None:
    """Look at all stores that were found down, which are up, until that is known."""
    deadline = time.monotonic() + WAIT_S
    while app.breakers.down():
        assert time.monotonic() < deadline, app.breakers.down()
        with contextlib.suppress(ApexError):  # PostgreSQL itself may be on its way up
            app.breakers.probe(at_once=True)


def make_due(app: Application) -> None:
    """Let an hour pass for every retry that waits."""
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.retry SET due_at = due_at - interval '1 hour'")


def waiting(app: Application) -> list[str]:
    """The sagas whose submissions are to be tried again."""
    with app.ledger.transaction() as tx:
        rows = tx.execute("SELECT saga_id FROM apex.retry ORDER BY saga_id").fetchall()
    return [row["saga_id"] for row in rows]
