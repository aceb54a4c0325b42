"""`apex saga`: look at sagas, and finish or undo them by hand."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import click
from rich.console import Console
from rich.markup import escape

from apex_dagster.cli.connect import connected, connected_ledger, operator_name
from apex_dagster.cli.exit_codes import ATTENTION, HELP
from apex_dagster.cli.printing import (
    clock,
    compact,
    console,
    milliseconds,
    print_json,
    styled,
    table,
)
from apex_dagster.ingestion import interventions
from apex_dagster.ingestion.explain import StepStory, is_abandoned, story_of, what_now
from apex_dagster.saga.bound import RecoveryTimes, recovery_times
from apex_dagster.saga.breaker import Breaker
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import OPEN, Status
from apex_dagster.settings import Settings

AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")


@click.group(epilog=HELP)
def saga() -> None:
    """Look at sagas, finish or undo them."""


@saga.command("list", epilog=HELP)
@click.option("--status", type=click.Choice([s.value for s in Status]), help="Only these.")
@click.option("--document", metavar="ID", help="Only those of one document.")
@click.option("--limit", default=100, type=click.IntRange(min=1), show_default=True)
@AS_JSON
def list_(status: str | None, document: str | None, limit: int, as_json: bool) -> None:
    """List sagas, the newest first."""
    statuses = [Status(status)] if status else None
    with connected_ledger(Settings()) as ledger:
        sagas = ledger.list_sagas(statuses=statuses, document_id=document, limit=limit)
    if as_json:
        print_json({"sagas": [saga_json(saga) for saga in sagas]})
    else:
        print_sagas(console(), sagas)


@saga.command(epilog=HELP)
@click.argument("saga_id")
@AS_JSON
def show(saga_id: str, as_json: bool) -> None:
    """Tell a saga's story: steps, audit trail, what to do now."""
    with connected_ledger(Settings()) as ledger:
        [found] = interventions.known_sagas(ledger, [saga_id])
        story = story_of(ledger, found)
    steps, events, advice = story.steps, story.events, story.what_now
    if as_json:
        print_json({"saga": saga_json(found), "steps": steps, "events": events, "what_now": advice})
    else:
        print_saga(console(), found)
        print_steps(console(), steps)
        print_events(console(), events)
        console().print(f"[bold]What now[/]  {escape(advice)}")


@saga.command(epilog=HELP)
@AS_JSON
@click.pass_context
def recover(ctx: click.Context, as_json: bool) -> None:
    """Finish what dead owners left.

    Takes over every saga whose lease has run out and drives it to its end, and tries files again
    whose time has come, as the recovery sensor does while Dagster runs. The exit code is 1 when a
    saga is failed.
    """
    with connected(Settings()) as app:
        app.breakers.probe(at_once=True)
        finished = interventions.recover_all(app.ingestion, owner=operator_name())
        retried = interventions.retry_all(app.ingestion, owner=operator_name())
        if app.inbox.folder.is_dir():  # the machine may be another than the one with the inbox
            app.inbox.settle(app.ledger)
        failed = interventions.failed_sagas(app.ledger)
        now = datetime.now(UTC)
        still_open = app.ledger.list_sagas(statuses=sorted(OPEN), limit=10_000)
        held = [saga for saga in still_open if not is_abandoned(saga, now=now)]
        waiting = app.ledger.waiting_sagas()
        down = app.breakers.down()
    if as_json:
        groups = {"finished": finished, "retried": retried}
        groups |= {"failed": failed, "held": held, "waiting": waiting}
        sagas = {name: [saga_json(s) for s in sagas] for name, sagas in groups.items()}
        print_json(sagas | {"down": down})
    else:
        print_recovered(console(), finished, held)
        if retried:
            console().print("Tried again, as their time had come:")
            print_sagas(console(), retried)
        print_down(console(), down, waiting)
    end_with_failed(ctx, failed)


@saga.command(epilog=HELP)
@click.argument("saga_ids", nargs=-1, metavar="[SAGA_ID]...")
@click.option("--all-failed", is_flag=True, help="Every saga that is failed.")
@click.option("--reason", default="compensation was requested", help="Kept in the audit trail.")
@click.option("--yes", is_flag=True, help="Do not ask, even if somebody drives the saga now.")
@AS_JSON
@click.pass_context
def compensate(
    ctx: click.Context,
    saga_ids: tuple[str, ...],
    all_failed: bool,
    reason: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Undo sagas, last step first, and close them.

    For failed sagas, once the store that refused is back, and for open ones that are to be given
    up. Undos that have succeeded are not repeated. The exit code is 1 when one does not end
    compensated.
    """
    if not saga_ids and not all_failed:
        raise click.UsageError("name the sagas, or use --all-failed")
    with connected(Settings()) as app:
        chosen = interventions.known_sagas(app.ledger, saga_ids)
        chosen += interventions.failed_sagas(app.ledger) if all_failed else []
        ids = list(dict.fromkeys(saga.saga_id for saga in chosen))
        if not yes:
            confirm_driven(chosen)
        app.breakers.probe(at_once=True)  # whoever asks may know that a store is back
        ended = interventions.compensate(app.ingestion, ids, owner=operator_name(), reason=reason)
    if as_json:
        print_json({"sagas": [saga_json(saga) for saga in ended]})
    elif ended:
        print_sagas(console(), ended)
    else:
        click.echo("No saga is failed.")
    end_with_failed(ctx, [saga for saga in ended if saga.status is not Status.COMPENSATED])


@saga.command(epilog=HELP)
@AS_JSON
@click.pass_context
def bound(ctx: click.Context, as_json: bool) -> None:
    """Show how soon sagas end that their owner left.

    Measured from when the lease ran out, or the run had ended, for every saga that recovery, a
    sensor or an operator has ended; and what is overdue now. The exit code is 1 when something is.
    """
    settings = Settings()
    with connected_ledger(settings) as ledger:
        times = recovery_times(ledger, bound_s=settings.saga_bound_s)
        overdue = ledger.overdue_sagas(bound_s=settings.saga_bound_s)
    if as_json:
        figures = {k: v for k, v in dataclasses.asdict(times).items() if k != "within"}
        ids = [found.saga_id for found in overdue]
        print_json({"bound_s": settings.saga_bound_s, **figures, "overdue": ids})
    else:
        print_bound(console(), settings.saga_bound_s, times, overdue)
    if overdue:
        ctx.exit(ATTENTION)


@saga.command(epilog=HELP)
@AS_JSON
def sweep(as_json: bool) -> None:
    """Remove what can never be live again.

    Superseded versions whose grace is over, and late writes of dead sagas.
    """
    with connected(Settings()) as app:
        swept = interventions.sweep_all(app.ingestion)
    if as_json:
        print_json({"swept": swept})
    else:
        click.echo(f"{swept} versions swept in all four stores." if swept else "Nothing is due.")


def confirm_driven(sagas: Sequence[Saga]) -> None:
    """Ask before a saga is taken from an owner that is at work on it."""
    now = datetime.now(UTC)
    driven = [s for s in sagas if s.status in OPEN and not is_abandoned(s, now=now)]
    if not driven:
        return
    names = ", ".join(f"{saga.saga_id} by {saga.lease_owner}" for saga in driven)
    if not sys.stdin.isatty():
        raise click.UsageError(f"driven at this moment: {names}. Wait, or use --yes")
    click.confirm(f"Driven at this moment: {names}. Undo all the same?", abort=True, err=True)


def end_with_failed(ctx: click.Context, unfinished: Sequence[Saga]) -> None:
    """Name the sagas that need somebody, on stderr, and say so by the exit code."""
    for found in unfinished:
        errors = [f"{step}: {undo['error']}" for step, undo in found.undone_steps.items()
                  if "error" in undo]  # fmt: skip
        reason = "; ".join(errors) or what_now(found, now=datetime.now(UTC))
        click.echo(f"{found.saga_id} is {found.status.value}: {reason}", err=True)
    if unfinished:
        ctx.exit(ATTENTION)


def saga_json(found: Saga) -> dict[str, Any]:
    """Every column of the ledger's row, and the duration."""
    return {**dataclasses.asdict(found), "duration_ms": found.duration_ms}


def print_sagas(terminal: Console, sagas: Sequence[Saga]) -> None:
    if not sagas:
        terminal.print("No saga matches.")
        return
    rows = table("saga", "status", "document", "version", "opened (UTC)", "took", "reason")
    for found in sagas:
        rows.add_row(
            escape(found.saga_id),
            styled(found.status.value),
            escape(found.document_id),
            str(found.version),
            clock(found.created_at),
            milliseconds(found.duration_ms),
            escape(str(found.error["message"])) if found.error else "",
        )
    terminal.print(rows)


def print_saga(terminal: Console, found: Saga) -> None:
    error = found.error or {}
    lines = {
        "saga": found.saga_id,
        "status": found.status.value + (" and published" if found.published_at else ""),
        "document": f"{found.document_id}, version {found.version}",
        "builds on": f"version {found.expected_version}" if found.expected_version else "nothing",
        "opened": f"{clock(found.created_at)} UTC",
        "took": milliseconds(found.duration_ms),
        "Dagster run": found.run_id,
        "driven by": f"{found.lease_owner}, take-overs {found.takeovers}",
        "follows": found.predecessor_saga_id,
        "error": f"{error['message']} ({error['class']})" if error else None,
    }
    for label, value in lines.items():
        if value is not None:
            terminal.print(f"[bold]{label:<12}[/]{escape(str(value))}", soft_wrap=True)


def print_steps(terminal: Console, steps: Sequence[StepStory]) -> None:
    rows = table("step", "state", "took", "receipt", "undo")
    for story in steps:
        took, receipt = milliseconds(story.duration_ms), compact(story.receipt)
        rows.add_row(story.step, story.state, took, escape(receipt), escape(compact(story.undo)))
    terminal.print(rows)


def print_events(terminal: Console, events: Sequence[Mapping[str, Any]]) -> None:
    rows = table("#", "at (UTC)", "event", "step", "took", "detail")
    for event in events:
        rows.add_row(
            str(event["seq"]),
            f"{event['at']:%H:%M:%S.%f}"[:-3],
            event["event"],
            event["step"] or "",
            milliseconds(event["duration_ms"]) if event["duration_ms"] is not None else "",
            escape(compact(event["detail"])),
        )
    terminal.print(rows)


def print_bound(
    terminal: Console, bound_s: float, times: RecoveryTimes, overdue: Sequence[Saga]
) -> None:
    if times.recoveries:
        terminal.print(
            f"{times.recoveries} sagas were left by their owner and ended by another: half within "
            f"{times.p50_s:.1f} s, 90 % within {times.p90_s:.1f} s, all within "
            f"{times.max_s:.1f} s; {times.over_bound} took longer than the bound of {bound_s:g} s."
        )
    else:
        terminal.print("No saga was ever left by its owner.")
    if overdue:
        terminal.print(f"Overdue now, so long after their lease ran out: {len(overdue)}")
        print_sagas(terminal, overdue)


def print_down(terminal: Console, down: Sequence[Breaker], waiting: Sequence[Saga]) -> None:
    for breaker in down:
        needed = sum(breaker.store in (saga.waits_for or ()) for saga in waiting)
        terminal.print(f"{breaker.refusal()}; {needed} sagas wait for it.", soft_wrap=True)


def print_recovered(terminal: Console, finished: Sequence[Saga], held: Sequence[Saga]) -> None:
    if finished:
        print_sagas(terminal, finished)
    else:
        terminal.print("No saga was left by its owner.")
    if held:
        expiry = max(saga.lease_expires_at for saga in held if saga.lease_expires_at)
        terminal.print(
            f"{len(held)} more are driven by somebody, or were until a moment ago; the last of "
            f"their leases runs out at {expiry:%H:%M:%S} UTC unless it is renewed."
        )
