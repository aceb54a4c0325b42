"""`DELETE /documents/{document_id}` by a real API process, driven as Dagster's runs do."""

from __future__ import annotations

import json
import time

import pytest

from apex_dagster.access.receipt_key import check_file
from apex_dagster.errors import InvalidInput
from apex_dagster.ingestion.audit import verify
from apex_dagster.saga.failpoints import armed
from apex_dagster_tests.api.requests import body_of, post, problem
from apex_dagster_tests.api.test_openapi import check
from apex_dagster_tests.applications import assert_whole


def delete(client, document_id: str, key: str | None = None):
    headers = {"Idempotency-Key": key} if key else {}
    return client.delete(f"/documents/{document_id}", headers=headers)


@pytest.fixture
def description(client) -> dict:
    return client.get("/openapi.json").json()


def test_a_deletion_answers_with_a_signed_receipt(client, driver, app, description, unique):
    post(client, body_of(unique))
    answer = delete(client, unique)
    assert answer.status_code == 200, answer.text
    check(description, "Deletion", answer.json())
    body = answer.json()
    assert body["saga_id"].startswith(f"delete_{unique}_")
    assert (body["status"], body["version"]) == ("deleted", 2)
    checked = check_file(json.dumps(body).encode())
    assert checked.receipt["saga_id"] == body["saga_id"]
    assert checked.fingerprint == body["signature"]["fingerprint"]
    problem(client.get(f"/documents/{unique}"), 404, "not-live")
    assert client.get("/documents").json()["documents"] == []
    assert_whole(app, unique)
    assert verify(app.ledger, app.stores).differences == []
    saga = client.get(f"/sagas/{body['saga_id']}")
    check(description, "SagaStory", saga.json())
    assert saga.json()["steps"][2]["receipt"]["items"] == 3


def test_deleting_again_answers_with_the_same_receipt(client, driver, unique):
    post(client, body_of(unique))
    first = delete(client, unique)
    assert delete(client, unique).json() == first.json()


def test_what_was_never_submitted_is_not_found(client, driver, app, description, unique):
    answer = delete(client, unique)
    problem(answer, 404, "unknown")
    check(description, "Problem", answer.json())
    assert app.ledger.pointers([unique]) == {}


def test_an_id_with_slashes_is_deleted(client, driver, app, unique):
    post(client, body_of(f"{unique}/a b"))
    assert delete(client, f"{unique}/a%20b").status_code == 200
    assert_whole(app, f"{unique}/a b")


def test_a_key_leads_to_the_same_deletion_whatever_came_since(client, driver, app, unique):
    post(client, body_of(unique))
    first = delete(client, unique, key="k")
    assert post(client, body_of(unique, edition=2)).status_code == 200
    assert delete(client, unique, key="k").json() == first.json()
    assert app.ledger.pointers([unique])[unique]["live_version"] == 3
    post(client, body_of(f"{unique}-other"))
    problem(delete(client, f"{unique}-other", key="k"), 422, "key-reused")
    problem(post(client, body_of(unique), key="k"), 422, "key-reused")
    problem(delete(client, unique, key="x" * 256), 422, "invalid")


def test_while_the_removal_is_open_the_answer_says_where_to_look(start_api, driver, app, unique):
    with start_api(publish_wait_s=0).client() as client:
        post(client, body_of(unique))
        with armed("removing:qdrant_write=hang:3"):
            answer = delete(client, unique)
        assert answer.status_code == 202, answer.text
        saga_id = answer.json()["saga_id"]
        assert answer.json() == {
            "status": "removing",
            "document_id": unique,
            "saga_id": saga_id,
            "version": 2,
        }
        assert client.get(answer.headers["location"]).json()["saga"]["saga_id"] == saga_id
        problem(client.get(f"/documents/{unique}"), 404, "not-live")
        deadline = time.monotonic() + 60
        while (again := delete(client, unique)).status_code == 202:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert again.json()["saga_id"] == saga_id
        assert again.json()["receipt"]["read_back"]["qdrant"] == {"vectors": 0}


def test_with_nobody_to_drive_it_the_answer_comes_all_the_same(start_api, idle_driver, unique):
    with start_api(answer_wait_s=1).client() as client:
        idle_driver.start()
        post(client, body_of(unique))
        idle_driver.stop()
        answer = delete(client, unique)
        assert answer.status_code == 202
        assert answer.json()["saga_id"] == delete(client, unique).json()["saga_id"]


def test_a_deletion_that_came_to_nothing_says_so(client, driver, app, unique):
    post(client, body_of(unique))
    with armed("started:qdrant_write=reject"):
        body = problem(delete(client, unique), 500, "compensated")
    assert body["step"] == "qdrant_write"
    assert_whole(app, unique)
    assert delete(client, unique).status_code == 200


def test_a_receipt_that_was_changed_is_no_receipt(client, driver, unique):
    post(client, body_of(unique))
    body = delete(client, unique).json()
    body["receipt"]["stores"]["qdrant"]["removed"] = 0
    with pytest.raises(InvalidInput, match="was changed"):
        check_file(json.dumps(body).encode())
