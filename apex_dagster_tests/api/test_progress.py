"""`GET /sagas/{saga_id}/events`: a saga as it happens, and streams that end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx
import uvicorn

from apex_dagster.api import progress
from apex_dagster.api.app import create_app
from apex_dagster.settings import Settings
from apex_dagster_tests.api.requests import problem
from apex_dagster_tests.applications import events
from apex_dagster_tests.documents import open_pending, submission


@dataclass
class Seen:
    """An event of a stream."""

    event: str
    data: dict
    id: str


def read(lines) -> Iterator[Seen | str]:
    """The events of a stream as they come in, and its comments."""
    fields: dict[str, str] = {}
    for line in lines:
        if line.startswith(":"):
            yield line
        elif line:
            name, _, value = line.partition(": ")
            fields[name] = value
        elif fields:
            yield Seen(fields["event"], json.loads(fields["data"]), fields["id"])
            fields = {}


def follow(client, saga_id, last_event_id=None) -> list[Seen]:
    """The whole stream, without comments."""
    headers = {"Last-Event-ID": last_event_id} if last_event_id else {}
    with client.stream("GET", f"/sagas/{saga_id}/events", headers=headers) as answer:
        assert answer.status_code == 200, answer.read()
        assert answer.headers["content-type"].startswith("text/event-stream")
        return [each for each in read(answer.iter_lines()) if isinstance(each, Seen)]


def trail(app, saga_id) -> list[str]:
    return [event for event, _ in events(app, saga_id)]


def test_a_saga_is_followed_from_its_opening_to_its_end(client, idle_driver, app, unique):
    saga = open_pending(app, unique)
    seen: list[Seen] = []
    with client.stream("GET", f"/sagas/{saga.saga_id}/events") as answer:
        for each in read(answer.iter_lines()):
            if isinstance(each, Seen):
                seen.append(each)
                if each.event == "saga_opened":
                    idle_driver.start()  # what follows happens while the stream is open
    assert [each.event for each in seen] == [*trail(app, saga.saga_id), "ended"]
    assert [each.id for each in seen[:-1]] == [str(each.data["seq"]) for each in seen[:-1]]
    assert (seen[-1].data["status"], seen[-1].data["saga_id"]) == ("completed", saga.saga_id)
    assert seen[-1].data["published_at"]


def test_a_saga_that_has_ended_is_told_whole_and_one_may_go_on_from_any_move(client, app, unique):
    [saga] = app.ingestion.ingest([submission(f"{unique}/a b", poison=True)], owner="test")
    seen = follow(client, saga.saga_id)
    assert [each.event for each in seen] == [*trail(app, saga.saga_id), "ended"]
    assert seen[-1].data["status"] == "compensated"
    assert follow(client, saga.saga_id, seen[2].id) == seen[3:]
    assert follow(client, saga.saga_id, "what is no id") == seen
    # Else a browser would come back for ever.
    gone = client.get(f"/sagas/{saga.saga_id}/events", headers={"Last-Event-ID": seen[-1].id})
    assert (gone.status_code, gone.content) == (204, b"")


def test_no_saga_has_no_events(client, unique):
    problem(client.get(f"/sagas/{unique}/events"), 404, "unknown-saga")
    problem(client.get(f"/sagas/{'x' * 600}/events"), 422, "invalid")


@contextmanager
def served(servers, **fields) -> Iterator[tuple[progress.Progress, str]]:
    """The application in a thread of this process, to look into: a real server all the same."""
    app = create_app(Settings(), servers, admit=lambda documents: None)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", loop="asyncio"))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    for name, value in fields.items():
        setattr(app.state.progress, name, value)
    [address] = [s.getsockname() for each in server.servers for s in each.sockets]
    try:
        yield app.state.progress, f"http://127.0.0.1:{address[1]}"
    finally:
        server.should_exit = True
        thread.join(60)


def eventually(holds) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_silent_stream_beats_and_a_client_that_goes_away_costs_nothing(endpoints, app, unique):
    saga = open_pending(app, unique)  # nobody drives it
    with served(endpoints, heartbeat_s=0.1) as (state, url):
        with (
            httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
            client.stream("GET", f"/sagas/{saga.saga_id}/events") as answer,
        ):
            stream = read(answer.iter_lines())
            while next(stream) != ": ping":
                pass
            assert state.streams == 1
        eventually(lambda: state.streams == 0)


def test_no_more_than_so_many_follow_at_once(endpoints, app, unique, monkeypatch):
    monkeypatch.setattr(progress, "STREAMS_MAX", 1)
    saga = open_pending(app, unique)
    path = f"/sagas/{saga.saga_id}/events"
    with (
        served(endpoints) as (state, url),
        httpx.Client(base_url=url, timeout=60, trust_env=False) as client,
    ):
        with client.stream("GET", path):
            eventually(lambda: state.streams == 1)
            refused = client.get(path)
            assert int(refused.headers["retry-after"]) >= 1
            assert refused.json()["type"] == "urn:apex:problem:streams"
        eventually(lambda: state.streams == 0)
