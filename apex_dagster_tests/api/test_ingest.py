"""`POST /documents/ingest`: what it answers, and what has happened by then."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import httpx
import pytest

from apex_dagster.api.app import create_app
from apex_dagster.ingestion import endings
from apex_dagster.saga.failpoints import armed
from apex_dagster.settings import Settings
from apex_dagster_tests.api.requests import body_of, post, problem
from apex_dagster_tests.applications import assert_whole
from apex_dagster_tests.documents import POISON, document

pytestmark = pytest.mark.anyio


def test_a_document_is_whole_in_all_stores_when_the_answer_comes(client, driver, app, unique):
    answer = post(client, body_of(unique))
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body == {
        "status": "success",
        "document_id": unique,
        "saga_id": body["saga_id"],
        "version": 1,
        "published": True,
    }
    assert app.ledger.sagas([body["saga_id"]])[0].status == "completed"
    assert_whole(app, unique)


def test_a_file_with_the_same_bytes_would_be_the_same_content(client, driver, app, unique):
    """One form, one rule: what was posted is unchanged when it is dropped as a file."""
    from apex_dagster.ingestion.ingest import Submission

    posted = post(client, document(unique).content).json()
    batch = app.ingestion.open([Submission(document=document(unique))], owner="file")
    assert [saga.saga_id for saga in batch.unchanged] == [posted["saga_id"]]


def test_content_that_is_live_already_is_unchanged(client, driver, app, unique):
    first = post(client, body_of(unique)).json()
    answer = post(client, body_of(unique))
    assert answer.status_code == 200
    assert answer.json() == first | {"unchanged": True}
    assert len(app.ledger.list_sagas(document_id=unique)) == 1


def test_a_key_makes_no_other_content(client, driver, unique):
    """Members about the request are no part of what is stored."""
    fields = json.loads(body_of(unique))
    first = post(client, fields | {"idempotency_key": f"{unique}-1"})
    again = post(client, fields | {"idempotency_key": f"{unique}-2", "expected_version": 7})
    assert (first.status_code, again.status_code) == (200, 200), again.text
    assert again.json()["unchanged"]


def test_an_update_gets_the_next_version_and_collection_and_title(client, driver, app, unique):
    post(client, body_of(unique, collection="news"))
    answer = post(client, body_of(unique, edition=2, collection="papers", title="New"))
    assert answer.json()["version"] == 2
    app.ingestion.sweep()
    assert_whole(app, unique)
    found = app.reader.read_document(unique)
    assert (found.version.title, found.version.collection) == ("New", "papers")


def test_a_document_refused_by_a_store_leaves_nothing_and_says_why(client, driver, app, unique):
    answer = post(client, body_of(unique, poison=True))
    body = problem(answer, 500, "compensated")
    assert body["detail"] == "Document ingestion failed and was compensated"
    assert body["document_id"] == unique
    assert (body["step"], body["reason_class"]) == ("postgres_write", "permanent")
    assert body["reason"].startswith("postgres refused the write")
    assert app.ledger.sagas([body["saga_id"]])[0].status == "compensated"
    assert POISON[:40] not in answer.text
    assert_whole(app, unique)


def test_a_failed_update_leaves_the_version_before_it(client, driver, app, unique):
    post(client, body_of(unique))
    with armed("started:redis_write=unavailable"):
        body = problem(post(client, body_of(unique, edition=2)), 500, "compensated")
    assert (body["step"], body["reason_class"]) == ("redis_write", "store_down")
    assert_whole(app, unique)
    assert app.ledger.pointers([unique])[unique]["live_version"] == 1


def test_an_unforeseen_error_is_not_shown(client, driver, app, unique):
    with armed("started:qdrant_write=words nobody should see"):
        answer = post(client, body_of(unique))
    body = problem(answer, 500, "compensated")
    assert body["reason_class"] == "unexpected"
    assert "nobody should see" not in answer.text
    kept = app.ledger.sagas([body["saga_id"]])[0].error
    assert "nobody should see" in kept["message"]  # where operators look


def test_an_undo_that_fails_says_that_an_operator_is_needed(client, driver, app, unique):
    with armed("started:redis_write=reject;undoing:qdrant_write=reject"):
        body = problem(post(client, body_of(unique)), 500, "not-undone")
    assert "operator" in body["detail"]
    assert app.ledger.sagas([body["saga_id"]])[0].status == "failed"


# -- versions that are expected ----------------------------------------------------------------


def test_another_version_than_the_expected_one_is_a_conflict(client, driver, unique):
    first = body_of(unique, expected_version=0)
    assert post(client, first).status_code == 200
    late = problem(post(client, body_of(unique, edition=2, expected_version=0)), 409, "conflict")
    assert late["live_version"] == 1
    right = post(client, body_of(unique, edition=2, expected_version=1))
    assert right.json()["version"] == 2
    assert post(client, first).status_code == 409  # its content is no longer what is live


async def test_of_two_that_expect_one_version_one_wins(api, idle_driver, app, unique):
    """Both find it live when they come; the second finds out at the pivot, and is not restarted."""
    async with api.async_client() as client:
        calls = [
            asyncio.create_task(post(client, body_of(unique, edition=n, expected_version=0)))
            for n in (1, 2)
        ]
        await until(lambda: len(app.ledger.list_sagas(document_id=unique)) == 2)
        idle_driver.start()
        answers = await asyncio.gather(*calls)
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 1}
    assert len(app.ledger.list_sagas(document_id=unique)) == 2  # none was restarted
    assert_whole(app, unique)


async def test_joining_somebody_who_expected_a_version_does_not_share_the_conflict(
    api, idle_driver, app, unique
):
    """The winner is in the way of the pinned one only: whoever sent the same content without an
    expectation gets a saga of its own then."""
    async with api.async_client() as client:
        contents = [
            body_of(unique, edition=1),
            body_of(unique, edition=2, expected_version=0),
            body_of(unique, edition=2),
        ]
        calls = []
        for number, content in enumerate(contents, 1):
            calls.append(asyncio.create_task(post(client, content)))
            await until(lambda number=number: submission_count(app, unique) == number)
        idle_driver.start()
        answers = await asyncio.gather(*calls)
    assert [answer.status_code for answer in answers] == [200, 409, 200], answers[2].text
    assert answers[2].json()["version"] == 3
    app.ingestion.sweep()
    assert_whole(app, unique)


async def test_who_expects_a_version_does_not_join_somebody_who_takes_any(
    api, idle_driver, app, unique
):
    """What is under way may be restarted on another version than the expected one."""
    async with api.async_client() as client:
        call = asyncio.create_task(post(client, body_of(unique)))
        await until(lambda: submission_count(app, unique) == 1)
        refused = await post(client, body_of(unique, expected_version=0))
        assert problem(refused, 409, "conflict")["live_version"] == 0
        idle_driver.start()
        assert (await call).status_code == 200


# -- many at once --------------------------------------------------------------------------------


async def test_fifty_simultaneous_posts_of_one_document_make_one_version(api, driver, app, unique):
    async with api.async_client() as client:
        answers = await asyncio.gather(*(post(client, body_of(unique)) for _ in range(50)))
    bodies = [answer.json() for answer in answers]
    assert {answer.status_code for answer in answers} == {200}
    assert len({body["saga_id"] for body in bodies}) == 1
    assert [saga.version for saga in app.ledger.list_sagas(document_id=unique)] == [1]
    assert_whole(app, unique)


async def test_of_many_contents_of_one_document_the_last_to_arrive_is_live(
    api, driver, app, unique
):
    async with api.async_client() as client:
        editions = [body_of(unique, edition=edition) for edition in range(12)]
        answers = await asyncio.gather(*(post(client, body) for body in editions))
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) <= {200, 409}, [answer.text for answer in answers]
    sagas = app.ledger.list_sagas(document_id=unique)
    last = max(sagas, key=lambda saga: saga.arrival)
    assert app.ledger.pointers([unique])[unique]["content_hash"] == last.content_hash
    app.ingestion.sweep(limit=100)
    assert_whole(app, unique)


async def test_an_answer_needs_no_poll(endpoints, driver, unique, monkeypatch):
    monkeypatch.setattr(endings, "_POLL_S", 3600.0)
    app = create_app(Settings(), endpoints, admit=lambda documents: None)
    transport = httpx.ASGITransport(app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        for edition in range(3):
            async with asyncio.timeout(60):
                answer = await post(client, body_of(unique, edition=edition))
            assert answer.status_code == 200


async def test_concurrent_requests_share_transactions_and_runs(api, idle_driver, app, unique):
    async with api.async_client() as client:
        calls = [asyncio.create_task(post(client, body_of(f"{unique}-{n}"))) for n in range(40)]
        await until(lambda: len(app.ledger.list_sagas()) == 40)
        idle_driver.start()
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert max(idle_driver.batches) > 10
    with app.ledger.transaction() as tx:
        row = tx.execute("SELECT count(DISTINCT xmin::text) AS n FROM apex.submission").fetchone()
    assert row["n"] < 30


async def until(condition) -> None:
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(condition):
            await asyncio.sleep(0.02)


def submission_count(app, document_id) -> int:
    with app.ledger.transaction() as tx:
        query = "SELECT count(*) AS n FROM apex.submission WHERE document_id = %s"
        return tx.execute(query, [document_id]).fetchone()["n"]
