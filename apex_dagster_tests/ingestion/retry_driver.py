"""Tries again what is due, to be killed on the way: `python -m ...`, settings as `crash_driver`."""

from __future__ import annotations

from apex_dagster_tests.ingestion.crash_driver import build_from_environment


def main() -> None:
    build_from_environment().ingestion.recovery.retry_due(owner="victim")


if __name__ == "__main__":
    main()
