"""The description: valid, complete, and its examples are what the server takes and gives."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate

from apex_dagster_tests.api.requests import body_of, post
from apex_dagster_tests.applications import assert_whole
from apex_dagster_tests.ingestion.searchable import text_of

INGEST, BATCH, SEARCH = "/documents/ingest", "/documents/ingest/batch", "/search"
EVENTS = "/sagas/{saga_id}/events"
READS = {
    "/documents": ({"200", "422", "503"}, "DocumentPage"),
    "/documents/{document_id}": ({"200", "304", "404", "422", "503"}, "LiveDocument"),
    "/sagas": ({"200", "422", "503"}, "SagaPage"),
    "/sagas/{saga_id}": ({"200", "404", "422", "503"}, "SagaStory"),
}


@pytest.fixture
def description(client) -> dict:
    return client.get("/openapi.json").json()


def check(description, name, value) -> None:
    schema = {"$ref": f"#/components/schemas/{name}", "components": description["components"]}
    Draft202012Validator(schema).validate(value)


def test_the_description_is_valid_and_names_every_answer(description):
    validate(description)
    answers = set(description["paths"][INGEST]["post"]["responses"])
    assert answers == {"200", "409", "413", "415", "422", "429", "500", "503"}
    others = {INGEST, BATCH, EVENTS, SEARCH, "/healthz", "/readyz", "/version", "/metrics"}
    assert set(description["paths"]) == others | READS.keys()
    for path, (statuses, _) in READS.items():
        answers = description["paths"][path]["get"]["responses"]
        assert set(answers) == statuses | {"429"}
        for status in ("429", "503"):
            assert "Retry-After" in answers[status]["headers"]


def test_examples_of_reads_are_as_described(description):
    for path, (_, name) in READS.items():
        for status, answer in description["paths"][path]["get"]["responses"].items():
            for content in answer.get("content", {}).values():
                assert ("example" in content) or status in ("422", "429", "503")
                if "example" in content:
                    check(description, name if status == "200" else "Problem", content["example"])


def test_every_read_is_as_described(client, driver, description, unique):
    post(client, body_of(unique, metadata={"serial": 1}))
    check(description, "LiveDocument", client.get(f"/documents/{unique}").json())
    check(description, "Problem", client.get(f"/documents/{unique}-none").json())
    check(description, "DocumentPage", client.get("/documents").json())
    check(description, "Problem", client.get("/documents?limit=0").json())


def test_every_saga_is_as_described(client, driver, description, unique):
    """One that completed, one that was undone."""
    post(client, body_of(unique))
    post(client, body_of(unique, edition=2, poison=True))
    page = client.get("/sagas").json()
    check(description, "SagaPage", page)
    assert [saga["status"] for saga in page["sagas"]] == ["compensated", "completed"]
    for saga in page["sagas"]:
        check(description, "SagaStory", client.get(f"/sagas/{saga['saga_id']}").json())
    check(description, "Problem", client.get("/sagas/none").json())


def test_its_examples_are_taken_and_answered_as_described(client, driver, app, description):
    """One is a bare text: whoever drives it extracts chunks, entities and embeddings."""
    operation = description["paths"][INGEST]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    for example in examples.values():
        value = example["value"]
        check(description, "Document", value)
        answer = post(client, value)
        assert answer.status_code == 200, answer.text
        check(description, "Ingested", answer.json())
        assert_whole(app, value["document_id"])
    for status, name in (("200", "Ingested"), ("500", "Problem")):
        [content] = operation["responses"][status]["content"].values()
        check(description, name, content["example"])


def test_a_text_is_taken_as_described(client, driver, app, description):
    operation = description["paths"]["/documents"]["post"]
    assert {"200", "400", "403", "409", "413", "415", "422", "429", "500", "503"} == set(
        operation["responses"]
    )
    value = operation["requestBody"]["content"]["application/json"]["example"]
    check(description, "Text", value)
    check(description, "Ingested", client.post("/documents", json=value).json())
    assert_whole(app, value["document_id"])


def test_every_answer_is_as_described(client, driver, description, unique):
    for body in (body_of(unique, poison=True), b"{", body_of(unique, dim=2)):
        check(description, "Problem", post(client, body).json())
    check(description, "Document", {"document_id": "d", "chunks": ["a", {"text": "b"}]})
    headers = {"Content-Type": "application/x-ndjson"}
    lines = client.post(BATCH, content=body_of(unique) + b"\n{", headers=headers).iter_lines()
    for line in lines:
        check(description, "Line", json.loads(line))


def test_searches_are_as_described(client, driver, description, unique):
    operation = description["paths"][SEARCH]["post"]
    assert set(operation["responses"]) == {"200", "413", "415", "422", "429", "503"}
    [content] = operation["responses"]["200"]["content"].values()
    check(description, "SearchAnswer", content["example"])
    metadata = {"source": "newsroom", "year": 2026, "checked": True}
    moved = "Halcyon Shipping moved to Port Amaranth."
    wanted = text_of(unique, moved, collection="news", metadata=metadata)
    assert post(client, wanted.document.content).status_code == 200
    for example in operation["requestBody"]["content"]["application/json"]["examples"].values():
        check(description, "SearchRequest", example["value"])
        answer = client.post(SEARCH, json=example["value"])
        assert answer.status_code == 200, answer.text
        check(description, "SearchAnswer", answer.json())
        assert answer.json()["hits"]
    check(description, "Problem", client.post(SEARCH, json={"query": ""}).json())


def test_health_and_version(client):
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready", "depth": 0, "waiting": 0}
    assert client.get("/version").json()["version"]
