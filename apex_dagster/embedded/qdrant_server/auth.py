"""Who may talk to the gateway: one key, sent as Qdrant's clients send it."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = frozenset({"/", "/healthz", "/livez", "/readyz"})  # as on a Qdrant server


class ApiKeyGuard:
    """Lets a request through that carries the key; texts and status codes are Qdrant's."""

    def __init__(self, app: ASGIApp, *, api_key: str) -> None:
        self._app = app
        self._key = api_key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"] not in OPEN_PATHS:
            refusal = self._refusal(Headers(scope=scope))
            if refusal is not None:
                await PlainTextResponse(refusal, status_code=401)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: Headers) -> str | None:
        given = headers.get("api-key")
        authorization = headers.get("authorization", "")
        if given is None and authorization.startswith("Bearer "):
            given = authorization.removeprefix("Bearer ")
        if given is None:
            return "Must provide an API key or an Authorization bearer token"
        if not hmac.compare_digest(given.encode(), self._key):
            return "Invalid API key or JWT"
        return None
