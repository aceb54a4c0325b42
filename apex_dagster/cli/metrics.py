"""`apex metrics`: what a Prometheus scrape would get."""

from __future__ import annotations

import click

from apex_dagster.cli.connect import connected_ledger
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.observability.metrics import render_metrics
from apex_dagster.settings import Settings


@click.command(epilog=HELP)
def metrics() -> None:
    """Print metrics in Prometheus' text format.

    Open sagas by status and age, overdue ones, and how long recoveries took: read from the ledger
    at this moment.
    """
    settings = Settings()
    with connected_ledger(settings) as ledger:
        click.echo(render_metrics(ledger, bound_s=settings.saga_bound_s).decode(), nl=False)
