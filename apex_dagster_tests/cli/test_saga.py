"""`apex saga`: what an operator sees and does, on real servers."""

import json
from dataclasses import replace

from apex_dagster.composition import Application
from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies, expire_leases
from apex_dagster_tests.documents import submission, submissions

STEPS = ["neo4j_write", "postgres_write", "qdrant_write", "redis_write"]


def fail_to_undo(app: Application, document_id: str) -> Saga:
    """A saga that was written to Qdrant, which refuses to take it back."""
    opened = app.ingestion.open([submission(document_id)], owner="test")
    staged = app.ingestion.stage("qdrant_write", opened.alive)
    with armed("undoing:qdrant_write=reject"):
        [saga] = app.compensation.compensate([staged.alive[0].saga_id], owner="test")
    assert saga.status is Status.FAILED
    return saga


def test_list_shows_the_newest_first_and_filters(app, shell, unique):
    app.ingestion.ingest(submissions(unique, 2), owner="test")
    app.ingestion.ingest([submission(f"{unique}-0", edition=2, dim=7)], owner="test")
    sagas = shell.json("saga", "list")["sagas"]
    assert [saga["status"] for saga in sagas] == ["compensated", "completed", "completed"]
    assert sagas[0]["saga_id"].startswith(f"ingest_{unique}-0_")
    [bad] = shell.json("saga", "list", "--status", "compensated")["sagas"]
    assert bad["error"]["class"] == "permanent"
    of_one = shell.json("saga", "list", "--document", f"{unique}-1")["sagas"]
    assert [saga["document_id"] for saga in of_one] == [f"{unique}-1"]
    assert len(shell.json("saga", "list", "--limit", "1")["sagas"]) == 1
    assert bad["saga_id"] in shell("saga", "list").stdout


def test_show_tells_steps_receipts_durations_and_events(app, shell, unique):
    [saga] = app.ingestion.ingest([submission(unique, chunks=4)], owner="test")
    story = shell.json("saga", "show", saga.saga_id)
    assert story["saga"]["saga_id"] == saga.saga_id
    assert [step["step"] for step in story["steps"]] == STEPS
    assert all(step["state"] == "completed" for step in story["steps"])
    assert all(step["duration_ms"] > 0 for step in story["steps"])
    assert story["steps"][2]["receipt"] == saga.completed_steps["qdrant_write"]
    assert story["events"][0]["event"] == "saga_opened"
    assert story["events"][-1]["event"] == "saga_published"
    assert story["what_now"].startswith("Nothing")
    for_people = shell("saga", "show", saga.saga_id).stdout
    assert "saga_published" in for_people
    assert "postgres_write" in for_people


def test_show_says_what_was_undone_and_why(app, shell, unique):
    saga = fail_to_undo(app, unique)
    story = shell.json("saga", "show", saga.saga_id)
    states = {step["step"]: step["state"] for step in story["steps"]}
    assert states == {
        "neo4j_write": "undone",
        "postgres_write": "undone",
        "qdrant_write": "undo failed",
        "redis_write": "not started",
    }
    assert "qdrant" in story["steps"][2]["undo"]["error"]
    assert f"apex saga compensate {saga.saga_id}" in story["what_now"]


def test_an_unknown_id_says_so(shell):
    for arguments in (["show", "ingest_nothing"], ["compensate", "ingest_nothing"]):
        result = shell("saga", *arguments)
        assert result.exit_code == 2
        assert "no saga has the id ingest_nothing" in result.stderr


def test_recover_finishes_what_a_dead_owner_left(app, shell, unique):
    app.ingestion.open([submission(unique)], owner="dead")
    expire_leases(app)
    [before] = shell.json("saga", "list")["sagas"]
    assert "apex saga recover" in shell.json("saga", "show", before["saga_id"])["what_now"]
    answer = shell.json("saga", "recover")
    assert [(s["saga_id"], s["status"]) for s in answer["finished"]] == [
        (before["saga_id"], "completed")
    ]
    assert (answer["failed"], answer["held"]) == ([], [])
    assert_whole(app, unique)
    assert shell.json("saga", "recover")["finished"] == []


def test_recover_leaves_a_living_owner_alone_and_says_who_it_is(app, shell, unique):
    batch = app.ingestion.open([submission(unique)], owner="alive")
    answer = shell.json("saga", "recover")
    assert answer["finished"] == []
    assert [saga["saga_id"] for saga in answer["held"]] == [batch.alive[0].saga_id]
    assert "1 more are driven by somebody" in shell("saga", "recover").stdout
    assert app.ledger.held([batch.alive[0].saga_id], owner="alive")


def test_a_store_that_refuses_an_undo_fails_the_saga_until_somebody_helps(app, shell, unique):
    saga = fail_to_undo(app, unique)
    [entry] = shell.json("quarantine", "list")["quarantine"]
    assert entry["saga_id"] == saga.saga_id
    assert shell("saga", "recover").exit_code == 1  # nothing to finish, but a saga is failed

    with armed("undoing:qdrant_write=reject"):
        again = shell("saga", "compensate", saga.saga_id)
    assert again.exit_code == 1
    assert f"{saga.saga_id} is failed: qdrant_write: " in again.stderr

    answer = shell.json("saga", "compensate", "--all-failed")
    assert [s["status"] for s in answer["sagas"]] == ["compensated"]
    assert all(not versions for versions in copies(app, unique).values())
    assert shell.json("quarantine", "list") == {"quarantine": []}
    assert shell("saga", "recover").exit_code == 0


def test_a_saga_whose_store_is_down_waits_and_recover_ends_it_when_it_is_back(
    app, private_server, build_application, shell_of_application, unique
):
    qdrant = private_server("qdrant")
    servers = replace(qdrant.endpoints, postgres_url=app.endpoints.postgres_url)
    broken = build_application(servers=servers)
    shell = shell_of_application(broken)
    opened = broken.ingestion.open([submission(unique)], owner="test")
    [saga] = broken.ingestion.stage("qdrant_write", opened.alive).alive
    qdrant.stop()
    asked = shell("saga", "compensate", saga.saga_id, "--yes")
    assert asked.exit_code == 1
    assert f"{saga.saga_id} is compensating: qdrant_write: " in asked.stderr
    assert "qdrant, which was down" in shell.json("saga", "show", saga.saga_id)["what_now"]

    answer = shell.json("saga", "recover")
    assert ([s["saga_id"] for s in answer["waiting"]], answer["failed"]) == ([saga.saga_id], [])
    assert [breaker["store"] for breaker in answer["down"]] == ["qdrant"]
    assert "qdrant is unavailable, retry after" in shell("saga", "recover").stdout

    qdrant.start()
    answer = shell.json("saga", "recover")  # looks at once, whenever the next look was due
    assert [s["status"] for s in answer["finished"]] == ["compensated"]
    assert (answer["waiting"], answer["down"]) == ([], [])
    assert all(not versions for versions in copies(broken, unique).values())


def test_compensating_twice_changes_nothing(app, shell, unique):
    app.ingestion.open([submission(unique)], owner="dead")
    expire_leases(app)
    [saga] = app.ledger.list_sagas()
    assert shell("saga", "compensate", saga.saga_id, "--reason", "a mistake").exit_code == 0
    events = app.ledger.events(saga.saga_id)
    assert shell("saga", "compensate", saga.saga_id).exit_code == 0
    assert app.ledger.events(saga.saga_id) == events
    [now] = app.ledger.sagas([saga.saga_id])
    assert now.error == {"class": "requested", "step": None, "message": "a mistake"}


def test_a_saga_is_taken_from_a_living_owner_only_on_purpose(app, shell, unique):
    batch = app.ingestion.open([submission(unique)], owner="alive")
    saga_id = batch.alive[0].saga_id
    refused = shell("saga", "compensate", saga_id)
    assert refused.exit_code == 2
    assert "alive" in refused.stderr
    assert app.ledger.sagas([saga_id])[0].status is Status.IN_PROGRESS
    assert shell("saga", "compensate", saga_id, "--yes").exit_code == 0
    assert app.ledger.sagas([saga_id])[0].status is Status.COMPENSATED
    assert app.ingestion.hold([saga_id], owner="alive") == []


def test_a_live_version_cannot_be_compensated(app, shell, unique):
    [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    result = shell("saga", "compensate", saga.saga_id, "--yes")
    assert result.exit_code == 2
    assert "newer version" in result.stderr
    assert_whole(app, unique)


def test_compensate_wants_to_be_told_what(app, shell):
    assert shell("saga", "compensate").exit_code == 2
    result = shell("saga", "compensate", "--all-failed")
    assert (result.exit_code, result.stdout) == (0, "No saga is failed.\n")


def test_sweep_removes_superseded_versions_after_the_grace(app, shell, unique):
    app.ingestion.ingest([submission(unique)], owner="test")
    app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    assert {tuple(versions) for versions in copies(app, unique).values()} != {(2,)}
    assert shell.json("saga", "sweep")["swept"] >= 1
    assert_whole(app, unique)
    assert shell("saga", "sweep").stdout == "Nothing is due.\n"


def test_quarantine_names_the_document_and_the_reason(app, shell, unique):
    app.ingestion.ingest([submission(unique, dim=7)], owner="test")
    [entry] = shell.json("quarantine", "list")["quarantine"]
    assert (entry["document_id"], entry["error_class"]) == (unique, "permanent")
    result = shell("quarantine", "list")
    assert unique in result.stdout
    assert entry["reason"].split()[0] in result.stdout


def test_migrate_says_which_version_the_schema_has(shell):
    result = shell("migrate")
    assert result.exit_code == 0
    assert result.stdout.startswith("Schema apex is at version 00")


def test_a_process_of_its_own_prints_json_and_nothing_else(app, shell, unique):
    app.ingestion.ingest(submissions(unique, 2), owner="test")
    done = shell.process("status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)["documents"]) == 2
    failed = shell.process("saga", "show", "ingest_nothing")
    assert failed.returncode == 2
    assert failed.stdout == ""
    assert len(failed.stderr.splitlines()) == 1
