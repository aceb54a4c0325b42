"""`apex status`: how every document stands, by the four stores' own counts."""

from __future__ import annotations

import click
from rich.console import Console
from rich.markup import escape

from apex_dagster.cli.connect import connected
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import console, milliseconds, print_json, styled, table
from apex_dagster.ingestion.status import DocumentStatus, StatusReport, report_status
from apex_dagster.saga.states import Status
from apex_dagster.settings import Settings

STORE_TIMEOUT_S = 5.0  # people wait for the answer; a store that takes longer is named as down


@click.command(epilog=HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
@click.option("--limit", default=1000, type=click.IntRange(min=1), show_default=True)
@click.pass_context
def status(ctx: click.Context, as_json: bool, limit: int) -> None:
    """Show how every document stands.

    For the newest saga of each document: its status and duration, and what each store itself counts
    of its version: entities in Neo4j, chunks in PostgreSQL, points in Qdrant, and the key of the
    cache entry in Redis. Of more documents than --limit, those that arrived last.

    The exit code is 1 when a store gives no answer or a saga has failed.
    """
    settings = Settings()
    quick = min(settings.step_timeout_s, STORE_TIMEOUT_S)
    with connected(settings.model_copy(update={"step_timeout_s": quick})) as app:
        report = report_status(
            app.ledger, app.stores, redis_prefix=settings.redis_prefix, limit=limit
        )
    if as_json:
        print_json(report.as_json())
    else:
        print_report(console(), report)
    say_unanswered(report)
    if report.needs_attention:
        ctx.exit(ATTENTION)


def print_report(terminal: Console, report: StatusReport) -> None:
    """The table, its totals and what they mean."""
    if not report.documents:
        terminal.print("No document has been submitted yet. `apex demo` ingests a sample corpus.")
        return
    documents, rows = report.documents, table()
    rows.show_footer = True
    entries = "–" if "redis" in report.unanswered else f"{sum(bool(d.redis) for d in documents)}"
    rows.add_column("\ndocument", f"{len(documents)} documents", overflow="fold")
    rows.add_column("\nversion", justify="right")
    rows.add_column("\nsaga", _counts(report))
    rows.add_column("Neo4j\nentities", _total([d.neo4j for d in documents]), justify="right")
    rows.add_column("Postgres\nchunks", _total([d.postgres for d in documents]), justify="right")
    rows.add_column("Qdrant\npoints", _total([d.qdrant for d in documents]), justify="right")
    rows.add_column("Redis\ncache key", f"{entries} entries", overflow="fold")
    rows.add_column("\ntook", justify="right")
    for document in documents:
        rows.add_row(*_row(document))
    terminal.print(rows)
    terminal.print(_meaning(report), style="dim")
    for document in documents:
        if document.saga.status is not Status.COMPLETED:
            terminal.print(_trouble(document))


def say_unanswered(report: StatusReport) -> None:
    """Name the stores that gave no answer, on stderr."""
    for store, reason in report.unanswered.items():
        click.echo(f"{store} gave no answer, so its counts are missing: {reason}", err=True)


def _row(document: DocumentStatus) -> tuple[str, ...]:
    saga = document.saga
    return (
        escape(saga.document_id),
        str(saga.version),
        styled(saga.status.value),
        _number(document.neo4j),
        _number(document.postgres),
        _number(document.qdrant),
        escape(document.redis) if document.redis else "–",
        milliseconds(saga.duration_ms),
    )


def _number(count: int | None) -> str:
    return "–" if count is None else str(count)


def _total(counts: list[int | None]) -> str:
    known = [count for count in counts if count is not None]
    return str(sum(known)) if known else "–"


def _counts(report: StatusReport) -> str:
    return ", ".join(f"{count} {status}" for status, count in sorted(report.by_status.items()))


def _meaning(report: StatusReport) -> str:
    if report.all_completed:
        return (
            "Each document's newest version is live, and each store's own count of it is above. "
            "A cache entry expires and is then read from PostgreSQL again."
        )
    return (
        "Counts are of the newest version of each document. completed: live in all four stores. "
        "compensated: nothing of it is left, the version before answers. failed: waits for an "
        "operator. All else is under way."
    )


def _trouble(document: DocumentStatus) -> str:
    saga = document.saga
    reason = escape(str(saga.error["message"])) if saga.error else "it has no error"
    return (
        f"{escape(saga.document_id)} is {styled(saga.status.value)}: {reason}\n"
        f"  [dim]apex saga show {escape(saga.saga_id)}[/]"
    )
