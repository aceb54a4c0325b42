"""Who gets in: a real process that asks for keys."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from apex_dagster.access.keys import Scope, create_key, revoke_key
from apex_dagster.api.keys import OPEN_PATHS
from apex_dagster_tests.api.requests import body_of, post, problem

Key = Callable[..., str]


@pytest.fixture
def key(app) -> Key:
    """Makes keys: key("read", "write", name=…)."""

    def make(*scopes: str, name: str = "newsroom") -> str:
        return create_key(app.ledger, name, [Scope(s) for s in scopes], by="ada@quay")[1]

    return make


@pytest.fixture
def guarded(start_api):
    return start_api(api_keys="true", api_keys_cache_s="1")


@pytest.fixture
def client(guarded):
    with guarded.client() as client:
        yield client


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def test_without_a_key_everything_but_health_and_description_is_closed(client):
    paths = client.get("/openapi.json").json()["paths"]
    calls = {(method, path) for path, operations in paths.items() for method in operations}
    for method, path in sorted(calls | {("get", "/nowhere"), ("delete", "/healthz")}):
        answer = client.request(method, path)
        if path in OPEN_PATHS and method == "get":
            assert answer.status_code == 200
        else:
            assert "Authorization" in problem(answer, 401, "key")["detail"]
            assert answer.headers["www-authenticate"] == 'Bearer realm="apex"'
    assert {path for _, path in calls} & OPEN_PATHS == {"/healthz", "/readyz"}
    assert client.get("/docs").status_code == 200


def test_the_description_says_which_routes_want_a_key(client, api):
    description = client.get("/openapi.json").json()
    schemes = set(description["components"]["securitySchemes"])
    for path, operations in description["paths"].items():
        for operation in operations.values():
            assert ("security" in operation) == (path not in OPEN_PATHS)
            if path not in OPEN_PATHS:
                assert {name for way in operation["security"] for name in way} == schemes
                assert {"401", "403"} <= set(operation["responses"])
    with api.client() as without:  # keys are off there
        assert "securitySchemes" not in without.get("/openapi.json").json()["components"]


def test_a_key_is_good_for_its_scopes_and_nothing_else(client, driver, key, unique):
    read, write, admin = key("read"), key("write"), key("admin")
    assert post(client, body_of(unique), **bearer(write)).status_code == 200
    assert client.get(f"/documents/{unique}", headers=bearer(read)).status_code == 200
    refused = client.get(f"/documents/{unique}", headers=bearer(write))
    assert problem(refused, 403, "scope")["scope"] == "read"
    assert 'error="insufficient_scope", scope="read"' in refused.headers["www-authenticate"]
    refused = post(client, body_of(unique, edition=2), **bearer(read))
    assert problem(refused, 403, "scope")["scope"] == "write"
    refused = client.delete(f"/documents/{unique}", headers=bearer(read))
    assert problem(refused, 403, "scope")["scope"] == "write"
    assert post(client, body_of(unique), **bearer(admin)).json()["unchanged"]
    assert client.get("/sagas", headers=bearer(admin)).status_code == 200


def test_a_key_may_come_in_either_header(client, key):
    token = key("read")
    for headers in (
        {"X-API-Key": token},
        {"Authorization": f"bearer {token}"},
        {"Authorization": "Basic YTpi", "X-API-Key": token},  # a proxy's own
    ):
        assert client.get("/version", headers=headers).status_code == 200
    for headers in (
        bearer(token[:-1]),
        bearer(token + "x"),
        {"Authorization": "Bearer"},
        {"Authorization": b"Bearer apex_\xe9_\xe9"},
        {"X-API-Key": "x"},
        bearer("apex_0_0") | {"X-API-Key": token},
    ):
        answer = client.get("/version", headers=headers)
        problem(answer, 401, "key")
        assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert client.get("/version", params={"key": token, "api_key": token}).status_code == 401


def test_a_new_key_works_and_a_revoked_one_does_not_for_long(client, key, app):
    """Within which time is shown in test_key_ring.py, where the clock is our own."""
    client.get("/version", headers=bearer(key("read")))  # the process knows its keys now
    late = key("read", name="late")
    assert eventually(lambda: client.get("/version", headers=bearer(late)).status_code == 200)
    revoke_key(app.ledger, "late", by="ada@quay")
    assert eventually(lambda: client.get("/version", headers=bearer(late)).status_code == 401)


def test_idempotency_keys_of_one_client_mean_nothing_for_another(client, driver, key, app, unique):
    """Two keys of one name are one client, so that a key can be replaced by another."""
    first, second = key("write"), key("write")
    other = key("write", name="archive")
    mine = post(client, body_of(f"{unique}-a"), key="k", **bearer(first))
    theirs = post(client, body_of(f"{unique}-b"), key="k", **bearer(other))
    assert (mine.status_code, theirs.status_code) == (200, 200)
    assert post(client, body_of(f"{unique}-a"), key="k", **bearer(second)).content == mine.content
    problem(post(client, body_of(f"{unique}-b"), key="k", **bearer(second)), 422, "key-reused")
    lines = client.post(
        "/documents/ingest/batch",
        content=body_of(f"{unique}-b", idempotency_key="k"),
        headers={"Content-Type": "application/x-ndjson"} | bearer(other),
    )
    assert lines.json()["status"] in (200, 422)
    with app.ledger.transaction() as tx:
        rows = tx.execute("SELECT client FROM apex.submission ORDER BY 1").fetchall()
    assert {row["client"] for row in rows} == {"http:newsroom", "http:archive"}


def test_no_secret_gets_into_an_answer_or_a_log_whatever_goes_wrong(
    guarded, client, driver, key, app, unique
):
    token, wrong = key("read", "write"), "apex_0123456789ab_hunter2hunter2"
    answers = [
        client.get("/version", headers=bearer(wrong)),
        client.get("/nowhere", headers=bearer(token)),
        post(client, b"{", **bearer(token)),
        post(client, body_of(unique, poison=True), **bearer(token)),
    ]
    with app.ledger.transaction() as tx:  # what nobody foresees
        tx.execute("ALTER TABLE apex.submission RENAME TO gone")
    answers.append(post(client, body_of(f"{unique}-x"), **bearer(token)))
    with app.ledger.transaction() as tx:
        tx.execute("ALTER TABLE apex.api_key RENAME TO gone_as_well")
    with guarded.client() as client:  # the server gives up a connection after a fault of its own
        while client.get("/version", headers=bearer(token)).status_code == 200:
            time.sleep(0.05)
    assert {answer.status_code for answer in answers} >= {401, 404, 422, 500}
    logged = guarded.log.read_text()
    assert "request_failed" in logged
    assert "Traceback" in logged  # for the operator, of the one that nobody foresaw
    for text in [logged, *(answer.text for answer in answers)]:
        for token_sent in (token, wrong):
            assert token_sent.rpartition("_")[2] not in text
    assert not any("Traceback" in answer.text for answer in answers)
    guarded.log.write_text("")  # the fixture wants none in it


def test_while_the_ledger_is_down_nobody_gets_in(start_api, private_server):
    postgres = private_server("postgres")
    url = postgres.endpoints.postgres_url.get_secret_value()
    settings = {"postgres_url": url, "api_keys": "true", "api_keys_cache_s": "0.5"}
    with start_api(**settings).client() as client:
        problem(client.get("/version", headers=bearer("apex_a_b")), 401, "key")
        postgres.stop()
        time.sleep(0.5)  # what the process knows has become too old
        answer = client.get("/version", headers=bearer("apex_a_b"))
        problem(answer, 503, "unavailable")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.get("/healthz").status_code == 200


def test_another_address_than_loopback_wants_keys_and_then_answers_to_any_name(start_api, key):
    api = start_api("--host", "0.0.0.0")
    assert "required; 0 can be used" in api.process.stdout.readline()
    api.url = api.url.replace("0.0.0.0", "127.0.0.1")
    with api.client() as client:
        assert client.get("/readyz", headers={"Host": "api:8000"}).status_code == 200
        assert client.get("/version", headers={"Host": "api:8000"}).status_code == 401
        token = key("read")
        headers = {"Host": "api:8000"} | bearer(token)
        assert eventually(lambda: client.get("/version", headers=headers).status_code == 200)


def test_it_is_said_at_the_start_that_keys_are_off(api):
    assert "Keys off: every program on this machine" in api.process.stdout.readline()


@pytest.mark.parametrize("host", ["0.0.0.0", "example.org"])
def test_without_keys_only_a_loopback_address_is_listened_on(postgres_database, host):
    run = subprocess.run(
        [sys.executable, "-m", "apex_dagster.cli.main", "api", "--host", host],
        env=os.environ | {"APEX_POSTGRES_URL": postgres_database, "APEX_API_KEYS": "false"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 2
    assert f"--host {host}: only a loopback address" in run.stderr
    assert "apex key create" in run.stderr
    assert "Traceback" not in run.stderr


def eventually(holds: Callable[[], object], within_s: float = 30.0) -> bool:
    deadline = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
