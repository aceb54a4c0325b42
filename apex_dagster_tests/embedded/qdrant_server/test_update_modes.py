"""Staging repeats itself, and late; insert_only is what makes that harmless."""

import threading

import pytest
from qdrant_client import QdrantClient, models

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess


def staged(ids: range, vector: float = 1.0) -> list[models.PointStruct]:
    payload = {"ingestion_status": "staged"}
    return [models.PointStruct(id=n, vector=[vector] * 4, payload=payload) for n in ids]


def stored(client: QdrantClient, collection: str) -> dict[object, tuple[object, object]]:
    records, _ = client.scroll(collection, limit=1000, with_vectors=True)
    return {
        record.id: ((record.payload or {}).get("ingestion_status"), record.vector[0])  # type: ignore[index]
        for record in records
    }


@pytest.mark.parametrize("as_batch", [False, True])
def test_a_late_repeat_leaves_published_points_alone(
    client: QdrantClient, collection: str, as_batch: bool
) -> None:
    def stage(ids: range, vector: float) -> None:
        structs = staged(ids, vector)
        columns = models.Batch(
            ids=[one.id for one in structs],
            vectors=[one.vector for one in structs],
            payloads=[one.payload for one in structs],
        )
        client.upsert(
            collection,
            points=columns if as_batch else structs,
            update_mode=models.UpdateMode.INSERT_ONLY,
            wait=True,
        )

    stage(range(3), 1.0)
    client.set_payload(collection, {"ingestion_status": "committed"}, points=[0, 1, 2], wait=True)
    stage(range(5), 2.0)
    assert stored(client, collection) == {
        **dict.fromkeys(range(3), ("committed", 1.0)),
        **dict.fromkeys((3, 4), ("staged", 2.0)),
    }


def test_update_only_inserts_nothing(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=staged(range(2)), wait=True)
    client.upsert(
        collection, points=staged(range(4), 2.0), update_mode=models.UpdateMode.UPDATE_ONLY,
        wait=True,
    )  # fmt: skip
    assert stored(client, collection) == dict.fromkeys(range(2), ("staged", 2.0))


def test_an_upsert_may_be_conditional(client: QdrantClient, collection: str) -> None:
    client.upsert(collection, points=staged(range(2)), wait=True)
    client.set_payload(collection, {"ingestion_status": "committed"}, points=[1], wait=True)
    still_staged = models.FieldCondition(
        key="ingestion_status", match=models.MatchValue(value="staged")
    )
    client.upsert(
        collection, points=staged(range(3), 2.0), wait=True,
        update_filter=models.Filter(must=[still_staged]),
    )  # fmt: skip
    assert stored(client, collection) == {
        0: ("staged", 2.0), 1: ("committed", 1.0), 2: ("staged", 2.0),
    }  # fmt: skip


def test_of_two_racing_inserts_one_wins_as_a_whole(
    gateway: GatewayProcess, client: QdrantClient, collection: str
) -> None:
    """Requests apply one after the other: no reader or writer sees half of one."""

    def insert(vector: float) -> None:
        own = gateway.client()
        mode = models.UpdateMode.INSERT_ONLY
        own.upsert(collection, points=staged(range(200), vector), update_mode=mode, wait=True)
        own.close()

    threads = [threading.Thread(target=insert, args=(float(n),)) for n in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = stored(client, collection)
    assert len(found) == 200
    assert len({vector for _, vector in found.values()}) == 1
