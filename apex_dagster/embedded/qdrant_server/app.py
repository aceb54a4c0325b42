"""The HTTP side: which path does what."""

from __future__ import annotations

import structlog
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from apex_dagster.embedded.qdrant_server import indexes, queries, requests, updates
from apex_dagster.embedded.qdrant_server.auth import ApiKeyGuard
from apex_dagster.embedded.qdrant_server.body import Body
from apex_dagster.embedded.qdrant_server.collections import Collections
from apex_dagster.embedded.qdrant_server.errors import GatewayError
from apex_dagster.embedded.qdrant_server.gateway import (
    Endpoint,
    Gateway,
    Limits,
    Work,
    error_response,
)

log = structlog.get_logger(__name__)

READS: tuple[tuple[str, str, type[Body], Work], ...] = (
    ("POST", "/points", requests.Retrieve, queries.retrieve),
    ("POST", "/points/scroll", requests.Scroll, queries.scroll),
    ("POST", "/points/count", requests.Count, queries.count),
    ("POST", "/points/query", requests.Query, queries.query),
    ("POST", "/points/query/batch", requests.QueryBatch, queries.query_batch),
    ("POST", "/facet", requests.Facet, queries.facet),
)
WRITES: tuple[tuple[str, str, type[Body], Work], ...] = (
    ("PUT", "/points", requests.UpsertPoints, updates.upsert),
    ("POST", "/points/batch", requests.UpdateBatch, updates.update_batch),
    ("POST", "/points/delete", requests.PointsSelector, updates.delete_points),
    ("POST", "/points/payload", requests.SetPayload, updates.set_payload),
    ("PUT", "/points/payload", requests.SetPayload, updates.overwrite_payload),
    ("POST", "/points/payload/delete", requests.DeletePayload, updates.delete_payload),
    ("POST", "/points/payload/clear", requests.PointsSelector, updates.clear_payload),
    ("PUT", "/index", requests.CreateIndex, indexes.create),
)


def create_app(
    collections: Collections, *, api_key: str, identity: str, limits: Limits
) -> Starlette:
    """The gateway over opened collections, which it closes when it stops."""
    gateway = Gateway(collections, identity=identity, limits=limits)
    return Starlette(
        routes=_routes(gateway),
        middleware=[Middleware(ApiKeyGuard, api_key=api_key)],
        exception_handlers={
            GatewayError: _on_gateway_error,
            ClientDisconnect: _on_disconnect,
            Exception: _on_unexpected_error,
        },
        lifespan=gateway.lifespan,
    )


def _routes(gateway: Gateway) -> list[Route]:
    collection = "/collections/{name}"
    routes = [
        Route("/", gateway.root, methods=["GET"]),
        Route("/healthz", _text("healthz check passed"), methods=["GET"]),
        Route("/livez", _text("livez check passed"), methods=["GET"]),
        Route("/readyz", _text("all shards are ready"), methods=["GET"]),
        Route("/collections", gateway.list_collections, methods=["GET"]),
        Route(collection, gateway.get_collection, methods=["GET"]),
        Route(collection, gateway.create_collection, methods=["PUT"]),
        Route(collection, gateway.delete_collection, methods=["DELETE"]),
        Route(f"{collection}/exists", gateway.collection_exists, methods=["GET"]),
        Route(f"{collection}/points/{{point_id}}", gateway.get_point, methods=["GET"]),
        Route(f"{collection}/index/{{field:path}}", gateway.delete_index, methods=["DELETE"]),
    ]
    for method, path, kind, work in READS:
        routes.append(Route(collection + path, gateway.read(kind, work), methods=[method]))
    for method, path, kind, work in WRITES:
        routes.append(Route(collection + path, gateway.write(kind, work), methods=[method]))
    every = ["GET", "POST", "PUT", "PATCH", "DELETE"]
    return [*routes, Route("/{path:path}", gateway.not_supported, methods=every)]


async def _on_gateway_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GatewayError)
    if error.status == GatewayError.status:
        log.error("request_failed", path=request.url.path, error=str(error))
    return error_response(error)


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=400)  # nobody reads it


async def _on_unexpected_error(request: Request, error: Exception) -> Response:
    log.error("request_failed", path=request.url.path, error=repr(error))
    return error_response(GatewayError(f"Service internal error: {type(error).__name__}"))


def _text(text: str) -> Endpoint:
    async def endpoint(request: Request) -> Response:
        return PlainTextResponse(text)

    return endpoint
