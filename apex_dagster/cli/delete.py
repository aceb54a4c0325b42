"""`apex delete`: remove a document from all four stores, for good."""

from __future__ import annotations

import sys

import click

from apex_dagster.access.receipt_key import receipt_file
from apex_dagster.cli.connect import connected, connected_ledger, operator_name
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import console, print_json
from apex_dagster.cli.quarantine import settle_here
from apex_dagster.cli.receipt import print_receipt
from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion.deletion import Deletion, await_deletion, is_driven, open_deletion
from apex_dagster.saga.opening import Opened
from apex_dagster.settings import Settings

_DRIVER_WAIT_S = 3.0  # warm workers take a saga up at once


@click.command(epilog=HELP)
@click.argument("document_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--here", is_flag=True, help="Drive it in this process, not by a Dagster run.")
@click.option(
    "--wait",
    "wait_s",
    default=60.0,
    type=click.FloatRange(min=0),
    show_default=True,
    help="Seconds for the removal to be over.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.pass_context
def delete(
    ctx: click.Context, document_id: str, yes: bool, here: bool, wait_s: float, as_json: bool
) -> None:
    """Remove a document from all four stores, with what is kept of it, and print the receipt.

    It is gone for readers at once, and cannot be brought back; what is submitted later makes it
    live again. A run of the warm workers does it; where there are none, this process. Deleting what
    is deleted prints the receipt that there is. The exit code is 1 when the removal is not over
    within --wait, or came to nothing, and 2 when nothing was ever submitted under this id.
    """
    settings = Settings()
    if not yes:
        _confirm(document_id)
    with connected_ledger(settings) as ledger:
        opened = open_deletion(ledger, document_id, client="shell")
        saga_id = opened.saga.saga_id
        driven = not here and is_driven(ledger, saga_id, within_s=_DRIVER_WAIT_S)
        if not driven:
            _drive(settings, opened)
        found = await_deletion(ledger, saga_id, wait_s=wait_s)
    _tell(found, as_json=as_json)
    if found.receipt is None:
        ctx.exit(ATTENTION)


def _confirm(document_id: str) -> None:
    if not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask on: use --yes")
    click.confirm(f"Remove {document_id} from all stores, for good?", abort=True, err=True)


def _drive(settings: Settings, opened: Opened) -> None:
    with connected(settings) as app:
        app.breakers.probe(at_once=True)
        app.ingestion.recovery.drive([opened.saga], owner=operator_name())
        settle_here(app.inbox, app.ledger)


def _tell(found: Deletion, *, as_json: bool) -> None:
    saga, receipt = found.saga, found.receipt
    if as_json:
        file = receipt_file(receipt) if receipt else {"receipt": None, "signature": None}
        told = {"saga_id": saga.saga_id, "status": saga.status.value, "error": saga.error}
        print_json({"document_id": saga.document_id, **told, **file})
    elif receipt:
        print_receipt(console(), receipt)
    elif saga.error:
        click.echo(f"Not deleted: {saga.error['message']} ({saga.saga_id})", err=True)
    else:
        click.echo(f"It goes on: `apex saga show {saga.saga_id}` tells how far it is.", err=True)
