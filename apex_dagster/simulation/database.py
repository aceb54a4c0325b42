"""The ledger's tables in memory, and what each statement of `ledger.sql` and `opening.sql` does to
them. The Python around those statements is the real one: see `ledger.py`.

Rows are replaced, never changed, so a copy of the tables' dictionaries is a snapshot. A transaction
happens in one instant here; in PostgreSQL row locks, always taken in one order, have that effect.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from psycopg.errors import UniqueViolation

Row = dict[str, Any]
Values = Mapping[str, Any]

_OPEN = ("pending", "in_progress")
_ENDED = ("completed", "compensated", "failed")


@dataclass(kw_only=True)
class Tables:
    """Schema `apex`, as far as sagas need it."""

    sagas: dict[str, Row] = field(default_factory=dict)
    documents: dict[str, Row] = field(default_factory=dict)
    extractions: dict[str, Row] = field(default_factory=dict)
    submissions: dict[int, Row] = field(default_factory=dict)
    sweeps: dict[tuple[str, datetime], Row] = field(default_factory=dict)
    quarantine: dict[str, Row] = field(default_factory=dict)
    events: dict[tuple[str, int], Row] = field(default_factory=dict)
    arrival: int = 0

    def copy(self) -> Tables:
        """A snapshot."""
        return Tables(
            sagas=dict(self.sagas),
            documents=dict(self.documents),
            extractions=dict(self.extractions),
            submissions=dict(self.submissions),
            sweeps=dict(self.sweeps),
            quarantine=dict(self.quarantine),
            events=dict(self.events),
            arrival=self.arrival,
        )


class Database:
    """Tables and statements. `name_saga` may replace the random id of a saga about to be inserted,
    so that a seed replays: ids decide the order in which sagas are locked, moved and returned."""

    def __init__(
        self,
        now: Callable[[], datetime],
        *,
        name_saga: Callable[[str, str], str] = lambda saga_id, document_id: saga_id,
    ) -> None:
        self.now, self.name_saga = now, name_saga
        self.tables = Tables()
        # Called with the tables as they were before each committed transaction.
        self.on_commit: Callable[[Tables], None] = lambda before: None

    def execute(self, query: str, values: Values) -> list[Row]:
        """Run the statement called "file:name"; the rows it returns, or changes."""
        _, _, name = query.partition(":")
        special = {"opening:lock_documents": "lock_documents_to_open"}.get(query, name)
        statement: Callable[[Values], Iterable[Row]] = getattr(self, f"_{special}")
        return list(statement(values))

    # -- moves ---------------------------------------------------------------------------------

    def _advance(self, v: Values) -> Iterable[Row]:
        for saga_id, epoch, wrapped in sorted(
            zip(v["saga_ids"], v["epochs"], v["details"], strict=True), key=lambda move: move[0]
        ):
            saga = self.tables.sagas.get(saga_id)
            if saga and saga["epoch"] == epoch and saga["status"] in v["source"]:
                yield self._move(saga, v, json.loads(json.dumps(wrapped.obj)))

    def _move(self, saga: Row, v: Values, detail: Row) -> Row:
        now, target, step = self.now(), v["target"], v["step"]
        undo = v["records"] == "undone_step"
        moved = saga | {
            "status": target or saga["status"],
            "epoch": saga["epoch"] + v["epoch_step"],
            "takeovers": saga["takeovers"] + v["takeover"],
            "current_step": saga["current_step"] if undo else step or saga["current_step"],
            "replaces_saga_id": detail.get("replaces_saga_id") or saga["replaces_saga_id"],
            "run_id": v["run_id"] or saga["run_id"],
            "updated_at": now,
            "event_seq": saga["event_seq"] + 1,
        }
        if v["records"] == "completed_step":
            moved["completed_steps"] = saga["completed_steps"] | {step: detail}
        elif undo:
            moved["undone_steps"] = saga["undone_steps"] | {step: detail}
        elif v["records"] == "error":
            moved["error"] = detail
        elif target == "completed":
            moved["error"] = None
        if v["owner"] is not None:
            moved["lease_owner"] = v["owner"]
            moved["lease_expires_at"] = now + timedelta(seconds=v["lease_s"])
        if target is not None:
            moved["ended_at"] = now if target in _ENDED else None
        if v["event"] == "saga_published":
            moved["published_at"] = now
        self.tables.events[saga["saga_id"], moved["event_seq"]] = {
            "saga_id": saga["saga_id"],
            "seq": moved["event_seq"],
            "event": v["event"],
            "step": step,
            "status": moved["status"],
            "epoch": moved["epoch"],
            "detail": detail,
            "at": now,
        }
        return self._put(moved)

    def _put(self, saga: Row) -> Row:
        self.tables.sagas[saga["saga_id"]] = saga
        return saga

    # -- ownership -----------------------------------------------------------------------------

    def _held_sagas(self, v: Values) -> Iterable[Row]:
        mine = [saga for saga in self._chosen(v) if saga["lease_owner"] == v["owner"]]
        return [self._renewed(saga, v) for saga in mine]

    def _renew_leases(self, v: Values) -> Iterable[Row]:
        mine = [saga for saga in self._all() if saga["lease_owner"] == v["owner"]]
        return [self._renewed(s, v) for s in mine if s["status"] != "pending" and _unfinished(s)]

    def _renewed(self, saga: Row, v: Values) -> Row:
        expires_at = self.now() + timedelta(seconds=v["lease_s"])
        return self._put(saga | {"lease_expires_at": expires_at})

    def _expired_sagas(self, v: Values) -> Iterable[Row]:
        return [s for s in self._all() if _unfinished(s) and self._expired(s)][: v["limit"]]

    def _expired_among(self, v: Values) -> Iterable[Row]:
        dead = v["dead_owner"]
        return [
            saga
            for saga in self._chosen(v)
            if self._expired(saga) or (dead is not None and saga["lease_owner"] == dead)
        ]

    def _expired(self, saga: Row) -> bool:
        return saga["lease_expires_at"] is not None and saga["lease_expires_at"] < self.now()

    # -- the pivot and what follows --------------------------------------------------------------

    def _lock_sagas(self, v: Values) -> Iterable[Row]:
        return self._chosen(v)

    def _lock_documents(self, v: Values) -> Iterable[Row]:
        for document in self._documents(v):
            live = self.tables.sagas.get(document["live_saga_id"] or "")
            yield {
                "document_id": document["document_id"],
                "live_version": document["live_version"],
                "live_saga_id": document["live_saga_id"],
                "live_arrival": live["arrival"] if live else None,
                "live_is_unpublished": live is not None and live["published_at"] is None,
            }

    def _point_documents(self, v: Values) -> Iterable[Row]:
        columns = (v["document_ids"], v["versions"], v["saga_ids"], v["content_hashes"])
        for document_id, version, saga_id, content_hash in zip(*columns, strict=True):
            self.tables.documents[document_id] = self.tables.documents[document_id] | {
                "live_version": version,
                "live_saga_id": saga_id,
                "content_hash": content_hash,
            }
        return []

    def _publications(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            if self.tables.documents[saga["document_id"]]["live_saga_id"] != saga["saga_id"]:
                continue
            old = self.tables.sagas.get(saga["replaces_saga_id"] or "")
            yield {
                "saga_id": saga["saga_id"],
                "document_id": saga["document_id"],
                "version": saga["version"],
                "replaced_saga_id": old["saga_id"] if old else None,
                "replaced_version": old["version"] if old else None,
            }

    # -- sweeps and quarantine ---------------------------------------------------------------------

    def _schedule_sweeps(self, v: Values) -> Iterable[Row]:
        for saga_id in v["saga_ids"]:
            for delay_s in v["delays_s"]:
                due_at = self.now() + timedelta(seconds=delay_s)
                row = {"saga_id": saga_id, "due_at": due_at, "reason": v["reason"]}
                self.tables.sweeps.setdefault((saga_id, due_at), row)
        return []

    def _due_sweeps(self, v: Values) -> Iterable[Row]:
        due = []
        for sweep in self.tables.sweeps.values():
            saga = self.tables.sagas[sweep["saga_id"]]
            document = self.tables.documents[saga["document_id"]]
            if sweep["due_at"] < self.now() and _is_dead(saga, document):
                ref = {name: saga[name] for name in ("saga_id", "document_id", "version")}
                due.append(ref | {"due_at": sweep["due_at"]})
        return sorted(due, key=lambda row: row["due_at"])[: v["limit"]]

    def _finish_sweeps(self, v: Values) -> Iterable[Row]:
        for key in zip(v["saga_ids"], v["due_ats"], strict=True):
            self.tables.sweeps.pop(key, None)
        return []

    def _drop_extractions(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            if saga["status"] == "completed":
                self.tables.extractions.pop(saga["saga_id"], None)
        return []

    def _announce(self, v: Values) -> Iterable[Row]:
        return []  # nobody waits here

    def _quarantine(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            error = saga["error"] or {}
            self.tables.quarantine[saga["saga_id"]] = {
                "saga_id": saga["saga_id"],
                "document_id": saga["document_id"],
                "error_class": error.get("class") or "unexpected",
                "released_at": None,
            }
        return []

    # -- extractions ---------------------------------------------------------------------------

    def _submitted_documents(self, v: Values) -> Iterable[Row]:
        rows = self._extractions(v)
        return [row for row in rows if row["body"] is None]

    def _store_extractions(self, v: Values) -> Iterable[Row]:
        stored = []
        for saga_id, epoch, body in zip(v["saga_ids"], v["epochs"], v["bodies"], strict=True):
            saga, row = self.tables.sagas[saga_id], self.tables.extractions.get(saga_id)
            if row and saga["epoch"] == epoch and saga["status"] == "in_progress":
                self.tables.extractions[saga_id] = row | {"body": body, "source": None}
                stored.append({"saga_id": saga_id})
        return stored

    def _extraction_bodies(self, v: Values) -> Iterable[Row]:
        return [row for row in self._extractions(v) if row["body"] is not None]

    def _extractions(self, v: Values) -> list[Row]:
        tables = self.tables.extractions
        return [tables[saga_id] for saga_id in sorted(set(v["saga_ids"])) if saga_id in tables]

    # -- looking -------------------------------------------------------------------------------

    def _sagas_by_id(self, v: Values) -> Iterable[Row]:
        return self._chosen(v)

    def _saga_by_id(self, v: Values) -> Iterable[Row]:
        return self._chosen({"saga_ids": [v["saga_id"]]})

    def _sagas_of_run(self, v: Values) -> Iterable[Row]:
        found = [saga for saga in self._all() if saga["run_id"] == v["run_id"]]
        return sorted(found, key=lambda saga: saga["arrival"])

    def _pointers(self, v: Values) -> Iterable[Row]:
        return self._documents(v)

    def _events(self, v: Values) -> Iterable[Row]:
        events = self.tables.events.values()
        return [event for event in events if event["saga_id"] == v["saga_id"]]

    # -- opening -------------------------------------------------------------------------------

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
                },
            )
        return []

    def _lock_documents_to_open(self, v: Values) -> Iterable[Row]:
        return self._documents(v)

    def _open_sagas_of_documents(self, v: Values) -> Iterable[Row]:
        found = [saga for saga in self._all() if saga["document_id"] in v["document_ids"]]
        found = [saga for saga in found if saga["status"] in _OPEN]
        return sorted(found, key=lambda saga: saga["arrival"])

    def _insert_sagas(self, v: Values) -> Iterable[Row]:
        names = {
            "saga_id": "saga_ids",
            "document_id": "document_ids",
            "version": "versions",
            "expected_version": "expected_versions",
            "content_hash": "content_hashes",
            "predecessor_saga_id": "predecessors",
            "arrival": "arrivals",
        }
        return [self._insert_saga(row, v) for row in _rows(v, names)]

    def _insert_saga(self, new: Row, v: Values) -> Row:
        now = self.now()
        self._refuse_duplicates(new, v["run_id"])
        if new["arrival"] is None:
            self.tables.arrival += 1
            new["arrival"] = self.tables.arrival
        return self._put(
            dict.fromkeys(_NULL_AT_FIRST)
            | new
            | {
                "saga_id": self.name_saga(new["saga_id"], new["document_id"]),
                "kind": "ingest",
                "status": "pending",
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
        predecessor = new["predecessor_saga_id"]
        for saga in self.tables.sagas.values():
            same_document = saga["document_id"] == new["document_id"]
            same_content = saga["content_hash"] == new["content_hash"]
            succeeds = predecessor is not None and saga["predecessor_saga_id"] == predecessor
            if (
                (same_document and saga["version"] == new["version"])
                or (same_document and same_content and saga["status"] in _OPEN)
                or (succeeds and run_id is not None and saga["run_id"] == run_id)
            ):
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
            self.tables.submissions[len(self.tables.submissions)] = row | {"run_id": v["run_id"]}
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

    def _all(self) -> list[Row]:
        sagas = self.tables.sagas
        return [sagas[saga_id] for saga_id in sorted(sagas)]

    def _chosen(self, v: Values) -> list[Row]:
        sagas = self.tables.sagas
        return [sagas[saga_id] for saga_id in sorted(set(v["saga_ids"])) if saga_id in sagas]

    def _documents(self, v: Values) -> list[Row]:
        rows = self.tables.documents
        return [rows[each] for each in sorted(set(v["document_ids"])) if each in rows]


_NULL_AT_FIRST = (
    "current_step",
    "lease_owner",
    "replaces_saga_id",
    "error",
    "ended_at",
    "published_at",
)


def _rows(v: Values, names: Mapping[str, str]) -> list[Row]:
    """The rows of `unnest`: column name -> the array it comes from."""
    columns = [v[array] for array in names.values()]
    return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


def _unfinished(saga: Row) -> bool:
    unpublished = saga["status"] == "completed" and saga["published_at"] is None
    return unpublished or saga["status"] in ("pending", "in_progress", "compensating")


def _is_dead(saga: Row, document: Row) -> bool:
    published = saga["status"] == "completed" and saga["published_at"] is not None
    ended = published or saga["status"] == "compensated"
    return bool(ended and document["live_saga_id"] != saga["saga_id"])
