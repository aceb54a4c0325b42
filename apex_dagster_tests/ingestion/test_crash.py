"""The process dies between two lines: recovery finds the saga and ends it, one way or the other."""

from __future__ import annotations

import signal
import time

import pytest

from apex_dagster.composition import Application
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.victim import WAIT_S, start_victim

STEPS = ("neo4j_write", "postgres_write", "qdrant_write", "redis_write")
FORWARD = [
    "opened",
    "claimed",
    "extracted",
    *(f"{point}:{step}" for step in STEPS for point in ("started", "written", "recorded")),
    "staged",
    "pivoted",
    *(f"published:{step}" for step in STEPS),
    "marked",
    "closed",
]
BACKWARD = [
    "compensating",
    *(f"{point}:{step}" for step in STEPS for point in ("undoing", "undone", "undo_recorded")),
    "undone",
]
LEASE_S = 0.3


@pytest.mark.parametrize("point", FORWARD)
def test_a_crash_on_the_way_forward_is_finished_by_recovery(
    build_application: BuildApplication, unique: str, point: str
) -> None:
    victim = build_application(lease_s=LEASE_S)
    [first] = victim.ingestion.ingest([submission(unique)], owner="before")
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        victim.ingestion.ingest([submission(unique, edition=2)], owner="victim")
    saga = recover(build_application(lease_s=LEASE_S), unique)
    # Whoever takes over goes on: nothing was wrong with the document.
    assert (saga.status, saga.version) == (Status.COMPLETED, first.version + 1)
    victim.ingestion.sweep()
    assert_whole(victim, unique)


@pytest.mark.parametrize("point", BACKWARD)
def test_a_crash_on_the_way_back_is_finished_by_recovery(
    build_application: BuildApplication, unique: str, point: str
) -> None:
    victim = build_application(lease_s=LEASE_S)
    victim.ingestion.ingest([submission(unique)], owner="before")
    with armed(f"sent:redis_write=reject;{point}=raise"), pytest.raises(SimulatedCrash):
        victim.ingestion.ingest([submission(unique, edition=2)], owner="victim")
    saga = recover(build_application(lease_s=LEASE_S), unique)
    assert saga.status is Status.COMPENSATED
    assert_whole(victim, unique)
    assert victim.ledger.pointers([unique])[unique]["live_version"] == 1


@pytest.mark.parametrize("point", ["claimed", "written:qdrant_write", "pivoted", "marked"])
def test_kill_9_of_the_process_is_finished_by_recovery(
    build_application: BuildApplication, endpoints: Endpoints, unique: str, point: str
) -> None:
    app = build_application(lease_s=1.0)
    app.ingestion.ingest([submission(unique)], owner="before")
    victim = start_victim(app, endpoints, unique, failpoints=f"{point}=kill")
    output, _ = victim.communicate(timeout=WAIT_S)
    assert victim.returncode == -signal.SIGKILL, output
    assert recover(app, unique).status is Status.COMPLETED
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_a_document_that_kills_its_owner_again_and_again_is_quarantined(
    build_application: BuildApplication, unique: str
) -> None:
    app = build_application(lease_s=LEASE_S, takeovers_max=2)
    with armed("written:postgres_write=raise"):
        with pytest.raises(SimulatedCrash):
            app.ingestion.ingest([submission(unique)], owner="victim")
        for _ in range(2):
            with pytest.raises(SimulatedCrash):
                recover(app, unique)
        saga = recover(app, unique)
    assert saga.status is Status.COMPENSATED
    assert [entry["error_class"] for entry in app.ledger.quarantined()] == ["crash_loop"]
    assert_whole(app, unique)


def test_an_owner_that_lost_its_saga_changes_nothing_any_more(
    build_application: BuildApplication, unique: str
) -> None:
    zombie = build_application(lease_s=LEASE_S)
    opened = zombie.ingestion.open([submission(unique)], owner="zombie")
    extracted = zombie.ingestion.extract(opened.alive)
    assert recover(build_application(lease_s=LEASE_S), unique).status is Status.COMPLETED
    before = zombie.ledger.events(opened.alive[0].saga_id)

    staged = zombie.ingestion.engine.stage_through("redis_write", extracted.alive)
    commit = zombie.ingestion.engine.commit(extracted.alive, owner="zombie")
    assert (staged.alive, staged.failed, commit.completed, commit.failed) == ([], [], [], [])
    assert zombie.ledger.events(opened.alive[0].saga_id) == before
    assert_whole(zombie, unique)


def recover(app: Application, document_id: str) -> Saga:
    """Recover until the document's newest saga has ended and is published."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        app.ingestion.recovery.recover(owner=f"recovery-{time.monotonic_ns()}")
        [saga] = app.ledger.list_sagas(document_id=document_id, limit=1)
        if saga.status is Status.COMPENSATED:
            return saga
        if saga.status is Status.COMPLETED and saga.published_at:
            return saga
        time.sleep(LEASE_S / 10)
    raise AssertionError(f"{document_id} was not recovered: {saga}")
