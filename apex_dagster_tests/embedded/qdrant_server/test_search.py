"""Search against exact arithmetic on seeded data."""

import uuid
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess

COUNT, DIM = 2000, 32
Scores = Callable[[NDArray[np.float64], NDArray[np.float64]], NDArray[np.float64]]


def unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    unit_vectors: NDArray[np.float64] = vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)
    return unit_vectors


SCORES: dict[models.Distance, Scores] = {
    models.Distance.DOT: lambda rows, query: rows @ query,
    models.Distance.COSINE: lambda rows, query: unit(rows) @ unit(query),
    models.Distance.EUCLID: lambda rows, query: np.linalg.norm(rows - query, axis=1),
}
COLORS = ["red", "green", "blue"]
COLOR = np.array([COLORS[n % 3] for n in range(COUNT)])
YEAR = np.arange(COUNT) % 30 + 1990


def field(key: str, **test: object) -> models.FieldCondition:
    return models.FieldCondition(key=key, **test)


FILTERS: dict[str, tuple[models.Filter | None, NDArray[np.bool_]]] = {
    "all": (None, np.ones(COUNT, dtype=bool)),
    "value": (
        models.Filter(must=[field("color", match=models.MatchValue(value="red"))]),
        COLOR == "red",
    ),
    "any and range": (
        models.Filter(
            must=[
                field("color", match=models.MatchAny(any=["red", "blue"])),
                field("year", range=models.Range(gte=2000, lt=2005)),
            ]
        ),
        (COLOR != "green") & (YEAR >= 2000) & (YEAR < 2005),
    ),
    "not, or, except": (
        models.Filter(
            must_not=[field("color", match=models.MatchValue(value="red"))],
            should=[
                field("year", range=models.Range(gt=2015)),
                field("color", match=models.MatchExcept(**{"except": ["green", "red"]})),
            ],
        ),
        (COLOR != "red") & ((YEAR > 2015) | (COLOR == "blue")),
    ),
    "ids": (
        models.Filter(must=[models.HasIdCondition(has_id=list(range(0, COUNT, 40)))]),
        np.arange(COUNT) % 40 == 0,
    ),
    "nested list of objects": (
        models.Filter(
            must=[
                models.NestedCondition(
                    nested=models.Nested(
                        key="tags",
                        filter=models.Filter(
                            must=[
                                field("name", match=models.MatchValue(value="y")),
                                field("weight", range=models.Range(gte=4)),
                            ]
                        ),
                    )
                )
            ]
        ),
        np.arange(COUNT) % 7 >= 4,
    ),
    "absent": (
        models.Filter(must=[models.IsEmptyCondition(is_empty=models.PayloadField(key="rare"))]),
        np.arange(COUNT) % 100 != 0,
    ),
    "at least two": (
        models.Filter(
            min_should=models.MinShould(
                conditions=[
                    field("color", match=models.MatchValue(value="red")),
                    field("year", range=models.Range(lt=2000)),
                    field("rare", match=models.MatchValue(value=True)),
                ],
                min_count=2,
            )
        ),
        (COLOR == "red").astype(int) + (YEAR < 2000) + (np.arange(COUNT) % 100 == 0) >= 2,
    ),
    "nothing": (
        models.Filter(must=[field("color", match=models.MatchValue(value="none"))]),
        np.zeros(COUNT, dtype=bool),
    ),
}


@pytest.fixture(scope="module")
def vectors() -> NDArray[np.float32]:
    return np.random.default_rng(11).normal(size=(COUNT, DIM)).astype(np.float32)


@pytest.fixture(scope="module", params=list(SCORES), ids=lambda distance: distance.value)
def searchable(
    gateway: GatewayProcess, vectors: NDArray[np.float32], request: pytest.FixtureRequest
) -> tuple[QdrantClient, str, models.Distance]:
    """2000 points; the filtered fields are indexed for Dot only, so that both ways are tested."""
    client, name = gateway.client(), f"search_{uuid.uuid4().hex}"
    params = models.VectorParams(size=DIM, distance=request.param)
    client.create_collection(name, vectors_config=params)
    if request.param == models.Distance.DOT:
        client.create_payload_index(name, "color", field_schema="keyword", wait=True)  # type: ignore[arg-type]
        client.create_payload_index(name, "year", field_schema="integer", wait=True)  # type: ignore[arg-type]
    payloads = [payload(n) for n in range(COUNT)]
    batch = models.Batch(ids=list(range(COUNT)), vectors=vectors.tolist(), payloads=payloads)
    client.upsert(name, points=batch, wait=True)
    return client, name, request.param


def payload(n: int) -> dict[str, object]:
    tags = [{"name": "x", "weight": 9}, {"name": "y", "weight": n % 7}]
    rare = {"rare": True} if n % 100 == 0 else {}
    return {"color": str(COLOR[n]), "year": int(YEAR[n]), "tags": tags} | rare


def exact(
    vectors: NDArray[np.float32],
    query: NDArray[np.float32],
    distance: models.Distance,
    allowed: NDArray[np.bool_],
) -> tuple[list[int], NDArray[np.float64]]:
    """All allowed points, best first, and the score of every point."""
    scores = SCORES[distance](vectors.astype(np.float64), query.astype(np.float64))
    best_first = scores if distance == models.Distance.EUCLID else -scores
    order = np.argsort(best_first, kind="stable")
    return [int(n) for n in order if allowed[n]], scores


@pytest.mark.parametrize("name", FILTERS)
def test_the_top_ten_are_exactly_the_ten_best(
    searchable: tuple[QdrantClient, str, models.Distance], vectors: NDArray[np.float32], name: str
) -> None:
    client, collection, distance = searchable
    query_filter, allowed = FILTERS[name]
    for query in np.random.default_rng(3).normal(size=(10, DIM)).astype(np.float32):
        ranked, scores = exact(vectors, query, distance, allowed)
        found = client.query_points(
            collection, query=query.tolist(), query_filter=query_filter, limit=10
        ).points
        assert [point.id for point in found] == ranked[:10]
        assert [point.score for point in found] == pytest.approx(scores[ranked[:10]], rel=1e-4)
    assert client.count(collection, count_filter=query_filter).count == allowed.sum()


def test_offset_threshold_and_batch(
    searchable: tuple[QdrantClient, str, models.Distance], vectors: NDArray[np.float32]
) -> None:
    client, collection, distance = searchable
    query = vectors[5] + np.float32(0.01)
    ranked, scores = exact(vectors, query, distance, np.ones(COUNT, dtype=bool))
    threshold = float(scores[ranked[3]] + scores[ranked[4]]) / 2
    requests = [
        models.QueryRequest(query=query.tolist(), limit=5, offset=3),
        models.QueryRequest(query=query.tolist(), limit=10, score_threshold=threshold),
        models.QueryRequest(query=query.tolist(), limit=1, with_payload=True, with_vector=True),
    ]
    third, fourth, fifth = client.query_batch_points(collection, requests=requests)
    assert [point.id for point in third.points] == ranked[3:8]
    assert [point.id for point in fourth.points] == ranked[:4]
    assert fifth.points[0].payload == payload(5)
    if distance != models.Distance.COSINE:
        assert np.array_equal(np.float32(fifth.points[0].vector), vectors[5])  # type: ignore[arg-type]


def test_prefetches_are_fused_by_reciprocal_rank(
    searchable: tuple[QdrantClient, str, models.Distance], vectors: NDArray[np.float32]
) -> None:
    """Score of a point: the sum of 1 / (k + rank) over the lists it is in, rank from 0, k = 2."""
    client, collection, distance = searchable
    _, red = FILTERS["value"]
    everything = np.ones(COUNT, dtype=bool)
    one, other = vectors[1], vectors[2]
    lists = [
        exact(vectors, one, distance, everything)[0][:40],
        exact(vectors, other, distance, red)[0][:40],
    ]
    expected: dict[int, float] = {}
    for ranked in lists:
        for rank, point_id in enumerate(ranked):
            expected[point_id] = expected.get(point_id, 0.0) + 1 / (2 + rank)
    found = client.query_points(
        collection,
        prefetch=[
            models.Prefetch(query=one.tolist(), limit=40),
            models.Prefetch(query=other.tolist(), limit=40, filter=FILTERS["value"][0]),
        ],
        query=models.FusionQuery(fusion=models.Fusion.RRF),
        limit=20,
    ).points
    assert [point.score for point in found] == pytest.approx(
        sorted(expected.values(), reverse=True)[:20]
    )
    assert all(point.score == pytest.approx(expected[int(point.id)]) for point in found)
