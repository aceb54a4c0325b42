"""`apex doctor`: what is up, where, which version; why something is not, and what to do."""

from __future__ import annotations

import json
from dataclasses import asdict

import click
from rich.console import Console

from apex_dagster.embedded.diagnosis import Diagnosis, diagnose
from apex_dagster.settings import Settings


@click.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
@click.pass_context
def doctor(ctx: click.Context, as_json: bool) -> None:
    """Say which stores are up, where and how.

    Asks each server itself. The exit code is 1 when one is down.
    """
    settings = Settings()
    found = diagnose(settings)
    if as_json:
        stores = [asdict(one) for one in found]
        click.echo(json.dumps({"home": str(settings.home), "stores": stores}, default=str))
    else:
        show(found)
    if not all(one.up for one in found):
        ctx.exit(1)


def show(found: list[Diagnosis]) -> None:
    """A block for each store: columns would not hold a data directory on a narrow terminal."""
    console = Console(highlight=False, soft_wrap=True)
    for one in found:
        mark = "[green]up[/]  " if one.up else "[red]down[/]"
        console.print(f"{one.store:<9} {mark}  {one.kind:<8}  {one.address or ''}")
        for label, value in (
            ("version", one.version),
            ("process", one.pid),
            ("data", one.data_dir),
            ("why", one.problem),
            ("fix", one.fix),
        ):
            if value is not None:
                console.print(f"          {label:<8} {value}", markup=False)
