"""What each statement of `scheduled_retry.sql` does to the tables."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta

from apex_dagster.simulation.ledger_statements import failures_of, head_of
from apex_dagster.simulation.tables import Row, Statements, Values


class RetryStatements(Statements):
    """One method a statement; a row it returns is a row that the statement returns."""

    def _tries(self, v: Values) -> Iterable[Row]:
        files = {s["saga_id"] for s in self.tables.submissions.values() if s["source_uri"]}
        return [
            {
                "saga_id": saga["saga_id"],
                "tries": len(failures_of(self._all(), saga)),
                "is_file": saga["saga_id"] in files,
                "was_failed": saga["saga_id"] in self.tables.quarantine,
            }
            for saga in self._chosen(v)
        ]

    def _schedule_retries(self, v: Values) -> Iterable[Row]:
        for saga_id, delay_s in zip(v["saga_ids"], v["delays_s"], strict=True):
            due_at = self.now() + timedelta(seconds=delay_s)
            self.tables.retries.setdefault(saga_id, {"saga_id": saga_id, "due_at": due_at})
        return []

    def _count_due_retries(self, v: Values) -> Iterable[Row]:
        return [{"due": len(self._due_retries(v))}]

    def _due_retries(self, v: Values) -> list[Row]:
        retries = sorted(self.tables.retries.values(), key=lambda r: (r["due_at"], r["saga_id"]))
        due = [retry["saga_id"] for retry in retries if retry["due_at"] < self.now()]
        return [self.tables.sagas[saga_id] for saga_id in due[: v["limit"]]]

    def _waiting_retries(self, v: Values) -> Iterable[Row]:
        retries = self.tables.retries
        return [retries[saga_id] for saga_id in sorted(set(v["saga_ids"])) if saga_id in retries]

    def _postpone_retries(self, v: Values) -> Iterable[Row]:
        due_at = self.now() + timedelta(seconds=v["delay_s"])
        for saga_id in v["saga_ids"]:
            if saga_id in self.tables.retries:
                self.tables.retries[saga_id] = {"saga_id": saga_id, "due_at": due_at}
        return []

    def _drop_retries(self, v: Values) -> Iterable[Row]:
        for saga_id in v["saga_ids"]:
            self.tables.retries.pop(saga_id, None)
        return []

    def _live_sagas(self, v: Values) -> Iterable[Row]:
        heads = (head_of(document) for document in self._documents(v))
        return [self.tables.sagas[saga_id] for saga_id in sorted(filter(None, heads))]

    def _asked_again(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            live = self.tables.documents[saga["document_id"]]["live_saga_id"]
            asked = [
                row["created_at"]
                for row in self.tables.submissions.values()
                if row["saga_id"] == live
            ]
            same = [
                other["created_at"]
                for other in self._all()
                if (other["document_id"], other["arrival"])
                == (saga["document_id"], saga["arrival"])
            ]
            if asked and max(asked) > min(same):
                yield {"saga_id": saga["saga_id"]}

    def _unsettled_sagas(self, v: Values) -> Iterable[Row]:
        open_ = ("pending", "in_progress", "compensating")
        return [
            saga
            for saga in self._all()
            if saga["document_id"] in v["document_ids"]
            and (saga["status"] in open_ or saga["saga_id"] in self.tables.retries)
        ]
