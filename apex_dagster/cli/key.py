"""`apex key`: who may use the HTTP side, and for what."""

from __future__ import annotations

import re
from dataclasses import asdict
from datetime import timedelta

import click
from rich.markup import escape

from apex_dagster.access.keys import KeyRecord, Scope, create_key, list_keys, revoke_key
from apex_dagster.cli.connect import connected_ledger, person_name
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.cli.printing import clock, console, print_json, table
from apex_dagster.settings import Settings

AS_JSON = click.option("--json", "as_json", is_flag=True, help="One JSON object, for programs.")
_UNITS = {"d": "days", "h": "hours", "m": "minutes"}
_DAYS_MAX = 3650


def _life(ctx: click.Context, param: click.Parameter, value: str | None) -> timedelta | None:
    """90d, 12h or 30m as a time span."""
    if value is None:
        return None
    match = re.fullmatch(r"([1-9]\d{0,6})([dhm])", value)
    life = timedelta(**{_UNITS[match[2]]: int(match[1])}) if match else None
    if life is None or life > timedelta(days=_DAYS_MAX):
        raise click.BadParameter(
            f"{value!r}: use for example 90d, 12h or 30m, {_DAYS_MAX}d at most"
        )
    return life


@click.group(epilog=HELP)
def key() -> None:
    """Make, list and revoke keys of the HTTP API."""


@key.command(epilog=HELP)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    required=True,
    help="What it is good for; may be given several times. admin: everything.",
)
@click.option(
    "--expires", "expires_after", callback=_life, help="After 90d, 12h or 30m. Default: never."
)
@AS_JSON
def create(
    name: str, scopes: tuple[str, ...], expires_after: timedelta | None, as_json: bool
) -> None:
    """Make a key for NAME and print it, this once: what is kept cannot be turned back into it.

    A name may have several keys, so that a new one can take over before the old one is revoked;
    they count as one client, whose idempotency keys are its own.
    """
    with connected_ledger(Settings()) as ledger:
        made, token = create_key(
            ledger,
            name,
            [Scope(scope) for scope in scopes],
            by=person_name(),
            expires_after=expires_after,
        )
    if as_json:
        print_json({"key": token, **asdict(made)})
        return
    click.echo(token)
    until = f"until {clock(made.expires_at)} UTC" if made.expires_at else "until it is revoked"
    click.echo(f"Key {made.key_id} of {name}, good for {_words(made)} {until}.", err=True)
    click.echo("It is not shown again. Send it as `Authorization: Bearer KEY`.", err=True)


@key.command("list", epilog=HELP)
@AS_JSON
def list_(as_json: bool) -> None:
    """List all keys that were made, the newest first; none of them is shown itself."""
    with connected_ledger(Settings()) as ledger:
        keys = list_keys(ledger)
    if as_json:
        print_json({"keys": [asdict(each) for each in keys]})
        return
    if not keys:
        click.echo("There are no keys: `apex key create` makes one.")
        return
    rows = table("id", "name", "scopes", "state", "made (UTC)", "by", "expires (UTC)")
    for each in keys:
        row = (each.name, _words(each), _state(each), clock(each.created_at), each.created_by)
        rows.add_row(each.key_id, *map(escape, row), clock(each.expires_at))
    console().print(rows)


@key.command(epilog=HELP)
@click.argument("id_or_name", metavar="ID_OR_NAME")
@AS_JSON
def revoke(id_or_name: str, as_json: bool) -> None:
    """Take a key back, for good. Running API processes refuse it APEX_API_KEYS_CACHE_S later."""
    settings = Settings()
    with connected_ledger(settings) as ledger:
        gone = revoke_key(ledger, id_or_name, by=person_name())
    if as_json:
        print_json(asdict(gone))
        return
    click.echo(
        f"Revoked: {gone.key_id} of {gone.name}, at {clock(gone.revoked_at)} UTC by"
        f" {gone.revoked_by}. Refused within {settings.api_keys_cache_s:g} s."
    )


def _words(key: KeyRecord) -> str:
    return ", ".join(key.scopes)


def _state(key: KeyRecord) -> str:
    if key.usable:
        return "usable"
    return f"revoked {clock(key.revoked_at)}" if key.revoked_at else "expired"
