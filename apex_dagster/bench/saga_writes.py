"""The project's own writes of the same documents: open, stage four times, pivot, publish."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from apex_dagster.bench.stopwatch import Stopwatch
from apex_dagster.composition import build
from apex_dagster.errors import ApexError
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import (
    Document,
    Extraction,
    Publication,
    Receipt,
    Removal,
    SagaId,
    VersionRef,
)
from apex_dagster.saga.ledger import Ledger, Transaction
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.saga.step import SagaStep
from apex_dagster.settings import Endpoints, Settings

_OWNER = "bench"


class SagaWrites:
    """One writer: the application over the given servers, with a stopwatch around its parts."""

    def __init__(self, settings: Settings, servers: Endpoints) -> None:
        self.stopwatch = Stopwatch()
        url = servers.postgres_url.get_secret_value()
        self.app = build(
            settings,
            servers,
            ledger=_TimedLedger(url, lease_s=settings.lease_s, stopwatch=self.stopwatch),
            around_step=lambda step: _TimedStep(step, self.stopwatch),
        )

    def write(self, batch: Sequence[Extraction]) -> Mapping[str, float]:
        """Take a batch the whole way; seconds by part. Raises ApexError unless all completed."""
        submissions = [_submission(extraction) for extraction in batch]
        sagas = self.app.ingestion.ingest(submissions, owner=_OWNER)
        if not all(_is_published(saga) for saga in sagas) or len(sagas) != len(batch):
            raise ApexError(f"of {len(batch)} documents not all were published")
        return self.stopwatch.take()

    def close(self) -> None:
        """Disconnect."""
        self.app.close()


def _submission(extraction: Extraction) -> Submission:
    document = Document(
        document_id=extraction.document_id,
        name=f"{extraction.document_id}.json",
        content=b"",
        collection=extraction.collection,
        metadata=extraction.metadata,
    )
    return Submission(document=document, client="bench", extraction=extraction)


def _is_published(saga: Saga) -> bool:
    return saga.status is Status.COMPLETED and saga.published_at is not None


class _TimedLedger(Ledger):
    def __init__(self, url: str, *, lease_s: float, stopwatch: Stopwatch) -> None:
        super().__init__(url, lease_s=lease_s)
        self._stopwatch = stopwatch

    @contextmanager
    def transaction(self, *, single: bool = False) -> Iterator[Transaction]:
        with self._stopwatch.part("ledger"), super().transaction(single=single) as tx:
            yield tx


class _TimedStep:
    def __init__(self, step: SagaStep, stopwatch: Stopwatch) -> None:
        self._step, self._stopwatch, self.name = step, stopwatch, step.name
        self._store = step.name.removesuffix("_write")

    def stage(self, refs: Sequence[VersionRef]) -> Sequence[Receipt]:
        with self._stopwatch.part(f"stage_{self._store}"):
            return self._step.stage(refs)

    def publish(self, publications: Sequence[Publication]) -> None:
        with self._stopwatch.part(f"publish_{self._store}"):
            self._step.publish(publications)

    def inventory(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, Any]]:
        return self._step.inventory(removals)

    def remove(self, removals: Sequence[Removal]) -> Mapping[SagaId, int]:
        return self._step.remove(removals)

    def read_back(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        return self._step.read_back(removals)

    def undo(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._step.undo(refs)

    def discard(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._step.discard(refs)
