"""Requests as bytes on the wire: which status, which envelope, which words."""

import json
from typing import Any

import pytest

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess

V = [1.0, 0.0, 0.0, 0.0]
DEEP: Any = 1
for _ in range(70):
    DEEP = [DEEP]
DEEP_FILTER: Any = {"must": [{"key": "a", "match": {"value": 1}}]}
for _ in range(20):
    DEEP_FILTER = {"must": [DEEP_FILTER]}


def point(**changes: Any) -> dict[str, Any]:
    return {"points": [{"id": 1, "vector": V, "payload": {"a": 1}} | changes]}


REFUSED: list[tuple[str, str, Any, int, str]] = [
    # malformed
    ("PUT", "/points", b"{", 400, "Format error in JSON body"),
    ("PUT", "/points", b"\xff", 400, "Format error in JSON body"),
    ("PUT", "/points", b"", 400, "Format error in JSON body"),
    ("PUT", "/points", {}, 400, "either `points` or `batch`"),
    ("PUT", "/points", {"points": 1}, 400, "Expected `array"),
    ("PUT", "/points", point(id="no-uuid"), 400, "UUID"),
    ("PUT", "/points", point(id=-1), 400, "Format error"),
    ("PUT", "/points", point(id=2**64), 400, "Format error"),
    ("PUT", "/points", point(id=True), 400, "Expected `int | str`"),
    ("PUT", "/points", point(payload=[]), 400, "Expected `object | null`"),
    ("PUT", "/points", point(payload={"deep": DEEP}), 400, "64 deep"),
    ("PUT", "/points", b'{"points":' + b"[" * 5000 + b"]" * 5000 + b"}", 400, "Format error"),
    ("PUT", "/points?wait=maybe", point(), 400, "wait='maybe'"),
    ("POST", "/points/payload", {"payload": {"a": DEEP}, "points": [1]}, 400, "64 deep"),
    ("POST", "/points/payload", {"payload": {}, "points": [1], "key": "a." * 80}, 400, "64 deep"),
    ("POST", "/points/payload", {"payload": {"a": 1}}, 400, "Either list of ids or filter"),
    ("POST", "/points/payload", {"points": [1]}, 400, "missing required field `payload`"),
    ("POST", "/points/delete", {"filter": DEEP_FILTER}, 400, "16 deep"),
    ("POST", "/points/delete", {}, 400, "Either list of ids or filter"),
    ("POST", "/points/count", {"filter": {"must": [{"key": "a"}]}}, 400, "needs `match`"),
    ("POST", "/points/count", {"filter": {"must": [{"match": {"value": 1}}]}}, 400, "needs `key`"),
    ("POST", "/points/count", {"filter": {"must": [{"is_empty": True}]}}, 400, "needs `key`"),
    ("POST", "/points/count", {"filter": {"must": [{"key": "a", "has_id": [1]}]}}, 400, "one kind"),
    ("POST", "/points/count", {"filter": {"must": [{"has_id": [1], "must": []}]}}, 400, "one kind"),
    ("POST", "/points/delete", {"points": [1], "filter": {}}, 400, "not both"),
    ("POST", "/points/query", {"query": {}}, 400, "exactly one of its variants"),
    ("POST", "/points/query", {"query": {"fusion": "rrf"}}, 400, "no prefetch"),
    ("POST", "/points/scroll", {"order_by": "a"}, 400, "No range index"),
    ("POST", "/points/scroll", {"order_by": "a[.", "limit": 1}, 400, "JSON path"),
    ("POST", "/facet", {"key": "a"}, 400, "No appropriate index"),
    ("PUT", "/index", {"field_name": "a"}, 400, "has to name a type"),
    ("PUT", "/index", {"field_name": "a..b", "field_schema": "keyword"}, 400, "JSON path"),
    # vectors of another size, or beyond float32
    ("PUT", "/points", point(vector=V[:3]), 400, "expected dim: 4, got 3"),
    ("PUT", "/points", point(vector=[1e39, 0, 0, 0]), 400, "float32"),
    ("PUT", "/points", b'{"points":[{"id":1,"vector":[1e999,0,0,0]}]}', 400, "out of range"),
    ("PUT", "/points", {"batch": {"ids": [1, 2], "vectors": [V]}}, 400, "equally many"),
    ("POST", "/points/query", {"query": V[:3]}, 400, "expected dim: 4, got 3"),
    # well-formed but not allowed
    ("PUT", "/points", point(vector=[]), 422, "must not be empty"),
    ("POST", "/points/scroll", {"limit": 0}, 422, "must be 1 or larger"),
    ("POST", "/points/query", {"query": V, "limit": -1}, 422, "must be 1 or larger"),
    # not there
    ("GET", "/points/77", None, 404, "Point with id 77 does not exists!"),
    ("POST", "/points/payload", {"payload": {"a": 1}, "points": [77]}, 404, "No point with id 77"),
    # what a server could do and this cannot
    ("PUT", "/points", point(vector={"text": V}), 501, "named"),
    ("PUT", "/points", point() | {"shard_key": "a"}, 501, "`shard_key`"),
    ("POST", "/points/query", {"query": 1}, 501, "point id"),
    ("POST", "/points/query", {"query": {"recommend": {"positive": [1]}}}, 501, "`recommend`"),
    ("POST", "/points/query", {"query": V, "lookup_from": {}}, 501, "`lookup_from`"),
    ("POST", "/points/count", {"filter": {"must": [{"key": "a", "geo_radius": {}}]}}, 501, "geo"),
    ("POST", "/points/count", {"filter": {"must": [{"key": "a", "match": {"text": "x"}}]}}, 501,
     "no text index"),
    ("PUT", "/index", {"field_name": "a", "field_schema": "geo"}, 501, "known are keyword"),
    ("PUT", "/index", {"field_name": "a", "field_schema": {"type": "text", "stemmer": {}}}, 501,
     "stemmer"),
    ("POST", "/points/search", {"vector": V, "limit": 1}, 501, "/points/search"),
    ("PUT", "/points/vectors", {"points": []}, 501, "/points/vectors"),
    ("POST", "/snapshots", None, 501, "/snapshots"),
    ("PATCH", "", {}, 501, "PATCH"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "status", "words"), REFUSED)
def test_refusals_say_why_and_change_nothing(
    gateway: GatewayProcess,
    collection: str,
    method: str,
    path: str,
    body: Any,
    status: int,
    words: str,
) -> None:
    answer = gateway.ask(method, f"/collections/{collection}{path}", body)
    assert answer.status_code == status, answer.text
    envelope = answer.json()
    assert words in envelope["status"]["error"]
    assert isinstance(envelope["time"], float)
    assert count(gateway, collection) == 0


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PUT", "/points", point()),
        ("POST", "/points/count", {}),
        ("POST", "/points/query", {"query": V}),
        ("PUT", "/index", {"field_name": "a", "field_schema": "keyword"}),
        ("DELETE", "/index/a", None),
    ],
)
def test_a_missing_collection_is_404(
    gateway: GatewayProcess, method: str, path: str, body: Any
) -> None:
    answer = gateway.ask(method, f"/collections/absent{path}", body)
    assert answer.status_code == 404
    assert answer.json()["status"]["error"] == "Not found: Collection `absent` doesn't exist!"


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"vectors": {"size": 0, "distance": "Dot"}}, 400, "1 to 65536"),
        ({"vectors": {"size": 70_000, "distance": "Dot"}}, 400, "1 to 65536"),
        ({"vectors": {"size": 4, "distance": "Manhattan"}}, 501, "Dot, Cosine, Euclid"),
        ({"vectors": {"size": 4, "distance": "Dot", "datatype": "uint8"}}, 400, "datatype"),
        ({"vectors": {"text": {"size": 4, "distance": "Dot"}}}, 501, "`text`"),
        ({"vectors": {"size": 4}}, 400, "missing required field `distance`"),
        ({}, 501, "one unnamed dense vector"),
        ({"sparse_vectors": {"s": {}}}, 501, "`sparse_vectors`"),
        ({"vectors": {"size": 4, "distance": "Dot"}, "shard_number": 2}, 400, "shard_number"),
    ],
)
def test_collections_that_cannot_be_created(
    gateway: GatewayProcess, body: Any, status: int, words: str
) -> None:
    answer = gateway.ask("PUT", "/collections/never", body)
    assert (answer.status_code, words in answer.json()["status"]["error"]) == (status, True)
    assert not gateway.ask("GET", "/collections/never/exists").json()["result"]["exists"]


def test_creating_a_collection_twice_conflicts(gateway: GatewayProcess, collection: str) -> None:
    body = {"vectors": {"size": 4, "distance": "Dot"}}
    answer = gateway.ask("PUT", f"/collections/{collection}", body)
    assert answer.status_code == 409
    assert f"Collection `{collection}` already exists!" in answer.json()["status"]["error"]


@pytest.mark.parametrize("name", ["a%3Fb", "a%2A", "%22", "x" * 256])
def test_a_collection_name_keeps_to_qdrants_rules(gateway: GatewayProcess, name: str) -> None:
    body = {"vectors": {"size": 4, "distance": "Dot"}}
    answer = gateway.ask("PUT", f"/collections/{name}", body)
    assert answer.status_code == 400
    assert "collection name" in answer.json()["status"]["error"]


def test_deleting_an_absent_collection_is_no_error(gateway: GatewayProcess) -> None:
    answer = gateway.ask("DELETE", "/collections/absent")
    assert (answer.status_code, answer.json()["result"]) == (200, False)


def test_one_wrong_vector_in_the_last_place_keeps_the_whole_request_out(
    gateway: GatewayProcess, collection: str
) -> None:
    """Left to itself, the engine applies the points before the bad one."""
    points = [{"id": number, "vector": V} for number in range(20)]
    points.append({"id": 20, "vector": V[:3]})
    answer = gateway.ask("PUT", f"/collections/{collection}/points", {"points": points})
    assert answer.status_code == 400
    good = {"upsert": {"points": points[:5]}}
    bad = {"upsert": {"points": points[-1:]}}
    answer = gateway.ask(
        "POST", f"/collections/{collection}/points/batch", {"operations": [good, bad]}
    )
    assert answer.status_code == 400
    assert count(gateway, collection) == 0


def test_a_request_over_the_limit_is_413_and_the_connection_survives_it(
    gateway: GatewayProcess, collection: str
) -> None:
    path = f"/collections/{collection}/points"
    body = json.dumps(point(payload={"text": "x" * (5 * 1024 * 1024)})).encode()
    answer = gateway.ask("PUT", path, body)
    assert answer.status_code == 413
    error = answer.json()["status"]["error"]
    assert f"{len(body)} bytes" in error
    assert "limit: 4194304 bytes" in error
    assert count(gateway, collection) == 0
    just_fits = json.dumps(point(payload={"text": "x" * (4 * 1024 * 1024 - 100)})).encode()
    assert gateway.ask("PUT", path, just_fits).status_code == 200


def test_the_answer_to_a_write_has_qdrants_envelope(
    gateway: GatewayProcess, collection: str
) -> None:
    path = f"/collections/{collection}/points"
    waited = gateway.ask("PUT", f"{path}?wait=true", point()).json()
    assert waited["status"] == "ok"
    assert waited["time"] > 0
    assert waited["result"]["status"] == "completed"
    unwaited = gateway.ask("PUT", f"{path}?wait=false&ordering=weak", point()).json()["result"]
    assert unwaited["status"] == "acknowledged"
    assert unwaited["operation_id"] > waited["result"]["operation_id"]


def test_reads_show_payload_and_vector_where_a_server_would(
    gateway: GatewayProcess, collection: str
) -> None:
    path = f"/collections/{collection}/points"
    gateway.ask("PUT", path, point())
    only_id, whole = {"id": 1}, {"id": 1, "payload": {"a": 1}, "vector": V}
    assert gateway.ask("POST", path, {"ids": [1]}).json()["result"] == [only_id]
    assert gateway.ask("GET", f"{path}/1").json()["result"] == whole
    scrolled = gateway.ask("POST", f"{path}/scroll", {}).json()["result"]
    assert scrolled == {"points": [{"id": 1, "payload": {"a": 1}}], "next_page_offset": None}
    found = gateway.ask("POST", f"{path}/query", {"query": V}).json()["result"]["points"]
    assert found == [{"id": 1, "version": found[0]["version"], "score": 1.0}]


def test_the_root_says_openly_what_answers(gateway: GatewayProcess) -> None:
    about = gateway.ask("GET", "/").json()
    assert about["title"] == "qdrant - vector search engine"
    assert about["identity"] == gateway.identity
    assert "embedded gateway" in about["engine"]
    assert about["broken_collections"] == 0


def count(gateway: GatewayProcess, collection: str) -> int:
    answer = gateway.ask("POST", f"/collections/{collection}/points/count", {})
    found: int = answer.json()["result"]["count"]
    return found
