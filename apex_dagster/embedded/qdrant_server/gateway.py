"""The endpoints: every answer comes in Qdrant's envelope, from one engine thread."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import orjson
import structlog
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from apex_dagster.embedded.qdrant_server import indexes, queries
from apex_dagster.embedded.qdrant_server.body import Body, decode
from apex_dagster.embedded.qdrant_server.collections import Collections
from apex_dagster.embedded.qdrant_server.errors import (
    BadInput,
    GatewayError,
    NotSupported,
    TooLarge,
)
from apex_dagster.embedded.qdrant_server.info import collection_info
from apex_dagster.embedded.qdrant_server.requests import CreateCollection
from apex_dagster.embedded.qdrant_server.shard import Shard

log = structlog.get_logger(__name__)

REST_VERSION = "1.20.0"  # whose dialect this is; QdrantClient warns when it is two minors away
ENGINE = f"qdrant-edge {importlib.metadata.version('qdrant-edge-py')}, embedded gateway"
DRAIN_FACTOR = 4  # a refused body is read to its end up to so many limits, so the client sees why

Work = Callable[[Shard, Any], Any]
Endpoint = Callable[[Request], Any]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What the gateway grants and how often it tidies up."""

    request_bytes_max: int = 32 * 1024 * 1024
    flush_s: float = 5.0
    idle_s: float = 30.0  # without a request for so long, deleted points are vacuumed


class Gateway:
    """Answers requests, one at a time, on one engine thread: the event loop only moves bytes."""

    def __init__(self, collections: Collections, *, identity: str, limits: Limits) -> None:
        self.collections, self.identity, self.limits = collections, identity, limits
        self.engine = ThreadPoolExecutor(1, thread_name_prefix="engine")
        self._last_request = time.monotonic()

    async def root(self, request: Request) -> Response:
        """Title and version as clients expect them, and openly what this is."""
        about = {
            "title": "qdrant - vector search engine",
            "version": REST_VERSION,
            "engine": ENGINE,
            "identity": self.identity,
            "broken_collections": len(self.collections.broken),
        }
        return Response(orjson.dumps(about), media_type="application/json")

    async def list_collections(self, request: Request) -> Response:
        return await self.answer(
            lambda: {"collections": [{"name": name} for name in self.collections.names()]}
        )

    async def collection_exists(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self.answer(lambda: {"exists": name in self.collections.names()})

    async def create_collection(self, request: Request) -> Response:
        content, name = await self.body(request), request.path_params["name"]

        def work() -> bool:
            self.collections.create(name, decode(content, CreateCollection))
            return True

        return await self.answer(work)

    async def get_collection(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self.answer(lambda: collection_info(self.collections.get(name)))

    async def delete_collection(self, request: Request) -> Response:
        name = request.path_params["name"]
        return await self.answer(lambda: self.collections.delete(name))

    async def get_point(self, request: Request) -> Response:
        name, point_id = request.path_params["name"], request.path_params["point_id"]
        return await self.answer(lambda: queries.retrieve_one(self.collections.get(name), point_id))

    async def delete_index(self, request: Request) -> Response:
        name, field = request.path_params["name"], request.path_params["field"]
        status = _update_status(request)
        return await self.answer(
            lambda: _update_result(indexes.delete(self.collections.get(name), field), status)
        )

    async def not_supported(self, request: Request) -> Response:
        return error_response(NotSupported(f"{request.method} {request.url.path}"))

    def read(self, kind: type[Body], work: Work) -> Endpoint:
        """An endpoint that decodes its body as `kind` and answers with what `work` returns."""

        async def endpoint(request: Request) -> Response:
            content, name = await self.body(request), request.path_params["name"]
            return await self.answer(
                lambda: work(self.collections.get(name), decode(content, kind))
            )

        return endpoint

    def write(self, kind: type[Body], work: Work) -> Endpoint:
        """Like `read`, for work that returns operation numbers."""

        async def endpoint(request: Request) -> Response:
            status = _update_status(request)
            content, name = await self.body(request), request.path_params["name"]

            def update() -> Any:
                shard = self.collections.get(name)
                return _update_result(work(shard, decode(content, kind)), status)

            return await self.answer(update)

        return endpoint

    async def body(self, request: Request) -> bytes:
        """The request's content; raises TooLarge above the limit."""
        limit, size, parts = self.limits.request_bytes_max, 0, []
        async for part in request.stream():
            size += len(part)
            if size <= limit:
                parts.append(part)
            elif size > limit * DRAIN_FACTOR:
                break
        if size > limit:
            raise TooLarge(
                f"Payload error: JSON payload ({size} bytes) is larger than allowed "
                f"(limit: {limit} bytes)."
            )
        return b"".join(parts)

    async def answer(self, work: Callable[[], Any]) -> Response:
        """Run `work` on the engine thread and put its result in Qdrant's envelope."""
        started = self._last_request = time.monotonic()

        def run() -> bytes:
            envelope = {"result": work(), "status": "ok", "time": time.monotonic() - started}
            return orjson.dumps(envelope, option=orjson.OPT_SERIALIZE_NUMPY)

        loop = asyncio.get_running_loop()
        return Response(await loop.run_in_executor(self.engine, run), media_type="application/json")

    async def tidy(self) -> None:
        """Flush what changed every few seconds; vacuum while nobody asks for anything."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.flush_s)
            try:
                await loop.run_in_executor(self.engine, self.collections.flush)
                if time.monotonic() - self._last_request >= self.limits.idle_s:
                    await loop.run_in_executor(self.engine, self.collections.vacuum_one)
            except Exception as error:  # whatever it was, the next flush must still come
                log.error("tidying_failed", error=repr(error))

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        tidying = asyncio.create_task(self.tidy())
        try:
            yield
        finally:
            tidying.cancel()
            await asyncio.get_running_loop().run_in_executor(self.engine, self.collections.close)
            self.engine.shutdown()


def error_response(error: GatewayError) -> Response:
    envelope = {"status": {"error": str(error)}, "time": 0.0}
    content = orjson.dumps(envelope)
    return Response(content, status_code=error.status, media_type="application/json")


def _update_status(request: Request) -> str:
    """Every write is applied before it is answered; `wait` only decides what the answer says."""
    wait = request.query_params.get("wait", "false")
    if wait not in ("true", "false"):
        raise BadInput(f"Deserialize error in query parameters: wait={wait!r} is not true or false")
    return "completed" if wait == "true" else "acknowledged"


def _update_result(numbers: int | list[int], status: str) -> Any:
    if isinstance(numbers, list):
        return [_update_result(number, status) for number in numbers]
    return {"operation_id": numbers, "status": status}
