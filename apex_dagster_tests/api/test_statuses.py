"""Every status of the table in README.md, produced; and no other is in it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from apex_dagster.access.keys import Scope, create_key
from apex_dagster_tests.api.requests import body_of, post
from apex_dagster_tests.api.test_keys import bearer

README = Path(__file__).parents[2] / "README.md"


def in_the_table() -> set[int]:
    text = README.read_text(encoding="utf-8")
    table = text.split("| answer | means |")[1].split("\n\n")[0]
    firsts = re.findall(r"^\| ([0-9, ]+) \|", table, re.MULTILINE)
    return {int(status) for first in firsts for status in first.split(",")}


@pytest.fixture
def produced(start_api, driver, app, unique) -> dict[int, str]:
    """The statuses of the answers to requests that are made for them, with a word on each."""
    key = create_key(app.ledger, "all", [Scope.ADMIN], by="ada")[1]
    reader = create_key(app.ledger, "reader", [Scope.READ], by="ada")[1]
    guarded = start_api(api_keys="true", api_body_bytes_max=8_000_000)
    found: dict[int, str] = {}

    def note(answer, what) -> None:
        found[answer.status_code] = what
        if answer.status_code >= 400:
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["status"] == answer.status_code

    with guarded.client() as client:
        note(client.get("/version"), "no key")
        note(post(client, b"{}", **bearer(reader)), "a key for reading")
        client.headers.update(bearer(key))
        note(post(client, body_of(unique)), "live")
        while (read := client.get(f"/documents/{unique}")).status_code == 503:
            pass  # the stores' drivers are still being imported
        headers = {"If-None-Match": read.headers["etag"]}
        note(client.get(f"/documents/{unique}", headers=headers), "at hand")
        form = {"Content-Type": "multipart/form-data"}
        note(client.post("/documents", content=b"", headers=form), "no form")
        note(client.get("/documents/none"), "not live")
        note(client.put("/documents"), "no such method")
        note(post(client, body_of(unique, edition=2, expected_version=7)), "not that version")
        note(post(client, b" " * 8_000_001), "too large")
        note(post(client, b"{}", **{"Content-Type": "text/plain"}), "of another type")
        note(post(client, b"{}"), "no document_id")
        note(post(client, body_of(f"{unique}-x", poison=True)), "compensated")
    driver.stop()
    with start_api(api_rate="3/hour", answer_wait_s="0.1").client() as client:
        note(client.get("/version", headers={"Host": "example.org"}), "another name")
        note(post(client, body_of(f"{unique}-y")), "nobody drives it")
        note([client.get("/version") for _ in range(4)][-1], "too often")
    return found


def test_every_status_of_the_table_is_produced_and_every_one_is_in_it(produced):
    assert set(produced) == in_the_table(), produced
