"""Breakers of the stores, and the sagas that wait for one."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0006"
down_revision = "0005"


def upgrade() -> None:
    run_sql_beside(__file__)
