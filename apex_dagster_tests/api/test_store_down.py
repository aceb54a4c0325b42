"""What a caller is told while a store is down: nothing is opened, and when to come again."""

from __future__ import annotations

import time

from apex_dagster.errors import StoreUnavailable
from apex_dagster_tests.api.requests import body_of, post, problem


def test_while_a_store_is_down_callers_are_sent_away_and_let_in_when_it_is_back(
    client, driver, build_application, unique
):
    app = build_application(probe_delay_s=600, probe_delay_s_max=600)
    assert post(client, body_of(f"{unique}-before")).status_code == 200
    app.breakers.note("neo4j", StoreUnavailable("neo4j", "bolt://10.0.0.7 refused"))
    time.sleep(1.1)  # what a process has seen of the breakers may be a second old
    answer = post(client, body_of(unique))
    assert problem(answer, 503, "unavailable")["store"] == "neo4j"
    assert 1 <= int(answer.headers["retry-after"]) <= 600
    assert "10.0.0.7" not in answer.text
    assert problem(client.get("/readyz"), 503, "unavailable")["store"] == "neo4j"
    assert app.ledger.list_sagas(document_id=unique) == []

    assert app.breakers.probe(at_once=True) == ["neo4j"]
    deadline = time.monotonic() + 60
    while (answer := post(client, body_of(unique))).status_code == 503:
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.2)
    assert answer.json()["status"] == "success"
