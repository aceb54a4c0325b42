"""A client of the HTTP API: one method for each request, typed answers, errors as exceptions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast
from urllib.parse import quote

import httpx
import orjson

from apex_dagster.client.answers import (
    DocumentHeading,
    Ingested,
    LiveDocument,
    SagaMove,
    SagaStory,
    SagaSummary,
)
from apex_dagster.client.problem import ApiProblem, ApiUnreachable

_TIMEOUT_S = 150.0  # the server answers an ingestion within APEX_ANSWER_WAIT_S, 120 s
_PAGE = 200


class Client:
    """Safe to use from several threads. Close it, or use it in a `with` statement.

    Every method raises ApiProblem for an answer that is none, and ApiUnreachable without one.
    """

    def __init__(self, url: str, *, key: str | None = None, timeout_s: float = _TIMEOUT_S) -> None:
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Release the connections."""
        self._http.close()

    def ingest(
        self, document: Mapping[str, Any], *, idempotency_key: str | None = None
    ) -> Ingested:
        """Take in a document with what is known of it: text, chunks, embeddings, entities, …"""
        headers = {"Content-Type": "application/json"} | _key(idempotency_key)
        body = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
        answer = self._send("POST", "/documents/ingest", content=body, headers=headers)
        return cast(Ingested, answer.json())

    def ingest_file(
        self,
        path: Path,
        *,
        document_id: str | None = None,
        collection: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        expected_version: int | None = None,
        idempotency_key: str | None = None,
    ) -> Ingested:
        """Take in a file, which the server extracts; without `document_id` under its name."""
        said = {
            "document_id": document_id,
            "collection": collection,
            "metadata": None if metadata is None else orjson.dumps(metadata).decode(),
            "expected_version": None if expected_version is None else str(expected_version),
        }
        answer = self._send(
            "POST",
            "/documents",
            # Of no stated type: the server goes by the name.
            files={"file": (path.name, path.read_bytes(), "application/octet-stream")},
            data={name: value for name, value in said.items() if value is not None},
            headers=_key(idempotency_key),
        )
        return cast(Ingested, answer.json())

    def document(self, document_id: str) -> LiveDocument:
        """The live version, whole."""
        return cast(LiveDocument, self._send("GET", _path("documents", document_id)).json())

    def documents(self, *, collection: str | None = None) -> Iterator[DocumentHeading]:
        """All live documents in the order of document_id, page by page."""
        query = {} if collection is None else {"collection": collection}
        return cast(Iterator[DocumentHeading], self._pages("documents", query))

    def saga(self, saga_id: str) -> SagaStory:
        """A saga's story."""
        return cast(SagaStory, self._send("GET", _path("sagas", saga_id)).json())

    def sagas(
        self, *, status: str | None = None, document_id: str | None = None
    ) -> Iterator[SagaSummary]:
        """Sagas, the newest first, page by page."""
        query = {"status": status, "document_id": document_id}
        given = {name: value for name, value in query.items() if value is not None}
        return cast(Iterator[SagaSummary], self._pages("sagas", given))

    def follow(self, saga_id: str) -> Iterator[SagaMove]:
        """A saga's moves so far and as they happen, until it has ended."""
        path = _path("sagas", saga_id) + "/events"
        with self._reached(), self._http.stream("GET", path) as answer:
            if answer.is_error:
                answer.read()
            _check(answer)
            name = ""
            for line in answer.iter_lines():
                field, _, value = line.partition(": ")
                if field == "event":
                    name = value
                elif field == "data" and name != "ended":
                    yield cast(SagaMove, orjson.loads(value))

    def version(self) -> str:
        """Of the server."""
        return cast(str, self._send("GET", "/version").json()["version"])

    def _pages(self, name: str, query: Mapping[str, str]) -> Iterator[Any]:
        more: dict[str, str | int] = {**query, "limit": _PAGE}
        while True:
            page = self._send("GET", f"/{name}", params=more).json()
            yield from page[name]
            if page["next"] is None:
                return
            more["after"] = page["next"]

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        with self._reached():
            answer = self._http.request(method, path, **options)
        return _check(answer)

    @contextmanager
    def _reached(self) -> Iterator[None]:
        try:
            yield
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
            raise ApiUnreachable(str(self._http.base_url), reason) from error


def _check(answer: httpx.Response) -> httpx.Response:
    if answer.is_success:
        return answer
    retry_after = answer.headers.get("retry-after", "")
    raise ApiProblem(_details(answer), int(retry_after) if retry_after.isdecimal() else None)


def _details(answer: httpx.Response) -> Mapping[str, Any]:
    if answer.headers.get("content-type") == "application/problem+json":
        return cast(Mapping[str, Any], answer.json())
    # Of a proxy, or of another server.
    detail = f"{answer.reason_phrase} ({answer.url}); is this the API of apex_dagster?"
    return {"type": "about:blank", "status": answer.status_code, "detail": detail}


def _path(room: str, name: str) -> str:
    return f"/{room}/{quote(name, safe='')}"


def _key(idempotency_key: str | None) -> dict[str, str]:
    return {} if idempotency_key is None else {"Idempotency-Key": idempotency_key}
