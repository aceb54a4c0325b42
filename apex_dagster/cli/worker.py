"""`apex worker`: warm processes that execute runs, and drive the sagas of documents that wait."""

from __future__ import annotations

import os

import click

from apex_dagster.cli.dagster_dev import POOL_COMMAND
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.embedded.dagster_home import dagster_home, environment
from apex_dagster.settings import Settings


@click.command(epilog=HELP)
@click.option(
    "--workers", type=click.IntRange(1, 64), help="How many. Default: APEX_WORKERS, which is 2."
)
def worker(workers: int | None) -> None:
    """Keep warm processes that execute runs, until Ctrl-C.

    `apex demo` keeps some by itself. Where none are kept, Dagster starts a process for each run,
    and documents sent by HTTP wait. Runs that are under way at Ctrl-C have a few seconds to end;
    then they are undone.
    """
    settings = Settings()
    settings.home.mkdir(parents=True, exist_ok=True)
    variables = environment(settings) | ({"APEX_WORKERS": str(workers)} if workers else {})
    os.chdir(dagster_home(settings))
    # In place of this process, so that whoever watches it, or signals it, has the pool itself.
    os.execve(POOL_COMMAND[0], POOL_COMMAND, variables)  # noqa: S606
