"""`apex audit`: proof that the audit log, the ledger and the four stores agree."""

from __future__ import annotations

import click

from apex_dagster.cli.connect import connected, connected_ledger
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import print_json, versions_bar
from apex_dagster.settings import Settings


@click.group(epilog=HELP)
def audit() -> None:
    """Prove that the audit log, the ledger and the four stores agree."""


@audit.command(epilog=HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
@click.option(
    "--anchor", "noted", metavar="HASH", help="An anchor's hash from a log; it has to be there."
)
@click.option(
    "--dead",
    type=click.IntRange(min=0),
    metavar="N",
    help="Look in the stores for the N newest of the versions that must be gone.  [default: all]",
)
@click.option(
    "--document",
    "document_ids",
    multiple=True,
    metavar="ID",
    help="Ask the stores for this document only; may be given several times.",
)
@click.pass_context
def verify(
    ctx: click.Context,
    as_json: bool,
    noted: str | None,
    dead: int | None,
    document_ids: tuple[str, ...],
) -> None:
    """Recompute everything from the audit log, and compare.

    Checks every saga's hash chain and moves, the anchors over the chains, the ledger's rows and
    pointers. In each store, compares every text, vector, entity, relation and cache entry of what
    is live with the stored extraction, and looks for what must not be there. It changes nothing
    and may run beside everything else; sagas under way are left out of the stores' part.

    Prints one line a difference; the exit code is 1 if there is any.
    """
    from apex_dagster.ingestion import audit as auditing

    with connected(Settings()) as app, versions_bar() as progress:
        report = auditing.verify(
            app.ledger,
            app.stores,
            dead_max=dead,
            noted_anchor=noted,
            document_ids=document_ids or None,
            progress=progress,
        )
    if as_json:
        print_json(report.as_json())
    else:
        for difference in report.differences:
            click.echo(str(difference))
        click.echo(
            f"{len(report.differences)} differences in {report.sagas} sagas with {report.events} "
            f"events and {report.anchors} anchors; {report.live} versions live, "
            f"{report.dead} that must be gone."
        )
    if report.differences:
        ctx.exit(ATTENTION)


@audit.command(epilog=HELP)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for other programs.")
def anchor(as_json: bool) -> None:
    """Anchor the chains that have grown, now; recovery_sensor does so once a minute.

    Keep the hash where nobody who can write to the database can write: `apex audit verify --anchor`
    then finds out if history was rewritten, anchors and all.
    """
    from apex_dagster.saga import audit as auditing

    with connected_ledger(Settings()) as ledger:
        made = auditing.anchor(ledger, every_s=0.0)
    if as_json:
        print_json({"anchor": made})
    elif made is None:
        click.echo("No chain has grown since the last anchor.")
    else:
        click.echo(f"Anchor {made.anchor_seq} over {made.head_count} chains: {made.hash}")
