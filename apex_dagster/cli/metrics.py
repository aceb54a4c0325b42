"""`apex metrics`: what a Prometheus scrape would get."""

from __future__ import annotations

import click

from apex_dagster.cli.connect import connected_ledger
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.observability.metrics import render_metrics
from apex_dagster.saga.breaker import BreakerPolicy, Breakers
from apex_dagster.settings import Settings


@click.command(epilog=HELP)
def metrics() -> None:
    """Print metrics in Prometheus' text format.

    Open sagas by status and age, overdue ones, how long recoveries took, outcomes and latencies of
    late, and which stores are up: read from the ledger at this moment.
    """
    settings = Settings()
    with connected_ledger(settings) as ledger:
        figures = render_metrics(
            ledger,
            bound_s=settings.saga_bound_s,
            window_s=settings.alert_window_s,
            down=Breakers(ledger, {}, policy=BreakerPolicy()).down,
        )
    click.echo(figures.decode(), nl=False)
