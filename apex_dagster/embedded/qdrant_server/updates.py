"""Writes: what the engine is told to do with points, and what it answers.

Every operation of a request is built, and with it checked, before the first is applied: the engine
logs an operation before it looks at it, so a bad one must not get that far.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import qdrant_edge as edge

from apex_dagster.embedded.qdrant_server.errors import BadInput, engine_values
from apex_dagster.embedded.qdrant_server.points import check_payload, edge_points
from apex_dagster.embedded.qdrant_server.requests import (
    DeletePayload,
    PointsSelector,
    SetPayload,
    UpdateBatch,
    UpsertPoints,
)
from apex_dagster.embedded.qdrant_server.shard import Shard

Json = dict[str, Any]
Operation = edge.UpdateOperation

_UPDATE_MODES = {
    "upsert": edge.UpdateMode.Upsert,
    "insert_only": edge.UpdateMode.InsertOnly,
    "update_only": edge.UpdateMode.UpdateOnly,
}


def upsert(shard: Shard, body: UpsertPoints) -> int:
    return shard.update(_upsert(shard, body))


def delete_points(shard: Shard, body: PointsSelector) -> int:
    return shard.update(_delete_points(shard, body))


def set_payload(shard: Shard, body: SetPayload) -> int:
    return shard.update(_set_payload(shard, body))


def overwrite_payload(shard: Shard, body: SetPayload) -> int:
    return shard.update(_overwrite_payload(shard, body))


def delete_payload(shard: Shard, body: DeletePayload) -> int:
    return shard.update(_delete_payload(shard, body))


def clear_payload(shard: Shard, body: PointsSelector) -> int:
    return shard.update(_clear_payload(shard, body))


def update_batch(shard: Shard, body: UpdateBatch) -> list[int]:
    operations = []
    for each in body.operations:
        given = [name for name in each.__struct_fields__ if getattr(each, name) is not None]
        if len(given) != 1:
            raise BadInput("Format error in JSON body: an operation needs exactly one variant")
        operations.append(_OPERATIONS[given[0]](shard, getattr(each, given[0])))
    return [shard.update(operation) for operation in operations]


def _upsert(shard: Shard, body: UpsertPoints) -> Operation:
    return Operation.upsert_points(
        edge_points(body, shard.dim),
        shard.filter(body.update_filter),
        _UPDATE_MODES[body.update_mode or "upsert"],
    )


def _delete_points(shard: Shard, body: PointsSelector) -> Operation:
    return _selected(shard, body, Operation.delete_points, Operation.delete_points_by_filter)


def _set_payload(shard: Shard, body: SetPayload) -> Operation:
    _check_new_payload(body)
    return _selected(
        shard,
        body,
        lambda ids: Operation.set_payload(ids, body.payload, body.key),
        lambda chosen: Operation.set_payload_by_filter(chosen, body.payload, body.key),
    )


def _overwrite_payload(shard: Shard, body: SetPayload) -> Operation:
    _check_new_payload(body)
    return _selected(
        shard,
        body,
        lambda ids: Operation.overwrite_payload(ids, body.payload, body.key),
        lambda chosen: Operation.overwrite_payload_by_filter(chosen, body.payload, body.key),
    )


def _delete_payload(shard: Shard, body: DeletePayload) -> Operation:
    return _selected(
        shard,
        body,
        lambda ids: Operation.delete_payload(ids, body.keys),
        lambda chosen: Operation.delete_payload_by_filter(chosen, body.keys),
    )


def _clear_payload(shard: Shard, body: PointsSelector) -> Operation:
    return _selected(shard, body, Operation.clear_payload, Operation.clear_payload_by_filter)


_OPERATIONS: dict[str, Callable[[Shard, Any], Operation]] = {
    "upsert": _upsert,
    "delete": _delete_points,
    "set_payload": _set_payload,
    "overwrite_payload": _overwrite_payload,
    "delete_payload": _delete_payload,
    "clear_payload": _clear_payload,
}


def _check_new_payload(body: SetPayload) -> None:
    """A `key` such as "a.b[0]" creates its path, so its levels count as well."""
    steps = 0 if body.key is None else body.key.count(".") + body.key.count("[") + 1
    check_payload({"": body.payload}, depth=steps)


def _selected(
    shard: Shard,
    body: PointsSelector,
    by_ids: Callable[[list[Any]], Operation],
    by_filter: Callable[[edge.Filter], Operation],
) -> Operation:
    chosen = shard.filter(body.filter)
    if body.points is not None and chosen is not None:
        raise BadInput("Bad request: Either list of ids or filter must be provided, not both")
    with engine_values():
        if body.points is not None:
            return by_ids(list(body.points))
        if chosen is not None:
            return by_filter(chosen)
    raise BadInput("Bad request: Either list of ids or filter must be provided")
