"""`POST /search` of a real process: what it takes, what it answers, and whom it keeps waiting."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from apex_dagster.access.keys import Scope, create_key
from apex_dagster.api.search import BODY_BYTES_MAX
from apex_dagster.embedded import ports
from apex_dagster.ingestion.search import FILTERS_MAX, K_MAX, QUERY_CHARS_MAX
from apex_dagster_tests.api.conftest import addresses
from apex_dagster_tests.api.requests import post, problem
from apex_dagster_tests.ingestion.searchable import ingest, text_of
from apex_dagster_tests.servers import FIELDS

BAKERY = "The bakery of Quillon sells bread with caraway on Fridays."
QUILLON = {"name": "Quillon", "type": "person"}


def search(client, query=None, **members):
    body = members if query is None else {"query": query, **members}
    return client.post("/search", json=body)


def bakery(document_id, **fields):
    return text_of(document_id, BAKERY, entities=[QUILLON], **fields)


def test_an_answer_holds_whole_hits_and_their_explanation_when_asked(client, app, unique):
    metadata = {"serial": 10**30, "tags": ["a", {"b": None}]}
    [saga] = ingest(app, bakery(unique, title="Notes", collection="town", metadata=metadata))
    answer = search(client, "Quillon's caraway bread")
    assert answer.status_code == 200, answer.text
    content = answer.json()
    assert content.keys() == {"hits", "degraded"}
    [hit] = content["hits"]
    assert hit.pop("metadata").items() >= metadata.items()
    assert hit.pop("score") == pytest.approx(3 / 61)
    assert hit == {
        "document_id": unique,
        "version": 1,
        "saga_id": saga.saga_id,
        "ordinal": 0,
        "text": BAKERY,
        "start": 0,
        "end": len(BAKERY),
        "title": "Notes",
        "collection": "town",
    }
    explained = search(client, "Quillon's caraway bread", explain=True).json()
    [hit] = explained["hits"]
    assert {name: share["rank"] for name, share in hit["explanation"].items()} == {
        "text": 1,
        "vector": 1,
        "graph": 1,
    }
    assert hit["score"] == pytest.approx(sum(s["rrf"] for s in hit["explanation"].values()))
    rankers = explained["explanation"]["rankers"]
    assert {name: each["answered"] for name, each in rankers.items()} == dict.fromkeys(
        ("text", "vector", "graph"), True
    )
    assert all(each["took_ms"] > 0 and each["candidates"] == 1 for each in rankers.values())


def test_what_was_posted_is_found_once_it_is_live(client, driver, unique):
    assert search(client, "caraway").json()["hits"] == []
    posted = post(client, json.loads(bakery(unique).document.content)).json()
    [hit] = search(client, "caraway").json()["hits"]
    assert (hit["saga_id"], hit["version"]) == (posted["saga_id"], 1)


def test_filters_and_k_are_kept_to(client, app, unique):
    ingest(
        app,
        *(bakery(f"{unique}-{n}", metadata={"n": n, "even": n % 2 == 0}) for n in range(6)),
        bakery(f"{unique}-other", collection="other"),
    )

    def found(**members):
        hits = search(client, "caraway", **members).json()["hits"]
        return {hit["document_id"].rpartition("-")[2] for hit in hits}

    assert found(filters={"even": True}) == {"0", "2", "4"}
    assert found(filters={"even": True, "n": 4}) == {"4"}
    assert found(filters={"n": "4"}) == set()
    assert found(filters={"n": 4.0}) == {"4"}
    assert found(filters={"n": 10**40}) == set()
    assert found(collection="other") == {"other"}
    assert len(search(client, "caraway", k=2).json()["hits"]) == 2
    assert len(search(client, "caraway", k=K_MAX).json()["hits"]) == 7


REFUSED = [
    ({}, "query"),
    ({"query": ""}, "query"),
    ({"query": "  "}, "query"),
    ({"query": 7}, "query"),
    ({"query": "a\x00"}, "query"),
    ({"query": "x" * (QUERY_CHARS_MAX + 1)}, "query"),
    ({"query": "12 " * (QUERY_CHARS_MAX // 3)}, "query"),  # too many tokens
    ({"query": "a", "k": 0}, "k"),
    ({"query": "a", "k": K_MAX + 1}, "k"),
    ({"query": "a", "k": "10"}, "k"),
    ({"query": "a", "k": True}, "k"),
    ({"query": "a", "collection": ""}, "collection"),
    ({"query": "a", "collection": "\x00"}, "collection"),
    ({"query": "a", "filters": []}, "filters"),
    ({"query": "a", "filters": {"a": None}}, "filters"),
    ({"query": "a", "filters": {"a": [1]}}, "filters"),
    ({"query": "a", "filters": {"a": {"b": 1}}}, "filters"),
    ({"query": "a", "filters": {"": 1}}, "filters"),
    ({"query": "a", "filters": {"a": "\x00"}}, "filters"),
    ({"query": "a", "filters": {"a\x00": 1}}, "filters"),
    ({"query": "a", "filters": {"a": "x" * 1001}}, "filters"),
    ({"query": "a", "filters": {str(n): n for n in range(FILTERS_MAX + 1)}}, "filters"),
    ({"query": "a", "explain": "yes"}, "explain"),
    ({"query": "a", "filter": {"a": 1}}, "filter"),  # no such member
]
NO_SEARCHES = [
    b"",
    b"{",
    b"[]",
    b'"a"',
    b'{"query": "\\ud800"}',
    b'{"query": "a", "filters": {"a": NaN}}',
    b'{"query": "a", "filters": {"a": 1e999}}',
]


def test_a_member_that_cannot_be_used_is_named(client):
    for members, field in REFUSED:
        body = problem(search(client, **members), 422, "invalid")
        assert body["field"] == field, members
        assert body["detail"].startswith(f"{field}: ")


def test_a_body_that_is_no_search_is_refused(client):
    for body in NO_SEARCHES:
        answer = client.post("/search", content=body, headers={"Content-Type": "application/json"})
        assert problem(answer, 422, "invalid")["detail"], body


def test_a_body_that_is_too_large_or_of_another_type_is_not_read(client):
    large = client.post(
        "/search",
        content=b" " * (BODY_BYTES_MAX + 1),
        headers={"Content-Type": "application/json"},
    )
    body = problem(large, 413, "too-large")
    assert body["bytes_max"] == BODY_BYTES_MAX
    assert "shorter query" in body["detail"]
    form = client.post("/search", data={"query": "a"})
    problem(form, 415, "media-type")
    problem(client.get("/search"), 405, "http")


def test_a_key_that_may_read_may_search(start_api, app, unique):
    ingest(app, bakery(unique))
    keys = {
        scope: create_key(app.ledger, scope, [Scope(scope)], by="ada@quay")[1]
        for scope in ("read", "write")
    }
    with start_api(api_keys="true").client() as client:
        problem(search(client, "caraway"), 401, "key")
        client.headers["Authorization"] = f"Bearer {keys['write']}"
        assert problem(search(client, "caraway"), 403, "scope")["scope"] == "read"
        client.headers["Authorization"] = f"Bearer {keys['read']}"
        assert len(search(client, "caraway").json()["hits"]) == 1


# -- stores that are down, models that are not loaded ------------------------------------------


@pytest.mark.parametrize(("store", "ranker"), [("neo4j", "graph"), ("qdrant", "vector")])
def test_without_a_store_the_others_answer_and_say_so(start_api, app, unique, store, ranker):
    nobody = f"{ports.LOOPBACK}:{ports.choose(None)}"
    elsewhere = {"neo4j": f"bolt://{nobody}", "qdrant": f"http://{nobody}"}[store]
    ingest(app, bakery(unique))
    with start_api(**{FIELDS[store][0]: elsewhere}).client() as client:
        answer = search(client, "Quillon's caraway bread", explain=True)
        assert answer.status_code == 200
        content = answer.json()
        assert content["degraded"] == {ranker: f"{store} cannot be reached at present"}
        assert content["explanation"]["rankers"][ranker]["answered"] is False
        assert [hit["document_id"] for hit in content["hits"]] == [unique]
        assert nobody not in answer.text


def test_without_postgres_there_is_no_answer_but_503(
    start_api, build_application, private_server, endpoints, unique
):
    server = private_server("postgres")
    servers = replace(endpoints, postgres_url=server.endpoints.postgres_url)
    ingest(build_application(servers), bakery(unique))
    with start_api(**addresses(servers)).client() as client:
        assert len(search(client, "caraway").json()["hits"]) == 1
        server.stop()
        answer = search(client, "caraway")
        assert problem(answer, 503, "unavailable")["store"] == "postgres"
        assert int(answer.headers["retry-after"]) >= 1
        server.start()
        assert len(search(client, "caraway").json()["hits"]) == 1


def test_models_are_loaded_by_the_first_search_which_keeps_nobody_else_waiting(
    api, client, app, unique
):
    ingest(app, bakery(unique))
    assert client.get("/documents").status_code == 200  # the stores' drivers are loaded by then
    loaded = Path(f"/proc/{api.process.pid}/maps")
    assert not {"onnxruntime", "spacy"} & set(names_in(loaded))
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(search, client, "caraway")
        answered = 0
        with api.client() as other:
            while not first.done():
                assert other.get("/healthz").status_code == 200
                answered += 1
                time.sleep(0.02)
        assert first.result().status_code == 200
    assert answered >= 5
    assert {"onnxruntime", "spacy"} <= set(names_in(loaded))


def names_in(maps):
    text = maps.read_text()
    return [name for name in ("onnxruntime", "spacy") if f"/{name}/" in text]
