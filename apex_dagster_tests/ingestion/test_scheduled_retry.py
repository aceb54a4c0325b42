"""Files that failed for a passing cause are tried again by themselves: later and later, not for
ever, and never against what was submitted after them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import replace

import pytest

from apex_dagster.composition import Application
from apex_dagster.errors import StoreUnavailable
from apex_dagster.records import SagaId
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.opening import Opened, Opening, open_sagas, open_successors
from apex_dagster.saga.pending import claim_pending, pending_count
from apex_dagster.saga.saga import Failure, Saga
from apex_dagster.saga.scheduled_retry import RetrySchedule, open_due_retries
from apex_dagster.saga.states import Status
from apex_dagster.settings import Endpoints
from apex_dagster_tests.applications import BuildApplication, assert_whole, events, recovered
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.files import (
    drop,
    make_due,
    mend,
    newest,
    take_in,
    tick,
    tick_until,
    waiting,
)
from apex_dagster_tests.ingestion.victim import victim_environment
from apex_dagster_tests.servers import FIELDS

DOWN = "started:qdrant_write=unavailable"


def sagas_of(app: Application, document_id: str) -> list[Saga]:
    """By version."""
    found = app.ledger.list_sagas(document_id=document_id)
    return sorted(found, key=lambda saga: saga.version)


def fail_once(app: Application, document_id: str, *, edition: int = 1) -> Saga:
    """A file whose first saga met a store that was down."""
    with armed(DOWN):
        saga = take_in(app, drop(app, document_id, edition=edition))
    mend(app)
    assert waiting(app) == [saga.saga_id]
    return saga


def last_event(app: Application, saga: Saga) -> str:
    return events(app, saga.saga_id)[-1][0]


def test_the_wait_doubles_with_each_attempt_up_to_its_limit() -> None:
    schedule = RetrySchedule(attempts_max=9, delay_s=15.0, delay_s_max=100.0)
    assert [schedule.delay_after_s(n) for n in (1, 2, 3, 4, 5000)] == [15, 30, 60, 100, 100]


@pytest.mark.parametrize("name", ["neo4j", "qdrant", "redis"])
def test_a_file_whose_store_was_stopped_is_ingested_when_it_is_back_without_anybody(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
    name: str,
) -> None:
    server = private_server(name)
    own = {field: getattr(server.endpoints, field) for field in FIELDS[name]}
    app = build_application(replace(endpoints, **own))
    path = drop(app, unique)
    server.stop()
    first = take_in(app, path)
    assert first.status is not Status.COMPLETED
    deadline = time.monotonic() + 3.0  # many times the wait of a retry
    while time.monotonic() < deadline:
        tick(app)
    # Nothing is tried against a store that is known to be down, so waiting uses up no attempt.
    assert len(sagas_of(app, unique)) == 1
    assert path.exists()
    server.start()
    tick_until(app, lambda: not path.exists())
    first, *_, last = sagas_of(app, unique)
    assert (first.status, last.status) == (Status.COMPENSATED, Status.COMPLETED)
    assert last.arrival == first.arrival
    assert (app.inbox.folder / "processed" / path.name).exists()
    assert (waiting(app), app.ledger.quarantined()) == ([], [])
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_a_file_under_way_when_postgres_is_killed_is_ingested_when_it_is_back(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
) -> None:
    """The ledger is gone with it, so nothing could be written down, neither an end nor a retry."""
    server = private_server("postgres")
    servers = replace(endpoints, postgres_url=server.endpoints.postgres_url)
    app = build_application(servers, lease_s=3.0)
    path = drop(app, unique)
    opened = app.ingestion.open(app.sources.read(["inbox:"]), owner="run").alive
    server.kill()
    with pytest.raises(StoreUnavailable):
        app.ingestion.stage("redis_write", opened)
    server.start()
    mend(app)
    tick_until(app, lambda: not path.exists())
    assert newest(app, unique).status is Status.COMPLETED
    assert waiting(app) == []
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_workers_take_what_is_tried_again_as_they_take_what_the_api_has_opened(
    app: Application, unique: str
) -> None:
    saga = fail_once(app, unique)
    make_due(app)
    [again] = app.ingestion.recovery.retry_due()
    assert pending_count(app.ledger) == 1
    [claimed] = claim_pending(app.ledger, owner="w", run_id="run", limit=9, bytes_max=10**9)
    assert (claimed.saga_id, claimed.predecessor_saga_id) == (again.saga_id, saga.saga_id)


def test_when_its_attempts_are_used_up_a_file_is_in_both_quarantines_with_the_reason(
    app: Application, unique: str
) -> None:
    path = drop(app, unique)
    with armed(DOWN):
        take_in(app, path)
        tick_until(app, app.ledger.quarantined)
    [entry] = app.ledger.quarantined()
    tried = sagas_of(app, unique)
    assert len(tried) == entry["attempts"] == app.settings.document_attempts
    assert (entry["saga_id"], entry["error_class"]) == (tried[-1].saga_id, "store_down")
    assert len({saga.arrival for saga in tried}) == 1
    waits = [
        event["detail"]["delay_s"]
        for saga in tried
        for event in app.ledger.events(saga.saga_id)
        if event["event"] == "retry_scheduled"
    ]
    assert waits == [0.1, 0.2, 0.4, 0.4]
    assert not path.exists()
    away = app.inbox.folder / "quarantine" / path.name
    assert away.exists()
    reason = away.with_name(f"{away.name}.reason.json").read_text()
    assert "qdrant" in reason
    assert '"attempts": 5' in reason
    tick(app)
    assert len(sagas_of(app, unique)) == len(tried)
    assert_whole(app, unique)


@pytest.mark.parametrize("error_class", ["interrupted", "requested", "cancelled", "unexpected"])
def test_what_a_dead_run_left_is_tried_again_and_what_somebody_ended_is_not(
    app: Application, unique: str, error_class: str
) -> None:
    path = drop(app, unique)
    [saga] = app.ingestion.open(app.sources.read(["inbox:"]), owner="run").alive
    failure = Failure(error_class=error_class, step=None, message="so it was")
    app.compensation.compensate([saga.saga_id], owner="net", failure=failure)
    app.inbox.settle(app.ledger)
    again = error_class == "interrupted"
    assert waiting(app) == ([saga.saga_id] if again else [])
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == (
        [] if again else [saga.saga_id]
    )
    assert path.exists() == again


def test_what_was_not_dropped_as_a_file_is_not_tried_again_behind_its_senders_back(
    app: Application, unique: str
) -> None:
    with armed(DOWN):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.COMPENSATED
    assert (waiting(app), app.ledger.quarantined()) == ([], [])


def test_a_document_that_cannot_be_ingested_is_not_tried_again(
    app: Application, unique: str
) -> None:
    with armed("sent:qdrant_write=reject"):
        saga = take_in(app, drop(app, unique))
    assert waiting(app) == []
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == [saga.saga_id]


# -- what was submitted meanwhile ----------------------------------------------------------------


def test_a_retry_does_not_overrule_what_was_submitted_later(app: Application, unique: str) -> None:
    saga = fail_once(app, unique)
    [later] = app.ingestion.ingest([submission(unique, edition=2)], owner="later")
    make_due(app)
    tick(app)
    assert waiting(app) == []
    assert len(sagas_of(app, unique)) == 2
    [now] = app.ledger.sagas([saga.saga_id])
    assert now.error is not None
    assert now.error["class"] == "superseded"
    assert "version 2, which was submitted later" in now.error["message"]
    assert "it had failed: " in now.error["message"]
    assert last_event(app, saga) == "retry_dropped"
    # The file's wish has been overruled: there is nothing to be asked of anybody.
    assert (app.inbox.folder / "processed" / f"{unique}.json").exists()
    assert newest(app, unique).saga_id == later.saga_id
    assert_whole(app, unique)


def test_a_retry_that_is_under_way_gives_in_to_what_was_submitted_later(
    app: Application, unique: str
) -> None:
    fail_once(app, unique)
    make_due(app)
    [again] = app.ingestion.recovery.retry_due()
    [later] = app.ingestion.ingest([submission(unique, edition=2)], owner="later")
    app.ingestion.recovery.drive([again], owner="worker")
    app.inbox.settle(app.ledger)
    [again] = app.ledger.sagas([again.saga_id])
    assert again.error is not None
    assert (again.status, again.error["class"]) == (Status.COMPENSATED, "superseded")
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == later.saga_id
    assert waiting(app) == []
    assert (app.inbox.folder / "processed" / f"{unique}.json").exists()


def test_a_retry_waits_for_the_end_of_a_later_submission(app: Application, unique: str) -> None:
    saga = fail_once(app, unique)
    later = app.ingestion.open([submission(unique, edition=2)], owner="later").alive
    make_due(app)
    assert app.ingestion.recovery.retry_due() == []
    assert waiting(app) == [saga.saga_id]
    app.compensation.compensate([later[0].saga_id], owner="later")
    make_due(app)
    assert [again.predecessor_saga_id for again in app.ingestion.recovery.retry_due()] == [
        saga.saga_id
    ]


def test_the_same_content_is_not_ingested_twice(app: Application, unique: str) -> None:
    """The file was dropped again while its retry waited."""
    saga = fail_once(app, unique)
    path = app.inbox.folder / f"{unique}.json"
    [again] = app.ingestion.open(app.sources.read(["inbox:"]), owner="run").alive
    make_due(app)
    assert app.ingestion.recovery.retry_due() == []
    app.ingestion.commit([again], owner="run")
    make_due(app)
    tick(app)
    assert waiting(app) == []
    assert [one.saga_id for one in sagas_of(app, unique)] == [saga.saga_id, again.saga_id]
    assert not path.exists()
    assert_whole(app, unique)


def test_what_is_live_and_was_sent_once_more_meanwhile_stays_live(
    app: Application, unique: str
) -> None:
    """It was live already, so its sender was told "unchanged" and no saga has that arrival."""
    [live] = app.ingestion.ingest([submission(unique)], owner="test")
    fail_once(app, unique, edition=2)
    assert app.ingestion.ingest([submission(unique)], owner="test")[0].saga_id == live.saga_id
    make_due(app)
    tick(app)
    assert waiting(app) == []
    assert app.ledger.pointers([unique])[unique]["live_saga_id"] == live.saga_id
    assert "submitted once more" in str(newest(app, unique).error)


def test_of_two_retries_the_last_to_arrive_wins_though_its_content_was_live_before_both(
    app: Application, unique: str
) -> None:
    app.ingestion.ingest([submission(unique)], owner="test")
    drop(app, unique, edition=2)
    second = app.ingestion.open(app.sources.read(["inbox:"]), owner="run").alive
    drop(app, unique, edition=1)
    third = app.ingestion.open(app.sources.read(["inbox:"]), owner="run").alive
    failure = Failure(error_class="interrupted", step=None, message="the run has died")
    ids = [saga.saga_id for saga in (*second, *third)]
    app.compensation.compensate(ids, owner="net", failure=failure)
    assert sorted(waiting(app)) == sorted(ids)
    deadline = time.monotonic() + 60
    while waiting(app):
        assert time.monotonic() < deadline
        make_due(app)
        tick(app)
    pointer = app.ledger.pointers([unique])[unique]
    [now] = app.ledger.sagas([pointer["live_saga_id"]])
    assert (now.arrival, now.content_hash) == (third[0].arrival, third[0].content_hash)


def test_a_run_that_is_executed_again_takes_the_retry_over(app: Application, unique: str) -> None:
    saga = fail_once(app, unique)
    [mine] = open_successors(app.ledger, [saga], run_id="again")
    assert waiting(app) == []
    assert mine.arrival > saga.arrival


def test_a_key_that_is_repeated_while_a_retry_waits_has_its_own_saga_and_answer(
    app: Application, unique: str
) -> None:
    path = drop(app, unique)
    [opening] = [
        Opening(
            document=replace(one.document, source_uri=None),
            content_hash=saga.content_hash,
            body_hash="body",
            client="http",
            idempotency_key="key",
        )
        for one in app.sources.read(["inbox:"])
        for saga in app.ingestion.open([one], owner="run").alive
    ]
    joined = opened(open_sagas(app.ledger, [opening]))
    assert joined.disposition == "joined"
    failure = Failure(error_class="store_down", step="qdrant_write", message="it was down")
    app.compensation.compensate([joined.saga.saga_id], owner="run", failure=failure)
    # Its file is to be tried again; whoever sends the request again need not wait for that.
    again = opened(open_sagas(app.ledger, [opening]))
    assert again.disposition == "opened"
    assert again.saga.arrival > joined.saga.arrival
    app.ingestion.recovery.drive([again.saga], owner="worker")
    make_due(app)
    tick(app)
    assert waiting(app) == []
    assert not path.exists()
    repeated = opened(open_sagas(app.ledger, [opening]))
    assert (repeated.disposition, repeated.saga.saga_id) == ("repeated", again.saga.saga_id)
    assert_whole(app, unique)


def test_a_request_that_names_its_version_is_not_tried_again_for_a_file_that_joined_it(
    app: Application, unique: str
) -> None:
    path = drop(app, unique)
    [file] = app.sources.read(["inbox:"])
    opening = Opening(
        document=replace(file.document, source_uri=None),
        content_hash=app.ingestion._extractor.extract(file.document).content_hash,
        body_hash="body",
        client="http",
        expected_version=0,
    )
    pinned = opened(open_sagas(app.ledger, [opening])).saga
    assert [s.saga_id for s in app.ingestion.open([file], owner="run").joined] == [pinned.saga_id]
    failure = Failure(error_class="store_down", step="qdrant_write", message="it was down")
    app.compensation.compensate([pinned.saga_id], owner="net", failure=failure)
    assert waiting(app) == []
    # For the file the sensor asks once more, and this time it has a saga of its own.
    assert app.inbox.settle(app.ledger) == {}
    assert app.inbox.in_hand(app.ledger) == set()
    assert take_in(app, path).status is Status.COMPLETED


def opened(outcomes: Sequence[object]) -> Opened:
    [outcome] = outcomes
    assert isinstance(outcome, Opened)
    return outcome


# -- stores that are down ------------------------------------------------------------------------


def test_nothing_is_tried_while_a_store_is_down_and_a_few_at_first_when_it_is_back(
    app: Application, unique: str
) -> None:
    with armed(DOWN):
        for index in range(4):
            drop(app, f"{unique}-{index}")
        app.ingestion.ingest(app.sources.read(["inbox:"]), owner="test")
    app.breakers.note("neo4j", StoreUnavailable("neo4j", "connection refused"))
    with app.ledger.transaction() as tx:  # nobody is to look for an hour
        tx.execute("UPDATE apex.breaker SET next_probe_at = now() + interval '1 hour'")
    make_due(app)
    assert app.ingestion.recovery.retry_due() == []
    assert len(waiting(app)) == 4
    mend(app)
    with app.ledger.transaction() as tx:  # back since a moment, and all but two came in already
        tx.execute("UPDATE apex.breaker SET closed_at = now() + interval '1 hour', admitted = -2")
    time.sleep(1.1)  # what a process has seen of the breakers may be a second old
    assert len(app.ingestion.recovery.retry_due()) == 2
    assert len(waiting(app)) == 2


# -- crashes and rivals --------------------------------------------------------------------------


def kill_a_recovery(app: Application, endpoints: Endpoints, failpoints: str) -> None:
    """Try what is due in a process of its own, which a failpoint kills."""
    environment = victim_environment(app, endpoints, failpoints=failpoints)
    code = [sys.executable, "-m", "apex_dagster_tests.ingestion.retry_driver"]
    victim = subprocess.run(code, env=os.environ | environment, capture_output=True, timeout=240)
    assert victim.returncode == -9, victim.stderr


@pytest.mark.parametrize("point", ["closing", "undone"])
def test_a_crash_around_the_close_leaves_exactly_one_retry(
    app: Application, unique: str, point: str
) -> None:
    path = drop(app, unique)
    with armed(f"{DOWN};{point}=raise"), pytest.raises(SimulatedCrash):
        take_in(app, path)
    mend(app)
    [saga] = sagas_of(app, unique)
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET lease_expires_at = '2000-01-01'")
    ended = recovered(app, saga.saga_id)
    assert ended.status is Status.COMPENSATED
    assert waiting(app) == [saga.saga_id]
    assert events(app, saga.saga_id).count(("retry_scheduled", None)) == 1
    tick_until(app, lambda: not path.exists())
    assert_whole(app, unique)


@pytest.mark.parametrize("point", ["retrying", "retried", "written:qdrant_write"])
def test_a_recovery_that_is_killed_on_the_way_loses_no_retry_and_doubles_none(
    app: Application, endpoints: Endpoints, unique: str, point: str
) -> None:
    saga = fail_once(app, unique)
    make_due(app)
    kill_a_recovery(app, endpoints, f"{point}=kill")
    assert len(sagas_of(app, unique)) == (1 if point == "retrying" else 2)
    assert waiting(app) == ([saga.saga_id] if point == "retrying" else [])
    make_due(app)
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET lease_expires_at = '2000-01-01'")
    tick_until(app, lambda: not (app.inbox.folder / f"{unique}.json").exists())
    first, second = sagas_of(app, unique)
    assert second.predecessor_saga_id == first.saga_id
    assert second.status is Status.COMPLETED
    app.ingestion.sweep()
    assert_whole(app, unique)


def test_recoveries_at_once_open_one_successor_each(
    app: Application, build_application: BuildApplication, unique: str
) -> None:
    with armed(DOWN):
        for index in range(12):
            drop(app, f"{unique}-{index}")
        app.ingestion.ingest(app.sources.read(["inbox:"]), owner="test")
    assert len(waiting(app)) == 12
    make_due(app)
    others = [app, *(build_application() for _ in range(3))]
    found: list[Saga] = []
    start = threading.Barrier(len(others))

    def retry(one: Application) -> None:
        start.wait()
        for _ in range(4):
            found.extend(open_due_retries(one.ledger, limit=12))

    threads = [threading.Thread(target=retry, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waiting(app) == []
    predecessors: list[SagaId | None] = [saga.predecessor_saga_id for saga in found]
    assert len(predecessors) == len(set(predecessors)) == 12
    for index in range(12):
        assert len(sagas_of(app, f"{unique}-{index}")) == 2
