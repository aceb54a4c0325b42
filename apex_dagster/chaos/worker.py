"""A worker process: ingests the batches that it is handed, one line each, and says what became of
them as it goes. `python -m apex_dagster.chaos.worker`

    <- {"batch": 7, "documents": [{"document_id", "name", "content"}, ...]}
    -> {"batch": 7, "opened": [{"document_id", "saga_id", "version", "arrival", "status"}, ...]}
    -> {"batch": 7, "ended": [...]}             the same, with the status that they ended in
    -> {"batch": 7, "turned_away": "why"}       instead of both: a store is down, nothing is opened
    -> {"batch": 7, "gave_up": "why"}           instead of either: what was opened is for recovery
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import orjson
import structlog

from apex_dagster.chaos.processes import say_ready
from apex_dagster.composition import Application, build
from apex_dagster.embedded.stack import Stack
from apex_dagster.errors import ApexError
from apex_dagster.ingestion.ingest import Batch, Submission
from apex_dagster.logs import configure_logs
from apex_dagster.records import Document
from apex_dagster.saga.saga import Saga
from apex_dagster.settings import Settings

log = structlog.get_logger(__name__)


def main() -> None:
    """Serve until standard input ends."""
    configure_logs(level=logging.WARNING)
    app = application_over_known_servers()
    say_ready()
    for line in sys.stdin.buffer:
        serve(app, orjson.loads(line))


def application_over_known_servers() -> Application:
    """Starts no server: whoever killed it will."""
    settings = Settings()
    return build(settings, Stack(settings.home).ensure(()))


def serve(app: Application, batch: Mapping[str, Any]) -> None:
    """Open the batch, say so, and drive it to its end as a run of Dagster does."""
    number = batch["batch"]
    # Not one name for the whole process: its next batch would renew what this one has left behind.
    owner = f"chaos-worker:{os.getpid()}:{number}"
    try:
        app.admission.check(len(batch["documents"]))
    except ApexError as error:
        say({"batch": number, "turned_away": str(error)})
        return
    try:
        with app.engine.lease(owner):
            opened = app.ingestion.open(submissions(batch["documents"]), owner=owner)
            known = {saga.document_id: saga for saga in everything(opened)}
            say({"batch": number, "opened": [described(saga) for saga in known.values()]})
            staging = app.ingestion.stage(app.engine.step_names[-1], opened.alive)
            commit = app.ingestion.commit(staging.alive, owner=owner)
            failed = opened.failed + staging.failed + commit.failed
            app.compensation.compensate([saga.saga_id for saga in failed], owner=owner)
        # What was started again ends as its successor.
        known |= {saga.document_id: saga for saga in commit.completed}
        ended = app.ledger.sagas(sorted(saga.saga_id for saga in known.values()))
        say({"batch": number, "ended": [described(saga) for saga in ended]})
    except ApexError as error:
        log.warning("batch_left", batch=number, error=str(error))
        say({"batch": number, "gave_up": str(error)})


def submissions(documents: Sequence[Mapping[str, str]]) -> list[Submission]:
    return [
        Submission(
            document=Document(
                document_id=each["document_id"],
                name=each["name"],
                content=each["content"].encode(),
            ),
            client="chaos",
        )
        for each in documents
    ]


def everything(opened: Batch) -> list[Saga]:
    return [*opened.alive, *opened.failed, *opened.unchanged, *opened.joined]


def described(saga: Saga) -> dict[str, Any]:
    return {
        "document_id": saga.document_id,
        "saga_id": saga.saga_id,
        "version": saga.version,
        "arrival": saga.arrival,
        "status": saga.status.value,
    }


def say(message: Mapping[str, Any]) -> None:
    sys.stdout.buffer.write(orjson.dumps(message) + b"\n")
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
