"""All collections of a data folder: created, found, flushed and deleted.

    <data>/lock                    held while a gateway has the folder open
    <data>/collections/<32 hex>/   one collection each, see shard.py
    <data>/collections/.new-*      being created; .deleted-*: being deleted; removed at start

A collection that cannot be opened does not keep the others from opening: it stays in `broken` with
the reason, answers 500, and can be deleted.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import uuid
from pathlib import Path

import structlog

from apex_dagster.embedded.qdrant_server.errors import (
    AlreadyExists,
    BadInput,
    EngineFailed,
    GatewayError,
    NotFound,
    NotSupported,
)
from apex_dagster.embedded.qdrant_server.requests import CreateCollection
from apex_dagster.embedded.qdrant_server.shard import (
    DISTANCES,
    Description,
    Shard,
    read_description,
)

log = structlog.get_logger(__name__)

DIM_MAX = 65_536  # Qdrant's own limit
NAME_CHARS_MAX = 255
NAME_CHARS_REFUSED = frozenset('<>:"/\\|?*\0\x1f')


class DataFolderBusy(Exception):
    """Another gateway has the data folder open."""


class Collections:
    """Used from one thread at a time."""

    def __init__(self, data: Path) -> None:
        self._data, self._folder = data, data / "collections"
        self._shards: dict[str, Shard] = {}
        self.broken: dict[str, tuple[Path, str]] = {}  # name: its folder, the reason

    def open(self) -> None:
        """Open every collection of the folder; raises DataFolderBusy if someone else has."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock()
        for folder in sorted(self._folder.iterdir()):
            if folder.name.startswith("."):
                shutil.rmtree(folder, ignore_errors=True)
            elif folder.is_dir():
                self._load(folder)

    def names(self) -> list[str]:
        return sorted([*self._shards, *self.broken])

    def get(self, name: str) -> Shard:
        """Raises NotFound, or EngineFailed for a collection that could not be opened."""
        shard = self._shards.get(name)
        if shard is not None:
            return shard
        if name in self.broken:
            raise EngineFailed(f"collection `{name}` could not be opened: {self.broken[name][1]}")
        raise NotFound(f"Collection `{name}` doesn't exist!")

    def create(self, name: str, body: CreateCollection) -> None:
        """Appears as a whole or not at all: built beside its place, then renamed."""
        if name in self._shards or name in self.broken:
            raise AlreadyExists(f"Wrong input: Collection `{name}` already exists!")
        description = _description(name, body)
        folder = self._folder / uuid.uuid4().hex
        draft = self._folder / f".new-{folder.name}"
        draft.mkdir()
        try:
            Shard.create(draft, description)
            draft.rename(folder)
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        _sync(self._folder)
        self._shards[name] = Shard.load(folder)

    def delete(self, name: str) -> bool:
        """Whether there was one."""
        if name in self._shards:
            shard = self._shards.pop(name)
            folder = shard.folder
            with contextlib.suppress(GatewayError):  # a damaged one has to go all the same
                shard.close()
        elif name in self.broken:
            folder, _ = self.broken.pop(name)
        else:
            return False
        doomed = self._folder / f".deleted-{folder.name}"
        folder.rename(doomed)
        _sync(self._folder)
        shutil.rmtree(doomed, ignore_errors=True)
        return True

    def flush(self) -> None:
        """Flush what has changed."""
        for name, shard in self._shards.items():
            if shard.dirty:
                try:
                    shard.flush()
                except GatewayError as error:
                    log.error("flush_failed", collection=name, error=str(error))

    def vacuum_one(self) -> bool:
        """Vacuum one collection that changed since its last time; whether there was one."""
        for name, shard in self._shards.items():
            if shard.vacuum_due:
                try:
                    shard.vacuum()
                except GatewayError as error:
                    log.error("vacuum_failed", collection=name, error=str(error))
                return True
        return False

    def close(self) -> None:
        """Flush and close every collection."""
        while self._shards:
            name, shard = self._shards.popitem()
            try:
                shard.close()
            except GatewayError as error:
                log.error("close_failed", collection=name, error=str(error))

    def _lock(self) -> None:
        self._lock_file = (self._data / "lock").open("a")
        try:
            fcntl.flock(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DataFolderBusy(
                f"{self._data} is open in another Qdrant gateway; stop that one, or use --data"
            ) from error

    def _load(self, folder: Path) -> None:
        name = folder.name
        try:
            name = read_description(folder).name
            self._shards[name] = Shard.load(folder)
        except GatewayError as error:
            self.broken[name] = (folder, str(error))
            log.error(
                "collection_not_opened", collection=name, folder=str(folder), error=str(error)
            )


def _description(name: str, body: CreateCollection) -> Description:
    if not 0 < len(name) <= NAME_CHARS_MAX or NAME_CHARS_REFUSED & set(name):
        raise BadInput(
            f"Wrong input: a collection name has 1 to {NAME_CHARS_MAX} characters, and none of "
            + " ".join(sorted(NAME_CHARS_REFUSED - {"\0", "\x1f"}))
        )
    vectors = body.vectors
    if vectors is None:
        raise NotSupported("a collection with anything but one unnamed dense vector")
    if vectors.distance not in DISTANCES:
        raise NotSupported(f"distance {vectors.distance!r}; known are {', '.join(DISTANCES)}")
    if not 1 <= vectors.size <= DIM_MAX:
        raise BadInput(f"Wrong input: vectors.size is {vectors.size}; it has to be 1 to {DIM_MAX}")
    return Description(
        name=name,
        dim=vectors.size,
        distance=vectors.distance,
        vectors_on_disk=vectors.on_disk,
        payload_on_disk=body.on_disk_payload,
    )


def _sync(folder: Path) -> None:
    """Make a rename inside `folder` survive a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
