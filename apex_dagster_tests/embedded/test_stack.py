"""The embedded stack as the other tests use it."""

import json
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psycopg
import redis
from neo4j import GraphDatabase


def test_all_four_servers_answer_with_their_passwords(stack):
    with psycopg.connect(stack.postgres_url.get_secret_value()) as connection:
        version = connection.execute("SHOW server_version").fetchone()[0]
    assert version.startswith("18.")
    with redis.Redis.from_url(stack.redis_url.get_secret_value()) as client:
        assert client.ping()
    auth = (stack.neo4j_user, stack.neo4j_password.get_secret_value())
    with GraphDatabase.driver(stack.neo4j_uri, auth=auth) as driver:
        driver.verify_connectivity()
    request = Request(
        f"{stack.qdrant_url}/collections",
        headers={"api-key": stack.qdrant_api_key.get_secret_value()},
    )
    with urlopen(request, timeout=5) as response:
        assert json.load(response)["status"] == "ok"


def test_a_database_of_its_own_is_migrated(postgres_database):
    with psycopg.connect(postgres_database) as connection:
        tables = connection.execute("SELECT count(*) FROM apex.saga_state").fetchone()[0]
    assert tables == 0
    assert urlsplit(postgres_database).path.startswith("/test_")
