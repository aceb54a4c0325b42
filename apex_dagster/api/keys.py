"""Lets a request in only with an API key that is good for what it asks.

As ASGI middleware rather than as a dependency of each route: a route that is added later is closed
until it is opened here, and nothing of a body is read for somebody who may not send one.
"""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.requests import HTTPConnection
from starlette.types import ASGIApp, Receive, Scope, Send

from apex_dagster.access.keys import Scope as KeyScope
from apex_dagster.access.keys import UsableKey
from apex_dagster.api.problems import Problem, described, refuse

# Health, for those who watch the process; the description, as a browser cannot send a key for it.
OPEN_PATHS: Final = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})
_READS_BY_POST: Final = frozenset({"/search"})
_WITHOUT_KEY = "http"  # whose requests these are where keys are off

SECURITY_SCHEMES: Final = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "A key of `apex key create`."},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "The same."},
}


def client_of(request: HTTPConnection) -> str:
    """Whose request it is: idempotency keys of one client mean nothing for another."""
    key: UsableKey | None = request.scope.get("apex.key")
    return _WITHOUT_KEY if key is None else f"{_WITHOUT_KEY}:{key.name}"


def scope_wanted(method: str, path: str) -> KeyScope | None:
    """What a key has to be good for; None where none is asked for."""
    if path in OPEN_PATHS and method == "GET":
        return None
    if method in ("GET", "HEAD", "OPTIONS") or (method == "POST" and path in _READS_BY_POST):
        return KeyScope.READ
    return KeyScope.WRITE


class ApiKeys:
    """Refuses requests without a usable key (401), or with one for something else (403)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            wanted = scope_wanted(scope["method"], scope["path"])
            try:
                if wanted is not None:
                    scope["apex.key"] = await _admitted(scope, wanted)
            except Exception as error:  # such as a ledger that cannot be asked
                await refuse(error, scope, receive, send)
                return
        await self._app(scope, receive, send)


async def _admitted(scope: Scope, wanted: KeyScope) -> UsableKey:
    """Raises Problem, and what the key ring raises."""
    sent = _sent(Headers(scope=scope))
    if sent is None:
        raise _unknown("Authorization: send `Bearer KEY`, with a key of `apex key create`", None)
    key: UsableKey | None = await scope["app"].state.key_ring.find(sent)
    if key is None:
        raise _unknown("The API key is unknown, revoked or expired", "invalid_token")
    if not key.allows(wanted):
        raise Problem(
            HTTPStatus.FORBIDDEN,
            "scope",
            f"The API key of {key.name!r} is not good for this: it lacks the scope `{wanted}`",
            headers={"WWW-Authenticate": f'Bearer error="insufficient_scope", scope="{wanted}"'},
            scope=wanted.value,
        )
    return key


def _sent(headers: Headers) -> str | None:
    scheme, _, credentials = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return credentials.strip()
    return headers.get("x-api-key")  # also beside what a proxy wants in the other header


def _unknown(detail: str, error: str | None) -> Problem:
    # Source: RFC 6750, 3: no error code for a request that holds no credentials at all.
    challenge = 'Bearer realm="apex"' + (f', error="{error}"' if error else "")
    return Problem(HTTPStatus.UNAUTHORIZED, "key", detail, headers={"WWW-Authenticate": challenge})


def describe(schema: dict[str, Any]) -> None:
    """Add to an OpenAPI description that keys are asked for, and the answers of those without."""
    schema.setdefault("components", {})["securitySchemes"] = SECURITY_SCHEMES
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            if (wanted := scope_wanted(method.upper(), path)) is not None:
                operation["security"] = [{name: []} for name in SECURITY_SCHEMES]
                operation["responses"] |= {
                    "401": described("No API key, or one that cannot be used."),
                    "403": described(f"The key lacks the scope `{wanted}`."),
                }
