"""The JSON bodies the gateway understands, as msgspec structs.

A field that is not listed here is one the gateway cannot honour, so it is refused with 501 instead
of being ignored. `None` means absent, as in Qdrant's own clients, which leave nulls out.
"""

from __future__ import annotations

from typing import Any, Literal

from apex_dagster.embedded.qdrant_server.body import Body

PointId = int | str
Payload = dict[str, Any]
Vector = list[float]


# Filters


class PayloadField(Body):
    key: str


class Match(Body, rename={"except_": "except"}):
    """Exactly one field is set."""

    value: bool | int | str | None = None
    any: list[int | str] | None = None
    except_: list[int | str] | None = None
    text: str | None = None
    text_any: str | None = None
    phrase: str | None = None


class Range(Body):
    """Bounds are all numbers, or all RFC 3339 times."""

    lt: float | str | None = None
    lte: float | str | None = None
    gt: float | str | None = None
    gte: float | str | None = None


class MinShould(Body):
    conditions: list[Condition]
    min_count: int


class Filter(Body):
    must: list[Condition] | Condition | None = None
    should: list[Condition] | Condition | None = None
    must_not: list[Condition] | Condition | None = None
    min_should: MinShould | None = None


class Nested(Body):
    key: str
    filter: Filter


class Condition(Filter):
    """One condition of any kind; a filter inside a filter is one as well."""

    key: str | None = None
    match: Match | None = None
    range: Range | None = None
    is_empty: bool | PayloadField | None = None
    is_null: bool | PayloadField | None = None
    has_id: list[PointId] | None = None
    nested: Nested | None = None


# Collections and indexes


class VectorParams(Body):
    """The one unnamed dense vector of a collection."""

    size: int
    distance: str
    on_disk: bool | None = None
    datatype: Literal["float32"] | None = None
    hnsw_config: dict[str, Any] | None = None  # accepted; every search here is exact


class CreateCollection(Body):
    """Options that only tune a server (graph, optimizers, log) are accepted and have no effect."""

    vectors: VectorParams | None = None
    on_disk_payload: bool | None = None
    shard_number: Literal[1] | None = None
    replication_factor: Literal[1] | None = None
    write_consistency_factor: Literal[1] | None = None
    hnsw_config: dict[str, Any] | None = None
    optimizers_config: dict[str, Any] | None = None
    wal_config: dict[str, Any] | None = None


class CreateIndex(Body):
    field_name: str
    field_schema: str | dict[str, Any] | None = None


# Points


class PointStruct(Body):
    id: PointId
    vector: Vector | dict[str, Any]
    payload: Payload | None = None


class Batch(Body):
    ids: list[PointId]
    vectors: list[Vector] | dict[str, Any]
    payloads: list[Payload | None] | None = None


class UpsertPoints(Body):
    points: list[PointStruct] | None = None
    batch: Batch | None = None
    update_filter: Filter | None = None
    update_mode: Literal["upsert", "insert_only", "update_only"] | None = None


class PointsSelector(Body):
    points: list[PointId] | None = None
    filter: Filter | None = None


class SetPayload(PointsSelector, kw_only=True):
    payload: Payload
    key: str | None = None


class DeletePayload(PointsSelector, kw_only=True):
    keys: list[str]


class UpdateOperation(Body):
    """Exactly one field is set."""

    upsert: UpsertPoints | None = None
    delete: PointsSelector | None = None
    set_payload: SetPayload | None = None
    overwrite_payload: SetPayload | None = None
    delete_payload: DeletePayload | None = None
    clear_payload: PointsSelector | None = None


class UpdateBatch(Body):
    operations: list[UpdateOperation]


# Reads


class FieldSelector(Body):
    """One of the two is set."""

    include: list[str] | None = None
    exclude: list[str] | None = None


WithPayload = bool | list[str] | FieldSelector


class OrderBy(Body):
    key: str
    direction: Literal["asc", "desc"] | None = None
    start_from: float | str | None = None


class Retrieve(Body):
    ids: list[PointId]
    with_payload: WithPayload | None = None
    with_vector: bool | list[str] | None = None


class Scroll(Body):
    offset: PointId | None = None
    limit: int | None = None
    filter: Filter | None = None
    with_payload: WithPayload | None = None
    with_vector: bool | list[str] | None = None
    order_by: str | OrderBy | None = None


class Count(Body):
    filter: Filter | None = None
    exact: bool | None = None


class Facet(Body):
    key: str
    limit: int | None = None
    filter: Filter | None = None
    exact: bool | None = None


class Rrf(Body):
    k: int | None = None
    weights: list[float] | None = None


class QueryVariant(Body):
    """Exactly one field is set."""

    nearest: Vector | int | str | dict[str, Any] | None = None
    fusion: Literal["rrf", "dbsf"] | None = None
    rrf: Rrf | None = None
    order_by: str | OrderBy | None = None


QueryInput = Vector | int | str | QueryVariant


class SearchParams(Body):
    """Accepted and without effect: every search is exact already."""

    hnsw_ef: int | None = None
    exact: bool | None = None


class Prefetch(Body):
    query: QueryInput | None = None
    prefetch: list[Prefetch] | Prefetch | None = None
    using: Literal[""] | None = None
    filter: Filter | None = None
    params: SearchParams | None = None
    score_threshold: float | None = None
    limit: int | None = None


class Query(Prefetch):
    offset: int | None = None
    with_payload: WithPayload | None = None
    with_vector: bool | list[str] | None = None


class QueryBatch(Body):
    searches: list[Query]
