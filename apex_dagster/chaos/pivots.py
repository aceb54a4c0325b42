"""The history of live versions, from the ledger."""

from __future__ import annotations

from collections.abc import Mapping

from apex_dagster.chaos.history import Pivot
from apex_dagster.records import VersionRef
from apex_dagster.saga.ledger import Ledger
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.chaos", "pivots.sql")


def pivots(ledger: Ledger, contents: Mapping[str, Mapping[str, str]]) -> list[Pivot]:
    """What became live and when. `contents`: content hash -> fingerprints by store of what was
    submitted; reads of content that is not among them are violations."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["pivots"]).fetchall()
    return [
        Pivot(
            ref=VersionRef(
                document_id=row["document_id"], version=row["version"], saga_id=row["saga_id"]
            ),
            began=row["began"],
            ended=row["ended"],
            content=contents.get(row["content_hash"], {}),
        )
        for row in rows
    ]
