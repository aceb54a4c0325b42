"""`apex simulate`: the saga code under injected faults, one seed after another."""

from __future__ import annotations

import logging
import secrets
import time
from collections import Counter

import click

from apex_dagster.cli.exit_codes import HELP
from apex_dagster.logs import configure_logs

_SEED_MAX = 2**32


@click.command(epilog=HELP)
@click.option("--seeds", default=1000, type=click.IntRange(min=1), show_default=True)
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    help="The first seed; the others count up from it. Default: a random one, which is printed.",
)
@click.option("--trace", is_flag=True, help="Print all that happens; for one seed.")
@click.pass_context
def simulate(ctx: click.Context, seeds: int, seed: int | None, trace: bool) -> None:
    """Try the saga code under a virtual clock, with model stores and injected faults.

    Needs no server. Every seed replays exactly. Exits with 1 when a promise was broken, and prints
    the seeds that show it.
    """
    from apex_dagster.simulation.scenario import simulate as simulate_one

    configure_logs(level=logging.CRITICAL)
    first = secrets.randbelow(_SEED_MAX) if seed is None else seed
    begun, sagas, violations = time.monotonic(), Counter[str](), 0
    click.echo(f"seeds {first} to {first + seeds - 1}")
    for number in range(first, first + seeds):
        outcome = simulate_one(number)
        sagas.update(outcome.sagas)
        if trace:
            click.echo("\n".join(outcome.trace))
        if outcome.violation:
            violations += 1
            click.echo(f"seed {number}: {outcome.violation}", err=True)
            click.echo(f"    replay: apex simulate --seeds 1 --seed {number} --trace", err=True)
    by_status = ", ".join(f"{count} {status}" for status, count in sorted(sagas.items()))
    took_s = time.monotonic() - begun
    click.echo(f"{seeds} seeds in {took_s:.1f} s, sagas: {by_status}; {violations} violations")
    if violations:
        ctx.exit(1)
