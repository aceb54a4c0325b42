"""One content of a document may be under way twice, with another one between them."""

from apex_dagster.migrations.migrate import run_sql_beside

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    run_sql_beside(__file__)
