"""The saga ledger and PostgreSQL's part of the corpus."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0001"
down_revision = None


def upgrade() -> None:
    run_sql_beside(__file__)
