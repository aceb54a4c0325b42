"""Who gets in: statuses and texts are those of a Qdrant server."""

import httpx
import pytest
from qdrant_client import QdrantClient
from qdrant_client.http.exceptions import UnexpectedResponse

from apex_dagster_tests.embedded.qdrant_server.gateway_process import GatewayProcess


@pytest.mark.parametrize("path", ["/", "/healthz", "/livez", "/readyz"])
def test_health_needs_no_key(gateway: GatewayProcess, path: str) -> None:
    assert httpx.get(gateway.url + path).status_code == 200


@pytest.mark.parametrize("path", ["/collections", "/collections/a/points/1", "/nowhere", "//"])
def test_everything_else_needs_one(gateway: GatewayProcess, path: str) -> None:
    answer = httpx.get(gateway.url + path)
    assert answer.status_code == 401
    assert answer.text == "Must provide an API key or an Authorization bearer token"


@pytest.mark.parametrize(
    "headers",
    [
        {"api-key": "wrong"},
        {"api-key": ""},
        {"authorization": "Bearer wrong"},
        {"api-key": "schlüssel".encode("latin-1")},
    ],
)
def test_a_wrong_key_is_refused(gateway: GatewayProcess, headers: dict[str, str]) -> None:
    answer = httpx.get(f"{gateway.url}/collections", headers=headers)
    assert (answer.status_code, answer.text) == (401, "Invalid API key or JWT")


def test_the_key_is_taken_from_either_header(gateway: GatewayProcess) -> None:
    for headers in ({"api-key": gateway.key}, {"authorization": f"Bearer {gateway.key}"}):
        assert httpx.get(f"{gateway.url}/collections", headers=headers).status_code == 200


def test_the_client_reports_a_wrong_key(gateway: GatewayProcess) -> None:
    with pytest.warns(UserWarning, match="insecure connection"):
        stranger = QdrantClient(url=gateway.url, api_key="wrong", prefer_grpc=False)
    with pytest.raises(UnexpectedResponse) as refused:
        stranger.get_collections()
    assert refused.value.status_code == 401


def test_the_key_shows_nowhere(gateway: GatewayProcess) -> None:
    assert gateway.process is not None
    gateway.ask("PUT", "/collections/x/points", b"{")
    assert gateway.key not in " ".join(map(str, gateway.process.args))  # type: ignore[arg-type]
    assert gateway.key not in gateway.log()
