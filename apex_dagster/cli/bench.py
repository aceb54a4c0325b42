"""`apex bench`: what documents cost, over HTTP and in the stores."""

from __future__ import annotations

import logging
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from apex_dagster.cli.exit_codes import HELP
from apex_dagster.cli.printing import console, table
from apex_dagster.errors import InvalidInput
from apex_dagster.logs import configure_logs


@click.command(epilog=HELP)
@click.option("--quick", is_flag=True, help="Seconds instead of minutes, one run: is it alive?")
@click.option("--runs", type=click.IntRange(min=1), help="Of each load. Default: 3.")
@click.option("--minutes", type=click.FloatRange(min=0.05), help="Of each load. Default: 3.")
@click.option("--pairs", type=click.IntRange(min=1), help="Of batches by size. Default: 30.")
@click.option("--peer", type=click.Choice(["lightrag"]), help="Compare with it on the same stores.")
@click.option("--seed", default=1, type=click.IntRange(min=0), show_default=True)
@click.option(
    "--json",
    "json_file",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("apex-bench.json"),
    show_default=True,
    help="Where the figures go; a page with plots goes beside it.",
)
def bench(
    quick: bool,
    runs: int | None,
    minutes: float | None,
    pairs: int | None,
    peer: str | None,
    seed: int,
    json_file: Path,
) -> None:
    """Measure on real stores, started for it in an empty folder and removed at the end.

    How well searches rank the sample corpus, by questions judged by hand. Then prepared documents
    (8 chunks with embeddings, 15 entities, 12 relations): batches with the saga
    and without it, then through POST /documents/ingest at fixed rates and saturated, then with all
    workers killed, and batches once more over what is stored by then: about 100,000 documents.
    About 45 minutes on two cores; figures are medians.
    """
    from apex_dagster.bench.suite import FULL, QUICK, save

    usual = QUICK if quick else FULL
    extent = replace(
        usual,
        runs=runs or usual.runs,
        seconds=minutes * 60 if minutes else usual.seconds,
        pairs=pairs or usual.pairs,
    )
    results = _on_own_stores(extent, seed=seed, peer=peer)
    page = save(results, json_file)
    _show(results)
    console().print(f"{json_file}, {page}", soft_wrap=True)


def _on_own_stores(extent: Any, *, seed: int, peer: str | None) -> dict[str, Any]:
    from apex_dagster.bench.suite import run_suite
    from apex_dagster.embedded.stack import Stack, outside_names
    from apex_dagster.settings import Settings

    configure_logs(level=logging.WARNING)
    settings = Settings()
    if outside := outside_names(settings):
        raise InvalidInput(f"{', '.join(outside)}: unset the address; only embedded ones are used")
    home = Path(tempfile.mkdtemp(prefix="apex-bench-"))
    home.chmod(0o711)  # PostgreSQL runs as another account if we are root
    settings = settings.model_copy(update={"home": home})
    try:
        with console().status("starting the stores") as line:
            return run_suite(settings, extent, seed=seed, peer=peer, say=line.update)
    finally:
        for server in Stack(home).servers.values():
            server.stop()
        shutil.rmtree(home, ignore_errors=True)


def _show(results: dict[str, Any]) -> None:
    _show_writes(results["writes"])
    rows = table("load", "documents", "documents/s", "P50 s", "P90 s", "P99 s", "answers")
    for name, load in results["http"].items():
        median = load["median"]
        figures = (f"{median[field]:.3f}" for field in ("p50_s", "p90_s", "p99_s"))
        answers = ", ".join(f"{status}: {count}" for status, count in load["statuses"].items())
        rate = f"{median['documents_per_s']:.1f}"
        rows.add_row(name, f"{median['documents']:.0f}", rate, *figures, answers)
    console().print(rows)
    _show_relevance(results["relevance"])
    for name, value in results["summary"].items():
        console().print(f"{name} {value:.3f}")


def _show_relevance(relevance: dict[str, Any]) -> None:
    rows = table("questions, nDCG@10", *relevance["ndcg10"])
    for kind, means in (*relevance["by_kind"].items(), ("all", relevance["ndcg10"])):
        rows.add_row(kind, *(f"{value:.3f}" for value in means.values()))
    console().print(rows)


def _show_writes(writes: dict[str, Any]) -> None:
    rows = table("batch", "way", "ms/document", "documents/s", "processor ms", "ms by part")
    for documents, report in writes.items():
        for name, side in report["sides"].items():
            parts = ", ".join(f"{part} {ms:.2f}" for part, ms in side["ms_by_part"].items())
            figures = ("ms_per_document", "documents_per_s", "processor_ms_per_document")
            rows.add_row(documents, name, *(f"{side[figure]:.2f}" for figure in figures), parts)
    console().print(rows)
