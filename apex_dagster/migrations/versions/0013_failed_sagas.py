"""An index of the sagas that wait for an operator."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0013"
down_revision = "0012"


def upgrade() -> None:
    run_sql_beside(__file__)
