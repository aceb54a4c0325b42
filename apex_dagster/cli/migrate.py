"""`apex migrate`: the ledger's schema."""

from __future__ import annotations

import click

from apex_dagster.cli.connect import check_postgres, known_endpoints, schema_errors
from apex_dagster.cli.exit_codes import HELP
from apex_dagster.settings import Settings


@click.command(epilog=HELP)
def migrate() -> None:
    """Bring the ledger's schema to the newest version.

    Happens by itself wherever the project starts; this command is for those who want to do it
    before, or with a role of its own in APEX_POSTGRES_URL.
    """
    from apex_dagster.migrations.migrate import migrate as migrate_ledger

    url = known_endpoints(Settings(), ("postgres",)).postgres_url.get_secret_value()
    check_postgres(url)
    with schema_errors():
        migrate_ledger(url)
    click.echo(f"Schema apex is at version {schema_version(url)}.")


def schema_version(postgres_url: str) -> str:
    """The last migration that the database has seen."""
    import psycopg

    with psycopg.connect(postgres_url) as connection:
        row = connection.execute("SELECT version_num FROM apex.alembic_version").fetchone()
    assert row is not None
    return str(row[0])
