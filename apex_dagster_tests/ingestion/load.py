"""Writers that fail and crash, a recovery, a sweep and readers, all at once on a few documents."""

from __future__ import annotations

import itertools
import random
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from apex_dagster.chaos.history import Pivot, Read
from apex_dagster.chaos.pivots import pivots
from apex_dagster.composition import Application
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.ingestion.read import DocumentReader
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.states import Status
from apex_dagster.stores.reading import LiveVersion, SnapshotReader
from apex_dagster_tests.ingestion.contents import edition, seen, submitted

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
FAULTS = (
    *("",) * 4,
    *(f"{point}:{step}=reject*1" for point in ("started", "sent") for step in STEPS),
    *(f"sent:{step}=unavailable*1" for step in STEPS),
    *(f"{point}:{step}=raise*1" for point in ("written", "published") for step in STEPS),
    *(f"{point}=raise*1" for point in ("staged", "pivoted", "marked", "closed")),
    *(f"sent:redis_write=reject*1;undone:{step}=raise*1" for step in STEPS),
)
EVENTS = ("crashes", "recovered", "swept", Status.COMPLETED, Status.COMPENSATED)
PATIENCE_S = 60.0  # on a machine that has much else to do
OPEN = (Status.PENDING, Status.IN_PROGRESS, Status.COMPENSATING)


class SlowSnapshots:
    """Gives a reader its snapshot late, so that much is written before it asks the other stores."""

    def __init__(self, snapshots: SnapshotReader, *, delay_s_max: float) -> None:
        self._snapshots, self._delay_s_max = snapshots, delay_s_max

    def read_live(self, document_id: str) -> LiveVersion | None:
        live = self._snapshots.read_live(document_id)
        time.sleep(random.uniform(0.0, self._delay_s_max))
        return live


class Load:
    """Runs until it is told to stop; then `reads` and `pivots` are its history."""

    def __init__(self, app: Application, document_ids: Sequence[str], *, shared: str) -> None:
        self.app, self.document_ids, self.shared = app, document_ids, shared
        self.reads: list[Read] = []
        self.counts: Counter[str] = Counter()
        self._errors: list[BaseException] = []
        self.submitted: dict[str, Submission] = {}  # by content hash
        self._content: dict[str, dict[str, str]] = {}  # content hash -> fingerprints
        self._editions = itertools.count(1)
        self._stop = threading.Event()

    def run(
        self,
        readers: Sequence[DocumentReader],
        *,
        writers: int,
        seconds: float,
        others: Sequence[Callable[[], None]] = (),
    ) -> None:
        """For so long, and until everything has happened at least once; each of `others` is called
        again and again meanwhile.

        Raises what any of the threads could not cope with.
        """
        for document_id in self.document_ids[:-1]:  # a fresh Neo4j needs seconds for the first
            self._write(document_id)
        jobs: list[Callable[[], None]] = [lambda r=reader: self._read(r) for reader in readers]
        jobs += [self._write_with_faults, *[self._write_any] * (writers - 1)]
        jobs += [self._recover, self._sweep, *others]
        threads = [threading.Thread(target=self._until_stopped, args=[job]) for job in jobs]
        for thread in threads:
            thread.start()
        began = time.monotonic()
        while not self._stop.wait(0.1):
            spent_s = time.monotonic() - began
            if (spent_s > seconds and self._was_eventful()) or spent_s > seconds + PATIENCE_S:
                self._stop.set()
        for thread in threads:
            thread.join()
        if self._errors:
            raise self._errors[0]
        assert self._was_eventful(), self.counts
        self._drain()

    def pivots(self, content: Mapping[str, Mapping[str, str]] | None = None) -> list[Pivot]:
        """What became live and when; `content` has other fingerprints, by content hash."""
        return pivots(self.app.ledger, content or self._content)

    def _was_eventful(self) -> bool:
        return all(self.counts[event] for event in EVENTS)

    def _until_stopped(self, job: Callable[[], None]) -> None:
        while not self._stop.is_set():
            try:
                job()
            except SimulatedCrash:
                self.counts["crashes"] += 1
            except BaseException as error:
                self._errors.append(error)
                self._stop.set()

    def _write_with_faults(self) -> None:
        # Points belong to the process: whichever writer comes by first takes it, which is as good.
        with armed(random.choice(FAULTS)):
            self._write_any()

    def _write_any(self) -> None:
        self._write(random.choice(self.document_ids))

    def _write(self, document_id: str) -> None:
        one = edition(document_id, next(self._editions), shared=self.shared)
        self.submitted[content_hash(one.document)] = one
        self._content[content_hash(one.document)] = dict(submitted(one))
        for _ in range(random.choice((1, 1, 1, 2))):  # now and then the same content again
            # A name of its own, or its next ingest would renew what a crash has left behind.
            owner = f"writer-{secrets.token_hex(4)}"
            for saga in self.app.ingestion.ingest([one], owner=owner):
                self.counts[saga.status] += 1

    def _read(self, reader: DocumentReader) -> None:
        for document_id in self.document_ids:
            began = time.time()
            document = reader.read_document(document_id)
            ended = time.time()
            parts = seen(document) if document else {}
            self._stop.wait(0.005)  # leaves the writers some of the processor
            self.reads.append(Read(document_id=document_id, began=began, ended=ended, parts=parts))

    def _recover(self) -> None:
        self.counts["recovered"] += len(self.app.ingestion.recovery.recover(owner="recovery"))
        self._stop.wait(0.1)

    def _sweep(self) -> None:
        self.counts["swept"] += self.app.ingestion.sweep()
        self._stop.wait(0.1)

    def _drain(self) -> None:
        """Let recovery end whatever the load has left open."""
        deadline = time.monotonic() + 60
        while self.app.ledger.list_sagas(statuses=OPEN):
            assert time.monotonic() < deadline, "sagas stay open"
            self.app.ingestion.recovery.recover(owner="drain")
            time.sleep(0.1)  # the leases of the crashed have to run out
