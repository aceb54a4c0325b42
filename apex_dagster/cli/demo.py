"""`apex demo`: the whole project at work on the sample corpus, from nothing to a table."""

from __future__ import annotations

import shlex
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click
from rich.console import Console
from rich.markup import escape

from apex_dagster.cli.connect import connected
from apex_dagster.cli.dagster_dev import DagsterDev, choose_port, dagster_dev
from apex_dagster.cli.exit_codes import ATTENTION, HELP, NeedsAttention
from apex_dagster.cli.follow import drop_bar
from apex_dagster.cli.printing import console
from apex_dagster.cli.stack import up
from apex_dagster.cli.status import print_report, say_unanswered
from apex_dagster.embedded.diagnosis import diagnose
from apex_dagster.embedded.stack import Stack, outside_names
from apex_dagster.ingestion.sample_drop import SampleDrop
from apex_dagster.ingestion.status import StatusReport, report_status
from apex_dagster.settings import Settings

if TYPE_CHECKING:
    from apex_dagster.composition import Application

POLL_S = 0.5
INTERRUPTED = 130  # what a shell reports after Ctrl-C
NAMED_MAX = 5  # documents named when time is up

# How to look inside, in a shell. Each reads the password from its file: a command line can be read
# by every user of the machine, and a terminal by whoever stands behind it.
LOOK = {
    "neo4j": "NEO4J_PASSWORD=$(cat {password}) cypher-shell -a {address} -u neo4j",
    "postgres": "PGPASSWORD=$(cat {password}) psql -h {host} -p {port} -U apex apex",
    "qdrant": "curl -H @<(printf 'api-key: '; cat {password}) {address}/collections",
    "redis": "REDISCLI_AUTH=$(cat {password}) redis-cli -h {host} -p {port}",
}


@click.command(epilog=HELP)
@click.option("--exit", "exit_", is_flag=True, envvar="APEX_DEMO_EXIT", help="Do not stay.")
@click.option(
    "--port", type=click.IntRange(1, 65535), help="Of Dagster's UI. Default: 3000, or a free one."
)
@click.option(
    "--timeout",
    "timeout_s",
    default=300.0,
    show_default=True,
    type=click.FloatRange(min=0, min_open=True),
    help="Seconds that the documents may take.",
)
@click.pass_context
def demo(ctx: click.Context, exit_: bool, port: int | None, timeout_s: float) -> None:
    """Start everything and ingest the sample corpus.

    Starts the stores and Dagster, drops the sample documents into the inbox, waits until the saga
    of each has ended and shows what every store holds. Then stays until Ctrl-C, with Dagster's UI
    up; with --exit, or APEX_DEMO_EXIT=1, it returns. The stores stay up in both cases.

    With --exit the exit code is 0 only if all documents are completed.
    """
    settings, terminal = Settings(), console()
    settings = settings.model_copy(update={"home": settings.home.resolve()})
    choose_port(port)  # before anything is started for nothing
    staying = False
    try:
        with signals_as_interrupts():
            ctx.invoke(up)
            with connected(settings) as app, dagster_dev(settings, port) as dagster:
                wait_for_dagster(terminal, dagster)
                report = ingest_samples(terminal, app, dagster, timeout_s)
                print_places(terminal, settings)
                staying = not exit_  # from here on Ctrl-C is how one leaves
                terminal.print(f"\n[bold]Dagster UI[/]  {dagster.url}", soft_wrap=True)
                terminal.print(f"[bold]HTTP API[/]    {dagster.api_url}/docs", soft_wrap=True)
                if staying:
                    stay(terminal, dagster)
    except KeyboardInterrupt:
        click.echo("Dagster is stopped. The stores stay up: `apex down` stops them.", err=True)
        ctx.exit(0 if staying else INTERRUPTED)
    if not report.all_completed:
        ctx.exit(ATTENTION)


def wait_for_dagster(terminal: Console, dagster: DagsterDev) -> None:
    """Raises ServerNotStarted, with the end of its log."""
    started = time.monotonic()
    terminal.print("dagster   starting")
    with terminal.status("") as line:
        dagster.wait_ready(lambda state: line.update(f"dagster   {state}"))
    terminal.print(f"dagster   ready after {time.monotonic() - started:.1f} s")


def ingest_samples(
    terminal: Console, app: Application, dagster: DagsterDev, timeout_s: float
) -> StatusReport:
    """Drop the corpus, follow it and print what became of it.

    Raises NeedsAttention, after that, when it has not ended in time or Dagster has.
    """
    samples = SampleDrop(app.inbox, app.ledger)
    files, total = samples.drop(), len(samples.documents)
    folder = escape(str(app.inbox.folder))
    terminal.print(f"inbox     {files} files, {total} documents, in {folder}", soft_wrap=True)
    problem = follow(terminal, samples, dagster, timeout_s)
    report = report_status(
        app.ledger,
        app.stores,
        redis_prefix=app.settings.redis_prefix,
        limit=total,
        document_ids=samples.document_ids,
    )
    print_report(terminal, report)
    say_unanswered(report)
    if problem:
        raise NeedsAttention(f"{problem}\n--- end of {dagster.log} ---\n{dagster.last_lines()}")
    return report


def follow(
    terminal: Console, samples: SampleDrop, dagster: DagsterDev, timeout_s: float
) -> str | None:
    """Return when every document has ended, or why they will not."""
    deadline, total = time.monotonic() + timeout_s, len(samples.documents)
    with drop_bar(terminal, total) as show:
        while True:
            progress = samples.progress()
            show(progress)
            if not progress.unfinished:
                return None
            if not dagster.is_running():
                return "Dagster has ended by itself."
            if time.monotonic() > deadline:
                names = ", ".join(progress.unfinished[:NAMED_MAX])
                more = ", …" if len(progress.unfinished) > NAMED_MAX else ""
                return (
                    f"{len(progress.unfinished)} of {total} documents have not ended within "
                    f"{timeout_s:g} s: {names}{more}. `apex saga list` shows how far they are; "
                    "--timeout gives them longer."
                )
            time.sleep(POLL_S)


def print_places(terminal: Console, settings: Settings) -> None:
    """Where each store is, and how to look into it."""
    stack, outside = Stack(settings.home), outside_names(settings)
    terminal.print("\n[bold]Stores[/]")
    for found in diagnose(settings):
        terminal.print(f"{found.store:<9} {found.address} ({found.version})", soft_wrap=True)
        if found.store in outside or found.address is None:
            continue
        parts = urlsplit(found.address)
        look = LOOK[found.store].format(
            password=shlex.quote(str(stack.servers[found.store].password_path)),
            address=found.address,
            host=parts.hostname,
            port=parts.port,
        )
        terminal.print(f"          {look}", style="dim", markup=False, soft_wrap=True)


def stay(terminal: Console, dagster: DagsterDev) -> None:
    """Until Ctrl-C. Raises NeedsAttention when Dagster ends before."""
    terminal.print("Drop files into the inbox, or look around in the UI. Ctrl-C stops Dagster.")
    while dagster.is_running():
        time.sleep(POLL_S)
    raise NeedsAttention(
        f"Dagster has ended by itself.\n--- end of {dagster.log} ---\n{dagster.last_lines()}"
    )


@contextmanager
def signals_as_interrupts() -> Iterator[None]:
    """SIGTERM and a closed terminal end the command as Ctrl-C does: in good order."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
