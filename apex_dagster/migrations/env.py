"""Alembic's entry point: one connection, one transaction, one lock."""

from alembic import context

connection = context.config.attributes["connection"]
context.configure(connection=connection, version_table_schema="apex")
with context.begin_transaction():
    context.run_migrations()
