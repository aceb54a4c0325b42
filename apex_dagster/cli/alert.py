"""`apex alert`: what fires, told now; and whether telling works."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import click

from apex_dagster.cli.connect import connected
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import clock, console, print_json, table
from apex_dagster.observability.alerts import Notice
from apex_dagster.settings import Settings


@click.group(epilog=HELP)
def alert() -> None:
    """See what fires, and test how it is told."""


@alert.command("list", epilog=HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
@click.pass_context
def list_(ctx: click.Context, as_json: bool) -> None:
    """What fires, as `alert_sensor` or `apex alert check` found at their last look.

    The exit code is 1 if anything does.
    """
    with connected(Settings()) as app:
        _show(app.alerts.firing(), as_json)
        if app.alerts.firing():
            ctx.exit(ATTENTION)


@alert.command(epilog=HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
def check(as_json: bool) -> None:
    """Look now, and tell what has begun or ended since the last look; `alert_sensor` does so every
    30 seconds."""
    with connected(Settings()) as app:
        _show(app.alerts.evaluate(app.tell), as_json)


@alert.command(epilog=HELP)
@click.option("--resolved", is_flag=True, help="That an alert is over. Default: that it fires.")
def test(resolved: bool) -> None:
    """Send a made-up alert to the log and to each webhook that is set, and say how that went.

    The exit code is 1 if one could not be told.
    """
    now = datetime.now(UTC)
    notice = Notice(
        name="test",
        severity="low",
        status="resolved" if resolved else "firing",
        summary="This is a test of how alerts are told; nothing is wrong.",
        since=now,
        resolved_at=now if resolved else None,
    )
    with connected(Settings()) as app:
        for tell in app.tell:
            tell(notice)
    click.echo(f"told in {len(app.tell)} ways")


def _show(notices: Sequence[Notice], as_json: bool) -> None:
    if as_json:
        print_json({"alerts": [notice.as_json() for notice in notices]})
        return
    rows = table("alert", "severity", "status", "since", "what")
    for notice in notices:
        rows.add_row(
            notice.name, notice.severity, notice.status, clock(notice.since), notice.summary
        )
    console().print(rows if notices else "nothing")
