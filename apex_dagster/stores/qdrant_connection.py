"""QdrantStore's way to the server: a client for each process, and its errors translated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import httpx
from pydantic import ValidationError
from pydantic_core import PydanticSerializationError
from qdrant_client import QdrantClient
from qdrant_client.common.client_exceptions import QdrantException
from qdrant_client.http.exceptions import (
    ApiException,
    ResponseHandlingException,
    UnexpectedResponse,
)

from apex_dagster.errors import ApexError, OutcomeUnknown, StoreRejected, StoreUnavailable

STORE = "qdrant"
_CONNECT_ERRORS = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
# Not the document's fault: a wrong key, a collection that is gone, a server with too much to do.
_SERVER_AT_FAULT = frozenset({401, 403, 404, 408, 429})
_IDLE_CONNECTIONS = 20
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class ClientPerProcess:
    """The unmodified REST client, which a forked child must not share with its parent."""

    def __init__(self, url: str, *, api_key: str | None, timeout_s: float) -> None:
        self._url, self._api_key, self._timeout_s = url, api_key, timeout_s
        self._clients: dict[int, QdrantClient] = {}

    @contextmanager
    def client(self) -> Iterator[QdrantClient]:
        """Raises StoreUnavailable, OutcomeUnknown and StoreRejected for the client's own errors."""
        try:
            yield self._of_this_process()
        except (ApiException, QdrantException) as error:
            raise translate(error, after_s=self._timeout_s) from error
        except PydanticSerializationError as error:
            raise StoreRejected(STORE, f"not JSON: {error}") from error

    def close(self) -> None:
        client = self._clients.pop(os.getpid(), None)
        if client is not None:
            client.close()

    def _of_this_process(self) -> QdrantClient:
        # setdefault decides between threads without a lock, which a fork could catch locked.
        pid = os.getpid()
        return self._clients.get(pid) or self._clients.setdefault(pid, self._connect())

    def _connect(self) -> QdrantClient:
        return QdrantClient(
            url=self._url,
            # As `api_key` it would be announced by a warning on every plain-HTTP loopback address.
            headers=None if self._api_key is None else {"api-key": self._api_key},
            timeout=self._timeout_s,  # type: ignore[arg-type]  # rounded up to whole seconds
            check_compatibility=False,  # a thread that only warns; prepare() checks the version
            # The client's default for a local server is a new connection for each request.
            limits=httpx.Limits(max_keepalive_connections=_IDLE_CONNECTIONS),
            # A proxy that the environment names would be given what is meant for this machine.
            trust_env=urlsplit(self._url).hostname not in _LOOPBACK,
        )


def translate(error: ApiException | QdrantException, *, after_s: float) -> ApexError:
    """The project's error for one of the client's, by what httpx raised or the status code."""
    if isinstance(error, UnexpectedResponse):
        return _of_status(error.status_code or 0, _server_said(error), after_s=after_s)
    if not isinstance(error, ResponseHandlingException):
        return StoreUnavailable(STORE, str(error))  # 429 with Retry-After
    if isinstance(error.source, _CONNECT_ERRORS):
        refused = StoreUnavailable(STORE, str(error.source))
        refused.nothing_written = True
        return refused
    if isinstance(error.source, ValidationError):
        return StoreUnavailable(STORE, "the answer is not one of a Qdrant server")
    return OutcomeUnknown(STORE, after_s=after_s)


def _of_status(status: int, detail: str, *, after_s: float) -> ApexError:
    if status == 504:  # a gateway that gave up waiting for the server behind it
        return OutcomeUnknown(STORE, after_s=after_s)
    if status in _SERVER_AT_FAULT or (status >= 500 and status != 501):
        return StoreUnavailable(STORE, f"{status}: {detail}")
    return StoreRejected(STORE, f"{status}: {detail}")


def _server_said(error: UnexpectedResponse) -> str:
    try:
        return str(error.structured()["status"]["error"])
    except (ValueError, KeyError, TypeError):
        return error.reason_phrase
