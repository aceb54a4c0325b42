"""The same key: the same saga, the same answer, to the byte, whatever has happened in between."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from apex_dagster.saga.failpoints import armed
from apex_dagster.saga.submissions import forget_keys
from apex_dagster_tests.api.requests import body_of, post, problem
from apex_dagster_tests.applications import assert_whole

pytestmark = pytest.mark.anyio


def test_a_repeat_is_told_what_the_first_was_told(client, driver, app, unique):
    first = post(client, body_of(unique), key=unique)
    post(client, body_of(unique, edition=2))
    again = post(client, body_of(unique), key=unique)
    assert first.status_code == 200
    assert (again.status_code, again.content) == (200, first.content)
    assert again.headers["content-type"] == first.headers["content-type"]
    assert app.ledger.pointers([unique])[unique]["live_version"] == 2  # it came once, and is over


def test_an_answer_stays_what_it_was_when_the_stores_have_moved_on(start_api, driver, app, unique):
    """It came before the version was published; a repeat after that is told the same."""
    with start_api(publish_wait_s=0).client() as client:
        with armed("pivoted=hang:4"):
            first = post(client, body_of(unique), key=unique)
        assert first.json()["published"] is False
        while not app.ledger.sagas([first.json()["saga_id"]])[0].published_at:
            time.sleep(0.1)
        assert post(client, body_of(unique), key=unique).content == first.content
        assert post(client, body_of(unique)).json()["published"] is True


def test_a_key_works_in_the_body_as_well(client, driver, unique):
    fields = json.loads(body_of(unique)) | {"idempotency_key": unique}
    assert post(client, fields).content == post(client, fields, key=unique).content


def test_a_key_with_another_body_is_refused(client, driver, app, unique):
    post(client, body_of(unique), key=unique)
    for other in (body_of(unique, edition=2), body_of(f"{unique}-other")):
        body = problem(post(client, other, key=unique), 422, "key-reused")
        assert body["field"] == "Idempotency-Key"
    assert len(app.ledger.list_sagas()) == 1


async def test_a_repeat_while_it_is_under_way_waits_for_the_same_saga(
    api, idle_driver, app, unique
):
    async with api.async_client() as client:
        calls = [asyncio.create_task(post(client, body_of(unique), key=unique)) for _ in range(5)]
        await asyncio.sleep(1)
        idle_driver.start()
        answers = await asyncio.gather(*calls)
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.content for answer in answers}) == 1
    assert len(app.ledger.list_sagas()) == 1
    assert submissions(app, "idempotency_key = %s", unique) == 1


def test_a_refusal_for_good_is_repeated_without_another_try(client, driver, app, unique):
    first = post(client, body_of(unique, poison=True), key=unique)
    again = post(client, body_of(unique, poison=True), key=unique)
    problem(first, 500, "compensated")
    assert (again.status_code, again.content) == (500, first.content)
    assert again.headers["content-type"] == "application/problem+json"
    assert len(app.ledger.list_sagas()) == 1


def test_a_passing_failure_is_tried_again_under_the_same_key(client, driver, app, unique):
    with armed("started:qdrant_write=unavailable"):
        failed = problem(post(client, body_of(unique), key=unique), 500, "compensated")
    answer = post(client, body_of(unique), key=unique)
    assert answer.status_code == 200
    assert post(client, body_of(unique), key=unique).content == answer.content
    second, first = app.ledger.list_sagas(document_id=unique)
    assert first.saga_id == failed["saga_id"]
    assert second.predecessor_saga_id == first.saga_id
    assert answer.json()["saga_id"] == second.saga_id
    assert_whole(app, unique)


def test_keys_are_forgotten_when_their_time_is_over(client, driver, app, unique):
    post(client, body_of(unique), key=unique)
    assert forget_keys(app.ledger, after_s=3600) == 0
    assert forget_keys(app.ledger, after_s=0) == 1
    assert submissions(app, "answer IS NOT NULL") == 0
    assert post(client, body_of(unique, edition=2), key=unique).json()["version"] == 2


async def test_two_processes_that_get_one_key_at_once_open_one_saga(start_api, driver, app, unique):
    first, second = start_api(), start_api()
    async with first.async_client() as one, second.async_client() as other:
        for turn in range(5):
            body, key = body_of(f"{unique}-{turn}"), f"{unique}-{turn}"
            answers = await asyncio.gather(
                *(post(client, body, key=key) for client in (one, other) for _ in range(4))
            )
            assert {answer.status_code for answer in answers} == {200}
            assert len({answer.content for answer in answers}) == 1
    assert len(app.ledger.list_sagas()) == 5


@pytest.mark.parametrize("processes", [1, 2])
async def test_two_documents_that_meet_under_one_key_do_not_both_come_in(
    start_api, driver, app, unique, processes
):
    started = [start_api() for _ in range(processes)]
    first, second = started[0], started[-1]
    async with first.async_client() as one, second.async_client() as other:
        for turn in range(5):
            key = f"{unique}-{turn}"
            answers = await asyncio.gather(
                post(one, body_of(f"{key}-a"), key=key), post(other, body_of(f"{key}-b"), key=key)
            )
            assert sorted(answer.status_code for answer in answers) == [200, 422]
    assert len(app.ledger.list_sagas()) == 5


def submissions(app, condition: str, *values: object) -> int:
    with app.ledger.transaction() as tx:
        query = f"SELECT count(*) AS n FROM apex.submission WHERE {condition}"
        return tx.execute(query, values).fetchone()["n"]
