"""`apex bench`: what documents cost, and in which part."""

from __future__ import annotations

import logging
import secrets
from pathlib import Path
from typing import Any

import click
import orjson

from apex_dagster.cli.exit_codes import HELP
from apex_dagster.cli.printing import console, table
from apex_dagster.logs import configure_logs


@click.group(epilog=HELP)
def bench() -> None:
    """Measure on real stores, which are started if need be. What is measured stays in them."""


@bench.command(epilog=HELP)
@click.option("--batch", default=50, type=click.IntRange(1, 1000), show_default=True)
@click.option("--batches", default=20, type=click.IntRange(min=1), show_default=True)
@click.option("--seed", default=1, type=click.IntRange(min=0), show_default=True)
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path))
def writes(batch: int, batches: int, seed: int, json_file: Path | None) -> None:
    """The saga against the raw four writes of the same documents, batch by batch.

    Documents come with 8 chunks, their embeddings, 15 entities and 12 relations.
    """
    report = _measure(batch=batch, batches=batches, seed=seed)
    if json_file is not None:
        json_file.write_bytes(orjson.dumps(report, option=orjson.OPT_INDENT_2))
    _show(report)


def _measure(*, batch: int, batches: int, seed: int) -> dict[str, Any]:
    from apex_dagster.bench.corpus import Corpus, Shape
    from apex_dagster.bench.pairs import run_pairs
    from apex_dagster.bench.raw_writes import RawWrites
    from apex_dagster.bench.saga_writes import SagaWrites
    from apex_dagster.bench.stopwatch import Processors
    from apex_dagster.embedded.stack import Stack, endpoints
    from apex_dagster.settings import Settings

    configure_logs(level=logging.WARNING)
    settings = Settings()
    servers = endpoints(settings)
    pids = {s.name: s.pid for s in Stack(settings.home).status() if s.up and s.pid is not None}
    token = secrets.token_hex(4)
    corpus = Corpus(seed=seed, shape=Shape(embedding_dim=settings.embedding_dim), prefix=token)
    saga = SagaWrites(settings, servers)
    raw = RawWrites(servers, name=f"bench_{token}", embedding_dim=settings.embedding_dim)
    raw.prepare()
    try:
        return run_pairs(
            corpus,
            raw=raw,
            saga=saga,
            processors=Processors(pids),
            batch_documents=batch,
            pairs=batches,
        )
    finally:
        raw.drop()
        saga.close()


def _show(report: dict[str, Any]) -> None:
    rows = table("way", "ms/document", "documents/s", "processor ms/document", "ms by part")
    for name, side in report["sides"].items():
        parts = ", ".join(f"{part} {ms:.2f}" for part, ms in side["ms_by_part"].items())
        figures = ("ms_per_document", "documents_per_s", "processor_ms_per_document")
        rows.add_row(name, *(f"{side[figure]:.2f}" for figure in figures), parts)
    console().print(rows)
    for name, value in report["summary"].items():
        console().print(f"{name} {value}")
