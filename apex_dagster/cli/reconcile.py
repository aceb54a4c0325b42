"""`apex reconcile`: what stores hold otherwise than they have to, named and put right."""

from __future__ import annotations

import getpass

import click

from apex_dagster.cli.connect import connected
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import print_json, versions_bar
from apex_dagster.settings import Settings


@click.command(epilog=HELP)
@click.option("--repair", is_flag=True, help="Put right what is found. Default: only say it.")
@click.option(
    "--by",
    metavar="NAME",
    help="Who repairs, for the audit log.  [default: the user who is logged in]",
)
@click.option(
    "--document",
    "document_ids",
    multiple=True,
    metavar="ID",
    help="Look at this document only; may be given several times.",
)
@click.option(
    "--dead",
    type=click.IntRange(min=0),
    metavar="N",
    help="Look for the N newest of the versions that must be gone.  [default: all]",
)
@click.option(
    "--all-orphans",
    is_flag=True,
    help="Remove what no saga of the ledger has written even if it is more than one in a hundred.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
@click.pass_context
def reconcile(
    ctx: click.Context,
    repair: bool,
    by: str | None,
    document_ids: tuple[str, ...],
    dead: int | None,
    all_orphans: bool,
    as_json: bool,
) -> None:
    """Compare what each store holds with what it has to hold, item by item.

    A version that is missing or altered is restored from its stored extraction, nothing is
    extracted again. What is left of versions that must be gone is removed, and so is what no saga
    of the ledger has written, unless it is so much that the ledger itself must have lost it.
    Documents with a saga under way are left alone. A store whose data is lost comes back whole.

    Prints one line for each drift; the exit code is 1 if any is left.
    """
    repair_as = (by or getpass.getuser()) if repair else None
    with connected(Settings()) as app, versions_bar() as progress:
        report = app.reconciler.reconcile(
            repair_as=repair_as,
            document_ids=document_ids or None,
            dead_max=dead,
            all_orphans=all_orphans,
            progress=progress,
        )
    if as_json:
        print_json(report.as_json())
    else:
        for drift in report.drifts:
            click.echo(str(drift))
        click.echo(
            f"{len(report.drifts)} drifts, {len(report.left)} left; {report.live} versions live,"
            f" {report.dead} that must be gone."
        )
    if report.left:
        ctx.exit(ATTENTION)
