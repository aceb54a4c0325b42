"""An index of the events by which sagas changed their owner."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    run_sql_beside(__file__)
