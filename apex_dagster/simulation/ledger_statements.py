"""What each statement of `ledger.sql` does to the tables."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import timedelta

from apex_dagster.records import SagaId
from apex_dagster.simulation.tables import Row, Statements, Values

_ENDED = ("completed", "compensated", "failed")


class LedgerStatements(Statements):
    """One method a statement; a row it returns is a row that the statement returns."""

    # -- moves -------------------------------------------------------------------------------------

    def _advance(self, v: Values) -> Iterable[Row]:
        for saga_id, epoch, wrapped in sorted(
            zip(v["saga_ids"], v["epochs"], v["details"], strict=True), key=lambda move: move[0]
        ):
            saga = self.tables.sagas.get(saga_id)
            if saga and saga["epoch"] == epoch and saga["status"] in v["source"]:
                yield self._move(saga, v, json.loads(json.dumps(wrapped.obj)))

    def _move(self, saga: Row, v: Values, detail: Row) -> Row:
        now, target, step = self.now(), v["target"], v["step"]
        self._refuse_second_successor(saga, v["run_id"])
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
        if v["event"] == "step_started" and step not in saga["started_steps"]:
            moved["started_steps"] = [*saga["started_steps"], step]
        if v["records"] == "completed_step":
            moved["completed_steps"] = saga["completed_steps"] | {step: detail}
        elif undo:
            moved["undone_steps"] = saga["undone_steps"] | {step: detail}
        elif v["records"] == "error":
            moved["error"] = detail
        elif v["forgets_error"]:
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

    def _record_steps(self, v: Values) -> Iterable[Row]:
        records = list(zip(v["record_sagas"], v["steps"], v["details"], strict=True))
        completes = v["event"] == "step_completed"
        move = {"event": v["event"], "target": None, "epoch_step": 0, "takeover": 0, "run_id": None}
        move |= {"records": "completed_step" if completes else "", "forgets_error": False}
        move |= {"owner": None}
        for saga_id, epoch in sorted(zip(v["saga_ids"], v["epochs"], strict=True)):
            saga = self.tables.sagas.get(saga_id)
            if saga and saga["epoch"] == epoch and saga["status"] == "in_progress":
                for _, step, detail in (each for each in records if each[0] == saga_id):
                    saga = self._move(saga, move | {"step": step}, detail.obj)
                yield saga

    # -- ownership ---------------------------------------------------------------------------------

    def _sagas_of_owner(self, v: Values) -> Iterable[Row]:
        return [saga for saga in self._chosen(v) if saga["lease_owner"] == v["owner"]]

    def _held_sagas(self, v: Values) -> Iterable[Row]:
        mine = [saga for saga in self._chosen(v) if saga["lease_owner"] == v["owner"]]
        return [self._renewed(saga, v) for saga in mine]

    def _renew_leases(self, v: Values) -> Iterable[Row]:
        mine = [saga for saga in self._all() if saga["lease_owner"] == v["owner"]]
        return [self._renewed(s, v) for s in mine if s["status"] != "pending" and is_unfinished(s)]

    def _renewed(self, saga: Row, v: Values) -> Row:
        expires_at = self.now() + timedelta(seconds=v["lease_s"])
        return self._put(saga | {"lease_expires_at": expires_at})

    def _expired_sagas(self, v: Values) -> Iterable[Row]:
        expired = [s for s in self._all() if is_unfinished(s) and self._expired(s)]
        down = {store for store, b in self.tables.breakers.items() if b["closed_at"] is None}
        free = [s for s in expired if not down & set(s["waits_for"] or ())]
        chosen = [s for s in free if s["status"] in v["statuses"]]
        return sorted(chosen, key=lambda s: (s["lease_expires_at"], s["saga_id"]))[: v["limit"]]

    def _expired_among(self, v: Values) -> Iterable[Row]:
        dead = v["dead_owner"]
        return [
            saga
            for saga in self._chosen(v)
            if self._expired(saga) or (dead is not None and saga["lease_owner"] == dead)
        ]

    def _expired(self, saga: Row) -> bool:
        return saga["lease_expires_at"] is not None and saga["lease_expires_at"] < self.now()

    # -- the pivot and what follows ----------------------------------------------------------------

    def _lock_sagas(self, v: Values) -> Iterable[Row]:
        return self._chosen(v)

    def _lock_documents(self, v: Values) -> Iterable[Row]:
        for document in self._documents(v):
            head = self.tables.sagas.get(head_of(document) or "")
            yield {
                "document_id": document["document_id"],
                "live_version": document["live_version"],
                "live_saga_id": document["live_saga_id"],
                "head_version": document["live_version"] or document["tombstone_version"],
                "head_saga_id": head_of(document),
                "head_arrival": head["arrival"] if head else None,
                "head_is_unpublished": head is not None and head["published_at"] is None,
            }

    def _point_documents(self, v: Values) -> Iterable[Row]:
        columns = (v["document_ids"], v["versions"], v["saga_ids"], v["content_hashes"])
        for document_id, version, saga_id, content_hash in zip(*columns, strict=True):
            self.tables.documents[document_id] = self.tables.documents[document_id] | {
                "live_version": version,
                "live_saga_id": saga_id,
                "content_hash": content_hash,
                "tombstone_version": None,
                "tombstone_saga_id": None,
            }
        return []

    def _bury_documents(self, v: Values) -> Iterable[Row]:
        columns = (v["document_ids"], v["versions"], v["saga_ids"])
        for document_id, version, saga_id in zip(*columns, strict=True):
            self.tables.documents[document_id] = self.tables.documents[document_id] | {
                "live_version": None,
                "live_saga_id": None,
                "content_hash": None,
                "tombstone_version": version,
                "tombstone_saga_id": saga_id,
            }
        return []

    def _publications(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            if head_of(self.tables.documents[saga["document_id"]]) != saga["saga_id"]:
                continue
            old = self.tables.sagas.get(saga["replaces_saga_id"] or "")
            if old and old["kind"] == "delete":
                old = None
            yield {
                "saga_id": saga["saga_id"],
                "kind": saga["kind"],
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
            if self.is_in_quarantine(saga["saga_id"]):
                continue
            if saga["status"] == "completed" or self._was_deleted_after(saga):
                self.tables.extractions.pop(saga["saga_id"], None)
        return []

    def _was_deleted_after(self, saga: Row) -> bool:
        return any(
            (other["kind"], other["status"]) == ("delete", "completed")
            and other["document_id"] == saga["document_id"]
            and other["arrival"] > saga["arrival"]
            for other in self._all()
        )

    def is_in_quarantine(self, saga_id: str) -> bool:
        """Whether it waits there for somebody."""
        entry = self.tables.quarantine.get(saga_id)
        return bool(entry and not entry["released_at"] and not entry["dropped_at"])

    def _announce(self, v: Values) -> Iterable[Row]:
        return []  # nobody waits here

    def _quarantine(self, v: Values) -> Iterable[Row]:
        for saga in self._chosen(v):
            unwanted = saga["kind"] == "delete" or self._was_deleted_after(saga)
            if unwanted and saga["status"] != "failed":
                continue
            error = saga["error"] or {}
            tried = [s["takeovers"] + 1 for s in failures_of(self._all(), saga)]
            before = self.tables.quarantine.get(saga["saga_id"], {"dropped_at": None})
            self.tables.quarantine[saga["saga_id"]] = before | {
                "saga_id": saga["saga_id"],
                "document_id": saga["document_id"],
                "error_class": error.get("class") or "unexpected",
                "attempts": max(1, sum(tried)),
                "released_at": None,
            }
        return []

    def _leave_quarantine(self, v: Values) -> Iterable[Row]:
        for saga_id in v["saga_ids"]:
            entry = self.tables.quarantine.get(saga_id)
            if entry and entry["released_at"] is None and entry["dropped_at"] is None:
                self.tables.quarantine[saga_id] = entry | {"released_at": self.now()}
        return []

    # -- extractions -------------------------------------------------------------------------------

    def _submitted_documents(self, v: Values) -> Iterable[Row]:
        rows = [row for row in self._extractions(v) if row["body"] is None]
        sagas = self.tables.sagas
        return [row | {"document_id": sagas[row["saga_id"]]["document_id"]} for row in rows]

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

    # -- looking -----------------------------------------------------------------------------------

    def _sagas_by_id(self, v: Values) -> Iterable[Row]:
        return self._chosen(v)

    def _saga_by_id(self, v: Values) -> Iterable[Row]:
        return self._chosen({"saga_ids": [v["saga_id"]]})

    def _sagas_of_run(self, v: Values) -> Iterable[Row]:
        found = [saga for saga in self._all() if saga["run_id"] == v["run_id"]]
        return sorted(found, key=lambda saga: saga["arrival"])

    def _pointers(self, v: Values) -> Iterable[Row]:
        columns = (
            *("document_id", "live_version", "live_saga_id", "content_hash"),
            "tombstone_saga_id",
        )
        return [{column: row[column] for column in columns} for row in self._documents(v)]

    def _events(self, v: Values) -> Iterable[Row]:
        events = self.tables.events.values()
        return [event for event in events if event["saga_id"] == v["saga_id"]]


def head_of(document: Row) -> SagaId | None:
    """The saga that was decided last: of the live version, or of the deletion that took it away."""
    head: SagaId | None = document["live_saga_id"] or document["tombstone_saga_id"]
    return head


def is_unfinished(saga: Row) -> bool:
    """Whether somebody has to drive it on when its owner falls silent."""
    unpublished = saga["status"] == "completed" and saga["published_at"] is None
    return unpublished or saga["status"] in ("pending", "in_progress", "compensating")


def failures_of(sagas: Iterable[Row], saga: Row) -> list[Row]:
    """Those that stand for the same submission, and did not just lose to another version."""
    return [
        other
        for other in sagas
        if (other["document_id"], other["arrival"]) == (saga["document_id"], saga["arrival"])
        and (other["error"] or {}).get("class") != "version_conflict"
    ]


def _is_dead(saga: Row, document: Row) -> bool:
    published = saga["status"] == "completed" and saga["published_at"] is not None
    ended = published or saga["status"] == "compensated"
    return bool(ended and head_of(document) != saga["saga_id"])
