"""What `GET /collections/{name}` says of a collection."""

from __future__ import annotations

from typing import Any

from apex_dagster.embedded.qdrant_server.indexes import payload_schema
from apex_dagster.embedded.qdrant_server.shard import Shard


def collection_info(shard: Shard) -> dict[str, Any]:
    """A server's fields. `m` is 0, a server's word for no graph: every search is exact."""
    info = shard.call(lambda engine: engine.info())
    return {
        "status": "green",
        "optimizer_status": "ok",
        "points_count": info.points_count,
        "indexed_vectors_count": info.indexed_vectors_count,
        "segments_count": info.segments_count,
        "config": {
            "params": _params(shard),
            "hnsw_config": {"m": 0, "ef_construct": 100, "full_scan_threshold": 10_000},
            "optimizer_config": {"default_segment_number": 1, "flush_interval_sec": 5},
        },
        "payload_schema": payload_schema(shard),
    }


def _params(shard: Shard) -> dict[str, Any]:
    description = shard.description
    vectors: dict[str, Any] = {"size": description.dim, "distance": description.distance}
    if description.vectors_on_disk is not None:
        vectors["on_disk"] = description.vectors_on_disk
    return {
        "vectors": vectors,
        "shard_number": 1,
        "replication_factor": 1,
        "write_consistency_factor": 1,
        "on_disk_payload": description.payload_on_disk is not False,
    }
