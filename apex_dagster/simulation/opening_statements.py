"""What each statement of `opening.sql` does to the tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta

from psycopg.errors import UniqueViolation

from apex_dagster.simulation.tables import Row, Statements, Values

_OPEN = ("pending", "in_progress", "compensating")


class OpeningStatements(Statements):
    """One method a statement; a row it returns is a row that the statement returns."""

    arrival: int
    name_saga: Callable[[str, str], str]

    # -- opening -----------------------------------------------------------------------------------

    def _ensure_documents(self, v: Values) -> Iterable[Row]:
        for document_id in v["document_ids"]:
            self.tables.documents.setdefault(
                document_id,
                {
                    "document_id": document_id,
                    "last_version": 0,
                    "live_version": None,
                    "live_saga_id": None,
                    "content_hash": None,
                    "tombstone_version": None,
                    "tombstone_saga_id": None,
                },
            )
        return []

    def _lock_documents_to_open(self, v: Values) -> Iterable[Row]:
        same = (
            *("document_id", "last_version", "live_version", "live_saga_id"),
            *("tombstone_version", "tombstone_saga_id"),
        )
        return [
            {name: row[name] for name in same} | {"live_content_hash": row["content_hash"]}
            for row in self._documents(v)
        ]

    def _open_sagas_of_documents(self, v: Values) -> Iterable[Row]:
        found = [saga for saga in self._all() if saga["document_id"] in v["document_ids"]]
        last: dict[str, int] = {}
        for saga in found:
            last[saga["document_id"]] = max(saga["arrival"], last.get(saga["document_id"], 0))
        return [
            saga | {"is_last": saga["arrival"] == last[saga["document_id"]]}
            for saga in found
            if saga["status"] in _OPEN
        ]

    def _insert_sagas(self, v: Values) -> Iterable[Row]:
        names = {
            "saga_id": "saga_ids",
            "document_id": "document_ids",
            "version": "versions",
            "expected_version": "expected_versions",
            "content_hash": "content_hashes",
            "predecessor_saga_id": "predecessors",
            "arrival": "arrivals",
            "pinned": "pinned",
            "kind": "kinds",
        }
        return [self._insert_saga(row, v) for row in _rows(v, names)]

    def _insert_saga(self, new: Row, v: Values) -> Row:
        now = self.now()
        self._refuse_duplicates(new, v["run_id"])
        if new["arrival"] is None:
            self.arrival += 1
            new["arrival"] = self.arrival
        return self._put(
            dict.fromkeys(_NULL_AT_FIRST)
            | new
            | {
                "saga_id": self.name_saga(new["saga_id"], new["document_id"]),
                "status": "pending",
                "started_steps": [],
                "completed_steps": {},
                "undone_steps": {},
                "epoch": 0,
                "takeovers": 0,
                "run_id": v["run_id"],
                "lease_expires_at": now + timedelta(seconds=v["lease_s"]),
                "event_seq": 0,
                "created_at": now,
                "updated_at": now,
            }
        )

    def _refuse_duplicates(self, new: Row, run_id: str | None) -> None:
        """The unique constraints of saga_state."""
        self._refuse_second_successor(new, run_id)
        for saga in self.tables.sagas.values():
            same_document = saga["document_id"] == new["document_id"]
            if same_document and saga["version"] == new["version"]:
                raise UniqueViolation(f"{new} duplicates {saga['saga_id']}")

    def _count_versions(self, v: Values) -> Iterable[Row]:
        for document_id, version in zip(v["document_ids"], v["versions"], strict=True):
            document = self.tables.documents[document_id]
            self.tables.documents[document_id] = document | {"last_version": version}
        return []

    def _insert_extractions(self, v: Values) -> Iterable[Row]:
        names = {
            "saga_id": "saga_ids",
            "name": "names",
            "media_type": "media_types",
            "collection": "collections",
            "metadata": "metadata",
            "source_uri": "source_uris",
            "source": "sources",
            "body": "bodies",
        }
        for row in _rows(v, names):
            self.tables.extractions[row["saga_id"]] = row | {"metadata": row["metadata"].obj}
        return []

    def _copy_extraction(self, v: Values) -> Iterable[Row]:
        source = self.tables.extractions.get(v["predecessor_saga_id"])
        if source is not None:
            self.tables.extractions[v["saga_id"]] = source | {"saga_id": v["saga_id"]}
        return []

    def _with_payload(self, v: Values) -> Iterable[Row]:
        return [
            {"saga_id": saga_id} for saga_id in v["saga_ids"] if saga_id in self.tables.extractions
        ]

    def _forget_retries(self, v: Values) -> Iterable[Row]:
        for saga_id in v["saga_ids"]:
            self.tables.retries.pop(saga_id, None)
        return []

    def _insert_submissions(self, v: Values) -> Iterable[Row]:
        names = {
            "client": "clients",
            "idempotency_key": "idempotency_keys",
            "body_hash": "body_hashes",
            "document_id": "document_ids",
            "saga_id": "saga_ids",
            "source_uri": "source_uris",
        }
        for row in _rows(v, names):
            more = {"run_id": v["run_id"], "created_at": self.now()}
            self.tables.submissions[len(self.tables.submissions)] = row | more
        return []

    def _copy_submissions(self, v: Values) -> Iterable[Row]:
        for row in list(self.tables.submissions.values()):
            if row["saga_id"] == v["predecessor_saga_id"]:
                copy = row | {"saga_id": v["saga_id"], "run_id": v["run_id"]}
                self.tables.submissions[len(self.tables.submissions)] = copy
        return []

    def _count_starts(self, v: Values) -> Iterable[Row]:
        starts = Counter((saga["document_id"], saga["arrival"]) for saga in self._all())
        return [
            {"document_id": document_id, "arrival": arrival, "starts": count}
            for (document_id, arrival), count in starts.items()
            if document_id in v["document_ids"] and arrival in v["arrivals"]
        ]

    def _waiting_restarts(self, v: Values) -> Iterable[Row]:
        pending = [saga for saga in self._all() if saga["status"] == "pending"]
        found = [saga for saga in pending if saga["predecessor_saga_id"] in v["saga_ids"]]
        return sorted(found, key=lambda saga: saga["arrival"])

    def _successors(self, v: Values) -> Iterable[Row]:
        return [
            saga
            for saga in self._all()
            if saga["predecessor_saga_id"] in v["saga_ids"]
            and v["run_id"] is not None
            and saga["run_id"] == v["run_id"]
        ]


_NULL_AT_FIRST = (
    "current_step",
    "lease_owner",
    "replaces_saga_id",
    "error",
    "ended_at",
    "published_at",
    "waits_for",
)


def _rows(v: Values, names: Mapping[str, str]) -> list[Row]:
    """The rows of `unnest`: column name -> the array it comes from."""
    columns = [v[array] for array in names.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
