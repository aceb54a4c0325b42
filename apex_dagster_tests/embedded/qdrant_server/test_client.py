"""The unmodified QdrantClient, doing all that this project asks of Qdrant."""

import importlib.metadata
import uuid

import numpy as np
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client.common.version_check import is_compatible
from qdrant_client.http.exceptions import UnexpectedResponse

from apex_dagster_tests.embedded.qdrant_server.conftest import DIM

UNICODE = "Zürich 東京 \U0001f9ea \u0000 e\u0301"


def points(count: int, **payload: object) -> list[models.PointStruct]:
    return [
        models.PointStruct(
            id=str(uuid.UUID(int=n + 1)), vector=[n, 1, 0, 0], payload={"n": n} | payload
        )
        for n in range(count)
    ]


def where(key: str, value: object) -> models.Filter:
    match = models.MatchValue(value=value)
    return models.Filter(must=[models.FieldCondition(key=key, match=match)])


def bits_of(vector: object) -> bytes:
    return np.asarray(vector, dtype=np.float32).tobytes()


def test_the_client_accepts_the_gateways_version(client: QdrantClient) -> None:
    assert is_compatible(importlib.metadata.version("qdrant-client"), client.info().version)


def test_a_collection_from_creation_to_deletion(client: QdrantClient) -> None:
    name = f"Sammlung_東京_{uuid.uuid4().hex}"
    vectors = models.VectorParams(size=7, distance=models.Distance.COSINE, on_disk=True)
    tuning = models.HnswConfigDiff(m=16)
    assert not client.collection_exists(name)
    assert client.create_collection(name, vectors_config=vectors, hnsw_config=tuning)
    assert client.collection_exists(name)
    assert name in [one.name for one in client.get_collections().collections]
    info = client.get_collection(name)
    assert info.status == models.CollectionStatus.GREEN
    assert info.points_count == 0
    assert isinstance(info.config.params.vectors, models.VectorParams)
    assert (info.config.params.vectors.size, info.config.params.vectors.on_disk) == (7, True)
    assert info.config.params.vectors.distance == models.Distance.COSINE
    assert client.delete_collection(name)
    assert not client.collection_exists(name)
    with pytest.raises(UnexpectedResponse, match="404"):
        client.get_collection(name)


def test_payload_indexes_of_every_kind(client: QdrantClient, collection: str) -> None:
    kinds = ["keyword", "integer", "float", "bool", "datetime", "uuid", "text"]
    for kind in kinds:
        client.create_payload_index(collection, f"{kind}_field", field_schema=kind, wait=True)  # type: ignore[arg-type]
    words = models.TextIndexParams(
        type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD, lowercase=True
    )
    client.create_payload_index(collection, "body.words", field_schema=words, wait=True)
    schema = client.get_collection(collection).payload_schema
    assert {name: index.data_type.value for name, index in schema.items()} == {
        **{f"{kind}_field": kind for kind in kinds},
        "body.words": "text",
    }
    client.delete_payload_index(collection, "body.words", wait=True)
    assert "body.words" not in client.get_collection(collection).payload_schema


def test_points_come_back_as_they_were_sent(client: QdrantClient, collection: str) -> None:
    payload = {
        UNICODE: UNICODE,
        "nested": {"list": [1, 2.5, None, True, {"x": []}]},
        "big": 2**62,
        "negative": -(2**62),
        "empty": {},
    }
    number, name = 2**63 + 1, str(uuid.uuid4())
    client.upsert(
        collection,
        points=models.Batch(
            ids=[number, name], vectors=[[1, 2, 3, 4], [0.1, -0.0, 1e-40, 3e38]],
            payloads=[payload, {}],
        ),
        wait=True,
    )  # fmt: skip
    found = {
        record.id: record
        for record in client.retrieve(collection, [number, name, 5, number], with_vectors=True)
    }
    assert set(found) == {number, name}
    assert found[number].payload == payload
    assert found[name].payload == {}
    assert bits_of(found[name].vector) == bits_of([0.1, -0.0, 1e-40, 3e38])


def test_any_float32_survives_bit_by_bit(client: QdrantClient) -> None:
    """Digests are made of these bits. Cosine would normalise them, so the store uses Dot."""
    name, rng = f"bits_{uuid.uuid4().hex}", np.random.default_rng(7)
    bits = rng.integers(0, 2**32, size=(64, 384), dtype=np.uint32)
    vectors = bits.view(np.float32)
    vectors = np.where(np.isfinite(vectors), vectors, np.float32(0.1))
    client.create_collection(
        name, vectors_config=models.VectorParams(size=384, distance=models.Distance.DOT)
    )
    batch = models.Batch(ids=list(range(64)), vectors=vectors.tolist())
    client.upsert(name, points=batch, wait=True)
    records, _ = client.scroll(name, limit=100, with_vectors=True)
    stored = np.array([record.vector for record in records], dtype=np.float32)
    assert stored.tobytes() == vectors.tobytes()


def test_scrolling_visits_every_point_once(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=points(25), wait=True)
    seen, offset = [], None
    while True:
        page, offset = client.scroll(
            collection, limit=10, offset=offset, with_payload=["n"], scroll_filter=models.Filter(
                must=[models.FieldCondition(key="n", range=models.Range(gte=3, lt=24))]
            ),
        )  # fmt: skip
        seen += [record.payload["n"] for record in page if record.payload]
        if offset is None:
            break
    assert seen == list(range(3, 24))


def test_scrolling_in_the_order_of_an_indexed_field(client: QdrantClient, collection: str) -> None:
    client.create_payload_index(collection, "n", field_schema="integer", wait=True)  # type: ignore[arg-type]
    client.upsert(collection, points=points(9), wait=True)
    order = models.OrderBy(key="n", direction=models.Direction.DESC, start_from=5)
    page, _ = client.scroll(collection, order_by=order, limit=3)
    assert [record.payload["n"] for record in page if record.payload] == [5, 4, 3]


def test_payload_selectors(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=points(1, a=1, b={"c": 2, "d": 3}), wait=True)

    def shown(selector: object) -> object:
        return client.scroll(collection, with_payload=selector)[0][0].payload  # type: ignore[arg-type]

    assert shown(False) is None
    assert shown(["a"]) == {"a": 1}
    assert shown(models.PayloadSelectorInclude(include=["b.c"])) == {"b": {"c": 2}}
    assert shown(models.PayloadSelectorExclude(exclude=["b"])) == {"n": 0, "a": 1}


def test_payload_is_changed_by_ids_and_by_filter(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=points(4, saga_id="s"), wait=True)
    ids = [point.id for point in points(4)]
    client.set_payload(collection, {"status": "committed"}, points=where("saga_id", "s"), wait=True)
    client.set_payload(collection, {"x": 1}, points=[ids[0]], key="deep.er", wait=True)
    client.overwrite_payload(collection, {"only": 1}, points=[ids[1]], wait=True)
    client.delete_payload(collection, keys=["saga_id"], points=where("n", 2), wait=True)
    client.clear_payload(collection, points_selector=[ids[3]], wait=True)
    assert [record.payload for record in client.scroll(collection)[0]] == [
        {"n": 0, "saga_id": "s", "status": "committed", "deep": {"er": {"x": 1}}},
        {"only": 1},
        {"n": 2, "status": "committed"},
        {},
    ]


def test_points_are_deleted_by_ids_and_by_filter(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=points(6, saga_id="s"), wait=True)
    client.delete(collection, points_selector=[points(1)[0].id, str(uuid.uuid4())], wait=True)
    selector = models.FilterSelector(filter=where("n", 3))
    client.delete(collection, points_selector=selector, wait=True)
    assert client.count(collection, count_filter=where("saga_id", "s")).count == 4
    client.delete(collection, points_selector=where("saga_id", "s"), wait=True)
    assert client.count(collection).count == 0


def test_a_batch_of_operations_is_applied_in_order(client: QdrantClient, collection: str) -> None:
    first, second = points(2)
    results = client.batch_update_points(
        collection,
        update_operations=[
            models.UpsertOperation(upsert=models.PointsList(points=[first, second])),
            models.SetPayloadOperation(
                set_payload=models.SetPayload(payload={"x": 1}, points=[first.id])
            ),
            models.DeleteOperation(delete=models.PointIdsList(points=[second.id])),
        ],
        wait=True,
    )
    assert [result.status for result in results] == [models.UpdateStatus.COMPLETED] * 3
    assert [record.payload for record in client.scroll(collection)[0]] == [{"n": 0, "x": 1}]


def test_facets_count_an_indexed_field(client: QdrantClient, collection: str) -> None:
    client.create_payload_index(collection, "kind", field_schema="keyword", wait=True)  # type: ignore[arg-type]
    client.upsert(collection, points=points(5, kind="a"), wait=True)
    client.set_payload(collection, {"kind": "b"}, points=[points(1)[0].id], wait=True)
    hits = client.facet(collection, key="kind").hits
    assert [(hit.value, hit.count) for hit in hits] == [("a", 4), ("b", 1)]


def test_text_matches_words_once_indexed(client: QdrantClient, collection: str) -> None:
    texts = ["a red fox", "the fox is red", "a redder foxglove"]
    for point, text in zip(points(3), texts, strict=True):
        point.payload = {"text": text}
        client.upsert(collection, points=[point], wait=True)
    words = models.TextIndexParams(type=models.TextIndexType.TEXT, phrase_matching=True)
    client.create_payload_index(collection, "text", field_schema=words, wait=True)

    def matching(match: object) -> int:
        condition = models.FieldCondition(key="text", match=match)
        return client.count(collection, count_filter=models.Filter(must=[condition])).count

    assert matching(models.MatchText(text="RED fox")) == 2
    assert matching(models.MatchPhrase(phrase="red fox")) == 1
    assert matching(models.MatchTextAny(text_any="fox foxglove")) == 3


def test_a_dimension_mismatch_reaches_the_caller(client: QdrantClient, collection: str) -> None:
    wrong = models.PointStruct(id=1, vector=[1.0] * (DIM + 1))
    with pytest.raises(UnexpectedResponse, match="expected dim: 4, got 5") as refused:
        client.upsert(collection, points=[wrong], wait=True)
    assert refused.value.status_code == 400
    assert client.count(collection).count == 0
