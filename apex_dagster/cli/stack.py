"""`apex up` and `apex down`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import click
from rich.console import Console
from rich.progress import BarColumn, TextColumn
from rich.progress import Progress as Bars

from apex_dagster.embedded.server import OnProgress, Progress
from apex_dagster.embedded.stack import ALL, Stack, outside_names
from apex_dagster.settings import Settings

MEGABYTE = 1_000_000
PLAIN_STEPS = 10  # lines for one download where there is no terminal to redraw


@click.command()
def up() -> None:
    """Start the embedded servers, or find them running.

    Stores that APEX_NEO4J_URI, APEX_POSTGRES_URL, APEX_QDRANT_URL or APEX_REDIS_URL place
    elsewhere are left alone. The first start downloads Neo4j, 140 MB.
    """
    settings, console = Settings(), Console()
    stack, outside = Stack(settings.home), outside_names(settings)
    wanted = [name for name in ALL if name not in outside]
    running = {name for name in wanted if stack.is_up(name)}
    for name in ALL:
        if name in running:
            say(console, name, "already up")
        elif name in outside:
            say(console, name, "outside; see apex doctor")
    with progress(console, [name for name in wanted if name not in running]) as report:
        stack.ensure(wanted, report)


@click.command()
def down() -> None:
    """Stop the embedded servers; their data stays."""
    console, started = Console(), time.monotonic()
    stopped = Stack(Settings().home).down()
    for name in ALL:
        say(console, name, "stopped" if name in stopped else "was not up")
    if stopped:
        console.print(f"{time.monotonic() - started:.1f} s", style="dim")


@contextmanager
def progress(console: Console, names: list[str]) -> Iterator[OnProgress | None]:
    """Something to report a start to: bars on a terminal, lines elsewhere."""
    if not names:
        yield None
    elif console.is_terminal:
        with progress_bars(console, names) as report:
            yield report
    else:
        yield progress_lines(console)


@contextmanager
def progress_bars(console: Console, names: list[str]) -> Iterator[OnProgress]:
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[phase]}"),
        TextColumn("[dim]{task.fields[seconds]}"),
    )
    started = time.monotonic()
    with Bars(*columns, console=console) as bars:
        tasks = {
            name: bars.add_task(name, total=None, phase="waiting", seconds="") for name in names
        }

        def report(event: Progress) -> None:
            ready = event.phase == "ready"
            bars.update(
                tasks[event.server],
                total=1 if ready else event.total or None,
                completed=1 if ready else event.done,
                phase=describe(event),
                seconds=f"{time.monotonic() - started:.1f} s" if ready else "",
            )

        yield report


def progress_lines(console: Console) -> OnProgress:
    started, lock = time.monotonic(), Lock()
    last: dict[str, object] = {}

    def report(event: Progress) -> None:
        step = (event.phase, event.done * PLAIN_STEPS // event.total if event.total else 0)
        with lock:
            if last.get(event.server) != step:
                last[event.server] = step
                after = f" after {time.monotonic() - started:.1f} s"
                say(console, event.server, describe(event) + after * (event.phase == "ready"))

    return report


def describe(event: Progress) -> str:
    if event.phase == "downloading":
        return f"downloading {event.done // MEGABYTE} of {event.total // MEGABYTE} MB"
    return event.phase


def say(console: Console, name: str, what: str) -> None:
    console.print(f"{name:<9} {what}", highlight=False, soft_wrap=True)
