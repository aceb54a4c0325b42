"""Readers that run beside the load: through the project, and directly on PostgreSQL."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence

import psycopg
from psycopg.rows import dict_row

from apex_dagster.chaos.direct_reads import DirectRead, direct_read
from apex_dagster.chaos.fingerprints import seen
from apex_dagster.chaos.history import Read
from apex_dagster.errors import TransientError
from apex_dagster.ingestion.read import DocumentReader

_PAUSE_S = 0.03  # between two reads of one reader: leaves the writers some of the processor
_AFTER_AN_ERROR_S = 0.3


class Readers:
    """Threads that read until they are told to stop; then the reads are complete."""

    def __init__(
        self,
        reader: DocumentReader,
        postgres_url: str,
        document_ids: Callable[[], Sequence[str]],
        *,
        seed: int,
    ) -> None:
        self.reads: list[Read] = []
        self.direct_reads: list[DirectRead] = []
        self.unavailable: Counter[str] = Counter()  # by class of error
        self.crashes: list[str] = []  # what a reader must never see
        self._reader, self._postgres_url, self._document_ids = reader, postgres_url, document_ids
        self._connection: psycopg.Connection[dict[str, object]] | None = None
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._run, args=[job, random.Random(f"{seed} {n}")])  # noqa: S311
            for n, job in enumerate((self._read, self._read, self._read_directly))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Wait for the reads that are under way."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self._connection is not None:
            self._connection.close()

    def _run(self, job: Callable[[str], None], rng: random.Random) -> None:
        while not self._stop.wait(_PAUSE_S):
            document_ids = self._document_ids()
            if not document_ids:
                continue
            try:
                job(rng.choice(document_ids))
            except TransientError as error:
                self.unavailable[type(error).__name__] += 1
                self._stop.wait(_AFTER_AN_ERROR_S)
            except psycopg.OperationalError as error:
                self.unavailable[type(error).__name__] += 1
                self._connection = None
                self._stop.wait(_AFTER_AN_ERROR_S)
            except Exception as error:  # whatever it is, no reader should have met it
                self.crashes.append(f"{type(error).__name__}: {error}")

    def _read(self, document_id: str) -> None:
        began = time.time()
        document = self._reader.read_document(document_id)
        ended = time.time()
        parts = seen(document) if document else {}
        self.reads.append(Read(document_id=document_id, began=began, ended=ended, parts=parts))

    def _read_directly(self, document_id: str) -> None:
        if self._connection is None or self._connection.closed:
            self._connection = psycopg.connect(
                self._postgres_url,
                autocommit=True,
                row_factory=dict_row,
                connect_timeout=5,
                tcp_user_timeout=5000,
                application_name="apex_chaos_reader",
            )
        self.direct_reads.append(direct_read(self._connection, document_id))
