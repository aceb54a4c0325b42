"""`apex quarantine`: documents whose saga cannot succeed as they are."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from apex_dagster.cli.connect import connected, connected_ledger, operator_name, person_name
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import clock, console, print_json, styled, table
from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion.inbox import Inbox
from apex_dagster.ingestion.quarantine import (
    Story,
    original_bytes,
    story_of,
    waiting_entries,
)
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.quarantine import Drop, Entry, Release, drop, open_entries, release
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.settings import Settings

AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")


@click.group(epilog=HELP)
def quarantine() -> None:
    """Look at documents whose saga cannot succeed, release or drop them."""


@quarantine.command("list", epilog=HELP)
@click.option("--limit", default=100, type=click.IntRange(min=1), show_default=True)
@AS_JSON
def list_(limit: int, as_json: bool) -> None:
    """List what waits in quarantine, the oldest first, each with its reason."""
    with connected_ledger(Settings()) as ledger:
        entries = ledger.quarantined(limit=limit)
    if as_json:
        print_json({"quarantine": entries})
        return
    if not entries:
        click.echo("The quarantine is empty.")
        return
    rows = table("document", "since (UTC)", "kind", "step", "tries", "reason", "saga")
    for entry in entries:
        rows.add_row(
            escape(entry["document_id"]),
            clock(entry["created_at"]),
            entry["error_class"],
            entry["step"] or "",
            str(entry["attempts"]),
            escape(entry["reason"]),
            escape(entry["saga_id"]),
        )
    console().print(rows)


@quarantine.command(epilog=HELP)
@click.argument("name", metavar="SAGA_OR_DOCUMENT")
@click.option(
    "--original",
    "target",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write what was submitted to this new file.",
)
@AS_JSON
def show(name: str, target: Path | None, as_json: bool) -> None:
    """Tell why a document is in quarantine, what was tried, what was submitted, what to do now."""
    settings = Settings()
    inbox = Inbox(settings.inbox_dir)
    with connected_ledger(settings) as ledger:
        story = story_of(ledger, inbox, name)
        written = _write_original(ledger, inbox, story.entry, target) if target else None
    if as_json:
        print_json({**dataclasses.asdict(story), "file": story.file and str(story.file),
                    "written": written})  # fmt: skip
        return
    print_story(console(), story)
    if written:
        click.echo(f"Written: {written}, to {target}")


@quarantine.command("release", epilog=HELP)
@click.argument("names", nargs=-1, metavar="[SAGA_OR_DOCUMENT]...")
@click.option("--all", "everything", is_flag=True, help="Everything that waits, or of --class.")
@click.option("--class", "error_class", help="With --all: only what failed so, e.g. store_down.")
@click.option("--step", help="With --all: only what failed in this step, e.g. qdrant_write.")
@click.option("--reason", help="Kept in the audit trail.")
@click.option("--force", is_flag=True, help="As if submitted now: it replaces what came later.")
@click.option("--here", is_flag=True, help="Drive it in this process, and wait for its end.")
@DRY_RUN
@AS_JSON
@click.pass_context
def release_(
    ctx: click.Context,
    names: tuple[str, ...],
    everything: bool,
    error_class: str | None,
    step: str | None,
    reason: str | None,
    force: bool,
    here: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Try documents again that wait in quarantine, once what was wrong is mended.

    Each gets one more saga, in the order in which it was submitted first: where a later submission
    of the document is live or under way, release is refused. Warm workers drive it; without them
    the recovery sensor does when its first lease has run out. The exit code is 1 when one is
    refused, or, with --here, does not end completed.
    """
    if bool(names) == everything:
        raise click.UsageError("name sagas or documents, or use --all")
    if (error_class or step) and not everything:
        raise click.UsageError("--class and --step choose among --all")
    settings = Settings()
    with connected_ledger(settings) as ledger:
        if everything:
            chosen = open_entries(ledger, error_class=error_class, step=step)
        else:
            chosen = waiting_entries(ledger, names, newest_only=True)
        outcomes = release(
            ledger,
            [entry.saga_id for entry in chosen],
            by=person_name(),
            because=reason,
            force=force,
            dry_run=dry_run,
        )
    opened = [outcome.successor for outcome in outcomes if outcome.successor]
    if here and opened and not dry_run:
        opened = _drive(settings, opened)
    _tell_released(outcomes, opened, dry_run=dry_run, as_json=as_json)
    unfinished = here and any(saga.status is not Status.COMPLETED for saga in opened)
    if any(outcome.refusal for outcome in outcomes) or (unfinished and not dry_run):
        ctx.exit(ATTENTION)


@quarantine.command("drop", epilog=HELP)
@click.argument("names", nargs=-1, required=True, metavar="SAGA_OR_DOCUMENT...")
@click.option("--reason", required=True, help="Why; kept in the audit trail.")
@DRY_RUN
@AS_JSON
@click.pass_context
def drop_(
    ctx: click.Context, names: tuple[str, ...], reason: str, dry_run: bool, as_json: bool
) -> None:
    """Erase what was submitted of documents in quarantine, for good.

    The stored bytes, those of earlier attempts and the file in the inbox's quarantine go; why it
    failed, and who dropped it and why, stays. The exit code is 1 when one is refused.
    """
    if not reason.strip():
        raise InvalidInput("--reason: say why, as nothing else of the document will be left")
    settings = Settings()
    with connected_ledger(settings) as ledger:
        ids = [entry.saga_id for entry in waiting_entries(ledger, names)]
        outcomes = drop(ledger, ids, by=person_name(), because=reason, dry_run=dry_run)
        if not dry_run:
            settle_here(Inbox(settings.inbox_dir), ledger)
    _tell_dropped(outcomes, dry_run=dry_run, as_json=as_json)
    if any(outcome.refusal for outcome in outcomes):
        ctx.exit(ATTENTION)


def settle_here(inbox: Inbox, ledger: Ledger) -> None:
    """Let files find their places, if this machine has the inbox; else the sensors see to it."""
    if inbox.folder.is_dir():
        inbox.settle(ledger)


def _drive(settings: Settings, opened: Sequence[Saga]) -> list[Saga]:
    with connected(settings) as app:
        app.breakers.probe(at_once=True)
        app.ingestion.recovery.drive(opened, owner=operator_name())
        settle_here(app.inbox, app.ledger)
        return app.ledger.sagas([saga.saga_id for saga in opened])


def _write_original(ledger: Ledger, inbox: Inbox, entry: Entry, target: Path) -> str:
    if target.exists():
        raise InvalidInput(f"--original: {target} exists; name a file that does not")
    content, as_submitted = original_bytes(ledger, inbox, entry.saga_id)
    target.write_bytes(content)
    what = "what was submitted" if as_submitted else "what was extracted from it, as a document"
    return f"{what}, {len(content)} bytes"


def _tell_released(
    outcomes: Sequence[Release], opened: Sequence[Saga], *, dry_run: bool, as_json: bool
) -> None:
    now = {saga.predecessor_saga_id: saga for saga in opened}
    told = [_told(o.entry, o.refusal) | _successor(now.get(o.entry.saga_id)) for o in outcomes]
    if as_json:
        print_json({"entries": told, "dry_run": dry_run})
        return
    if not told:
        click.echo("Nothing of that kind waits in quarantine.")
    for one in told:
        line = f"{one['document_id']} ({one['saga_id']}): "
        if one["refusal"]:
            click.echo(line + f"not released: {one['refusal']}", err=True)
        elif dry_run:
            click.echo(line + "would be released")
        else:
            click.echo(line + f"released as {one['successor']}, {one['status']}")


def _tell_dropped(outcomes: Sequence[Drop], *, dry_run: bool, as_json: bool) -> None:
    told = [_told(o.entry, o.refusal) | {"erased_bytes": o.erased_bytes} for o in outcomes]
    if as_json:
        print_json({"entries": told, "dry_run": dry_run})
        return
    for one in told:
        line = f"{one['document_id']} ({one['saga_id']}): "
        if one["refusal"]:
            click.echo(line + f"not dropped: {one['refusal']}", err=True)
        else:
            click.echo(line + ("would be dropped, " if dry_run else "dropped, ")
                       + f"{one['erased_bytes']} stored bytes and its file")  # fmt: skip


def _told(entry: Entry, refusal: str | None) -> dict[str, Any]:
    return {"saga_id": entry.saga_id, "document_id": entry.document_id, "refusal": refusal}


def _successor(saga: Saga | None) -> dict[str, Any]:
    return {
        "successor": saga.saga_id if saga else None,
        "status": saga.status.value if saga else None,
        "version": saga.version if saga else None,
    }


def print_story(terminal: Console, story: Story) -> None:
    """For people."""
    entry, found = story.entry, story.original
    kept = "nothing" if found.is_erased else f"{found.source_bytes or found.extraction_bytes} bytes"
    kind = "" if found.is_erased else ", as submitted" if found.source_bytes else ", extracted"
    lines = {
        "document": entry.document_id,
        "saga": entry.saga_id,
        "reason": f"{entry.reason} ({entry.error_class})",
        "step": entry.step,
        "since": f"{clock(entry.created_at)} UTC",
        "submitted by": found.client,
        "name": found.name,
        "media type": found.media_type,
        "source": found.source_uri,
        "sha256": found.body_hash,
        "kept": f"{kept}{kind}, in apex.extraction of the ledger",
        "file": story.file,
        "live now": f"version {story.live_version}" if story.live_version else "nothing",
    }
    for label, value in lines.items():
        if value is not None:
            terminal.print(f"[bold]{label:<14}[/]{escape(str(value))}", soft_wrap=True)
    rows = table("try", "opened (UTC)", "ended (UTC)", "status", "step", "error", "saga")
    for number, attempt in enumerate(story.attempts, start=1):
        rows.add_row(
            str(number),
            clock(attempt.opened_at),
            clock(attempt.ended_at),
            styled(attempt.status.value),
            attempt.step or "",
            escape(f"{attempt.message} ({attempt.error_class})" if attempt.message else ""),
            escape(attempt.saga_id),
        )
    terminal.print(rows)
    terminal.print(f"[bold]What now[/]  {escape(story.what_now)}", soft_wrap=True)
