"""Bring a database to the newest schema. Each version is a .sql file run by Alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command, op
from alembic.config import Config

# Any fixed number: webserver, daemon and workers may start at once, and one of them migrates.
_ADVISORY_LOCK = 0x41504558


def migrate(postgres_url: str) -> None:
    """Create or upgrade schema `apex`, in one transaction under an advisory lock; safe to repeat.

    The role needs CREATE on the database, and pgvector must be installed or installable.
    """
    engine = sa.create_engine(_sqlalchemy_url(postgres_url), poolclass=sa.NullPool)
    with engine.begin() as connection:
        connection.execute(sa.text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        connection.execute(sa.text("CREATE SCHEMA IF NOT EXISTS apex"))
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS vector"))
        config = Config()
        # The option passes through configparser, which reads "%" as the start of an interpolation.
        config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
        config.attributes["connection"] = connection
        command.upgrade(config, "head")


def run_sql_beside(migration_file: str) -> None:
    """Run the .sql file that has the migration's name, as one script and without parameters."""
    script = Path(migration_file).with_suffix(".sql").read_text(encoding="utf-8")
    # The driver's own cursor: SQLAlchemy would read ":name" in the script as a bind parameter.
    driver_connection = op.get_bind().connection.driver_connection
    driver_connection.execute(script)  # type: ignore[union-attr]


def _sqlalchemy_url(postgres_url: str) -> sa.URL:
    return sa.make_url(postgres_url).set(drivername="postgresql+psycopg")
