"""Any order of ingests, deletions, failures, crashes, recoveries, undos and sweeps ends as a plain
model says.

The model of a document is the edition that is live and the sagas that a crash has left open. Of
several submissions the last one wins, and what failed changes nothing. A deletion is edition 0.

For longer: `APEX_TEST_MODEL_EXAMPLES=500 pytest apex_dagster_tests/ingestion/test_model.py`.
"""

from __future__ import annotations

import itertools
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from apex_dagster.composition import Application
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.records import Entity
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import BuildApplication, copies
from apex_dagster_tests.ingestion.contents import edition, extracted, seen, submitted
from apex_dagster_tests.ingestion.probes import Probes

EXAMPLES = int(os.environ.get("APEX_TEST_MODEL_EXAMPLES", "8"))
STEPS_MAX = 10
STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
BEFORE_PIVOT = (
    *("opened", "claimed", "extracted", "staged"),
    *(f"{point}:{step}" for step in STEPS for point in ("started", "sent", "written", "recorded")),
)
AFTER_PIVOT = ("pivoted", *(f"published:{step}" for step in STEPS), "marked", "closed")
REMOVING = (
    *(f"{point}:{step}" for step in STEPS for point in ("removing", "removed")),
    *("erasing", "erased", "read_back"),
)
UNDOING = (
    "compensating",
    *(f"{point}:{step}" for step in STEPS for point in ("undoing", "undone", "undo_recorded")),
)

# A saga that lost its pivot: while it is undone, and once it is closed and has a successor.
LOSING = (None, *UNDOING, "undone")

DELETION = 0  # as an edition

documents = st.integers(0, 2)
editions = st.integers(1, 4)


@dataclass(kw_only=True)
class Model:
    """What one document has to look like."""

    live: int | None = None  # edition
    arrival: int = 0  # of the submission that made it live
    last: int = 0  # arrival of the last saga, however it ended
    published: bool = True
    tombstone: int = 0  # arrival of the deletion that was decided last; 0: none was
    open: dict[int, int] = field(default_factory=dict)  # arrival -> edition, left in progress
    undoing: int = 0  # sagas left compensating
    restarting: dict[int, int] = field(default_factory=dict)  # those that start again afterwards

    def ignores(self, number: int) -> bool:
        """Whether a submission of this edition opens no saga: the last to arrive is under way with
        it, or nothing is under way and it is live. A deletion: if there is nothing to delete."""
        if number == DELETION and (self.last == 0 or self.tombstone == self.last):
            return True
        if self.open or self.undoing:
            return self.open.get(self.last) == number
        return number == self.live

    def decide(self, number: int, arrival: int) -> None:
        """The pivot of a submission."""
        self.live = number or None
        self.arrival, self.tombstone = arrival, 0 if number else arrival

    @property
    def is_quiet(self) -> bool:
        """Whether every saga has ended and was published."""
        return self.published and not self.open and not self.undoing


class Sagas(RuleBasedStateMachine):
    """Does to the real application what it writes down in the model."""

    app: Application
    probes: Probes

    @initialize()
    def begin(self) -> None:
        """Names that no other example has, so that they need no clean stores."""
        self.token = f"m{secrets.token_hex(5)}"
        self.models = {f"{self.token}-{index}": Model() for index in range(3)}
        self.ids = list(self.models)
        self.arrivals = itertools.count(1)
        self.owners = itertools.count(1)

    # -- what can happen -------------------------------------------------------------------------

    @rule(index=documents, number=editions)
    def ingest(self, index: int, number: int) -> None:
        """A new document, an update, or the same content again."""
        model = self.models[self.ids[index]]
        ignored = model.ignores(number)
        sagas = self._ingest(index, number)
        if not ignored:
            assert {saga.status for saga in sagas} == {Status.COMPLETED}
            model.decide(number, self._arrive(model))
            model.published = True

    @rule(index=documents)
    def delete(self, index: int) -> None:
        """Of a document that is live, was, or never was."""
        self.ingest(index, DELETION)

    @rule(index=documents, point=st.sampled_from(BEFORE_PIVOT))
    def crash_before_the_deletion(self, index: int, point: str) -> None:
        if point != "extracted":  # there is nothing to extract
            self.crash_before_the_pivot(index, DELETION, point)

    @rule(index=documents, point=st.sampled_from(AFTER_PIVOT + REMOVING))
    def crash_after_the_deletion(self, index: int, point: str) -> None:
        self.crash_after_the_pivot(index, DELETION, point)

    @rule(
        index=documents,
        number=editions,
        step=st.sampled_from(STEPS),
        point=st.sampled_from(("started", "sent")),
    )
    def fail(self, index: int, number: int, step: str, point: str) -> None:
        """A store refuses the document, with or without having taken it in."""
        model = self.models[self.ids[index]]
        ignored, before = model.ignores(number), copies(self.app, self.ids[index])
        with armed(f"{point}:{step}=reject"):
            sagas = self._ingest(index, number)
        if not ignored:
            self._arrive(model)
            assert {saga.status for saga in sagas} == {Status.COMPENSATED}
        assert copies(self.app, self.ids[index]) == before

    @rule(index=documents, number=editions, point=st.sampled_from(BEFORE_PIVOT))
    def crash_before_the_pivot(self, index: int, number: int, point: str) -> None:
        model = self.models[self.ids[index]]
        if not self._crashes(index, number, f"{point}=raise"):
            return
        model.open[self._arrive(model)] = number

    @rule(index=documents, number=editions, point=st.sampled_from(AFTER_PIVOT))
    def crash_after_the_pivot(self, index: int, number: int, point: str) -> None:
        model = self.models[self.ids[index]]
        if not self._crashes(index, number, f"{point}=raise"):
            return
        # What a version that is not published yet is removed by, it is published by first.
        removes_itself = point in REMOVING and model.live is not None
        if model.published or point == "pivoted" or removes_itself:
            model.decide(number, self._arrive(model))
        else:  # it crashed while it published, before its own pivot, what it was to replace
            model.open[self._arrive(model)] = number
        model.published = point == "closed"

    @rule(index=documents, number=editions, point=st.sampled_from(UNDOING))
    def crash_while_undoing(self, index: int, number: int, point: str) -> None:
        model = self.models[self.ids[index]]
        if not self._crashes(index, number, f"sent:redis_write=reject;{point}=raise"):
            return
        self._arrive(model)
        model.undoing += 1

    @rule(index=documents, first=editions, second=editions, point=st.sampled_from(LOSING))
    def meet(self, index: int, first: int, second: int, point: str | None) -> None:
        """The later of two finds the earlier one live: it starts again, or its owner dies."""
        model = self.models[self.ids[index]]
        if first == second or model.ignores(first):
            return
        earlier, later = self._staged(index, first), self._staged(index, second)
        commit, owner = self.app.ingestion.commit, self._owner()
        assert commit(earlier, owner=owner).completed
        model.decide(first, self._arrive(model))
        model.published = True
        arrival = self._arrive(model)
        if point is None:
            assert commit(later, owner=owner).completed
            model.decide(second, arrival)
            return
        with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
            commit(later, owner=owner)
        if point == "undone":
            model.open[arrival] = second
        else:
            model.restarting[arrival] = second
            model.undoing += 1

    @precondition(lambda self: any(model.open for model in self.models.values()))
    @rule(data=st.data())
    def compensate(self, data: st.DataObject) -> None:
        """An operator undoes what a crash has left in progress."""
        candidates = [document_id for document_id, model in self.models.items() if model.open]
        document_id = data.draw(st.sampled_from(candidates))
        model = self.models[document_id]
        arrival = data.draw(st.sampled_from(sorted(model.open)))
        left = [s for s in self._sagas(document_id) if s.status in _IN_PROGRESS]
        left.sort(key=lambda saga: saga.arrival)
        saga = left[sorted(model.open).index(arrival)]
        [ended] = self.app.compensation.compensate([saga.saga_id], owner=self._owner())
        assert ended.status is Status.COMPENSATED
        del model.open[arrival]

    @rule()
    def recover(self) -> None:
        """All leases run out, and somebody else finishes what is open."""
        with self.app.ledger.transaction() as tx:
            tx.execute(
                "UPDATE apex.saga_state SET lease_expires_at = '2000-01-01'"
                " WHERE document_id = ANY (%s)",
                [self.ids],
            )
        self.app.ingestion.recovery.recover(owner=self._owner())
        for model in self.models.values():
            left = model.open | model.restarting
            newest = max(left, default=0)
            if newest > model.arrival:
                model.decide(left[newest], newest)
            model.published, model.undoing = True, 0
            model.open.clear()
            model.restarting.clear()

    @rule()
    def sweep(self) -> None:
        """The grace, which is 0 here, is over: of quiet documents only the live version is left."""
        while self.app.ingestion.sweep():
            pass
        for document_id, model in self.models.items():
            if model.is_quiet:
                version = self._live_version(document_id)
                held = {name: set(held) for name, held in copies(self.app, document_id).items()}
                assert held == dict.fromkeys(self.app.stores, {version} - {None})
        if all(model.is_quiet for model in self.models.values()):
            assert self.probes.entities(self.token) == self._entities_of_live()

    # -- what holds at any time ------------------------------------------------------------------

    @invariant()
    def readers_see_the_live_edition(self) -> None:
        for document_id, model in self.models.items():
            document = self.app.reader.read_document(document_id)
            assert (document is None) == (model.live is None)
            if document is not None:
                assert document.snapshots == 1
                parts = {name: part.fingerprint for name, part in seen(document).items()}
                assert parts == submitted(self._edition(document_id, model.live))

    @invariant()
    def only_open_sagas_are_open(self) -> None:
        for document_id, model in self.models.items():
            statuses = [saga.status for saga in self._sagas(document_id)]
            assert sum(status in _IN_PROGRESS for status in statuses) == len(model.open)
            assert statuses.count(Status.COMPENSATING) == model.undoing
            assert Status.FAILED not in statuses

    @invariant()
    def nothing_is_left_of_what_was_compensated(self) -> None:
        refs = [
            saga.ref
            for document_id in self.models
            for saga in self._sagas(document_id)
            if saga.status is Status.COMPENSATED
        ]
        for store in self.app.stores.values():
            assert set(store.holdings(refs).values()) <= {0}

    @invariant()
    def only_the_live_version_is_committed(self) -> None:
        live = {
            document_id: {self._live_version(document_id)} - {None}
            for document_id, model in self.models.items()
            if model.published
        }
        for store, committed in self.probes.committed(self.ids).items():
            shown = {document_id: committed.get(document_id, set()) for document_id in live}
            assert shown == live, store

    @invariant()
    def entities_of_live_versions_exist(self) -> None:
        assert self._entities_of_live() <= self.probes.entities(self.token)

    # -- how it is done --------------------------------------------------------------------------

    def _arrive(self, model: Model) -> int:
        model.last = next(self.arrivals)
        return model.last

    def _ingest(self, index: int, number: int) -> list[Saga]:
        one = self._edition(self.ids[index], number)
        return self.app.ingestion.ingest([one], owner=self._owner())

    def _staged(self, index: int, number: int) -> list[Saga]:
        """A saga that has only its pivot before it."""
        one = self._edition(self.ids[index], number)
        [saga] = self.app.ingestion.open([one], owner=self._owner()).alive
        return self.app.ingestion.stage(STEPS[-1], [saga]).alive

    def _crashes(self, index: int, number: int, points: str) -> bool:
        """Whether a saga was left behind by the crash."""
        ignored = self.models[self.ids[index]].ignores(number)
        with armed(points):
            if not ignored:
                with pytest.raises(SimulatedCrash):
                    self._ingest(index, number)
                return True
            with suppress(
                SimulatedCrash
            ):  # with nothing to do, some points are passed all the same
                self._ingest(index, number)
            return False

    def _edition(self, document_id: str, number: int | None) -> Submission:
        assert number is not None
        if number == DELETION:
            return Submission.deletion(document_id)
        return edition(document_id, number, shared=self.token)

    def _owner(self) -> str:
        return f"{self.token}-owner-{next(self.owners)}"

    def _sagas(self, document_id: str) -> list[Saga]:
        sagas = self.app.ledger.list_sagas(document_id=document_id, limit=1000)
        return sorted(sagas, key=lambda saga: saga.version)

    def _live_version(self, document_id: str) -> int | None:
        pointer: Any = self.app.ledger.pointers([document_id]).get(document_id)
        return pointer["live_version"] if pointer else None

    def _entities_of_live(self) -> set[str]:
        entities: list[Entity] = [
            entity
            for document_id, model in self.models.items()
            if model.live is not None
            for entity in extracted(self._edition(document_id, model.live)).entities
        ]
        return {entity.key for entity in entities}


_IN_PROGRESS = (Status.PENDING, Status.IN_PROGRESS)


@pytest.mark.timeout(1800)  # a failure is shrunk to the shortest run that shows it
def test_whatever_happens_the_stores_are_as_the_model_says(
    build_application: BuildApplication,
) -> None:
    # Leases last: what a crash leaves is taken over when a rule says so, and not before.
    Sagas.app = build_application(lease_s=3600.0, grace_s=0.0)
    with Probes(Sagas.app) as Sagas.probes:
        run_state_machine_as_test(
            Sagas,
            settings=settings(
                max_examples=EXAMPLES,
                stateful_step_count=STEPS_MAX,
                deadline=None,
                print_blob=True,
                suppress_health_check=list(HealthCheck),
            ),
        )
