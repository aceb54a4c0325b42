"""Documents that were deleted, and the receipts of that."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0012"
down_revision = "0011"


def upgrade() -> None:
    run_sql_beside(__file__)
