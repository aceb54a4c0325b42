"""`apex simulate`: the saga code under injected faults, one seed after another."""

from __future__ import annotations

import logging
import os
import secrets
import time
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.logs import configure_logs

if TYPE_CHECKING:
    from apex_dagster.simulation.many import Tally

_SEED_MAX = 2**32
_EXPLAINED_MAX = 3  # violations told in full; the others are likely to be the same


@click.command(epilog=HELP)
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    help="How many. Default: 1000; with --seed alone only that one, with all that happens in it.",
)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="The first seed; the others count up from it. Default: a random one, which is printed.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="one for each core",
    help="Processes; what a seed shows does not depend on them.",
)
@click.pass_context
def simulate(ctx: click.Context, seeds: int | None, seed: int | None, jobs: int) -> None:
    """Try the saga code under a virtual clock, with model stores and injected faults.

    Needs no server. Every seed replays exactly. Exits with 1 when a promise was broken, and tells
    by which seed, with the least that has to go wrong for it.
    """
    configure_logs(level=logging.CRITICAL)
    begun = time.monotonic()
    if seed is not None and seeds is None:
        tally = _replay(seed)
    else:
        tally = _run(secrets.randbelow(_SEED_MAX) if seed is None else seed, seeds or 1000, jobs)
    for number in list(tally.violations)[:_EXPLAINED_MAX]:
        _explain(number)
    click.echo(_figures(tally, time.monotonic() - begun))
    if tally.violations:
        ctx.exit(ATTENTION)


def _replay(seed: int) -> Tally:
    """One seed, with its plan and its trace."""
    from apex_dagster.simulation.draw import draw_plan
    from apex_dagster.simulation.many import tally_of
    from apex_dagster.simulation.scenario import play

    plan = draw_plan(seed)
    outcome = play(plan)
    click.echo("\n".join([f"seed {seed}", *plan.lines(), *outcome.trace]))
    return tally_of([outcome])


def _run(first: int, seeds: int, jobs: int) -> Tally:
    from apex_dagster.simulation.many import Tally, simulate_many

    click.echo(f"seeds {first} to {first + seeds - 1}")
    total, stderr = Tally(), Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=stderr,
        disable=not stderr.is_terminal,
        transient=True,
    )
    with bar:
        task = bar.add_task("seeds", total=seeds)
        for tally in simulate_many(first, seeds, jobs=jobs):
            total += tally
            found = f", {len(total.violations)} violations" if total.violations else ""
            bar.update(task, completed=total.seeds, description=f"seeds{found}")
    return total


def _explain(seed: int) -> None:
    """What was broken, the plan and the trace cut down to what it takes."""
    from apex_dagster.simulation.draw import draw_plan
    from apex_dagster.simulation.minimise import minimise, relevant_lines

    plan, outcome = minimise(draw_plan(seed))
    click.echo(f"\nseed {seed}: {outcome.violation}")
    click.echo("  the least that shows it:")
    for line in [*plan.lines(), *relevant_lines(outcome)]:
        click.echo(f"    {line}")
    click.echo(f"  all of it: apex simulate --seed {seed}\n")


def _figures(tally: Tally, took_s: float) -> str:
    faults = tally.faults.copy()
    deaths, stops = faults.pop("deaths", 0), faults.pop("stops", 0)
    late = faults.pop("landed late", 0)
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(tally.sagas.items()))
    return (
        f"{tally.seeds} seeds in {took_s:.1f} s ({tally.seeds / took_s * 60:.0f} a minute); "
        f"sagas: {by_status}; {faults.total()} faulty requests, {late} late landings, "
        f"{deaths} crashes, {stops} pauses; {len(tally.violations)} violations"
    )
