"""The HTTP API as a front door: callers who send with an idempotency key, and again with the same
one where they are told to, or are told nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx

from apex_dagster.chaos.callers import Callers
from apex_dagster.chaos.offers import Offer
from apex_dagster.chaos.processes import Child, Victim
from apex_dagster.chaos.warm_workers import pool_process, victims_of
from apex_dagster.embedded import ports

API = "api"
_CONNECTIONS_MAX = 200
_ANSWER_WITHIN_S = 60.0  # longer than the server waits before it says that the saga is open still
_AGAIN_AFTER_S = 0.5  # after a connection that was refused or broke
_AGAIN_AFTER_S_MAX = 5.0
_PORT_ARGUMENT = "--port"

# What a saga ended as, by the type of the problem that says so.
_ENDED: Mapping[str, str] = {
    "compensated": "compensated",
    "superseded": "compensated",
    "conflict": "compensated",
    "not-undone": "failed",
}


class HttpFrontDoor:
    """The API's process, warm workers that drive what it opens, and a caller for each document."""

    def __init__(self, workers: int, callers: Callers, *, log_dir: Path) -> None:
        port = ports.choose(None)
        self._callers = callers
        self._api = Child(
            API,
            [
                "apex_dagster.chaos.tethered",
                "apex_dagster.cli.main",
                API,
                _PORT_ARGUMENT,
                str(port),
            ],
            log=log_dir / f"{API}.log",
            ready=b"API ",
        )
        self._pool = pool_process(workers, log_dir=log_dir)
        self._url = f"http://{ports.LOOPBACK}:{port}/documents/ingest"
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="callers", daemon=True)
        self._client: httpx.AsyncClient | None = None
        # Callers wait here rather than for one of the client's connections: each of its requests
        # looks through all that wait, and after an outage that took all the time of its thread.
        self._room = asyncio.Semaphore(_CONNECTIONS_MAX)
        self._tasks: set[asyncio.Task[None]] = set()
        self._supervisor = threading.Thread(target=self._supervise, name="supervisor", daemon=True)
        self._closing = threading.Event()

    @property
    def victims(self) -> Mapping[str, Victim]:
        return {API: self._api, **victims_of(self._pool)}

    @property
    def unfinished(self) -> int:
        return len(self._tasks)

    def open(self) -> None:
        self._pool.spawn()
        self._api.start()  # returns when it is in service
        self._client = httpx.AsyncClient(
            timeout=_ANSWER_WITHIN_S,
            limits=httpx.Limits(max_connections=_CONNECTIONS_MAX),
            trust_env=False,  # no proxy stands between us and ourselves
        )
        self._thread.start()
        self._supervisor.start()

    def submit(self, offer: Offer) -> None:
        self._loop.call_soon_threadsafe(self._begin, self._ask(offer))

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._hang_up(), self._loop).result()
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
        for child in (self._api, self._pool):
            child.stop()

    def _supervise(self) -> None:
        """Start what has ended by itself: its stores were down when it started."""
        while not self._closing.wait(_AGAIN_AFTER_S):
            for child in (self._api, self._pool):
                if not child.held_down and not child.is_running():
                    child.spawn()

    def _begin(self, asking: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(asking)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _hang_up(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, offer: Offer) -> None:
        """Until there is an answer that is final."""
        assert self._client is not None
        headers = {"Content-Type": "application/json", "Idempotency-Key": f"offer-{offer.number}"}
        while True:
            self._callers.sent([offer])
            try:
                async with self._room:
                    response = await self._client.post(
                        self._url, content=offer.document.content, headers=headers
                    )
                body = response.json()
            except (httpx.TransportError, ValueError):
                await asyncio.sleep(_AGAIN_AFTER_S)
                continue
            if self._tell(offer, response.status_code, body):
                return
            wait_s = float(response.headers.get("Retry-After", _AGAIN_AFTER_S))
            await asyncio.sleep(min(_AGAIN_AFTER_S_MAX, wait_s))

    def _tell(self, offer: Offer, status: int, body: Mapping[str, Any]) -> bool:
        """Put the answer down; False if it asks to be asked again."""
        name = str(body.get("type", "")).rpartition(":")[2]
        if status == HTTPStatus.OK:
            self._tell_end(offer, body, "completed")
            return True
        if name in _ENDED:
            self._tell_end(offer, body, _ENDED[name])
            return True
        if name == "still-open":
            self._callers.answered(offer, "opened", {**body, "status": "in_progress"})
            return False
        again = status in (HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS)
        self._callers.turned_away(offer, f"{status} {name}", for_good=not again)
        return not again

    def _tell_end(self, offer: Offer, body: Mapping[str, Any], status: str) -> None:
        # Not one after the other by HTTP, but an answer about an end is one about a beginning.
        for event in ("opened", "ended"):
            self._callers.answered(offer, event, {**body, "status": status})
