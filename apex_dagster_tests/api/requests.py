"""Requests, and what is said of their answers."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote, unquote

import orjson

from apex_dagster_tests.documents import document


def body_of(document_id: str, **fields: Any) -> bytes:
    """A document with all its parts, written as compactly as the server writes one from which it
    has taken what is said of the request; `fields` as in `documents.document`."""
    content: bytes = orjson.dumps(orjson.loads(document(document_id, **fields).content))
    return content


def post(client: Any, body: Any, key: str | None = None, **headers: str) -> Any:
    """The answer, or with an asynchronous client something to await it by."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    own = {"Content-Type": "application/json"} | ({"Idempotency-Key": key} if key else {})
    return client.post("/documents/ingest", content=content, headers=own | headers)


def pages(client: Any, path: str, *, cursor: str, **query: Any) -> list[list[str]]:
    """The ids (member `cursor`) of a list, page by page, following `next`; the header says the same
    as the body."""
    found: list[list[str]] = []
    answer = client.get(path, params=query)
    while True:
        assert answer.status_code == 200, answer.text
        body = answer.json()
        found.append([each[cursor] for each in body[path.strip("/")]])
        link = answer.links.get("next")
        assert (body["next"] is None) == (link is None)
        if link is None:
            return found
        assert body["next"] == found[-1][-1]
        answer = client.get(link["url"])


def problem(answer: Any, status: int, name: str) -> dict[str, Any]:
    """The problem details, after checking that they are what they should be."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert (body["status"], body["type"]) == (status, f"urn:apex:problem:{name}"), body
    assert body["title"]
    assert body["detail"]
    asked = quote(unquote(answer.request.url.raw_path.decode().partition("?")[0]))
    rooms = ("saga", "document")
    things = [f"/{room}s/{quote(str(body.get(f'{room}_id')))}" for room in rooms]
    assert body["instance"] in (asked, *things) or name == "key-reused"
    assert "Traceback" not in answer.text
    assert "postgresql://" not in answer.text
    return body
