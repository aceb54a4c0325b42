"""Four processes at once, each with a client of its own; every answer is checked."""

import subprocess
import sys

from qdrant_client import QdrantClient, models

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess

PROCESSES, DOCUMENTS, CHUNKS = 4, 15, 16

LOAD = """
import sys, uuid
import numpy as np
from qdrant_client import QdrantClient, models

url, collection, worker, documents, chunks = sys.argv[1:]
client = QdrantClient(url=url, api_key=sys.stdin.read(), prefer_grpc=False, timeout=30)
rng = np.random.default_rng(int(worker))

def of(saga_id):
    match = models.MatchValue(value=saga_id)
    return models.Filter(must=[models.FieldCondition(key="saga_id", match=match)])

for document in range(int(documents)):
    saga_id = f"ingest_{worker}_{document}"
    vectors = rng.normal(size=(int(chunks), 32)).astype(np.float32)
    ids = [str(uuid.uuid5(uuid.NAMESPACE_OID, f"{saga_id}-{n}")) for n in range(int(chunks))]
    payloads = [{"saga_id": saga_id, "n": n, "status": "staged"} for n in range(int(chunks))]
    batch = models.Batch(ids=ids, vectors=vectors.tolist(), payloads=payloads)
    for _ in range(2):
        client.upsert(collection, points=batch, wait=True,
                      update_mode=models.UpdateMode.INSERT_ONLY)
    client.set_payload(collection, {"status": "committed"}, points=of(saga_id), wait=True)
    found = client.query_points(collection, query=vectors[3].tolist(), query_filter=of(saga_id),
                                limit=int(chunks), with_payload=True, with_vectors=True).points
    best = np.argsort(-(vectors @ vectors[3]), kind="stable")
    assert [point.payload["n"] for point in found] == best.tolist()
    assert {point.payload["status"] for point in found} == {"committed"}
    assert all((np.float32(p.vector) == vectors[p.payload["n"]]).all() for p in found)
    assert client.count(collection, count_filter=of(saga_id)).count == int(chunks)
    if document % 3 == 0:
        client.delete(collection, points_selector=of(saga_id), wait=True)
        assert client.count(collection, count_filter=of(saga_id)).count == 0
"""


def test_four_processes_get_right_answers_only(
    gateway: GatewayProcess, client: QdrantClient
) -> None:
    collection = "load"
    vectors = models.VectorParams(size=32, distance=models.Distance.DOT)
    client.create_collection(collection, vectors_config=vectors)
    client.create_payload_index(collection, "saga_id", field_schema="keyword", wait=True)  # type: ignore[arg-type]
    python = [sys.executable, "-W", "ignore", "-c", LOAD]
    loads = [
        subprocess.Popen(
            [*python, gateway.url, collection, str(worker), str(DOCUMENTS), str(CHUNKS)],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for worker in range(PROCESSES)
    ]
    for load in loads:
        assert load.stdin is not None
        load.stdin.write(gateway.key)
        load.stdin.close()
        load.stdin = None
    errors = [load.communicate(timeout=120)[1] for load in loads]
    assert errors == [""] * PROCESSES
    kept = DOCUMENTS - len(range(0, DOCUMENTS, 3))
    assert client.count(collection).count == PROCESSES * kept * CHUNKS
    client.delete_collection(collection)
