"""API keys: who may use the HTTP side, and for what."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0010"
down_revision = "0009"


def upgrade() -> None:
    run_sql_beside(__file__)
