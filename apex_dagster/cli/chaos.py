"""`apex chaos`: the promises under load, with real servers that are killed and frozen."""

from __future__ import annotations

import logging
import secrets
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Literal

import click
import orjson

from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.errors import InvalidInput
from apex_dagster.logs import configure_logs

_SEED_MAX = 2**32


@click.command(epilog=HELP)
@click.option(
    "--minutes", default=10.0, type=click.FloatRange(min=0.1), show_default=True, help="Of load."
)
@click.option(
    "--rate",
    default=10.0,
    type=click.FloatRange(min=0.1, max=1000),
    show_default=True,
    help="Documents a second, however the earlier ones fare.",
)
@click.option("--seed", type=click.IntRange(min=0), help="Default: a random one, which is printed.")
@click.option(
    "--every",
    "every_s",
    default=8.0,
    type=click.FloatRange(min=1),
    show_default=True,
    help="Seconds from one kill or freeze to the next, more or less.",
)
@click.option(
    "--workers", default=3, type=click.IntRange(min=1, max=32), show_default=True, help="Processes."
)
@click.option(
    "--front-door",
    type=click.Choice(["workers", "api"]),
    default="workers",
    show_default=True,
    help="Worker processes that use the code, or the HTTP API and the warm workers behind it.",
)
@click.option(
    "--home",
    type=click.Path(path_type=Path, file_okay=False),
    help="Where the servers and records of the run go; must not hold any. Default: a temporary "
    "folder, which is removed if every promise was kept.",
)
@click.option(
    "--json", "json_path", type=click.Path(path_type=Path, dir_okay=False), help="Report as JSON."
)
@click.pass_context
def chaos(
    ctx: click.Context,
    minutes: float,
    rate: float,
    seed: int | None,
    every_s: float,
    workers: int,
    front_door: Literal["workers", "api"],
    home: Path | None,
    json_path: Path | None,
) -> None:
    """Ingest while each server and each process is killed and frozen in turn, and readers read.

    Starts four servers of its own. At the end everything must have come right by itself: no half
    document in any store, nothing lost that was acknowledged, no saga open past its bound, and no
    reader that saw anything but whole versions. The last line is the verdict; the exit code is 1
    if a promise was broken, and servers' data and records stay where they are.
    """
    from apex_dagster.chaos.plan import Plan
    from apex_dagster.chaos.run import run
    from apex_dagster.embedded.stack import Stack

    configure_logs(level=logging.CRITICAL)
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)  # each connection that it misses
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # stops the servers
    folder = _home(home)
    plan = Plan(
        seed=secrets.randbelow(_SEED_MAX) if seed is None else seed,
        seconds=minutes * 60,
        rate=rate,
        every_s=every_s,
        workers=workers,
        front_door=front_door,
    )
    try:
        report = run(plan, home=folder, say=click.echo)
    finally:
        Stack(folder).down()
    for line in report.lines(folder):
        click.echo(line)
    if json_path is not None:
        options = orjson.OPT_INDENT_2 | orjson.OPT_NON_STR_KEYS
        json_path.write_bytes(orjson.dumps(report.as_json(), option=options))
    if report.broken:
        ctx.exit(ATTENTION)
    if home is None:
        _remove(folder)


def _home(home: Path | None) -> Path:
    if home is None:
        made = Path(tempfile.mkdtemp(prefix="apex-chaos-"))
        made.chmod(0o711)  # PostgreSQL runs as another account if we are root
        return made
    if home.exists() and any(home.iterdir()):
        raise InvalidInput(f"--home {home} is not empty: a run counts everything in its servers")
    home.mkdir(parents=True, exist_ok=True)
    return home.resolve()


def _remove(home: Path) -> None:
    from apex_dagster.embedded.stack import Stack

    # May be a link to elsewhere, where we run as root below a folder that is closed to others.
    shutil.rmtree(Stack(home).postgres.data.resolve(), ignore_errors=True)
    shutil.rmtree(home)
