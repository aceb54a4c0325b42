"""What must be true of every transaction of the ledger, whoever sent it and however late."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from apex_dagster.simulation.database import Database
from apex_dagster.simulation.ledger_statements import head_of
from apex_dagster.simulation.model_store import ModelStore
from apex_dagster.simulation.tables import Row, Tables

# Written out once more on purpose: a wrong table in saga/states.py is to be found, not repeated.
_ALLOWED = frozenset(
    {
        ("pending", "in_progress"),
        ("in_progress", "completed"),
        ("in_progress", "compensating"),
        ("compensating", "compensated"),
        ("compensating", "failed"),
        ("failed", "compensating"),
    }
)


class MoveWatch:
    """Checks each commit. `who` names the process that runs; `report` takes what is wrong."""

    def __init__(
        self,
        database: Database,
        stores: Mapping[str, ModelStore],
        *,
        who: Callable[[], str],
        note: Callable[[str], None],
        report: Callable[[str], None],
    ) -> None:
        self._database, self._stores = database, stores
        self._who, self._note, self._report = who, note, report
        self._holders: dict[str, str] = {}  # saga -> the process that claimed it last

    def check(self, before: Tables) -> None:
        """Compare the tables with what they were before a transaction."""
        tables = self._database.tables
        for saga_id, saga in tables.sagas.items():
            was = before.sagas.get(saga_id)
            if was is None:
                self._check_opened(saga)
            elif was is not saga:
                self._check_status(was, saga)
                self._check_owner(was, saga)
                self._check_undo(was, saga)
        for document_id, document in tables.documents.items():
            was = before.documents.get(document_id)
            if was is not None and head_of(was) != head_of(document):
                self._check_pointer(was, document)

    def _check_opened(self, saga: Row) -> None:
        """Content that starts again by itself keeps its place in the order of arrival."""
        predecessor = self._database.tables.sagas.get(saga["predecessor_saga_id"] or "")
        if predecessor is None or saga["run_id"] not in (None, predecessor["run_id"]):
            return  # somebody wants this content now
        if saga["arrival"] != predecessor["arrival"]:
            self._report(f"{saga['saga_id']} has jumped the queue by starting again")

    def _check_status(self, was: Row, saga: Row) -> None:
        move = (was["status"], saga["status"])
        if move[0] != move[1]:
            self._note(f"    {saga['saga_id']} {move[0]} -> {move[1]}")
            if move not in _ALLOWED:
                self._report(f"{saga['saga_id']} went from {move[0]} to {move[1]}")
        if saga["epoch"] < was["epoch"]:
            self._report(f"the epoch of {saga['saga_id']} fell")

    def _check_owner(self, was: Row, saga: Row) -> None:
        """Whoever was taken over moves the saga no more."""
        saga_id = saga["saga_id"]
        claimed = saga["lease_owner"] != was["lease_owner"] or saga["epoch"] != was["epoch"]
        if claimed:
            self._holders[saga_id] = self._who()
            self._note(f"    {saga_id} is held by {saga['lease_owner']}, epoch {saga['epoch']}")
        elif saga["event_seq"] != was["event_seq"] and was["status"] != "compensated":
            # What becomes of a compensated one's submission is anybody's to note.
            holder = self._holders.get(saga_id, self._who())
            if holder != self._who():
                self._report(f"{self._who()} moved {saga_id}, which {holder} holds")

    def _check_undo(self, was: Row, saga: Row) -> None:
        """A step that is said to have written nothing has written nothing."""
        if was["undone_steps"] is saga["undone_steps"]:
            return
        for step, detail in saga["undone_steps"].items():
            store = self._stores[step.removesuffix("_write")]
            if "skipped" in detail and saga["saga_id"] in store.written:
                self._report(f"{step} of {saga['saga_id']} was not undone, but had written")

    def _check_pointer(self, was: Row, document: Row) -> None:
        """A version becomes live, or a document is deleted, after all that it builds on and that
        came before it."""
        sagas = self._database.tables.sagas
        live, old = sagas[head_of(document) or ""], sagas.get(head_of(was) or "")
        name = live["saga_id"]
        version = document["tombstone_version"] or document["live_version"]
        if live["status"] != "completed" or live["version"] != version:
            self._report(f"the pointer names {name}, which is {live['status']}")
        if (live["kind"] == "delete") != (document["live_saga_id"] is None):
            self._report(f"{name} is a deletion and live, or the other way round")
        if live["expected_version"] != (old["version"] if old else None):
            self._report(f"{name} has replaced a version that it does not build on")
        if old is None:
            return
        if live["version"] <= old["version"] or live["arrival"] <= old["arrival"]:
            self._report(f"the pointer went back from {old['saga_id']}, which came later")
        if old["published_at"] is None:
            self._report(f"{name} has replaced {old['saga_id']}, which is not published yet")
