"""`apex search`: what is live, from a shell."""

from __future__ import annotations

import json
import logging
import math
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape

from apex_dagster.cli.connect import check_postgres, known_endpoints
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import console, milliseconds, table
from apex_dagster.errors import InvalidInput
from apex_dagster.logs import configure_logs
from apex_dagster.settings import Settings

if TYPE_CHECKING:  # costs seconds
    from apex_dagster.ingestion.search import Found, Hit

K_MAX = 100
_EXCERPT_CHARS = 200


@click.command(epilog=HELP)
@click.argument("query")
@click.option("--k", default=10, type=click.IntRange(1, K_MAX), show_default=True)
@click.option("--collection", help="Only documents of this one.")
@click.option(
    "--filter",
    "filters",
    metavar="KEY=VALUE",
    multiple=True,
    help="Only documents whose metadata has exactly this; may be repeated. 7, 1.5, true and false"
    ' are taken as such, "7" as a text.',
)
@click.option("--explain", is_flag=True, help="Show what each ranker did, and its part of scores.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, as POST /search gives it.")
@click.pass_context
def search(
    ctx: click.Context,
    query: str,
    k: int,
    collection: str | None,
    filters: tuple[str, ...],
    explain: bool,
    as_json: bool,
) -> None:
    """Find chunks of live documents by full text, embeddings and the graph.

    The exit code is 1 when Neo4j or Qdrant gives no answer; what the others find is shown.
    """
    metadata = dict(read_filter(each) for each in filters)
    found = find(query, k=k, collection=collection, metadata=metadata)
    if as_json:
        click.echo(json.dumps(found.as_json(explain=explain), indent=2, ensure_ascii=False))
    else:
        print_hits(console(), found, explain=explain)
    for name, reason in found.degraded.items():
        click.echo(f"{name} is missing from this answer: {reason}", err=True)
    if found.degraded:
        ctx.exit(ATTENTION)


def find(
    query: str, *, k: int, collection: str | None, metadata: dict[str, str | int | float | bool]
) -> Found:
    """Raises InvalidInput, and StoreUnavailable without PostgreSQL."""
    from apex_dagster.composition import searching
    from apex_dagster.ingestion.search import Search
    from apex_dagster.stores.searching import SearchFilter

    configure_logs(level=logging.ERROR)
    settings = Settings()
    servers = known_endpoints(settings)
    check_postgres(servers.postgres_url.get_secret_value())
    wanted = SearchFilter(collection=collection, metadata=metadata)
    with searching(settings, servers) as searcher:
        return searcher.search(Search(query=query, k=k, wanted=wanted))


def read_filter(text: str) -> tuple[str, str | int | float | bool]:
    """Key and value. Raises InvalidInput."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise InvalidInput(f"--filter {text}: write KEY=VALUE, such as year=1912")
    try:
        parsed = json.loads(value)
    except ValueError:
        return key, value
    is_number = isinstance(parsed, int) or (isinstance(parsed, float) and math.isfinite(parsed))
    return key, parsed if is_number or isinstance(parsed, str) else value


def print_hits(terminal: Console, found: Found, *, explain: bool) -> None:
    """The best first, with where each stands and how it begins."""
    if not found.hits:
        terminal.print("Nothing that is live fits.")
    else:
        rows = table("score", "document", "version", "chunk", "text")
        for hit in found.hits:
            rows.add_row(*_row(hit, explain=explain))
        terminal.print(rows)
    if explain:
        for name, outcome in found.rankers.items():
            fared = outcome.reason or f"{len(outcome.candidates)} candidates"
            terminal.print(f"{name}: {escape(fared)}, {milliseconds(outcome.took_ms)}")


def _row(hit: Hit, *, explain: bool) -> tuple[str, ...]:
    text = " ".join(hit.chunk.text.split())
    shown = escape(text if len(text) <= _EXCERPT_CHARS else f"{text[:_EXCERPT_CHARS]}…")
    if explain:
        shares = (f"{name} #{share.rank:g}" for name, share in hit.shares.items())
        shown += f"\n[dim]{', '.join(shares)}[/]"
    return (
        f"{hit.score:.4f}",
        escape(hit.ref.document_id),
        str(hit.ref.version),
        str(hit.ordinal),
        shown,
    )
