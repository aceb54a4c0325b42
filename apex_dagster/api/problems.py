"""Every error as problem details (RFC 9457): one form, that a program can read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from apex_dagster.errors import ApexError, IncompleteVersion, QueueFull, TransientError
from apex_dagster.ingestion.request import RequestRefused

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 5  # where the error itself knows no better


class Problem(Exception):
    """An error on its way to the client. `more` becomes members beside those of the RFC."""

    def __init__(
        self,
        status: HTTPStatus,
        name: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(detail)
        self.status, self.name, self.detail = status, name, detail
        self.headers, self.more = dict(headers or {}), more

    def body(self, instance: str | None = None) -> bytes:
        """The problem's JSON; members without a value are left out. `instance` says what it is
        about: the path that was asked for, or the saga or document."""
        members = {
            "type": f"urn:apex:problem:{self.name}",
            "title": self.status.phrase,
            "status": self.status.value,
            "detail": self.detail,
            "instance": None if instance is None else quote(instance),
            **self.more,
        }
        return orjson.dumps({name: value for name, value in members.items() if value is not None})


def problem_of(error: Exception) -> Problem:
    """What a client is told of an error: never a traceback, nor what an unforeseen one says."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestRefused):
        return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", str(error), field=error.field)
    if isinstance(error, QueueFull):
        return Problem(
            HTTPStatus.TOO_MANY_REQUESTS,
            "queue-full",
            f"{error.depth} documents wait already; send it again later",
            headers=retry_after(error.retry_after_s),
            depth=error.depth,
        )
    if isinstance(error, RequestValidationError):
        return _invalid_parameter(error)
    if isinstance(error, IncompleteVersion):
        return Problem(
            HTTPStatus.SERVICE_UNAVAILABLE,
            "incomplete",
            "No whole version could be read in time; ask again later",
            headers=retry_after(RETRY_AFTER_S),
            document_id=error.document_id,
        )
    if isinstance(error, HTTPException):
        status = HTTPStatus(error.status_code)
        return Problem(status, "http", str(error.detail), headers=error.headers)
    if isinstance(error, TransientError) or hasattr(error, "retry_after_s"):
        return _unavailable(error)
    return Problem(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "unexpected",
        "An unexpected error; the server's log tells more",
    )


def _unavailable(error: Exception) -> Problem:
    """A store is down, or the ledger. Not the driver's own words, which name addresses."""
    store = getattr(error, "store", None)
    return Problem(
        HTTPStatus.SERVICE_UNAVAILABLE,
        "unavailable",
        f"{store or 'A store'} cannot be reached at present; send it again later",
        headers=retry_after(getattr(error, "retry_after_s", RETRY_AFTER_S)),
        store=store,
    )


def _invalid_parameter(error: RequestValidationError) -> Problem:
    """The first parameter at fault, by name, and what it has to be."""
    fault = error.errors()[0]
    name = str(fault["loc"][1])  # after "query" or "path"; a list's member has a number behind it
    detail = f"{name}: {fault['msg']}"
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "invalid", detail, field=name)


def retry_after(seconds: float) -> dict[str, str]:
    """The header, in whole seconds, at least one."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}


def install(app: FastAPI) -> None:
    """Answer every error with problem details."""

    async def answer(request: Request, error: Exception) -> Response:
        return answer_to(error, request.scope["path"])

    for kind in (Problem, ApexError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def answer_to(error: Exception, path: str) -> Response:
    """What a client is told of an error; the log is told more, but no header of the request."""
    problem = problem_of(error)
    if problem.name == "unexpected":
        log.error("request_failed", path=path, error=type(error).__name__)
    elif isinstance(error, ApexError) and problem.status >= 500:
        log.warning("request_refused", path=path, error=str(error))
    return Response(problem.body(path), problem.status.value, problem.headers, MEDIA_TYPE)


async def refuse(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Answer an error in middleware, which no exception handler sees."""
    await answer_to(error, scope["path"])(scope, receive, send)


def described(description: str, example: Any = None) -> dict[str, Any]:
    """A problem as OpenAPI shows it among a route's answers."""
    content: dict[str, Any] = {"schema": {"$ref": "#/components/schemas/Problem"}}
    if example is not None:
        content["example"] = example
    return {"description": description, "content": {MEDIA_TYPE: content}}


def described_for_now(description: str) -> dict[str, Any]:
    """As `described`, of a problem that says when to ask again."""
    seconds = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds."}
    return described(description) | {"headers": {"Retry-After": seconds}}


POSTGRES_DOWN = described_for_now("PostgreSQL is down.")
