"""Writers in processes of their own, which begin at one moment."""

from __future__ import annotations

import itertools
import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier, Event
from typing import Any

from apex_dagster.composition import build
from apex_dagster.errors import ApexError
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.logs import configure_logs
from apex_dagster.saga.saga import Saga
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.documents import submission

PATIENCE_S = 240.0  # on a machine that has much else to do

_forked = multiprocessing.get_context("forkserver")
_forked.set_forkserver_preload(["apex_dagster.composition", __name__])


@dataclass(kw_only=True)
class Answers:
    """What one writer got for its submissions, in order."""

    sagas: list[Saga] = field(default_factory=list)
    retries: Counter[str] = field(default_factory=Counter)  # by operation, for whatever reason


def write_at_once(
    servers: Endpoints, settings: Mapping[str, Any], work: Sequence[Sequence[Submission]]
) -> list[Answers]:
    """One process for each list of submissions, which it ingests one by one, sweeping in between.

    Raises what a writer could not cope with.
    """
    barrier, pipes, processes = _forked.Barrier(len(work)), [], []
    for number, submissions in enumerate(work):
        mine, theirs = _forked.Pipe(duplex=False)
        args = (servers, dict(settings), f"writer-{number}", list(submissions), barrier, theirs)
        processes.append(_forked.Process(target=_write, args=args, daemon=True))
        processes[-1].start()
        theirs.close()
        pipes.append(mine)
    answers: list[Answers] = []
    for pipe in pipes:
        assert pipe.poll(PATIENCE_S), "a writer does not end"
        answer = pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        answers.append(answer)
    for process in processes:
        process.join(PATIENCE_S)
    return answers


@contextmanager
def writing(
    servers: Endpoints, settings: Mapping[str, Any], batches: Sequence[Sequence[str]]
) -> Iterator[None]:
    """One process for each batch of document ids, which ingests edition after edition of them, as
    far as it is admitted, for the length of the block. What they leave behind is for recovery."""
    over = _forked.Event()
    processes = [
        _forked.Process(
            target=_keep_writing,
            args=(servers, dict(settings), f"writer-{number}", list(batch), over),
            daemon=True,
        )
        for number, batch in enumerate(batches)
    ]
    for process in processes:
        process.start()
    try:
        yield
    finally:
        over.set()
        for process in processes:
            process.join(PATIENCE_S)
    assert [process.exitcode for process in processes] == [0] * len(processes)


class _CountRetries(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def emit(self, record: logging.LogRecord) -> None:
        event = json.loads(record.getMessage())
        if event["event"] == "retrying":
            self.counts[event["operation"]] += 1


def _write(
    servers: Endpoints,
    settings: Mapping[str, Any],
    owner: str,
    submissions: Sequence[Submission],
    barrier: Barrier,
    answer: Connection,
) -> None:
    configure_logs()
    counter = _CountRetries()
    logging.getLogger("apex_dagster.saga.retry").addHandler(counter)
    try:
        app = build(Settings(**settings), servers)
        for store in app.stores.values():
            store.ping()
        answers = Answers(retries=counter.counts)
        barrier.wait(PATIENCE_S)
        for each in submissions:
            answers.sagas += app.ingestion.ingest([each], owner=owner)
            app.ingestion.sweep()
        answer.send(answers)
    except Exception as error:
        answer.send(RuntimeError(f"{owner}: {type(error).__name__}: {error}"))


def _keep_writing(
    servers: Endpoints,
    settings: Mapping[str, Any],
    owner: str,
    document_ids: Sequence[str],
    over: Event,
) -> None:
    app = build(Settings(**settings), servers)
    for number in itertools.count():
        if over.is_set():
            return
        try:
            granted = app.admission.grant(len(document_ids))
            batch = [submission(name, edition=number) for name in document_ids[:granted]]
            app.ingestion.ingest(batch, owner=f"{owner}:{number}")
        except ApexError:  # the ledger itself is down
            granted = 0
        if not granted:
            over.wait(0.02)
