"""Which saga steps were started: several may be under way at once."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    run_sql_beside(__file__)
