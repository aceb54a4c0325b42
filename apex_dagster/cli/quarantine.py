"""`apex quarantine`: documents whose saga cannot succeed as they are."""

from __future__ import annotations

import click
from rich.markup import escape

from apex_dagster.cli.connect import connected_ledger
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.cli.printing import clock, console, print_json, table
from apex_dagster.settings import Settings


@click.group(epilog=HELP)
def quarantine() -> None:
    """Look at documents whose saga cannot succeed as they are."""


@quarantine.command("list", epilog=HELP)
@click.option("--limit", default=100, type=click.IntRange(min=1), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
def list_(limit: int, as_json: bool) -> None:
    """List what waits in quarantine, the oldest first, each with its reason."""
    with connected_ledger(Settings()) as ledger:
        entries = ledger.quarantined(limit=limit)
    if as_json:
        print_json({"quarantine": entries})
        return
    if not entries:
        click.echo("The quarantine is empty.")
        return
    rows = table("document", "since (UTC)", "kind", "step", "reason", "saga")
    for entry in entries:
        rows.add_row(
            escape(entry["document_id"]),
            clock(entry["created_at"]),
            entry["error_class"],
            entry["step"] or "",
            escape(entry["reason"]),
            escape(entry["saga_id"]),
        )
    console().print(rows)
