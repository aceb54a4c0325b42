"""A process stands still, loses its sagas to another, and goes on: it must change nothing.

It stops itself (SIGSTOP) between two lines, its lease of a second runs out, this process ends the
saga, and only then it is woken (SIGCONT).
"""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta

import psutil
import pytest

from apex_dagster.composition import Application
from apex_dagster.records import StagedVersion
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole, events
from apex_dagster_tests.documents import submission
from apex_dagster_tests.e2e.gate import Gate, Hold
from apex_dagster_tests.ingestion.contents import extracted
from apex_dagster_tests.ingestion.probes import Probes
from apex_dagster_tests.ingestion.test_crash import recover
from apex_dagster_tests.ingestion.victim import (
    STEP_TIMEOUT_S,
    WAIT_S,
    start_victim,
    wait_until_stopped,
)

HOUR = timedelta(hours=1)

Zombie = subprocess.Popen[str]
Victims = Callable[..., Zombie]


@pytest.fixture
def app(build_application: BuildApplication) -> Application:
    """Version 1 is live wherever a test begins."""
    return build_application(lease_s=2.0)


@pytest.fixture
def stopped(app: Application, endpoints: Endpoints, unique: str) -> Iterator[Victims]:
    """`stopped("staged")`: a process that ingests version 2 and stands still there."""
    victims: list[Zombie] = []

    def start(point: str, servers: Endpoints = endpoints) -> Zombie:
        app.ingestion.ingest([submission(unique)], owner="before")
        victim = start_victim(app, servers, unique, failpoints=f"{point}=stop*1" if point else "")
        victims.append(victim)
        if point:
            wait_until_stopped(victim)
        return victim

    yield start
    for victim in victims:
        victim.kill()
        victim.communicate()


@pytest.mark.parametrize(
    "point",
    [
        "started:qdrant_write",  # before the write, and before it looks at its lease
        "sending:qdrant_write",  # after it has looked: its write lands late
        "sent:qdrant_write",
        "recorded:redis_write",
        "staged",
        "pivoted",
        "publishing:qdrant_write",
        "marked",
    ],
)
def test_a_zombie_changes_nothing_where_recovery_has_gone_on(
    app: Application, stopped: Victims, unique: str, point: str
) -> None:
    zombie = stopped(point)
    saga = recover(app, unique)
    assert (saga.status, saga.version) == (Status.COMPLETED, 2)
    assert saga.epoch > 1
    trail = events(app, saga.saga_id)
    assert "lease_lost" in wake(zombie)
    assert events(app, saga.saga_id) == trail
    assert app.ledger.sagas([saga.saga_id]) == [saga]
    assert shown(app, unique) == {name: {2} for name in app.stores}
    app.ingestion.sweep()
    assert_whole(app, unique)


@pytest.mark.parametrize(
    ("point", "writes"),
    [("started:qdrant_write", False), ("sending:qdrant_write", True), ("staged", False)],
)
def test_a_zombie_changes_nothing_where_its_saga_was_undone(
    app: Application, stopped: Victims, unique: str, point: str, writes: bool
) -> None:
    """What it writes all the same shows to no reader, and the next sweep removes it."""
    zombie = stopped(point)
    wait_until_expired(app, unique)
    saga = undo(app, unique)
    app.ingestion.sweep()  # the one that follows every undo is over
    trail = events(app, saga.saga_id)
    assert "lease_lost" in wake(zombie)
    assert events(app, saga.saga_id) == trail
    assert bool(app.stores["qdrant"].holdings([saga.ref])[saga.saga_id]) is writes
    assert shown(app, unique) == {name: {1} for name in app.stores}
    assert app.ingestion.sweep() == int(writes)
    assert_whole(app, unique)


@pytest.mark.parametrize("gives_up", [False, True])
def test_what_a_zombie_marks_after_its_removal_is_swept_after_the_grace(
    app: Application,
    stopped: Victims,
    gate: Gate,
    endpoints: Endpoints,
    unique: str,
    gives_up: bool,
) -> None:
    """The one thing that Qdrant lets slip through, for those who read it directly: a stage request
    that lands after the removal, and a mark that lands after that. Where it stood still for longer
    than a step may take, it finds that its call has failed, and the mark lands all the same."""
    mark, zombie = residual(app, stopped, gate, endpoints, unique)
    if gives_up:
        time.sleep(STEP_TIMEOUT_S + 3)
    mark.released.set()
    assert mark.delivered.wait(WAIT_S)
    assert "lease_lost" in wake(zombie)
    assert shown(app, unique)["qdrant"] == {2, 3}
    assert app.ingestion.sweep() >= 1  # once for each store in which it noticed
    assert shown(app, unique) == {name: {3} for name in app.stores}
    assert_whole(app, unique)


def test_what_a_zombie_marks_that_dies_of_it_is_swept_within_an_hour(
    app: Application, stopped: Victims, gate: Gate, endpoints: Endpoints, unique: str
) -> None:
    mark, zombie = residual(app, stopped, gate, endpoints, unique)
    zombie.kill()
    mark.released.set()
    assert mark.delivered.wait(WAIT_S)
    assert shown(app, unique)["qdrant"] == {2, 3}
    assert app.ingestion.sweep() == 0
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.sweep SET due_at = due_at - %s", [HOUR + timedelta(minutes=1)])
    assert app.ingestion.sweep() >= 1
    assert shown(app, unique) == {name: {3} for name in app.stores}
    assert_whole(app, unique)


@pytest.fixture
def gate(endpoints: Endpoints) -> Iterator[Gate]:
    """Between the zombie and Qdrant."""
    with Gate(endpoints.qdrant_url) as gate:
        yield gate


def residual(
    app: Application, stopped: Victims, gate: Gate, endpoints: Endpoints, document_id: str
) -> tuple[Hold, Zombie]:
    """Version 2 is published by recovery, replaced by 3 and removed while the mark of its first
    owner, who had looked before, is on the way to Qdrant; and a repeat of its stage request has
    landed after the removal."""
    mark = gate.hold("publish", document_id, lands=False)
    zombie = stopped("", replace(endpoints, qdrant_url=gate.url))
    assert mark.reached.wait(WAIT_S)
    psutil.Process(zombie.pid).suspend()
    saga = recover(app, document_id)
    assert (saga.status, saga.version) == (Status.COMPLETED, 2)
    app.ingestion.ingest([submission(document_id, edition=3)], owner="after")
    app.ingestion.sweep()
    assert_whole(app, document_id)
    extraction = extracted(submission(document_id, edition=2))
    app.stores["qdrant"].stage([StagedVersion(ref=saga.ref, extraction=extraction)])
    assert shown(app, document_id) == {name: {3} for name in app.stores}
    return mark, zombie


def wake(zombie: Zombie) -> str:
    """Let it go on to its end; what it says."""
    zombie.send_signal(signal.SIGCONT)
    output, _ = zombie.communicate(timeout=WAIT_S)
    assert zombie.returncode == 0, output
    return output


def wait_until_expired(app: Application, document_id: str) -> None:
    """By the database's clock; the zombie's own is never behind it."""
    deadline = time.monotonic() + WAIT_S
    expired: list[Saga] = []
    while not any(saga.document_id == document_id for saga in expired):
        assert time.monotonic() < deadline
        time.sleep(0.05)
        expired = app.ledger.overdue_sagas(bound_s=0.0)


def undo(app: Application, document_id: str) -> Saga:
    """As a sensor does for a run that was marked as cancelled."""
    [saga] = app.ledger.list_sagas(document_id=document_id, limit=1)
    [ended] = app.compensation.compensate([saga.saga_id], owner="sensor")
    assert ended.status is Status.COMPENSATED
    return ended


def shown(app: Application, document_id: str) -> dict[str, set[int]]:
    """Versions that a store shows as committed to those who read it directly."""
    with Probes(app) as probes:
        found = probes.committed([document_id])
    return {name: set(versions.get(document_id, ())) for name, versions in found.items()}
