"""Reads: retrieve, scroll, count, facet and query."""

from __future__ import annotations

from typing import Any

import qdrant_edge as edge

from apex_dagster.embedded.qdrant_server.errors import (
    BadInput,
    NotFound,
    NotSupported,
    Unprocessable,
    engine_values,
)
from apex_dagster.embedded.qdrant_server.points import (
    check_vectors,
    payload_selector,
    record_json,
    scored_json,
    vector_selector,
)
from apex_dagster.embedded.qdrant_server.requests import (
    Count,
    Facet,
    OrderBy,
    Prefetch,
    Query,
    QueryBatch,
    QueryInput,
    QueryVariant,
    Retrieve,
    Scroll,
    Vector,
)
from apex_dagster.embedded.qdrant_server.shard import Shard

Json = dict[str, Any]

LIMIT = 10  # Qdrant's default for every read
RRF_K = 2  # Qdrant's default
PREFETCH_DEPTH_MAX = 4


def retrieve(shard: Shard, body: Retrieve) -> list[Json]:
    # A server gives no payload unless asked, whatever its documentation says.
    with_payload = payload_selector(body.with_payload, default=False)
    return _records(shard, body.ids, with_payload, with_vector=vector_selector(body.with_vector))


def retrieve_one(shard: Shard, point_id: str) -> Json:
    wanted = int(point_id) if point_id.isdecimal() else point_id
    records = _records(shard, [wanted], True, with_vector=True)
    if not records:
        raise NotFound(f"Point with id {point_id} does not exists!")
    return records[0]


def _records(shard: Shard, ids: list[Any], with_payload: Any, *, with_vector: bool) -> list[Json]:
    with engine_values():
        edge.HasIdCondition(set(ids))  # the cheapest way to have ids checked before the call
    records = shard.call(lambda engine: engine.retrieve(ids, with_payload, with_vector))
    return [record_json(record) for record in records]


def scroll(shard: Shard, body: Scroll) -> Json:
    limit = _limit(body.limit)
    if body.order_by is not None and body.offset is not None:
        raise BadInput("Wrong input: Cannot use an `offset` when using `order_by`")
    with engine_values():
        request = edge.ScrollRequest(
            offset=body.offset,
            limit=limit,
            filter=shard.filter(body.filter),
            with_payload=payload_selector(body.with_payload, default=True),
            with_vector=vector_selector(body.with_vector),
            order_by=None if body.order_by is None else _order_by(body.order_by),
        )
    records, following = shard.call(lambda engine: engine.scroll(request))
    return {"points": [record_json(one) for one in records], "next_page_offset": following}


def count(shard: Shard, body: Count) -> Json:
    # Counting with an index is fast enough here to be exact whatever was asked for.
    request = edge.CountRequest(exact=True, filter=shard.filter(body.filter))
    return {"count": shard.call(lambda engine: engine.count(request))}


def facet(shard: Shard, body: Facet) -> Json:
    with engine_values():
        request = edge.FacetRequest(
            body.key, limit=_limit(body.limit), exact=True, filter=shard.filter(body.filter)
        )
    response = shard.call(lambda engine: engine.facet(request))
    return {"hits": [{"value": hit.value, "count": hit.count} for hit in response.hits]}


def query(shard: Shard, body: Query) -> Json:
    return query_batch(shard, QueryBatch(searches=[body]))[0]


def query_batch(shard: Shard, body: QueryBatch) -> list[Json]:
    requests = [_query_request(shard, search) for search in body.searches]
    batch = edge.QueryBatchRequest(requests)
    answers = shard.call(lambda engine: engine.query_batch(batch))
    return [{"points": [scored_json(point) for point in points]} for points in answers]


def _query_request(shard: Shard, body: Query) -> edge.QueryRequest:
    prefetches = _prefetches(shard, body, depth=1)
    with engine_values():
        return edge.QueryRequest(
            limit=_limit(body.limit),
            offset=body.offset or 0,
            query=_scoring(shard, body.query, prefetched=bool(prefetches)),
            prefetches=prefetches,
            filter=shard.filter(body.filter),
            score_threshold=body.score_threshold,
            with_payload=payload_selector(body.with_payload, default=False),
            with_vector=vector_selector(body.with_vector),
        )


def _prefetches(shard: Shard, body: Prefetch, *, depth: int) -> list[edge.Prefetch]:
    given = body.prefetch or []
    if given and depth > PREFETCH_DEPTH_MAX:
        raise BadInput(f"Wrong input: prefetch may be nested {PREFETCH_DEPTH_MAX} deep at most")
    return [
        _prefetch(shard, one, depth=depth)
        for one in (given if isinstance(given, list) else [given])
    ]


def _prefetch(shard: Shard, body: Prefetch, *, depth: int) -> edge.Prefetch:
    prefetches = _prefetches(shard, body, depth=depth + 1)
    with engine_values():
        return edge.Prefetch(
            limit=_limit(body.limit),
            query=_scoring(shard, body.query, prefetched=bool(prefetches)),
            prefetches=prefetches,
            filter=shard.filter(body.filter),
            score_threshold=body.score_threshold,
        )


def _scoring(shard: Shard, body: QueryInput | None, *, prefetched: bool) -> Any:
    """The engine's query; None lists points by id."""
    if body is None:
        return None
    if not isinstance(body, QueryVariant):
        return _nearest(shard, body)
    given = [name for name in body.__struct_fields__ if getattr(body, name) is not None]
    if len(given) != 1:
        raise BadInput("Format error in JSON body: `query` needs exactly one of its variants")
    if body.nearest is not None:
        return _nearest(shard, body.nearest)
    if body.order_by is not None:
        return _order_by(body.order_by)
    if not prefetched:
        raise BadInput("Bad request: cannot fuse the results of no prefetch")
    return _fusion(body)


def _nearest(shard: Shard, vector: Vector | int | str | Json) -> edge.Query:
    if not isinstance(vector, list):
        raise NotSupported("a query by point id, by sparse vector or by text")
    check_vectors([vector], shard.dim)
    return edge.Query.Nearest(vector)


def _fusion(body: QueryVariant) -> Any:
    if body.fusion == "dbsf":
        return edge.Fusion.Dbsf()
    if body.rrf is None:
        return edge.Fusion.Rrf(k=RRF_K)
    return edge.Fusion.Rrf(k=body.rrf.k or RRF_K, weights=body.rrf.weights)


def _order_by(body: str | OrderBy) -> edge.OrderBy:
    if isinstance(body, str):
        return edge.OrderBy(body)
    direction = edge.Direction.Desc if body.direction == "desc" else edge.Direction.Asc
    return edge.OrderBy(body.key, direction, body.start_from)


def _limit(limit: int | None) -> int:
    if limit is not None and limit < 1:
        raise Unprocessable(
            f"Validation error in JSON body: [limit: value {limit} invalid, must be 1 or larger]"
        )
    return LIMIT if limit is None else limit
