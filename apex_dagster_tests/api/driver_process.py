"""Drives pending sagas in a process that can be killed: `python -m ...api.driver_process OWNER`.

Settings and failpoints come from the environment.
"""

from __future__ import annotations

import sys

from apex_dagster.composition import application
from apex_dagster.saga.pending import claim_pending


def main() -> None:
    app, owner = application(), sys.argv[1]
    with app.engine.lease(owner):
        sagas = claim_pending(app.ledger, owner=owner, run_id=owner, limit=50, bytes_max=10**9)
        app.ingestion.commit(sagas, owner=owner, run_id=owner)


if __name__ == "__main__":
    main()
