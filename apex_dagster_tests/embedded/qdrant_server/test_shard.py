"""What a gateway's own checks keep out, given to the engine on purpose: it must recover."""

import shutil
from pathlib import Path

import pytest
import qdrant_edge as edge

from apex_dagster.embedded.qdrant_server.errors import EngineFailed
from apex_dagster.embedded.qdrant_server.shard import Description, Shard

DESCRIPTION = Description(name="c", dim=4, distance="Dot")


def upsert(point_id: int, vector: object, **payload: object) -> edge.UpdateOperation:
    return edge.UpdateOperation.upsert_points([edge.Point(point_id, vector, payload)])  # type: ignore[arg-type]


def count(shard: Shard) -> int:
    return shard.call(lambda engine: engine.count(edge.CountRequest()))


def test_after_a_panic_the_collection_goes_on_and_opens_again(tmp_path: Path) -> None:
    """Rows of unequal length panic the engine after the operation is in its log."""
    shard = multivector_shard(tmp_path)
    shard.update(upsert(1, [[1.0] * 4]))
    with pytest.raises(EngineFailed, match="panicked"):
        shard.update(upsert(2, [[1.0] * 4, [1.0] * 3]))
    shard.update(upsert(3, [[1.0] * 4]))
    assert count(shard) == 2
    reopened = edge.EdgeShard.load(copy_of(shard, tmp_path))
    assert reopened.count(edge.CountRequest()) == 2


def test_after_a_failure_inside_the_engine_writes_go_on(tmp_path: Path) -> None:
    """A payload too deep to be read back makes the engine refuse every later write."""
    Shard.create(tmp_path, DESCRIPTION)
    shard = Shard.load(tmp_path)
    shard.update(upsert(1, [1.0] * 4))
    too_deep = edge.UpdateOperation.set_payload([1], {"a": 1}, ".".join("a" * 200))
    with pytest.raises(EngineFailed, match="recursion limit"):
        shard.update(too_deep)
    shard.update(upsert(2, [1.0] * 4))
    assert count(shard) == 2
    shard.close()
    assert count(Shard.load(tmp_path)) == 2


def multivector_shard(folder: Path) -> Shard:
    rows = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    params = edge.EdgeVectorParams(size=4, distance=edge.Distance.Dot, multivector_config=rows)
    (folder / "shard").mkdir()
    engine = edge.EdgeShard.create(str(folder / "shard"), edge.EdgeConfig(vectors=params))
    return Shard(folder, DESCRIPTION, engine)


def copy_of(shard: Shard, folder: Path) -> str:
    """The files as a SIGKILL would leave them: the shard is still open and not flushed."""
    shutil.copytree(shard.folder / "shard", folder / "copy")
    return str(folder / "copy")
