"""`apex quarantine`: look at what waits there, release it, drop it; on real servers."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apex_dagster.composition import Application
from apex_dagster.ingestion.audit import verify
from apex_dagster.saga import failpoints
from apex_dagster.saga.extractions import extraction_bodies
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.saga.quarantine import drop, release
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies, events
from apex_dagster_tests.cli.conftest import Shell
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.files import drop as drop_file
from apex_dagster_tests.ingestion.files import newest, take_in, tick_until

REFUSED = "sent:qdrant_write=reject"


def refused_file(app: Application, document_id: str, *, edition: int = 1) -> tuple[Saga, Path]:
    """A file that a store refused; where it lies now."""
    path = drop_file(app, document_id, edition=edition)
    with armed(REFUSED):
        saga = take_in(app, path)
    away = app.inbox.folder / "quarantine" / path.name
    assert away.exists()
    return saga, away


def differences(app: Application) -> list[str]:
    return [str(found) for found in verify(app.ledger, app.stores).differences]


def drive(app: Application, successor: str) -> Saga:
    """As a warm worker does."""
    app.ingestion.recovery.drive(app.ledger.sagas([successor]), owner="worker")
    app.inbox.settle(app.ledger)
    [saga] = app.ledger.sagas([successor])
    return saga


# -- show ----------------------------------------------------------------------------------------


def test_show_tells_reason_attempts_and_original(
    app: Application, shell: Shell, unique: str
) -> None:
    path = drop_file(app, unique)
    body = path.read_bytes()
    with armed("started:qdrant_write=unavailable"):
        take_in(app, path)
        tick_until(app, app.ledger.quarantined)
    for name in (unique, newest(app, unique).saga_id):
        story = shell.json("quarantine", "show", name)
        assert story["entry"]["error_class"] == "store_down"
        assert len(story["attempts"]) == story["entry"]["attempts"] == 5
        assert all("qdrant" in attempt["message"] for attempt in story["attempts"])
        assert all(attempt["ended_at"] for attempt in story["attempts"])
        assert story["original"]["source_uri"] == f"inbox:{path.name}"
        assert story["original"]["client"] == "inbox"
        assert story["file"].endswith(f"quarantine/{path.name}")
        assert f"apex quarantine release {story['entry']['saga_id']}" in story["what_now"]
    told = shell("quarantine", "show", unique).stdout
    assert "qdrant_write" in told
    assert "What now" in told
    target = app.settings.home / "original.json"
    assert shell("quarantine", "show", unique, "--original", str(target)).exit_code == 0
    assert target.read_bytes() == body
    again = shell("quarantine", "show", unique, "--original", str(target))
    assert (again.exit_code, "exists" in again.stderr) == (2, True)


def test_what_was_only_kept_as_an_extraction_is_written_as_a_document_of_the_same_content(
    app: Application, shell: Shell, unique: str
) -> None:
    with armed(REFUSED):
        app.ingestion.ingest([submission(unique, chunks=4)], owner="test")
    target = app.settings.home / "original.json"
    shell.json("quarantine", "show", unique, "--original", str(target))
    written = json.loads(target.read_bytes())
    assert (written["document_id"], len(written["chunks"])) == (unique, 4)
    assert {e["name"] for e in written["entities"]} == {f"{unique} Shipping", "Port Amaranth"}
    app.inbox.folder.mkdir(parents=True, exist_ok=True)
    target.rename(app.inbox.folder / f"{unique}.json")
    assert take_in(app, app.inbox.folder / f"{unique}.json").status is Status.COMPLETED
    assert_whole(app, unique)


@pytest.mark.parametrize("command", [["show"], ["release"], ["drop", "--reason", "no"]])
def test_a_name_that_is_not_in_quarantine_says_so(shell: Shell, command: list[str]) -> None:
    result = shell("quarantine", *command, "nothing-here")
    assert result.exit_code == 2
    assert "nothing of nothing-here is in quarantine" in result.stderr


def test_metrics_count_what_waits_for_somebody_and_what_waits_for_its_next_try(
    app: Application, shell: Shell, unique: str
) -> None:
    refused_file(app, f"{unique}-a")
    with armed("started:qdrant_write=unavailable"):
        take_in(app, drop_file(app, f"{unique}-b"))
    told = shell("metrics").stdout.splitlines()
    assert 'apex_waiting_documents{error_class="permanent",place="quarantine"} 1.0' in told
    assert 'apex_waiting_documents{error_class="store_down",place="retry"} 1.0' in told


# -- release -------------------------------------------------------------------------------------


def test_release_after_mending_completes_and_the_file_leaves_the_quarantine(
    app: Application, shell: Shell, unique: str
) -> None:
    saga, away = refused_file(app, unique)
    [told] = shell.json("quarantine", "release", unique, "--reason", "mended")["entries"]
    assert (told["refusal"], told["status"]) == (None, "pending")
    assert away.exists()
    ended = drive(app, told["successor"])
    assert ended.status is Status.COMPLETED
    assert (ended.arrival, ended.predecessor_saga_id) == (saga.arrival, saga.saga_id)
    assert not away.exists()
    assert not away.with_name(f"{away.name}.reason.json").exists()
    assert (app.inbox.folder / "processed" / away.name).exists()
    assert shell.json("quarantine", "list") == {"quarantine": []}
    assert_whole(app, unique)
    event = app.ledger.events(saga.saga_id)[-1]
    assert event["event"] == "quarantine_released"
    assert event["detail"]["because"] == "mended"
    assert "@" in event["detail"]["by"]
    assert differences(app) == []
    again = shell("quarantine", "release", saga.saga_id)
    assert again.exit_code == 1
    assert "was released already by" in again.stderr


def test_release_here_drives_it_and_says_how_it_ended(
    app: Application, shell: Shell, unique: str
) -> None:
    refused_file(app, unique)
    with armed(REFUSED):
        told = shell.json("quarantine", "release", unique, "--here", exit_code=1)
    assert [entry["status"] for entry in told["entries"]] == ["compensated"]
    # It is in quarantine once more, for the new reason, with its file.
    [entry] = shell.json("quarantine", "list")["quarantine"]
    assert (entry["saga_id"], entry["attempts"]) == (told["entries"][0]["successor"], 2)
    assert (app.inbox.folder / "quarantine" / f"{unique}.json").exists()
    told = shell.json("quarantine", "release", "--all", "--here")
    assert [entry["status"] for entry in told["entries"]] == ["completed"]
    assert (app.inbox.folder / "processed" / f"{unique}.json").exists()
    assert_whole(app, unique)


def test_release_is_refused_where_a_later_submission_is_live_or_under_way(
    app: Application, shell: Shell, unique: str
) -> None:
    saga, _ = refused_file(app, unique)
    later = app.ingestion.open([submission(unique, edition=2)], owner="later").alive
    refused = shell("quarantine", "release", unique)
    assert refused.exit_code == 1
    assert f"{later[0].saga_id}, which was submitted later, is under way" in refused.stderr
    app.ingestion.commit(later, owner="later")
    refused = shell("quarantine", "release", unique)
    assert refused.exit_code == 1
    assert "version 2 of the document is live, and was submitted later" in refused.stderr
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == [saga.saga_id]
    [told] = shell.json("quarantine", "release", unique, "--force")["entries"]
    ended = drive(app, told["successor"])
    assert ended.status is Status.COMPLETED
    assert ended.arrival > later[0].arrival
    app.ingestion.sweep()
    assert_whole(app, unique)
    assert differences(app) == []


def test_a_dry_run_says_the_same_and_changes_nothing(
    app: Application, shell: Shell, unique: str
) -> None:
    saga, away = refused_file(app, unique)
    before = app.ledger.events(saga.saga_id), app.ledger.quarantined()
    [told] = shell.json("quarantine", "release", unique, "--dry-run")["entries"]
    assert told["refusal"] is None
    told = shell.json("quarantine", "drop", unique, "--reason", "wrong", "--dry-run")
    assert told["entries"][0]["erased_bytes"] > 0
    assert (app.ledger.events(saga.saga_id), app.ledger.quarantined()) == before
    assert len(app.ledger.list_sagas(document_id=unique)) == 1
    assert extraction_bodies(app.ledger, [saga.saga_id])
    assert away.exists()


def test_release_of_all_takes_those_of_a_class(app: Application, shell: Shell, unique: str) -> None:
    refused_file(app, f"{unique}-a")
    refused_file(app, f"{unique}-b")
    wrong = shell("quarantine", "release")
    assert wrong.exit_code == 2
    told = shell.json("quarantine", "release", "--all", "--class", "store_down")
    assert told["entries"] == []
    told = shell.json("quarantine", "release", "--all", "--class", "permanent")
    assert {entry["document_id"] for entry in told["entries"]} == {f"{unique}-a", f"{unique}-b"}


def test_a_request_that_named_its_version_is_released_onto_that_one_only(
    app: Application, shell: Shell, unique: str
) -> None:
    with armed(REFUSED):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET pinned = true, arrival = arrival + 1000")
    [live] = app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    assert live.arrival < saga.arrival + 1000
    refused = shell("quarantine", "release", saga.saga_id)
    assert "it was to replace version none, and version 2 is live" in refused.stderr


def test_two_releases_at_once_open_one_successor(app: Application, unique: str) -> None:
    saga, _ = refused_file(app, unique)
    start, found = threading.Barrier(4), list[str | None]()

    def try_it() -> None:
        start.wait()
        [outcome] = release(app.ledger, [saga.saga_id], by="somebody")
        found.append(outcome.refusal)

    threads = [threading.Thread(target=try_it) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.count(None) == 1
    assert len(app.ledger.list_sagas(document_id=unique)) == 2


def test_what_is_being_released_cannot_be_dropped_meanwhile(app: Application, unique: str) -> None:
    saga, _ = refused_file(app, unique)
    found: dict[str, str | None] = {}

    def let_go() -> None:
        [outcome] = release(app.ledger, [saga.saga_id], by="one")
        found["release"] = outcome.refusal

    def erase() -> None:
        [outcome] = drop(app.ledger, [saga.saga_id], by="two", because="wrong")
        found["drop"] = outcome.refusal

    with armed("releasing=park*1"):
        threads = [threading.Thread(target=let_go)]
        threads[0].start()
        wait_until(lambda: bool(failpoints.parked()))
        threads.append(threading.Thread(target=erase))
        threads[1].start()
        wait_until(lambda: "drop" in found or waits_for_a_lock(app))
        failpoints.release()
        for thread in threads:
            thread.join()
    assert found == {"release": None, "drop": "it was released already by one"}
    assert extraction_bodies(app.ledger, [newest(app, unique).saga_id])
    assert differences(app) == []


def waits_for_a_lock(app: Application) -> bool:
    with app.ledger.transaction() as tx:
        query = "SELECT FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        return bool(tx.execute(query + " AND datname = current_database()").fetchall())


def wait_until(over: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not over():
        assert time.monotonic() < deadline
        time.sleep(0.02)


# -- drop ----------------------------------------------------------------------------------------


def test_drop_erases_what_was_submitted_and_keeps_why(
    app: Application, shell: Shell, unique: str
) -> None:
    refused_file(app, unique)
    with armed(REFUSED):
        shell.json("quarantine", "release", unique, "--here", exit_code=1)
    saga = newest(app, unique)
    assert shell("quarantine", "drop", unique).exit_code == 2  # a reason is wanted
    [told] = shell.json("quarantine", "drop", unique, "--reason", "not ours")["entries"]
    assert told["refusal"] is None
    with app.ledger.transaction() as tx:
        assert tx.execute("SELECT * FROM apex.extraction").fetchall() == []
    away = app.inbox.folder / "quarantine" / f"{unique}.json"
    assert not away.exists()
    assert "dropped" in away.with_name(f"{away.name}.reason.json").read_text()
    event = app.ledger.events(saga.saga_id)[-1]
    assert (event["event"], event["detail"]["because"]) == ("quarantine_dropped", "not ours")
    assert len(event["detail"]["erased"]) == 2
    story = shell.json("quarantine", "show", unique)
    assert story["entry"]["closed_because"] == "not ours"
    assert "qdrant" in story["entry"]["reason"]
    assert story["original"]["extraction_bytes"] is None
    assert "erased" in shell("quarantine", "show", unique, "--original", "x.json").stderr
    assert "dropped already" in shell("quarantine", "release", saga.saga_id).stderr
    assert shell.json("quarantine", "list") == {"quarantine": []}
    assert differences(app) == []
    assert not any(copies(app, unique).values())


def test_the_audit_misses_a_payload_that_has_gone_without_a_decision_and_one_that_came_back(
    app: Application, unique: str
) -> None:
    saga, _ = refused_file(app, unique)
    with app.ledger.transaction() as tx:
        kept = tx.execute("DELETE FROM apex.extraction RETURNING *").fetchall()
    assert "what was submitted" in "".join(differences(app))
    with app.ledger.transaction() as tx:
        tx.execute(
            "INSERT INTO apex.extraction SELECT %(saga_id)s, %(name)s, NULL, 'c', '{}', NULL,"
            " NULL, %(body)s",
            {name: kept[0][name] for name in ("saga_id", "name", "body")},
        )
    assert differences(app) == []
    drop(app.ledger, [saga.saga_id], by="somebody", because="wrong")
    assert differences(app) == []
    with app.ledger.transaction() as tx:
        tx.execute(
            "INSERT INTO apex.extraction SELECT %(saga_id)s, %(name)s, NULL, 'c', '{}', NULL,"
            " NULL, %(body)s",
            {name: kept[0][name] for name in ("saga_id", "name", "body")},
        )
    assert "dropped" in "".join(differences(app))
    with app.ledger.transaction() as tx:
        tx.execute("DELETE FROM apex.extraction")
        tx.execute("UPDATE apex.quarantine SET dropped_at = NULL, released_at = now()")
    assert "dropped" in "".join(differences(app))


def test_a_saga_that_could_not_be_undone_is_neither_released_nor_dropped(
    app: Application, shell: Shell, unique: str
) -> None:
    with armed("started:redis_write=reject;undoing:postgres_write=reject"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert saga.status is Status.FAILED
    for command in (["release"], ["drop", "--reason", "no"]):
        refused = shell("quarantine", *command, unique)
        assert refused.exit_code == 1
        assert f"apex saga compensate {saga.saga_id}" in refused.stderr


@pytest.mark.parametrize("point", ["releasing", "dropping"])
def test_a_crash_before_the_commit_changes_nothing(
    app: Application, unique: str, point: str
) -> None:
    saga, away = refused_file(app, unique)
    before = events(app, saga.saga_id)
    decide = {
        "releasing": lambda: release(app.ledger, [saga.saga_id], by="somebody"),
        "dropping": lambda: drop(app.ledger, [saga.saga_id], by="somebody", because="wrong"),
    }
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        decide[point]()
    assert events(app, saga.saga_id) == before
    assert [entry["saga_id"] for entry in app.ledger.quarantined()] == [saga.saga_id]
    assert extraction_bodies(app.ledger, [saga.saga_id])
    assert away.exists()
    assert differences(app) == []
