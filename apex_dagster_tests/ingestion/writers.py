"""Writers in processes of their own, which begin at one moment."""

from __future__ import annotations

import json
import logging
import multiprocessing
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any

from apex_dagster.composition import build
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.logs import configure_logs
from apex_dagster.saga.saga import Saga
from apex_dagster.settings import Endpoints, Settings

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
        for submission in submissions:
            answers.sagas += app.ingestion.ingest([submission], owner=owner)
            app.ingestion.sweep()
        answer.send(answers)
    except Exception as error:
        answer.send(RuntimeError(f"{owner}: {type(error).__name__}: {error}"))
