"""Many documents in one request: a line each in, a line each out, as each of them ends.

Reading goes on whether or not the client reads what comes back: a client that first sends all of it
must not wait for a server that waits for it. So outcomes queue up here, a few hundred bytes each.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from http import HTTPStatus

import orjson
import structlog
from fastapi import Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from apex_dagster.api.bodies import NDJSON
from apex_dagster.api.problems import Problem, problem_of
from apex_dagster.errors import QueueFull
from apex_dagster.saga.submissions import Answer

log = structlog.get_logger(__name__)

BATCH_PATH = "/documents/ingest/batch"

# Documents of one request on their way at once: enough to fill runs, little enough for memory.
_UNDER_WAY_MAX = 256


class BatchResponse(Response):
    """Answers each line of `lines` with one line, in the order in which they end.

    A full queue makes a line wait instead of being refused, for up to `patience_s`.
    """

    media_type = NDJSON[0]

    def __init__(
        self,
        lines: AsyncIterator[bytes],
        ingest: Callable[[bytes], Awaitable[Answer]],
        *,
        documents_max: int,
        patience_s: float,
    ) -> None:
        super().__init__()
        del self.headers["content-length"]
        self._lines, self._ingest = lines, ingest
        self._documents_max, self._patience_s = documents_max, patience_s
        self._outcomes: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await send(
            {"type": "http.response.start", "status": HTTPStatus.OK, "headers": self.raw_headers}
        )
        reading = asyncio.create_task(self._read())
        try:
            while (outcome := await self._outcomes.get()) is not None:
                await send({"type": "http.response.body", "body": outcome, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:  # the client has gone; what it sent goes on
            log.info("batch_client_gone")
        await reading

    async def _read(self) -> None:
        """Start each line on its way; end the outcomes when the last has come back."""
        room = asyncio.Semaphore(_UNDER_WAY_MAX)
        number = 0
        async with asyncio.TaskGroup() as under_way:
            try:
                async for line in self._lines:
                    number += 1
                    if number > self._documents_max:
                        raise self._too_many()
                    await room.acquire()
                    under_way.create_task(self._one(number, line, room))
            except ClientDisconnect:
                log.info("batch_client_gone", lines=number)
            except Problem as problem:  # of the rest of the body, which is not read
                number += problem.name == "too-large"
                self._put(number, Answer(status=problem.status, body=problem.body(BATCH_PATH)))
        self._outcomes.put_nowait(None)

    async def _one(self, number: int, line: bytes, room: asyncio.Semaphore) -> None:
        try:
            answer = await self._patiently(line)
        except Exception as error:
            problem = problem_of(error)
            if problem.name == "unexpected":
                log.exception("batch_line_failed", line=number)
            answer = Answer(status=problem.status, body=problem.body(BATCH_PATH))
        finally:
            room.release()
        self._put(number, answer)

    async def _patiently(self, line: bytes) -> Answer:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + self._patience_s
        while True:
            try:
                return await self._ingest(line)
            except QueueFull as full:
                if loop.time() + full.retry_after_s > give_up_at:
                    raise
                await asyncio.sleep(full.retry_after_s)

    def _put(self, number: int, answer: Answer) -> None:
        outcome = {"line": number, "status": answer.status, "answer": orjson.Fragment(answer.body)}
        self._outcomes.put_nowait(orjson.dumps(outcome) + b"\n")

    def _too_many(self) -> Problem:
        return Problem(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            "too-many",
            f"A batch may have {self._documents_max} documents: send the rest, from this line on,"
            " in another request, or raise APEX_API_BATCH_DOCUMENTS_MAX",
            documents_max=self._documents_max,
        )
