"""One collection: its folder, and the engine that has it open.

    <folder>/collection.json    name and vector parameters
    <folder>/shard/             the engine's own files

All methods run on the gateway's single engine thread. The engine holds Python's interpreter lock
in every call, so more threads would gain nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import msgspec
import qdrant_edge as edge
import structlog

from apex_dagster.embedded.qdrant_server.errors import EngineFailed, GatewayError, engine_calls
from apex_dagster.embedded.qdrant_server.filters import edge_filter
from apex_dagster.embedded.qdrant_server.requests import Filter

log = structlog.get_logger(__name__)
T = TypeVar("T")

DISTANCES = {
    "Dot": edge.Distance.Dot,  # the only one that gives back vectors bit by bit: no normalising
    "Cosine": edge.Distance.Cosine,
    "Euclid": edge.Distance.Euclid,
}
NO_HNSW_KB = 1 << 40  # building a graph for 25,000 points stopped the whole process for 27 s


class Description(msgspec.Struct, kw_only=True, frozen=True):
    """What a collection was created with."""

    name: str
    dim: int
    distance: str  # a key of DISTANCES
    vectors_on_disk: bool | None = None
    payload_on_disk: bool | None = None


class Shard:
    """An open collection."""

    def __init__(self, folder: Path, description: Description, engine: edge.EdgeShard) -> None:
        self.folder, self.description, self._engine = folder, description, engine
        self.dim = description.dim
        self.dirty = False  # something is in the log only
        self.vacuum_due = False
        self._failed = False
        self._operations = 0
        self._text_fields: frozenset[str] = frozenset()
        self._note_text_fields()

    @staticmethod
    def create(folder: Path, description: Description) -> None:
        """Write an empty collection to `folder`, which exists, and close it again."""
        (folder / "shard").mkdir()
        with engine_calls():
            engine = edge.EdgeShard.create(str(folder / "shard"), _engine_config(description))
            engine.flush()
            engine.close()
        with (folder / "collection.json").open("wb") as file:
            file.write(msgspec.json.encode(description))
            file.flush()
            os.fsync(file.fileno())

    @classmethod
    def load(cls, folder: Path) -> Shard:
        """Open the collection in `folder`, replaying what its log holds beyond the last flush."""
        return cls(folder, read_description(folder), _load_engine(folder))

    def call(self, read: Callable[[edge.EdgeShard], T]) -> T:
        """Run one read; its errors come out as GatewayErrors."""
        with engine_calls():
            return read(self._engine)

    def update(self, operation: edge.UpdateOperation) -> int:
        """Apply one operation, in the log when this returns; gives the operation's number."""
        if self._failed:
            self._recover()
        self.dirty = self.vacuum_due = True
        try:
            with engine_calls():
                self._engine.update(operation)
        except EngineFailed:
            self._failed = True
            self._recover()
            raise
        self._operations += 1
        return self._operations

    def update_index(self, operation: edge.UpdateOperation) -> int:
        """Like `update`, for operations on payload indexes."""
        number = self.update(operation)
        self._note_text_fields()
        return number

    def filter(self, body: Filter | None) -> edge.Filter | None:
        """The engine's form of a request's filter on this collection."""
        return edge_filter(body, self._text_fields.__contains__)

    def flush(self) -> None:
        """Write everything to its files and cut the log."""
        with engine_calls():
            self._engine.flush()
        self.dirty = False

    def vacuum(self) -> None:
        """Drop deleted points from the files. Takes 0.5 s for 160,000 versions of 20,000 points."""
        self.vacuum_due = False
        with engine_calls():
            if self._engine.optimize():
                self._engine.flush()  # only then do the files go that were replaced

    def close(self) -> None:
        """Flush and release the files."""
        with engine_calls():
            self._engine.flush()
            self._engine.close()

    def _recover(self) -> None:
        """Leave a failed operation behind and open the collection anew; raises EngineFailed if the
        cause persists (a full disk), to be tried again before the next write.

        The operation is in the log already: replayed, it would fail again, and then the collection
        could never be opened. One that succeeds, flushed, moves the log past it.
        """
        log.error("collection_reopened", collection=self.description.name)
        with contextlib.suppress(GatewayError), engine_calls():
            self._engine.update(edge.UpdateOperation.delete_points([]))
            self._engine.flush()
        with contextlib.suppress(GatewayError), engine_calls():
            self._engine.close()
        self._engine = _load_engine(self.folder)
        self._failed = False

    def _note_text_fields(self) -> None:
        schema = self.call(lambda engine: engine.info()).payload_schema
        text = edge.PayloadSchemaType.Text
        self._text_fields = frozenset(
            field for field, index in schema.items() if index.data_type == text
        )


def read_description(folder: Path) -> Description:
    """What `folder` holds; raises EngineFailed if that cannot be told."""
    try:
        return msgspec.json.decode((folder / "collection.json").read_bytes(), type=Description)
    except (OSError, msgspec.MsgspecError) as error:
        raise EngineFailed(f"{folder.name}/collection.json cannot be read: {error}") from error


def _load_engine(folder: Path) -> edge.EdgeShard:
    with engine_calls():
        return edge.EdgeShard.load(str(folder / "shard"))


def _engine_config(description: Description) -> edge.EdgeConfig:
    return edge.EdgeConfig(
        vectors=edge.EdgeVectorParams(
            size=description.dim,
            distance=DISTANCES[description.distance],
            on_disk=description.vectors_on_disk,
        ),
        on_disk_payload=description.payload_on_disk,
        optimizers=edge.EdgeOptimizersConfig(
            indexing_threshold=NO_HNSW_KB, default_segment_number=1
        ),
    )
