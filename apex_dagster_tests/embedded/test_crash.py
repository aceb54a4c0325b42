"""What was acknowledged is there after kill -9 and after a stop, for each of the four engines."""

import json
import time
from urllib.request import Request, urlopen

import psycopg
import pytest
import redis
from neo4j import GraphDatabase
from neo4j.exceptions import DriverError

STORES = ("neo4j", "postgres", "qdrant", "redis")


def neo4j_driver(endpoints):
    auth = (endpoints.neo4j_user, endpoints.neo4j_password.get_secret_value())
    return GraphDatabase.driver(endpoints.neo4j_uri, auth=auth)


def call_qdrant(endpoints, method, path, body=None):
    headers = {
        "api-key": endpoints.qdrant_api_key.get_secret_value(),
        "content-type": "application/json",
    }
    data = None if body is None else json.dumps(body).encode()
    request = Request(endpoints.qdrant_url + path, data=data, headers=headers, method=method)
    with urlopen(request, timeout=10) as response:
        return json.load(response)["result"]


def write(store, endpoints):
    if store == "neo4j":
        with neo4j_driver(endpoints) as driver:
            driver.execute_query("CREATE (:Proof {text: 'kept'})")
    elif store == "postgres":
        with psycopg.connect(endpoints.postgres_url.get_secret_value()) as connection:
            connection.execute("CREATE EXTENSION vector")
            connection.execute("CREATE TABLE proof (text text, place vector(2))")
            connection.execute("INSERT INTO proof VALUES ('kept', '[1,2]')")
    elif store == "qdrant":
        vectors = {"size": 2, "distance": "Cosine"}
        call_qdrant(endpoints, "PUT", "/collections/proof", {"vectors": vectors})
        points = [{"id": 1, "vector": [1, 0], "payload": {"text": "kept"}}]
        call_qdrant(endpoints, "PUT", "/collections/proof/points?wait=true", {"points": points})
    else:
        with redis.Redis.from_url(endpoints.redis_url.get_secret_value()) as client:
            client.set("proof", "kept")
            client.execute_command("WAITAOF", 1, 0, 5000)


def read(store, endpoints):
    if store == "neo4j":
        with neo4j_driver(endpoints) as driver:
            return driver.execute_query("MATCH (p:Proof) RETURN p.text AS text").records[0]["text"]
    if store == "postgres":
        with psycopg.connect(endpoints.postgres_url.get_secret_value()) as connection:
            return connection.execute("SELECT text FROM proof").fetchone()[0]
    if store == "qdrant":
        body = {"ids": [1], "with_payload": True}
        points = call_qdrant(endpoints, "POST", "/collections/proof/points", body)
        return points[0]["payload"]["text"]
    with redis.Redis.from_url(endpoints.redis_url.get_secret_value()) as client:
        return client.get("proof").decode()


@pytest.mark.parametrize("store", STORES)
def test_data_survives_kill_and_stop_on_the_same_address(private_server, store):
    server = private_server(store)
    write(store, server.endpoints)
    server.kill()
    server.start()  # asserts the port
    assert read(store, server.endpoints) == "kept"
    server.stop()
    server.start()
    assert read(store, server.endpoints) == "kept"


def test_frozen_neo4j_is_noticed_by_a_client_that_waits_for_it(private_server):
    """The server's keep-alive hint turns into a time-out of the driver: 2 x 5 s."""
    server = private_server("neo4j")
    with neo4j_driver(server.endpoints) as driver, driver.session() as session:
        session.run("RETURN 1").consume()
        server.freeze()
        started = time.monotonic()
        with pytest.raises(DriverError):
            session.run("RETURN 1").consume()
        assert 5 < time.monotonic() - started < 25
        server.thaw()
