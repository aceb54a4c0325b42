"""A client that sends too much: refused for a while, and alone."""

from __future__ import annotations

import time

import pytest

from apex_dagster.access.keys import Scope, create_key
from apex_dagster.api.rate import rate_of
from apex_dagster.errors import InvalidInput
from apex_dagster_tests.api.requests import problem


def test_too_many_requests_of_a_client_are_refused_until_later(start_api):
    with start_api(api_rate="5/10second").client() as client:
        answers = [client.get("/version") for _ in range(40)]
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 5 <= len(answers) - len(refused) < 40
        assert "5 per 10 second" in problem(refused[0], 429, "rate")["detail"]
        assert 1 <= int(refused[0].headers["retry-after"]) <= 10
        assert client.get("/healthz").status_code == 200  # whoever watches is never refused
        deadline = time.monotonic() + 60
        while (answer := client.get("/version")).status_code == 429:
            assert time.monotonic() < deadline
            time.sleep(int(answer.headers["retry-after"]))


def test_each_name_has_a_rate_of_its_own(start_api, app):
    """By name and not by key: a second key gives nobody twice the rate."""
    names = ("newsroom", "newsroom", "archive")
    keys = [create_key(app.ledger, name, [Scope.READ], by="ada")[1] for name in names]
    first, second, other = ({"X-API-Key": key} for key in keys)
    with start_api(api_keys="true", api_rate="5/hour").client() as client:
        assert [client.get("/version", headers=first).status_code for _ in range(5)] == [200] * 5
        answer = client.get("/version", headers=second)
        problem(answer, 429, "rate")
        assert 1 <= int(answer.headers["retry-after"]) <= 3600
        assert client.get("/version", headers=other).status_code == 200
        problem(client.get("/version"), 401, "key")


@pytest.mark.parametrize(
    "setting", ["", "fast", "10", "10/fortnight", "-1/second", "0/second", "1/second;2/hour"]
)
def test_a_rate_that_is_none_is_refused_with_an_example(setting):
    with pytest.raises(InvalidInput, match=r"APEX_API_RATE: .*100/second"):
        rate_of(setting)
