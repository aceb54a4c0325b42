"""`apex receipt`: what deletions have removed, and whether a receipt is genuine."""

from __future__ import annotations

from pathlib import Path

import click
import orjson
from rich.console import Console
from rich.markup import escape

from apex_dagster.access.receipt_key import (
    ReceiptKey,
    check_file,
    fingerprint_of,
    receipt_file,
)
from apex_dagster.cli.connect import connected_ledger
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import compact, console, print_json, table
from apex_dagster.errors import InvalidInput
from apex_dagster.saga.removal import DeletionReceipt, find_receipt
from apex_dagster.settings import Settings


@click.group(epilog=HELP)
def receipt() -> None:
    """Show and check the receipts of deletions."""


@receipt.command(epilog=HELP)
@click.argument("name", metavar="DOCUMENT_OR_SAGA")
@click.option(
    "--out",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write it to this file, for `apex receipt verify`.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object: what --out writes.")
def show(name: str, target: Path | None, as_json: bool) -> None:
    """Tell what the newest deletion of a document has removed, and what was read back."""
    with connected_ledger(Settings()) as ledger:
        found = find_receipt(ledger, name)
    if found is None:
        raise InvalidInput(f"there is no receipt of {name!r}: it was not deleted, or that goes on")
    if target:
        target.write_bytes(orjson.dumps(receipt_file(found), option=orjson.OPT_INDENT_2) + b"\n")
    if as_json:
        print_json(receipt_file(found))
    else:
        print_receipt(console(), found)


@receipt.command(epilog=HELP)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--fingerprint", help="Of the key that must have signed it. Default: the one here.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
@click.pass_context
def verify(ctx: click.Context, file: Path, fingerprint: str | None, as_json: bool) -> None:
    """Check that a receipt was not changed, and that the right key has signed it.

    Needs no server. The exit code is 1 when it was signed by another key, and 2 when it was
    changed or is no receipt.
    """
    checked = check_file(file.read_bytes())
    wanted = fingerprint or ReceiptKey(Settings().home).fingerprint()
    is_right = checked.fingerprint == wanted
    about = checked.receipt
    if as_json:
        print_json({"intact": True, "right_key": is_right, "fingerprint": checked.fingerprint,
                    "receipt": about})  # fmt: skip
    else:
        click.echo(f"Intact: {about['document_id']}, deleted {about['deleted_at']}")
        click.echo(f"Signed by {checked.fingerprint}" + (", as it has to be" if is_right else ""))
        if not is_right:
            click.echo(f"That is another key than {wanted or 'any that is known here'}.", err=True)
    if not is_right:
        ctx.exit(ATTENTION)


def print_receipt(terminal: Console, found: DeletionReceipt) -> None:
    """For people."""
    about = orjson.loads(found.body)
    signed = fingerprint_of(found.public_key) if found.public_key else "nobody"
    lines = {
        "document": about["document_id"],
        "saga": about["saga_id"],
        "requested": about["requested_at"],
        "deleted": f"{about['deleted_at']}, as of version {about['version']}",
        "removed": about["cleared_at"],
        "erased": compact(about["erased"]) or "nothing",
        "signed by": signed,
    }
    for label, value in lines.items():
        terminal.print(f"[bold]{label:<14}[/]{escape(str(value))}", soft_wrap=True)
    rows = table("store", "held of the live version", "removed of all", "read back")
    for name, paths in about["read_back"].items():
        store = about["stores"].get(name, {})
        held = {key: value for key, value in store.get("held", {}).items() if key != "digest"}
        rows.add_row(name, compact(held), str(store.get("removed", "")), compact(paths))
    terminal.print(rows)
