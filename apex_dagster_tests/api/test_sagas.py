"""`GET /sagas` and `GET /sagas/{saga_id}`: what became of documents, as `apex saga` tells it."""

from __future__ import annotations

from urllib.parse import quote

import pytest

from apex_dagster.saga.failpoints import armed
from apex_dagster_tests.api.conftest import addresses
from apex_dagster_tests.api.requests import body_of, pages, post, problem
from apex_dagster_tests.documents import open_pending, submission, submissions

STEPS = ["neo4j_write", "postgres_write", "qdrant_write", "redis_write"]


def story(client, saga_id):
    answer = client.get(f"/sagas/{quote(saga_id, safe='')}")
    assert answer.status_code == 200, answer.text
    return answer.json()


# -- one saga ----------------------------------------------------------------------------------


def test_a_completed_saga_tells_its_steps_and_its_trail(client, app, unique):
    app.ingestion.ingest([submission(unique)], owner="test")
    [saga] = app.ingestion.ingest([submission(unique, edition=2)], owner="test", run_id="run-7")
    told = story(client, saga.saga_id)
    about = told["saga"]
    assert (about["saga_id"], about["document_id"]) == (saga.saga_id, unique)
    assert (about["status"], about["version"], about["expected_version"]) == ("completed", 2, 1)
    assert (about["error"], about["predecessor_saga_id"]) == (None, None)
    assert about["run_id"] == "run-7"
    assert about["created_at"] < about["ended_at"] < about["published_at"]
    assert about["duration_ms"] == pytest.approx(saga.duration_ms)
    assert [step["step"] for step in told["steps"]] == STEPS
    for step in told["steps"]:
        assert (step["state"], step["undo"]) == ("completed", None)
        assert step["receipt"] == saga.completed_steps[step["step"]]
        assert step["duration_ms"] > 0
    events = [
        (e["seq"], e["event"], e["step"], e["status"], e["epoch"], e["duration_ms"])
        for e in told["events"]
    ]
    assert events == [
        (e["seq"], e["event"], e["step"], e["status"], e["epoch"], e["duration_ms"])
        for e in app.ledger.events(saga.saga_id)
    ]
    assert (told["events"][0]["event"], told["events"][-1]["event"]) == (
        "saga_opened",
        "saga_published",
    )
    assert told["what_now"].startswith("Nothing")


def test_a_compensated_saga_tells_what_was_undone_and_why(client, app, unique):
    with armed("sent:redis_write=reject"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    told = story(client, saga.saga_id)
    assert told["saga"]["status"] == "compensated"
    error = told["saga"]["error"]
    assert (error["step"], error["reason_class"]) == ("redis_write", "permanent")
    assert error["message"] == saga.error["message"]
    assert [step["state"] for step in told["steps"]] == ["undone"] * 4
    undone = {step["step"]: step["undo"] for step in told["steps"]}
    assert undone["postgres_write"] == {"removed": 3, "skipped": None, "failed": False}
    assert told["events"][-1]["event"] == "saga_compensated"


def test_an_undo_that_failed_is_told_without_its_words(client, app, unique):
    with armed("started:redis_write=reject;undoing:qdrant_write=words nobody should see"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert "nobody should see" in saga.undone_steps["qdrant_write"]["error"]
    answer = client.get(f"/sagas/{saga.saga_id}")
    [undo] = [s["undo"] for s in answer.json()["steps"] if s["step"] == "qdrant_write"]
    assert undo == {"removed": None, "skipped": None, "failed": True}
    assert answer.json()["saga"]["status"] == "failed"
    assert "nobody should see" not in answer.text


def test_an_unforeseen_error_is_not_shown(client, app, unique):
    with armed("started:qdrant_write=words nobody should see"):
        [saga] = app.ingestion.ingest([submission(unique)], owner="test")
    assert "nobody should see" in saga.error["message"]
    for path in (f"/sagas/{saga.saga_id}", "/sagas"):
        answer = client.get(path)
        assert answer.status_code == 200
        assert "nobody should see" not in answer.text
        assert '"unexpected"' in answer.text


def test_a_saga_that_nobody_drives_yet_is_pending(client, app, unique):
    saga = open_pending(app, unique)
    told = story(client, saga.saga_id)
    assert told["saga"]["status"] == "pending"
    assert (told["saga"]["ended_at"], told["saga"]["duration_ms"]) == (None, None)
    assert [step["state"] for step in told["steps"]] == ["not started"] * 4
    assert [event["event"] for event in told["events"]] == ["saga_opened"]


def test_a_saga_is_found_by_the_id_in_an_answer_whatever_is_in_it(client, driver, unique):
    for document_id in (f"{unique}/samples/a.md", f'{unique} %2F "ü" ?x=1#y'):
        saga_id = post(client, body_of(document_id)).json()["saga_id"]
        assert story(client, saga_id)["saga"]["document_id"] == document_id


def test_an_unknown_saga_is_not_found(client):
    assert problem(client.get("/sagas/none"), 404, "unknown-saga")["saga_id"] == "none"
    for impossible in ("", "a%00b", "x" * 600):
        answer = client.get(f"/sagas/{impossible}")
        assert problem(answer, 422, "invalid")["field"] == "saga_id"


# -- lists -------------------------------------------------------------------------------------


def test_pages_have_every_saga_once_the_newest_first(client, app, unique):
    for batch in range(3):
        app.ingestion.ingest(submissions(f"{unique}-{batch}", 4), owner="test")
    opened = [saga.saga_id for saga in app.ledger.list_sagas()]
    created = [saga.created_at for saga in app.ledger.list_sagas()]
    assert created == sorted(created, reverse=True)
    assert len(opened) == 12
    for limit in (1, 5, 11, 12, 13):
        found = pages(client, "/sagas", cursor="saga_id", limit=limit)
        assert [each for page in found for each in page] == opened
        assert len(found) == -(-12 // limit)
    assert pages(client, "/sagas", cursor="saga_id", after=opened[-1]) == [[]]


def test_sagas_of_one_moment_are_told_apart(client, app, unique):
    """The end of a page falls among them."""
    app.ingestion.ingest(submissions(unique, 7), owner="test")
    with app.ledger.transaction() as tx:
        tx.execute("UPDATE apex.saga_state SET created_at = '2026-03-01 12:00:00+00', arrival = 1")
    found = [each for page in pages(client, "/sagas", cursor="saga_id", limit=2) for each in page]
    assert len(found) == len(set(found)) == 7


def test_what_is_opened_meanwhile_changes_no_later_page(client, app, unique):
    app.ingestion.ingest(submissions(unique, 6), owner="test")
    before = [saga.saga_id for saga in app.ledger.list_sagas()]
    first = client.get("/sagas", params={"limit": 3})
    app.ingestion.ingest([submission(f"{unique}-0", edition=2)], owner="test")
    second = client.get(first.links["next"]["url"]).json()
    assert [saga["saga_id"] for saga in second["sagas"]] == before[3:]


def test_lists_are_filtered_and_stay_so_on_later_pages(client, app, unique):
    app.ingestion.ingest(submissions(unique, 3), owner="test", run_id="run-1")
    with armed("sent:redis_write=reject"):
        for edition in (2, 3):
            app.ingestion.ingest([submission(f"{unique}-0", edition=edition)], owner="test")
    waiting = open_pending(app, f"{unique}-1", edition=2)

    def found(**query):
        return [
            saga
            for page in pages(client, "/sagas", cursor="saga_id", limit=1, **query)
            for saga in page
        ]

    everything = {saga.saga_id: saga for saga in app.ledger.list_sagas()}
    assert len(everything) == 6

    def those(condition):
        return [saga_id for saga_id, saga in everything.items() if condition(saga)]

    assert found(status="compensated") == those(lambda saga: saga.status == "compensated")
    assert len(found(status="compensated")) == 2
    assert found(status=["pending", "compensated"]) == those(lambda s: s.status != "completed")
    assert found(document_id=f"{unique}-0") == those(lambda s: s.document_id == f"{unique}-0")
    assert found(run_id="run-1") == those(lambda saga: saga.run_id == "run-1")
    assert len(found(run_id="run-1")) == 3
    assert found(status="pending", document_id=f"{unique}-1") == [waiting.saga_id]
    assert found(status="pending", run_id="run-1") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"status": "done"}, "status"),
        ({"after": "nothing"}, "after"),
        ({"after": "\x00"}, "after"),
        ({"document_id": "\x00"}, "document_id"),
        ({"run_id": "\x00"}, "run_id"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(client, query, field):
    body = problem(client.get("/sagas", params=query), 422, "invalid")
    assert body["field"] == field
    assert body["detail"].startswith(f"{field}: ")


def test_without_postgres_there_is_no_answer_but_503(start_api, private_server):
    server = private_server("postgres")
    with start_api(**addresses(server.endpoints)).client() as client:
        assert client.get("/sagas").json() == {"sagas": [], "next": None}
        server.stop()
        for path in ("/sagas", "/sagas/any"):
            answer = client.get(path)
            assert problem(answer, 503, "unavailable")["store"] == "ledger"
            assert int(answer.headers["retry-after"]) >= 1
