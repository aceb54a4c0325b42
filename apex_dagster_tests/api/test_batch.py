"""`POST /documents/ingest/batch`: a line in, a line out, and nothing waits for the whole."""

from __future__ import annotations

import asyncio
import json
import socket
import threading

import pytest

from apex_dagster_tests.api.requests import body_of, problem
from apex_dagster_tests.applications import assert_whole

pytestmark = pytest.mark.anyio

PATH, HEADERS = "/documents/ingest/batch", {"Content-Type": "application/x-ndjson"}


def lines_of(answer) -> dict[int, dict]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("application/x-ndjson")
    found = [json.loads(line) for line in answer.text.splitlines()]
    assert len({line["line"] for line in found}) == len(found)
    return {line["line"]: line for line in found}


def test_each_document_has_an_outcome_of_its_own(client, driver, app, unique):
    content = b"\n".join(
        [
            body_of(f"{unique}-1"),
            b"{",
            b"",  # not counted
            body_of(f"{unique}-3", poison=True),
            body_of(f"{unique}-4", dim=3),
            body_of(f"{unique}-5"),
        ]
    )
    lines = lines_of(client.post(PATH, content=content, headers=HEADERS))
    assert {n: line["status"] for n, line in lines.items()} == {
        1: 200,
        2: 422,
        3: 500,
        4: 422,
        5: 200,
    }
    assert lines[1]["answer"]["document_id"] == f"{unique}-1"
    assert "valid JSON" in lines[2]["answer"]["detail"]
    assert lines[3]["answer"]["step"] == "postgres_write"
    assert lines[4]["answer"]["field"] == "embeddings[0]"
    for number in (1, 3, 5):
        assert_whole(app, f"{unique}-{number}")


def test_lines_share_runs_and_one_document_may_come_often(client, driver, app, unique):
    contents = [body_of(f"{unique}-{n % 50}", edition=n // 50) for n in range(150)]
    lines = lines_of(client.post(PATH, content=b"\n".join(contents), headers=HEADERS))
    assert len(lines) == 150
    assert {line["status"] for line in lines.values()} <= {200, 409}
    assert max(driver.batches) > 5
    app.ingestion.sweep(limit=1000)
    assert_whole(app, f"{unique}-0")


def test_an_outcome_comes_while_lines_are_still_being_sent(api, driver, unique):
    """The second line is sent only when the first has been answered."""
    answered = threading.Event()

    def lines():
        yield body_of(f"{unique}-1") + b"\n"
        assert answered.wait(60)
        yield body_of(f"{unique}-2") + b"\n"

    with Exchange(api, lines()) as received:
        first = json.loads(received.readline())
        answered.set()
        second = json.loads(received.readline())
    assert (first["line"], first["status"]) == (1, 200)
    assert (second["line"], second["status"]) == (2, 200)


def test_a_line_may_have_a_key_of_its_own(client, driver, app, unique):
    line = json.dumps(json.loads(body_of(unique)) | {"idempotency_key": unique}).encode()
    first = lines_of(client.post(PATH, content=line, headers=HEADERS))
    again = lines_of(client.post(PATH, content=line, headers=HEADERS))
    assert first == again
    assert len(app.ledger.list_sagas()) == 1


def test_a_key_for_the_whole_batch_is_refused(client):
    answer = client.post(PATH, content=b"{}", headers=HEADERS | {"Idempotency-Key": "k"})
    assert problem(answer, 422, "invalid")["field"] == "Idempotency-Key"
    problem(client.post(PATH, content=b"{}"), 415, "media-type")


def test_a_line_too_long_and_a_line_too_many_end_the_batch(start_api, driver, unique):
    small = json.dumps({"document_id": unique, "text": ""}).encode()  # refused, and quickly
    with start_api(api_body_bytes_max=1024, api_batch_documents_max=3).client() as client:
        content = small + b"\n" + b"x" * 2000 + b"\n" + small
        lines = lines_of(client.post(PATH, content=content, headers=HEADERS))
        assert {n: line["status"] for n, line in lines.items()} == {1: 422, 2: 413}
        lines = lines_of(client.post(PATH, content=b"\n".join([small] * 6), headers=HEADERS))
        assert {n: line["status"] for n, line in lines.items()} == {1: 422, 2: 422, 3: 422, 4: 413}
        assert "from this line on" in lines[4]["answer"]["detail"]


def test_a_full_queue_makes_lines_wait(start_api, driver, app, unique):
    content = b"\n".join(body_of(f"{unique}-{n}") for n in range(30))
    with start_api(pending_max=4).client() as client:
        lines = lines_of(client.post(PATH, content=content, headers=HEADERS))
    assert [line["status"] for line in lines.values()] == [200] * 30


async def test_what_a_client_sent_before_it_went_away_goes_on(api, idle_driver, app, unique):
    async with api.async_client() as client:
        content = b"\n".join(body_of(f"{unique}-{n}") for n in range(5))
        call = asyncio.create_task(client.post(PATH, content=content, headers=HEADERS))
        async with asyncio.timeout(60):
            while len(app.ledger.list_sagas()) < 5:
                await asyncio.sleep(0.02)
        call.cancel()
    while idle_driver.drive_once():
        pass
    assert {saga.status for saga in app.ledger.list_sagas()} == {"completed"}


class Exchange:
    """A request whose answer is read while it is being sent, which httpx does not do."""

    def __init__(self, api, parts) -> None:
        self._api, self._parts = api, parts

    def __enter__(self):
        host, port = self._api.url.removeprefix("http://").split(":")
        self._socket = socket.create_connection((host, int(port)), timeout=60)
        self._sender = threading.Thread(target=self._send)
        self._sender.start()
        self._file = self._socket.makefile("rb")
        while self._file.readline() != b"\r\n":
            pass  # the head
        return self

    def readline(self) -> bytes:
        """The next chunk, which holds one line."""
        size = int(self._file.readline(), 16)
        return self._file.read(size + 2)

    def _send(self) -> None:
        head = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n"
        self._socket.sendall(f"{head}Content-Type: application/x-ndjson\r\n\r\n".encode())
        for part in self._parts:
            self._socket.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        self._socket.sendall(b"0\r\n\r\n")

    def __exit__(self, *exception: object) -> None:
        self._sender.join()
        self._file.close()
        self._socket.close()
