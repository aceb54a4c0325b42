"""Documents that are tried again by themselves, and what operators do to those that are not."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    run_sql_beside(__file__)
