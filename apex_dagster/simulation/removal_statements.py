"""What each statement of `removal.sql` does to the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from apex_dagster.simulation.tables import Row, Statements, Values


class RemovalStatements(Statements):
    """One method a statement; a row it returns is a row that the statement returns."""

    def _removable(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            document = self.tables.documents[saga["document_id"]]
            ref = {name: saga[name] for name in ("saga_id", "document_id", "version")}
            yield ref | {name: document[name] for name in ("live_saga_id", "live_version")}

    def _earlier_in_quarantine(self, v: Values) -> Iterable[Row]:
        found = []
        for deletion, saga in self._earlier(v):
            entry = self.tables.quarantine.get(saga["saga_id"])
            waits = entry and not entry["released_at"] and not entry["dropped_at"]
            if waits and saga["status"] == "compensated":
                found.append(saga | {"deletion_saga_id": deletion["saga_id"]})
        return sorted(found, key=lambda saga: saga["saga_id"])

    def _drop_entries(self, v: Values) -> Iterable[Row]:
        for saga_id in v["saga_ids"]:
            entry = self.tables.quarantine[saga_id]
            self.tables.quarantine[saga_id] = entry | {"dropped_at": self.now()}
        return []

    def _erase_extractions(self, v: Values) -> Iterable[Row]:
        erased = Counter[str]()
        for deletion, saga in self._earlier(v):
            ended = saga["status"] in ("completed", "compensated")
            if ended and saga["saga_id"] in self.tables.extractions:
                del self.tables.extractions[saga["saga_id"]]
                erased[deletion["saga_id"]] += 1
        return [{"saga_id": saga_id, "erased": erased[saga_id]} for saga_id in sorted(erased)]

    def _erase_answers(self, v: Values) -> Iterable[Row]:
        return []  # nobody is answered here

    def _unsettle_earlier(self, v: Values) -> Iterable[Row]:
        return []  # there are no files here

    def _kept_of_earlier(self, v: Values) -> Iterable[Row]:
        kept = Counter[str]()
        for deletion, saga in self._earlier(v):
            ended = saga["status"] in ("completed", "compensated")
            kept[deletion["saga_id"]] += ended and saga["saga_id"] in self.tables.extractions
        return [{"saga_id": s, "kept": kept[s]} for s in sorted(kept) if kept[s]]

    def _insert_receipts(self, v: Values) -> Iterable[Row]:
        for saga_id, document_id, body in zip(
            v["saga_ids"], v["document_ids"], v["bodies"], strict=True
        ):
            row = {"saga_id": saga_id, "document_id": document_id, "body": body}
            self.tables.receipts.setdefault(saga_id, row)
        return []

    def _earlier(self, v: Values) -> Iterator[tuple[Row, Row]]:
        """(deletion, a saga that was submitted before it), for each of both."""
        for deletion in self._chosen(v):
            for saga in self._all():
                same = saga["document_id"] == deletion["document_id"]
                if same and saga["arrival"] < deletion["arrival"]:
                    yield deletion, saga
