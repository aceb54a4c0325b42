"""Requests by another name than this machine's own are refused.

A page of another site may have a name that it lets point at 127.0.0.1 later on; its requests then
count as its own site's for a browser, but they still carry that name.
"""

from __future__ import annotations

import ipaddress
from http import HTTPStatus

from starlette.types import ASGIApp, Receive, Scope, Send

from apex_dagster.api.problems import Problem, refuse


def is_loopback(host: str) -> bool:
    """Whether a host, as an address or by name, is this machine and nothing else."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class LoopbackNames:
    """Lets only requests through whose Host is a loopback one."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_loopback(_host(scope)):
            refusal = Problem(
                HTTPStatus.MISDIRECTED_REQUEST, "host", "Host: must be a loopback address"
            )
            await refuse(refusal, scope, receive, send)
            return
        await self._app(scope, receive, send)


def _host(scope: Scope) -> str:
    value = next((value for name, value in scope["headers"] if name == b"host"), b"")
    host: str = value.decode("latin-1").lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
