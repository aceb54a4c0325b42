"""What is compared by `apex bench writes` has to be the same work, on real stores."""

from __future__ import annotations

import numpy as np
import psycopg
import pytest

from apex_dagster.bench.corpus import Corpus, Shape
from apex_dagster.bench.pairs import run_pairs
from apex_dagster.bench.raw_writes import RawWrites
from apex_dagster.bench.saga_writes import SagaWrites
from apex_dagster.bench.stopwatch import Processors
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.applications import QUICK

SHAPE = Shape(chunks=2, chunk_words=5, entities=3, relations=2)
PARTS = {
    "ledger",
    *(f"{part}_{store}" for part in ("stage", "publish") for store in ("neo4j", "postgres")),
    *(f"{part}_{store}" for part in ("stage", "publish") for store in ("qdrant", "redis")),
}


@pytest.fixture
def settings(qdrant_collection: str, redis_prefix: str) -> Settings:
    values = QUICK | {"qdrant_collection": qdrant_collection, "redis_prefix": redis_prefix}
    return Settings(**values)


def test_a_seed_gives_the_same_documents_again() -> None:
    first, second = (Corpus(seed=7, shape=SHAPE, prefix="d").batch(3) for _ in range(2))
    assert [each.content_hash for each in first] == [each.content_hash for each in second]
    assert [each.entities for each in first] == [each.entities for each in second]
    assert all(
        np.array_equal(a.embeddings, b.embeddings) for a, b in zip(first, second, strict=True)
    )
    assert len({each.content_hash for each in first}) == 3


def test_both_sides_write_every_document(
    endpoints: Endpoints, settings: Settings, unique: str
) -> None:
    name = f"bench_{unique}"
    url = endpoints.postgres_url.get_secret_value()
    saga, at_once = SagaWrites(settings, endpoints), SagaWrites(settings, endpoints)
    raw = RawWrites(endpoints, name=name, embedding_dim=SHAPE.embedding_dim)
    raw.prepare()
    try:
        report = run_pairs(
            Corpus(seed=1, shape=SHAPE, prefix=name),
            raw=raw,
            saga=saga,
            saga_at_once=at_once,
            processors=Processors({}),
            batch_documents=2,
            pairs=2,
            warm_up_batches=1,
        )
        with psycopg.connect(url) as connection:
            by_raw, by_saga = (
                connection.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
                for table in (f"{name}.chunks", "apex.chunks")
            )
    finally:
        raw.drop()
        saga.close()
        at_once.close()
    documents = 2 * 3  # of two, and the warm-up
    assert by_raw == (2 * documents * SHAPE.chunks,)  # one after another, then all at once
    assert by_saga == (2 * documents * SHAPE.chunks,)
    assert report["sides"]["saga"]["ms_by_part"].keys() >= PARTS
    assert report["summary"]["ratio_to_raw_writes"] > 0
    with psycopg.connect(url) as connection:
        left = connection.execute("SELECT to_regnamespace(%s)", [name]).fetchone()
    assert left == (None,)
