"""Points on their way in and out: JSON to the engine's objects, the engine's answers to JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import qdrant_edge as edge
from numpy.typing import NDArray

from apex_dagster.embedded.qdrant_server.errors import (
    BadInput,
    NotSupported,
    Unprocessable,
    engine_values,
)
from apex_dagster.embedded.qdrant_server.requests import (
    Batch,
    FieldSelector,
    Payload,
    PointId,
    UpsertPoints,
    Vector,
    WithPayload,
)

# The engine stores payloads as JSON and logs them as CBOR; both readers stop at about 120 levels,
# the writers do not. One deeper payload makes the whole collection unreadable after a crash.
PAYLOAD_DEPTH_MAX = 64


def edge_points(body: UpsertPoints, dim: int) -> list[edge.Point]:
    """All points of an upsert, checked: the engine would apply those before the first bad one."""
    if (body.points is None) == (body.batch is None):
        raise BadInput("Format error in JSON body: an upsert needs either `points` or `batch`")
    ids, vectors, payloads = _columns(body)
    check_vectors(vectors, dim)
    for payload in payloads:
        check_payload(payload)
    with engine_values():
        return [
            edge.Point(point_id, vector, payload)
            for point_id, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]


def _columns(
    body: UpsertPoints,
) -> tuple[list[PointId], list[Vector], list[Payload | None]]:
    if body.batch is not None:
        return _batch_columns(body.batch)
    points = body.points or []
    vectors = [_unnamed(point.vector) for point in points]
    return [point.id for point in points], vectors, [point.payload for point in points]


def _batch_columns(batch: Batch) -> tuple[list[PointId], list[Vector], list[Payload | None]]:
    vectors = batch.vectors
    if isinstance(vectors, dict):
        raise NotSupported("named vectors")
    payloads = batch.payloads or [None] * len(batch.ids)
    if not len(batch.ids) == len(vectors) == len(payloads):
        raise BadInput(
            f"Wrong input: a batch of {len(batch.ids)} ids, {len(vectors)} vectors and "
            f"{len(payloads)} payloads; they have to be equally many"
        )
    return batch.ids, vectors, payloads


def _unnamed(vector: Vector | dict[str, Any]) -> Vector:
    if isinstance(vector, dict):
        raise NotSupported("named, sparse or server-computed vectors")
    return vector


def check_vectors(vectors: Sequence[Vector], dim: int) -> None:
    """Raises BadInput unless each has `dim` numbers that float32 can hold."""
    for vector in vectors:
        if not vector:
            raise Unprocessable("Validation error in JSON body: a vector must not be empty")
        if len(vector) != dim:
            raise BadInput(
                f"Wrong input: Vector dimension error: expected dim: {dim}, got {len(vector)}"
            )
    with np.errstate(over="ignore"):
        if vectors and not np.isfinite(np.asarray(vectors, dtype=np.float32)).all():
            raise BadInput("Wrong input: a vector holds a number outside the range of float32")


def check_payload(payload: Payload | None, *, depth: int = 0) -> None:
    """Raises BadInput if it is nested too deep to be read back; `depth` is where it will hang."""
    for value in payload.values() if payload else ():
        if type(value) is dict or type(value) is list:
            _check_depth(value, depth + 2)


def _check_depth(value: Any, depth: int) -> None:
    if depth > PAYLOAD_DEPTH_MAX:
        raise BadInput(f"Wrong input: a payload may be nested {PAYLOAD_DEPTH_MAX} deep at most")
    for item in value.values() if type(value) is dict else value:
        if type(item) is dict or type(item) is list:
            _check_depth(item, depth + 1)


def payload_selector(wanted: WithPayload | None, *, default: bool) -> Any:
    """What the engine calls `with_payload`."""
    if wanted is None:
        return default
    if not isinstance(wanted, FieldSelector):
        return wanted
    if (wanted.include is None) == (wanted.exclude is None):
        raise BadInput("Format error in JSON body: with_payload needs `include` or `exclude`")
    with engine_values():
        if wanted.include is not None:
            return edge.PayloadSelector.Include(wanted.include)
        return edge.PayloadSelector.Exclude(wanted.exclude or [])


def vector_selector(wanted: bool | list[str] | None) -> bool:
    if isinstance(wanted, list):
        raise NotSupported("with_vector by name")
    return bool(wanted)


def record_json(record: edge.Record | edge.ScoredPoint) -> dict[str, Any]:
    """A stored point; what was not asked for is left out, as a server does."""
    shown: dict[str, Any] = {"id": record.id}
    if record.payload is not None:
        shown["payload"] = record.payload
    if record.vector is not None:
        shown["vector"] = float32(record.vector)
    if record.order_value is not None:
        shown["order_value"] = record.order_value
    return shown


def scored_json(point: edge.ScoredPoint) -> dict[str, Any]:
    """A stored point with its similarity to a query."""
    score = np.float32(point.score)
    return {"version": point.version, "score": score} | record_json(point)


def float32(vector: Any) -> NDArray[np.float32]:
    """Written to JSON as the shortest digits that read back as the same float32, not float64."""
    return np.asarray(vector, dtype=np.float32)
