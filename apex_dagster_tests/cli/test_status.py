"""`apex status` says what the stores say, not what the ledger hopes."""

from dataclasses import replace

import psycopg
import pytest
import redis

from apex_dagster_tests.documents import submission, submissions

KEYS = ["document_id", "version", "status", "neo4j", "postgres", "qdrant", "redis", "duration_ms"]


def test_json_holds_each_documents_newest_saga_and_four_counts(app, shell, unique):
    first, second = f"{unique}-a", f"{unique}-b"
    app.ingestion.ingest([submission(first, chunks=3)], owner="test")
    app.ingestion.ingest([submission(second, chunks=5)], owner="test")
    answer = shell.json("status")
    assert list(answer) == ["documents"]
    assert [list(document) for document in answer["documents"]] == [KEYS, KEYS]
    durations = [document.pop("duration_ms") for document in answer["documents"]]
    assert all(duration > 0 for duration in durations)
    assert answer["documents"] == [
        {
            "document_id": document_id,
            "version": 1,
            "status": "completed",
            "neo4j": 2,
            "postgres": chunks,
            "qdrant": chunks,
            "redis": f"{app.settings.redis_prefix}doc:{document_id}",
        }
        for document_id, chunks in ((first, 3), (second, 5))
    ]


def test_the_key_it_names_is_the_one_redis_has(app, shell, unique):
    app.ingestion.ingest([submission(unique)], owner="test")
    [document] = shell.json("status")["documents"]
    with redis.Redis.from_url(app.endpoints.redis_url.get_secret_value()) as client:
        assert client.exists(document["redis"])
        client.delete(document["redis"])  # as if it had expired
    [document] = shell.json("status")["documents"]
    assert document["redis"] is None
    assert document["status"] == "completed"


def test_what_a_store_has_lost_is_missing_from_its_count(app, shell, unique):
    app.ingestion.ingest([submission(unique, chunks=4)], owner="test")
    with psycopg.connect(app.endpoints.postgres_url.get_secret_value()) as connection:
        connection.execute("DELETE FROM apex.chunks WHERE ordinal >= 3")
    [document] = shell.json("status")["documents"]
    assert (document["postgres"], document["qdrant"]) == (3, 4)


def test_the_newest_saga_counts_even_if_the_version_before_it_is_live(app, shell, unique):
    app.ingestion.ingest([submission(unique)], owner="test")
    app.ingestion.ingest([submission(unique, edition=2, dim=7)], owner="test")
    [document] = shell.json("status")["documents"]
    assert (document["version"], document["status"]) == (2, "compensated")
    assert [document[store] for store in ("neo4j", "postgres", "qdrant")] == [0, 0, 0]
    assert document["redis"] is None
    for_people = shell("status").stdout
    assert "compensated" in for_people
    assert app.ledger.list_sagas(limit=1)[0].saga_id in for_people


def test_a_limit_keeps_those_that_arrived_last(app, shell, unique):
    app.ingestion.ingest(submissions(unique, 4), owner="test")
    app.ingestion.ingest([submission(f"{unique}-1", edition=2)], owner="test")
    documents = shell.json("status", "--limit", "2")["documents"]
    assert [d["document_id"] for d in documents] == [f"{unique}-3", f"{unique}-1"]


@pytest.mark.parametrize("name", ["qdrant", "redis"])
def test_a_store_that_is_down_counts_null_and_is_named(
    build_application, endpoints, private_server, shell_of_application, unique, name
):
    server = private_server(name)
    app = build_application(servers=replace(server.endpoints, postgres_url=endpoints.postgres_url))
    app.ingestion.ingest([submission(unique)], owner="test")
    shell = shell_of_application(app)
    assert shell.json("status")["documents"][0][name] is not None
    server.kill()
    result = shell("status", "--json")
    assert result.exit_code == 1
    assert f"{name} gave no answer" in result.stderr
    [document] = shell.json("status", exit_code=1)["documents"]
    assert document[name] is None
    assert (document["status"], document["postgres"]) == ("completed", 3)


def test_a_store_that_hangs_counts_as_down(
    build_application, endpoints, private_server, shell_of_application, unique
):
    server = private_server("redis")
    app = build_application(servers=replace(server.endpoints, postgres_url=endpoints.postgres_url))
    app.ingestion.ingest([submission(unique)], owner="test")
    server.freeze()
    [document] = shell_of_application(app).json("status", exit_code=1)["documents"]
    assert (document["redis"], document["qdrant"]) == (None, 3)


def test_people_get_totals(app, shell, unique):
    app.ingestion.ingest(submissions(unique, 3), owner="test")
    result = shell("status")
    assert result.exit_code == 0
    assert "3 documents" in result.stdout
    assert "3 completed" in result.stdout
    assert result.stderr == ""


def test_an_empty_ledger_says_what_to_do(app, shell):
    assert shell.json("status") == {"documents": []}
    assert "apex demo" in shell("status").stdout
