"""The Python client, against a real API process."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator

import numpy as np
import orjson
import pytest

from apex_dagster.access.keys import Scope, create_key
from apex_dagster.api import live_schemas, saga_schemas, schemas
from apex_dagster.client import ApiProblem, ApiUnreachable, Client, answers
from apex_dagster_tests.api.requests import body_of
from apex_dagster_tests.applications import assert_whole, events
from apex_dagster_tests.documents import DIM


@pytest.fixture
def client(api) -> Iterator[Client]:
    with Client(api.url) as client:
        yield client


def test_a_file_goes_in_and_comes_back(client, driver, app, unique, tmp_path):
    path = tmp_path / "harbour.txt"
    path.write_text("Halcyon Shipping has moved its office to Port Amaranth, says Ada Brandt.")
    said = {"document_id": f"{unique}/ a?#%", "collection": unique, "metadata": {"serial": 7}}
    ingested = client.ingest_file(path, **said, expected_version=0, idempotency_key=unique)
    assert client.ingest_file(path, **said, expected_version=0, idempotency_key=unique) == ingested
    assert_whole(app, said["document_id"])
    document = client.document(said["document_id"])
    assert (document["saga_id"], document["collection"]) == (ingested["saga_id"], unique)
    assert document["metadata"]["serial"] == 7
    [heading] = client.documents(collection=unique)
    assert heading["document_id"] == said["document_id"]


def test_a_prepared_document_goes_in_and_its_saga_is_told(client, driver, app, unique):
    vectors = np.ones((1, DIM), dtype=np.float32)
    body = {"document_id": unique, "chunks": ["Copper."], "embeddings": vectors, "entities": []}
    ingested = client.ingest(body)
    story = client.saga(ingested["saga_id"])
    assert story["saga"]["status"] == "completed"
    assert [saga["saga_id"] for saga in client.sagas(document_id=unique)] == [ingested["saga_id"]]
    assert list(client.sagas(document_id=unique, status="failed")) == []
    moves = [move["event"] for move in client.follow(ingested["saga_id"])]
    assert moves == [event for event, _ in events(app, ingested["saga_id"])]


def test_lists_go_on_over_pages(client, app, unique, monkeypatch):
    from apex_dagster_tests.documents import submissions

    app.ingestion.ingest(submissions(unique, 5), owner="test")
    monkeypatch.setattr("apex_dagster.client.client._PAGE", 2)
    assert [each["document_id"] for each in client.documents()] == [
        f"{unique}-{n}" for n in range(5)
    ]
    assert len({saga["saga_id"] for saga in client.sagas()}) == 5


def test_a_refusal_is_an_exception_that_says_what_to_do(client, driver, unique):
    with pytest.raises(ApiProblem, match="500 Document ingestion failed") as caught:
        client.ingest(orjson.loads(body_of(unique, poison=True)))
    assert (caught.value.status, caught.value.name) == (500, "compensated")
    assert caught.value.details["step"] == "postgres_write"
    for call in (client.document, client.saga, lambda name: next(client.follow(name))):
        with pytest.raises(ApiProblem) as caught:
            call(unique)
        assert (caught.value.status, caught.value.retry_after_s) == (404, None)


def test_a_key_is_sent_and_a_refusal_for_now_says_until_when(start_api, app):
    key = create_key(app.ledger, "newsroom", [Scope.READ], by="ada")[1]
    url = start_api(api_keys="true", api_rate="2/minute").url
    with Client(url, key=key) as client:
        assert client.version()
        assert list(client.documents()) == []
        with pytest.raises(ApiProblem, match="429") as caught:
            client.version()
        assert caught.value.retry_after_s >= 1
        assert key not in f"{caught.value!r} {caught.value.details}"
    with Client(url) as client, pytest.raises(ApiProblem, match="401 Authorization"):
        client.version()


def test_no_answer_is_said_so(api):
    api.kill()
    with Client(api.url) as client, pytest.raises(ApiUnreachable, match=api.url):
        client.version()


def test_another_server_is_recognised():
    class Other(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(502)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.handle_request).start()
        url = f"http://127.0.0.1:{server.server_port}"
        with Client(url) as client, pytest.raises(ApiProblem, match="is this the API") as caught:
            client.version()
    assert caught.value.status == 502


@pytest.mark.parametrize(
    ("typed", "model"),
    [
        (answers.Ingested, schemas.Ingested),
        (answers.DocumentHeading, live_schemas.DocumentHeading),
        (answers.LiveDocument, live_schemas.LiveDocument),
        (answers.SagaSummary, saga_schemas.SagaSummary),
        (answers.SagaMove, saga_schemas.SagaEvent),
        (answers.SagaStory, saga_schemas.SagaStory),
    ],
)
def test_answers_are_typed_as_the_server_describes_them(typed, model):
    assert set(typed.__annotations__) == set(model.model_fields)


def test_the_client_needs_no_server_side_of_the_project():
    import subprocess
    import sys

    code = (
        "import sys, apex_dagster.client\n"
        "rooms = {m.split('.')[1] for m in sys.modules if m.startswith('apex_dagster.')}\n"
        "print(sorted(rooms), 'fastapi' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "['client', 'errors'] False"
