"""Requests made up from the description, against the real thing: each answer is as described.

The examples are the same each time, so that a change of ours and nothing else can make this fail.
"""

from __future__ import annotations

import json

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import checks

from apex_dagster.access.keys import Scope, create_key
from apex_dagster_tests.api.test_keys import bearer

EXAMPLES = 12  # to an operation; all of them take about half a minute

CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_schema_conformance,
    checks.response_headers_conformance,
]


@schemathesis.serializer("application/x-ndjson")
def one_line(context, value) -> bytes:
    """A batch of one."""
    return json.dumps(value, default=str).encode()


@pytest.fixture
def key(app) -> str:
    return create_key(app.ledger, "fuzz", [Scope.ADMIN], by="ada")[1]


@pytest.fixture
def described(start_api, driver):
    """The description of a process that asks for keys."""
    api = start_api(api_keys="true", answer_wait_s="60", api_rate="100000/second")
    return schemathesis.openapi.from_url(f"{api.url}/openapi.json")


def test_every_answer_is_as_described(described, key):
    """Without schemathesis's own way into pytest, which wants another version of it."""
    operations = [result.ok() for result in described.get_all_operations()]
    assert len(operations) > 10
    for operation in operations:
        send_made_up_requests(operation, key)


def send_made_up_requests(operation, key) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def every_answer(case) -> None:
        answer = case.call(headers=bearer(key), timeout=120)
        case.validate_response(answer, checks=CHECKS)
        if answer.status_code >= 500:  # documented: a document was compensated, for example
            assert answer.json()["type"] != "urn:apex:problem:unexpected"

    every_answer()
