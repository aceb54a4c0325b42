"""Requests that get no saga: each status code, the member at fault, what to do about it."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

import httpx
import pytest

from apex_dagster.api.app import create_app
from apex_dagster.errors import TransientError
from apex_dagster.settings import Settings
from apex_dagster_tests.api.requests import body_of, post, problem
from apex_dagster_tests.documents import DIM

pytestmark = pytest.mark.anyio

VECTOR = [0.5] * DIM


WHOLE = {"document_id": "d", "chunks": [{"text": "Copper.", "embedding": VECTOR}], "entities": []}


@pytest.mark.parametrize(
    ("fields", "field", "words"),
    [
        ({"document_id": None}, "document_id", "1 to 200 printable characters"),
        ({"document_id": "x" * 201}, "document_id", "1 to 200 printable characters"),
        ({"document_id": "a\u0000b"}, "document_id", "1 to 200 printable characters"),
        ({"chunks": [{"text": "a", "embedding": [1.0]}]}, "embeddings[0]", "has 1 numbers"),
        ({"chunks": [{"text": "a", "embedding": [True] * DIM}]}, "embeddings[0]", "true or false"),
        ({"chunks": [{"text": "a", "embedding": ["1"] * DIM}]}, "embeddings[0]", "a text"),
        ({"chunks": [{"text": "a", "embedding": [0] * DIM}]}, "embeddings[0]", "all zeros"),
        ({"chunks": [{"text": "a"}], "embeddings": [VECTOR, VECTOR]}, "embeddings", "2 for 1"),
        ({"chunks": [{"text": 7}]}, "chunks[0].text", "expected a text, not a number"),
        ({"entities": [{"type": "place"}]}, "entities[0].name", "is missing"),
        ({"entities": [{"name": "x" * 501}]}, "entities[0].name", "1 to 500 characters"),
        ({"relations": [{"source": "a", "target": "b"}]}, "relations[0].source", "add it there"),
        ({"collection": ""}, "collection", "1 to 200 printable characters"),
        ({"metadata": []}, "metadata", "expected an object, not a list"),
        ({"expected_version": -1}, "expected_version", "from 0 to 2147483647"),
        ({"idempotency_key": "x" * 256}, "idempotency_key", "1 to 255 printable characters"),
    ],
)
def test_a_member_that_cannot_be_used_is_named_with_its_limit(refusing, fields, field, words):
    body = problem(post(refusing, WHOLE | fields), 422, "invalid")
    assert body["field"] == field
    assert words in body["detail"]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"{", "not valid JSON"), (b"[]", "one JSON object, not a list"), (b"[" * 100_000, "JSON")],
)
def test_what_is_no_json_object_is_refused(refusing, content, words):
    assert words in problem(post(refusing, content), 422, "invalid")["detail"]


def test_a_key_in_the_body_must_be_that_of_the_header(refusing):
    body = problem(post(refusing, WHOLE | {"idempotency_key": "a"}, key="b"), 422, "invalid")
    assert body["field"] == "idempotency_key"


def test_a_text_that_says_nothing_is_refused_before_anything_is_opened(refusing):
    body = problem(post(refusing, {"document_id": "d", "text": " - "}), 422, "invalid")
    assert "text_chars_min" in body["detail"]
    body = problem(post(refusing, {"document_id": "d"}), 422, "invalid")
    assert "give one of text" in body["detail"]


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", ""])
def test_what_a_foreign_page_can_make_a_browser_send_is_refused(refusing, media_type):
    answer = refusing.post(
        "/documents/ingest", content=json.dumps(WHOLE), headers={"Content-Type": media_type}
    )
    problem(answer, 415, "media-type")


def test_a_name_that_is_not_this_machine_is_refused(refusing):
    problem(refusing.get("/healthz", headers={"Host": "pages.example:8000"}), 421, "host")
    for name in ("localhost:1", "127.0.0.1", "[::1]:9"):
        assert refusing.get("/healthz", headers={"Host": name}).status_code == 200


def test_more_chunks_than_may_be_are_refused_with_the_limit(start_api):
    with start_api(chunks_max=2).client() as client:
        chunk = {"text": "Copper.", "embedding": VECTOR}
        body = problem(post(client, WHOLE | {"chunks": [chunk] * 3}), 422, "invalid")
    assert body["field"] == "chunks"
    assert "there are 3, more than chunks_max = 2" in body["detail"]
    assert "APEX_CHUNKS_MAX" in body["detail"]


def test_unknown_paths_and_methods_are_problems_too(refusing):
    problem(refusing.get("/nowhere"), 404, "http")
    answer = refusing.put("/documents/ingest")
    problem(answer, 405, "http")
    assert answer.headers["allow"] == "POST"


def test_too_large_a_body_is_refused_whether_or_not_its_length_is_stated(start_api):
    with start_api(api_body_bytes_max=2048).client() as client:
        body = problem(post(client, WHOLE | {"title": "x" * 2048}), 413, "too-large")
        assert body["bytes_max"] == 2048
        assert "APEX_API_BODY_BYTES_MAX" in body["detail"]
        parts = (b" " * 512 for _ in range(8))
        headers = {"Content-Type": "application/json"}
        answer = client.post("/documents/ingest", content=parts, headers=headers)
        problem(answer, 413, "too-large")


async def test_a_full_queue_refuses_and_says_how_full_it_is(start_api, idle_driver, app, unique):
    api = start_api(pending_max=3)
    async with api.async_client() as client:
        calls = [asyncio.create_task(post(client, body_of(f"{unique}-{n}"))) for n in range(3)]
        async with asyncio.timeout(60):
            while len(app.ledger.list_sagas()) < 3:
                await asyncio.sleep(0.02)
        refused = await post(client, body_of(f"{unique}-x"))
        assert problem(refused, 429, "queue-full")["depth"] == 3
        assert int(refused.headers["retry-after"]) >= 1
        idle_driver.start()
        assert {answer.status_code for answer in await asyncio.gather(*calls)} == {200}
        async with asyncio.timeout(60):
            while (await post(client, body_of(f"{unique}-x"))).status_code == 429:
                await asyncio.sleep(0.1)


def test_a_saga_that_takes_long_is_answered_later(start_api, idle_driver, unique):
    api = start_api(answer_wait_s=0.5)
    with api.client() as client:
        answer = post(client, body_of(unique), key=unique)
        body = problem(answer, 503, "still-open")
        assert int(answer.headers["retry-after"]) >= 1
        idle_driver.drive_once()
        again = post(client, body_of(unique), key=unique).json()
    assert (again["status"], again["saga_id"]) == ("success", body["saga_id"])


def test_without_the_ledger_there_is_no_answer_but_503(start_api, private_server, unique):
    """Nor is anything taken in; when it is back, all goes on without a restart."""
    postgres = private_server("postgres")
    url = postgres.endpoints.postgres_url.get_secret_value()
    with start_api(postgres_url=url, answer_wait_s=1).client() as client:
        assert client.get("/readyz").status_code == 200
        postgres.stop()
        answer = post(client, body_of(unique))
        # Whoever notices first: the one who opens sagas, or the one who asks whether any may be.
        assert problem(answer, 503, "unavailable")["store"] in ("ledger", "postgres")
        assert int(answer.headers["retry-after"]) >= 1
        problem(client.get("/readyz"), 503, "unavailable")
        assert client.get("/healthz").json() == {"status": "ok"}
        postgres.start()
        deadline = time.monotonic() + 60
        while post(client, body_of(unique)).json()["type"].endswith("unavailable"):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        problem(post(client, body_of(unique)), 503, "still-open")  # opened; nobody drives it


class StoreDown(TransientError):
    def __init__(self) -> None:
        super().__init__("bolt://10.0.0.7:7687 refused")
        self.store, self.retry_after_s = "neo4j", 7.2


async def in_process(servers, error):
    """The answers of an application that admits nothing: to a document, and when it is asked."""

    def admit(documents: int) -> None:
        raise error

    app = create_app(Settings(), servers, admit=admit)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client,
    ):
        return await post(client, WHOLE), await client.get("/readyz")


async def test_while_a_store_is_down_nothing_is_taken_in(endpoints):
    answer, ready = await in_process(endpoints, StoreDown())
    assert problem(ready, 503, "unavailable")["store"] == "neo4j"
    assert problem(answer, 503, "unavailable")["store"] == "neo4j"
    assert answer.headers["retry-after"] == "8"
    assert "10.0.0.7" not in answer.text


async def test_a_fault_of_ours_shows_nothing_of_itself(endpoints):
    answer, _ = await in_process(endpoints, RuntimeError("password hunter2"))
    problem(answer, 500, "unexpected")
    assert "hunter2" not in answer.text


def test_a_port_in_use_is_said_so(api, start_api, postgres_database):
    port = api.url.rpartition(":")[2]
    run = subprocess.run(
        [sys.executable, "-m", "apex_dagster.cli.main", "api", "--port", port],
        env=os.environ | {"APEX_POSTGRES_URL": postgres_database},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode != 0
    assert f"--port {port}: cannot be used" in run.stderr


def test_the_process_imports_neither_dagster_nor_a_stores_driver():
    code = (
        "import sys, apex_dagster.cli.api\n"
        "print([m for m in ('dagster', 'neo4j', 'qdrant_client', 'redis', 'spacy', 'onnxruntime')"
        " if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
