"""Everything Dagster: thin, and listed by name in `apex_dagster.definitions`.

Modules here leave out `from __future__ import annotations`: Dagster reads the real ones.
"""
