"""The schema, on a real PostgreSQL."""
