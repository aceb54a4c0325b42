"""A reverse proxy before Qdrant that keeps back what it is told to, document by document.

To the process that sent the request, Qdrant hangs. Other documents pass, so one Dagster can have
runs that hang in different places at the same time.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Literal

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Kind = Literal["stage", "publish", "undo"]

POLL_S = 0.02
NOT_FORWARDED = {"host", "content-length", "transfer-encoding", "connection"}


@dataclass(frozen=True, kw_only=True, eq=False)
class Hold:
    """The first request of a kind that names the document; later ones pass."""

    kind: Kind
    document_id: str
    lands: bool  # Qdrant gets the request at once and its answer is kept back; else it gets it late
    reached: threading.Event = field(default_factory=threading.Event)
    released: threading.Event = field(default_factory=threading.Event)
    delivered: threading.Event = field(default_factory=threading.Event)  # Qdrant has answered


class Gate:
    """Listens on a free port of the loopback address for as long as the block lasts."""

    def __init__(self, qdrant_url: str) -> None:
        self._qdrant_url, self._holds = qdrant_url, list[Hold]()
        self._waiting = list[Hold]()  # for a request that they match
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        route = Route("/{path:path}", self._pass_on, methods=["GET", "PUT", "POST", "DELETE"])
        app = Starlette(routes=[route], lifespan=self._lifespan)
        self._server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True
        )

    def hold(self, kind: Kind, document_id: str, *, lands: bool = True) -> Hold:
        """Keep back the next request of this kind about the document."""
        hold = Hold(kind=kind, document_id=document_id, lands=lands)
        self._holds.append(hold)
        self._waiting.append(hold)
        return hold

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for hold in self._holds:
            hold.released.set()
        self._server.should_exit = True
        self._thread.join(timeout=30)
        self._socket.close()

    @asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        async with httpx.AsyncClient(base_url=self._qdrant_url, timeout=60.0) as client:
            self._client = client
            yield

    async def _pass_on(self, request: Request) -> Response:
        body = await request.body()
        hold = self._matching(_kind(request, body), body)
        if hold and not hold.lands:
            await self._keep(hold)
        answer = await self._client.request(
            request.method,
            request.url.path,
            params=dict(request.query_params),
            content=body,
            headers=[(k, v) for k, v in request.headers.items() if k not in NOT_FORWARDED],
        )
        if hold:
            hold.delivered.set()
            if hold.lands:
                await self._keep(hold)
        media_type = answer.headers.get("content-type")
        return Response(answer.content, answer.status_code, media_type=media_type)

    def _matching(self, kind: Kind | None, body: bytes) -> Hold | None:
        for hold in self._waiting:
            if hold.kind == kind and hold.document_id.encode() in body:
                self._waiting.remove(hold)
                return hold
        return None

    async def _keep(self, hold: Hold) -> None:
        hold.reached.set()
        while not hold.released.is_set():
            await asyncio.sleep(POLL_S)


def _kind(request: Request, body: bytes) -> Kind | None:
    """What the request does to points: insert, change the status of, or remove them."""
    path = request.url.path
    if path.endswith("/points/delete"):
        return "undo"
    if path.endswith("/points/payload"):
        return "publish"
    if path.endswith("/points") and request.method == "PUT":
        return "stage"
    if path.endswith("/points/batch"):
        named: dict[bytes, Kind] = {
            b'"upsert"': "stage",
            b'"set_payload"': "publish",
            b'"delete"': "undo",
        }
        return next((kind for name, kind in named.items() if name in body), None)
    return None
