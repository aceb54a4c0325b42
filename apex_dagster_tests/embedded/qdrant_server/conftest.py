"""One gateway for the session; a collection of its own for each test."""

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient, models

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess

DIM = 4


@pytest.fixture(scope="session")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    process = GatewayProcess(tmp_path_factory.mktemp("gateway"), "--request-mib-max", "4")
    try:
        yield process.start()
    finally:
        assert process.stop() == 0


@pytest.fixture
def own_gateway(tmp_path: Path) -> Iterator[Callable[..., GatewayProcess]]:
    """Makes gateways that a test may kill; all are stopped afterwards."""
    made: list[GatewayProcess] = []

    def make(*flags: str, folder: Path = tmp_path) -> GatewayProcess:
        made.append(GatewayProcess(folder, *flags))
        return made[-1]

    yield make
    for process in made:
        if process.process is not None:
            process.stop()


@pytest.fixture
def client(gateway: GatewayProcess) -> Iterator[QdrantClient]:
    client = gateway.client()
    yield client
    client.close()


@pytest.fixture
def collection(client: QdrantClient) -> str:
    """An empty collection of 4 dimensions, compared by dot product."""
    name = f"test_{uuid.uuid4().hex}"
    vectors = models.VectorParams(size=DIM, distance=models.Distance.DOT)
    assert client.create_collection(name, vectors_config=vectors)
    return name
