"""How commands print: JSON for programs, tables for people."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import click
import orjson
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

PIPE_WIDTH = 160  # columns where there is no terminal to ask

STYLES = {
    "completed": "green",
    "compensated": "yellow",
    "failed": "bold red",
    "compensating": "yellow",
    "in_progress": "cyan",
    "pending": "dim",
}


def print_json(value: object) -> None:
    """One document on stdout."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_UTC_Z | orjson.OPT_NON_STR_KEYS
    click.echo(orjson.dumps(value, option=options).decode())


def console() -> Console:
    """Stdout; wide enough for whole ids where it is a pipe."""
    terminal = Console(highlight=False)
    return terminal if terminal.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def table(*columns: str) -> Table:
    """Without frames, so that ids keep their room; what does not fit is folded, never cut off."""
    made = Table(box=box.SIMPLE, header_style="bold", pad_edge=False)
    for column in columns:
        # An id has to survive being copied.
        made.add_column(column, overflow="fold", no_wrap=column == "saga")
    return made


def styled(status: str) -> str:
    """A saga status in its colour."""
    return f"[{STYLES.get(status, 'default')}]{status}[/]"


def milliseconds(value: float | None) -> str:
    """For people: 41 ms, 2.4 s."""
    if value is None:
        return "–"
    return f"{value:.0f} ms" if value < 1000 else f"{value / 1000:.1f} s"


def clock(at: datetime | None) -> str:
    """Date and time, UTC."""
    return f"{at:%Y-%m-%d %H:%M:%S}" if at else "–"


def compact(value: Any) -> str:
    """A receipt or detail on one line: entities 15, relations 12."""
    if not value:
        return ""
    return ", ".join(f"{key} {item}" for key, item in value.items() if item is not None)


@contextmanager
def versions_bar() -> Iterator[Callable[[int, int], None]]:
    """Shows on a terminal how many versions have been looked at; on stderr, as stdout is for the
    report."""
    columns = (TextColumn("versions"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    terminal = Console(stderr=True)
    with Progress(
        *columns, console=terminal, transient=True, disable=not terminal.is_terminal
    ) as bars:
        task = bars.add_task("", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
