"""Shows how far a drop of documents is: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from apex_dagster.ingestion.sample_drop import DropProgress

Show = Callable[[DropProgress], None]


@contextmanager
def drop_bar(terminal: Console, total: int) -> Iterator[Show]:
    """What to call with each look at the drop."""
    if not terminal.is_terminal:
        yield drop_lines(terminal, total)
        return
    columns = (
        TextColumn("documents"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=terminal) as bars:
        task = bars.add_task("", total=total)

        def show(progress: DropProgress) -> None:
            ended = total - len(progress.unfinished)
            bars.update(task, completed=ended, description=describe(progress))

        yield show


def drop_lines(terminal: Console, total: int) -> Show:
    last = ""

    def show(progress: DropProgress) -> None:
        nonlocal last
        line = f"{total - len(progress.unfinished)} of {total} ended: {describe(progress)}"
        if line != last:
            terminal.print(f"documents {line}")
            last = line

    return show


def describe(progress: DropProgress) -> str:
    """How many documents there are of each status."""
    counts = Counter(str(status or "waiting") for status in progress.statuses.values())
    return ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
