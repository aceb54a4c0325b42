"""Ingest documents into Neo4j, PostgreSQL, Qdrant and Redis as one saga: all four, or none."""

__version__ = "0.1.0"
