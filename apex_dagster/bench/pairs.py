"""Alternating pairs: the same batches without and with the saga, so both meet the same noise."""

from __future__ import annotations

import dataclasses
import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from apex_dagster.bench.corpus import Corpus
from apex_dagster.bench.raw_writes import RawWrites
from apex_dagster.bench.saga_writes import SagaWrites
from apex_dagster.bench.stopwatch import Processors
from apex_dagster.records import Extraction

WARM_UP_BATCHES = (
    20  # Neo4j plans its queries, and its JVM compiles them: ten times as slow at first
)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How long one batch took on one side."""

    seconds: float
    processor_seconds: Mapping[str, float]  # by process
    parts: Mapping[str, float]  # seconds by part; parts that overlap add up to more than all


@dataclass(frozen=True, kw_only=True)
class Side:
    """All batches of one way of writing."""

    name: str
    documents: int  # of a batch
    batches: list[Batch] = field(default_factory=list)

    def ms_per_document(self) -> float:
        """Median over the batches."""
        return statistics.median(b.seconds for b in self.batches) * 1000 / self.documents

    def processor_ms_per_document(self) -> float:
        """The mean, of all processes together: a pause for garbage belongs to somebody."""
        spent = sum(sum(batch.processor_seconds.values()) for batch in self.batches)
        return spent * 1000 / self.documents / len(self.batches)

    def as_json(self) -> dict[str, Any]:
        """For the report."""
        per_document = 1000 / self.documents
        return {
            "ms_per_document": round(self.ms_per_document(), 3),
            "documents_per_s": round(1000 / self.ms_per_document(), 1),
            "processor_ms_per_document": round(self.processor_ms_per_document(), 3),
            "processor_ms_by_process": _means(
                [batch.processor_seconds for batch in self.batches], per_document
            ),
            "ms_by_part": _medians([batch.parts for batch in self.batches], per_document),
        }


def run_pairs(
    corpus: Corpus,
    *,
    raw: RawWrites,
    saga: SagaWrites,
    saga_at_once: SagaWrites,
    processors: Processors,
    batch_documents: int,
    pairs: int,
    warm_up_batches: int = WARM_UP_BATCHES,
    on_pair: Callable[[int], None] = lambda pair: None,
) -> dict[str, Any]:
    """Write `pairs` batches four ways: one store after another and all at once, raw and by saga.

    Who comes first changes from pair to pair. Ratios are medians of the ratios of each pair.
    """
    ways: tuple[tuple[str, Callable[[list[Extraction]], Mapping[str, float]]], ...] = (
        ("raw", lambda batch: raw.write(batch, overlap=False)),
        ("raw_overlapping", lambda batch: raw.write(_renamed(batch), overlap=True)),
        ("saga", saga.write),
        ("saga_at_once", lambda batch: saga_at_once.write(_renamed(batch))),
    )
    sides = {name: Side(name=name, documents=batch_documents) for name, _ in ways}
    for pair in range(-warm_up_batches, pairs):
        documents = corpus.batch(batch_documents)
        turn = pair % len(ways)
        for name, write in (*ways[turn:], *ways[:turn]):
            batch = _timed(write, documents, processors)
            if pair >= 0:
                sides[name].batches.append(batch)
        on_pair(pair)
    return _report(sides, pairs)


def _timed(
    write: Callable[[list[Extraction]], Mapping[str, float]],
    documents: list[Extraction],
    processors: Processors,
) -> Batch:
    gc.collect()  # what the other side left is not this one's to tidy
    before, begun = processors.seconds(), time.perf_counter()
    parts = write(documents)
    seconds, after = time.perf_counter() - begun, processors.seconds()
    spent = {name: after[name] - before[name] for name in after}
    return Batch(seconds=seconds, processor_seconds=spent, parts=parts)


def _report(sides: Mapping[str, Side], pairs: int) -> dict[str, Any]:
    saga, at_once, raw = sides["saga"], sides["saga_at_once"], sides["raw"]
    return {
        "summary": {
            "ratio_to_raw_writes": _ratio(saga, raw),
            "ratio_to_raw_writes_at_once": _ratio(at_once, raw),
            "ratio_of_overlapping": _ratio(at_once, sides["raw_overlapping"]),
            "processor_ratio_to_raw_writes": _processor_ratio(saga, raw),
        },
        "batch_documents": saga.documents,
        "pairs": pairs,
        "sides": {name: side.as_json() for name, side in sides.items()},
    }


def _ratio(saga: Side, raw: Side) -> float:
    ratios = [s.seconds / r.seconds for s, r in zip(saga.batches, raw.batches, strict=True)]
    return round(statistics.median(ratios), 3)


def _processor_ratio(saga: Side, raw: Side) -> float | None:
    """None where the raw writes took less than the system's clock can tell."""
    raw_ms = raw.processor_ms_per_document()
    return round(saga.processor_ms_per_document() / raw_ms, 3) if raw_ms else None


def _renamed(batch: Sequence[Extraction]) -> list[Extraction]:
    """The same documents under other names: ways come in twos that write to the same tables."""
    return [
        dataclasses.replace(each, document_id=f"overlapping-{each.document_id}") for each in batch
    ]


def _medians(each: Sequence[Mapping[str, float]], factor: float) -> dict[str, float]:
    names = sorted({name for parts in each for name in parts})
    return {
        name: round(statistics.median(parts.get(name, 0.0) for parts in each) * factor, 3)
        for name in names
    }


def _means(each: Sequence[Mapping[str, float]], factor: float) -> dict[str, float]:
    names = sorted({name for parts in each for name in parts})
    return {
        name: round(statistics.fmean(parts.get(name, 0.0) for parts in each) * factor, 3)
        for name in names
    }
