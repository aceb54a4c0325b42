"""Redis: one JSON entry a document, staged under the saga's key, live under the document's.

    {prefix}stage:{saga_id}             the staged entry; expires, so a lost saga leaves nothing
    {prefix}doc:{document_id}           the live entry; a cache: it expires and may be evicted
    {prefix}fence:{{prefix}doc:{id}}    the highest version ever published; never expires
    {prefix}stages:{{prefix}doc:{id}}   version -> saga_id of what is staged, to find it by version
    {prefix}view:{document_id}          how readers were shown a version, and which; expires

Works on Redis 7 or Valkey, a single server or a replicated one. Not on a cluster: a stage key and
its document's key are in different slots. Eviction must spare keys without a time to live.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any, Literal, NamedTuple, get_args

import orjson
import redis
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TimeoutError,
)
from redis.retry import Retry

from apex_dagster.errors import (
    ApexError,
    OutcomeUnknown,
    StageMissing,
    StoreRejected,
    StoreUnavailable,
)
from apex_dagster.records import (
    Extraction,
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
)
from apex_dagster.stores.contents import Contents, Items, expected_in_redis, items_in_redis
from apex_dagster.stores.reading import CacheEntry

TEXT_BYTES_MAX = 256 * 1024  # longer texts are read from PostgreSQL; a cache entry stays small
REQUEST_BYTES_MAX = 16 * 1024 * 1024  # one pipeline; Redis serves nobody else while it reads one

ScriptName = Literal[
    "stage",
    "publish",
    "revert",
    "discard",
    "remove",
    "find_version",
    "find_older",
    "count_entries",
    "keep_view",
]


class RedisStore:
    """The cache. Every change is one Lua script a document, so each is atomic."""

    name = "redis"

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "",
        cache_ttl_s: int = 3600,
        stage_ttl_s: int = 86400,
        timeout_s: float = 10.0,
    ) -> None:
        self._url, self._prefix = url, prefix
        self._cache_ttl_s, self._stage_ttl_s, self._timeout_s = cache_ttl_s, stage_ttl_s, timeout_s
        self._client: redis.Redis | None = None
        self._lock = threading.Lock()

    def prepare(self) -> None:
        """Raises StoreRejected if the server would evict fences when its memory is full."""
        with self._errors():
            memory: Mapping[str, Any] = self._redis().info("memory")
        policy = str(memory.get("maxmemory_policy", "noeviction"))
        if memory.get("maxmemory") and policy.startswith("allkeys-"):
            raise StoreRejected(
                self.name,
                f"maxmemory-policy is {policy}, which also evicts keys that must stay;"
                " set it to noeviction or volatile-lru",
            )

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        bodies = self._encoded(batch)
        self._run(
            _Call(
                script="stage",
                keys=(self._stage_key(ref), self._doc_key(ref), self._stages_key(ref)),
                args=(body, _header(ref), ref.version, ref.saga_id, self._stage_ttl_s),
            )
            for ref, body in bodies
        )
        return [
            Receipt(store=self.name, saga_id=ref.saga_id, items={"entries": 1}) for ref, _ in bodies
        ]

    def publish(self, batch: Sequence[Publication]) -> None:
        """Move the staged entries to their documents' keys, where they replace what was live."""
        refs = [publication.ref for publication in batch]
        outcomes = self._run(
            _Call(
                script="publish",
                keys=(
                    self._stage_key(ref),
                    self._doc_key(ref),
                    self._fence_key(ref),
                    self._stages_key(ref),
                ),
                args=(_header(ref), ref.version, self._cache_ttl_s),
            )
            for ref in refs
        )
        missing = [
            ref.saga_id
            for ref, outcome in zip(refs, outcomes, strict=True)
            if outcome == b"missing"
        ]
        if missing:
            raise StageMissing(self.name, missing)

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._counts(
            batch,
            (
                _Call(
                    script="revert",
                    keys=(self._stage_key(ref), self._stages_key(ref)),
                    args=(ref.version,),
                )
                for ref in batch
            ),
        )

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._counts(
            batch,
            (
                _Call(
                    script="discard",
                    keys=(
                        self._stage_key(ref),
                        self._doc_key(ref),
                        self._stages_key(ref),
                        self._view_key(ref),
                    ),
                    args=(_header(ref), ref.version, _view_header(ref)),
                )
                for ref in batch
            ),
        )

    def restore(self, batch: Sequence[StagedVersion]) -> None:
        """As the protocol says. Between removal and rewriting a read of the cache is a miss."""
        if not batch:
            return
        with self._errors():
            fences = self._redis().mget([self._fence_key(version.ref) for version in batch])
            due = [
                v
                for v, fence in zip(batch, fences, strict=True)
                if v.ref.version >= int(fence or 0)
            ]
            if due:
                self._redis().delete(*(self._doc_key(version.ref) for version in due))
        self.discard([version.ref for version in due])
        self.stage(due)
        self.publish([Publication(ref=version.ref) for version in due])

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        refs = [removal.ref for removal in batch]
        return self._counts(
            refs,
            (
                _Call(
                    script="remove",
                    keys=(
                        self._doc_key(ref),
                        self._fence_key(ref),
                        self._stages_key(ref),
                        self._view_key(ref),
                    ),
                    args=(ref.version, f"{self._prefix}stage:"),
                )
                for ref in refs
            ),
        )

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        refs = [removal.ref for removal in batch]
        counts = self._counts(
            refs,
            (
                _Call(
                    script="find_older",
                    keys=(
                        self._doc_key(ref),
                        self._fence_key(ref),
                        self._view_key(ref),
                    ),
                    args=(ref.version,),
                )
                for ref in refs
            ),
        )
        return {saga_id: {"cache": count} for saga_id, count in counts.items()}

    def digest(self, document_id: str, version: int) -> str | None:
        ref = VersionRef(document_id=document_id, version=version, saga_id=SagaId(""))
        [(live, staged)] = self._run(
            [
                _Call(
                    script="find_version",
                    keys=(self._doc_key(ref), self._stages_key(ref)),
                    args=(version, self._stage_key(ref)),
                )
            ]
        )
        body = live if live is not None and _version_of(live) == version else staged
        return None if body is None else hashlib.sha256(body).hexdigest()

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._counts(
            refs,
            (
                _Call(
                    script="count_entries",
                    keys=(self._stage_key(ref), self._doc_key(ref)),
                    args=(_header(ref),),
                )
                for ref in refs
            ),
        )

    def contents(self, document_ids: Sequence[str]) -> Contents:
        """The live entries; staged ones show nobody anything, and expire."""
        if not document_ids:
            return {}
        with self._errors():
            keys = [f"{self._prefix}doc:{document_id}" for document_id in document_ids]
            bodies = self._redis().mget(keys)
        entries = [
            items_in_redis(document_id, body)
            for document_id, body in zip(document_ids, bodies, strict=True)
            if isinstance(body, bytes)
        ]
        return {SagaId(str(entry.get("entry: saga_id"))): entry for entry in entries}

    def inventory(self, *, page: int) -> Iterator[list[VersionRef]]:
        """The live entries that can be read; staged ones show nobody anything, and expire."""
        cursor = 0
        while True:
            with self._errors():
                cursor, keys = self._redis().scan(cursor, f"{_glob(self._prefix)}doc:*", page)
                bodies = self._redis().mget(keys) if keys else []
            yield [ref for body in bodies if isinstance(body, bytes) and (ref := _ref_of(body))]
            if cursor == 0:
                return

    def expected(self, version: StagedVersion) -> Items:
        return expected_in_redis(_body(version))

    def read_version(self, ref: VersionRef) -> CacheEntry | None:
        """The staged entry of this saga, or else whatever entry the document has at that moment,
        perhaps of another version; None if it has expired or was evicted."""
        with self._errors():
            bodies = self._redis().mget(self._stage_key(ref), self._doc_key(ref))
        body = next((body for body in bodies if body is not None), None)
        if body is None:
            return None
        entry: dict[str, Any] = orjson.loads(body)
        found = VersionRef(
            document_id=entry["document_id"], version=entry["version"], saga_id=entry["saga_id"]
        )
        return CacheEntry(refs=frozenset({found}), items={"entries": 1}, body=entry)

    def read_view(self, ref: VersionRef) -> bytes | None:
        """How this version was shown last; None where it was not, or another one was."""
        with self._errors():
            body = self._redis().get(self._view_key(ref))
        header = _view_header(ref)
        if not isinstance(body, bytes) or not body.startswith(header):
            return None
        return body.removeprefix(header)

    def keep_view(self, ref: VersionRef, body: bytes) -> None:
        """Keep how it was shown, unless a later version has been published."""
        args = (ref.version, _view_header(ref) + body, self._cache_ttl_s)
        keys = (self._view_key(ref), self._fence_key(ref))
        with self._errors():
            self._redis().eval(_SCRIPTS["keep_view"], len(keys), *keys, *args)

    def read(self, document_id: str) -> dict[str, Any] | None:
        """The live entry; None if it has expired or was evicted. It is a hit only if its version is
        the one that the ledger's pointer names."""
        with self._errors():
            body = self._redis().get(f"{self._prefix}doc:{document_id}")
        entry: dict[str, Any] | None = orjson.loads(body) if body is not None else None
        return entry

    def ping(self) -> None:
        with self._errors():
            self._redis().ping()

    def close(self) -> None:
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _run(self, calls: Iterable[_Call]) -> list[Any]:
        """Their results, in order; the calls go out in as few requests as their size allows."""
        results: list[Any] = []
        self._connect()
        for group in _by_size(calls):
            with self._errors():
                pipeline = self._redis().pipeline(transaction=False)
                for call in group:
                    pipeline.eval(_SCRIPTS[call.script], len(call.keys), *call.keys, *call.args)
                # Not raised by execute(): its message would quote the command, document and all.
                replies = pipeline.execute(raise_on_error=False)
                for reply in replies:
                    if isinstance(reply, Exception):
                        raise reply
            results += replies
        return results

    def _connect(self) -> None:
        """Make sure of a connection, and if there is none to be had, say that nothing was sent."""
        try:
            with self._errors():
                pool = self._redis().connection_pool
                pool.release(pool.get_connection())
        except ApexError as error:
            error.nothing_written = True
            raise

    def _counts(self, refs: Sequence[VersionRef], calls: Iterable[_Call]) -> Mapping[SagaId, int]:
        counts = self._run(calls)
        return {ref.saga_id: int(count) for ref, count in zip(refs, counts, strict=True)}

    def _encoded(self, batch: Sequence[StagedVersion]) -> list[tuple[VersionRef, bytes]]:
        bodies, refused = [], {}
        for version in batch:
            try:
                bodies.append((version.ref, _body(version)))
            except (orjson.JSONEncodeError, UnicodeEncodeError) as error:
                refused[version.ref.document_id] = str(error)
        if refused:
            raise StoreRejected(
                self.name, f"not JSON: {'; '.join(refused.values())}", document_ids=tuple(refused)
            )
        return bodies

    def _stage_key(self, ref: VersionRef) -> str:
        return f"{self._prefix}stage:{ref.saga_id}"

    def _doc_key(self, ref: VersionRef) -> str:
        return f"{self._prefix}doc:{ref.document_id}"

    def _fence_key(self, ref: VersionRef) -> str:
        return f"{self._prefix}fence:{{{self._doc_key(ref)}}}"

    def _stages_key(self, ref: VersionRef) -> str:
        return f"{self._prefix}stages:{{{self._doc_key(ref)}}}"

    def _view_key(self, ref: VersionRef) -> str:
        return f"{self._prefix}view:{ref.document_id}"

    def _redis(self) -> redis.Redis:
        with self._lock:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    self._url,
                    socket_timeout=self._timeout_s,
                    socket_connect_timeout=self._timeout_s,
                    # The engine retries, and knows how long it may: no second loop beneath it.
                    retry=Retry(NoBackoff(), 0),
                )
            return self._client

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the driver's errors; the only place that does."""
        try:
            yield
        except TimeoutError as error:
            raise OutcomeUnknown(self.name, after_s=self._timeout_s) from error
        except (AuthenticationError, NoPermissionError) as error:
            raise StoreUnavailable(self.name, f"it does not let us in: {error}") from error
        except (ConnectionError, ReadOnlyError, OSError) as error:
            raise StoreUnavailable(self.name, str(error)) from error
        except OutOfMemoryError as error:
            raise StoreUnavailable(self.name, "its memory is full (maxmemory)") from error
        except ResponseError as error:
            if str(error).startswith(_SERVER_TROUBLE):
                raise StoreUnavailable(self.name, str(error)) from error
            raise StoreRejected(self.name, str(error)) from error
        except RedisError as error:
            raise StoreRejected(self.name, str(error)) from error


class _Call(NamedTuple):
    script: ScriptName
    keys: tuple[str, ...]
    args: tuple[str | bytes | int, ...]

    def size_bytes(self) -> int:
        return sum(len(arg) for arg in self.args if isinstance(arg, bytes))


# What a server says that cannot serve anybody: a full disk under it, a script that does not end, a
# failover under way.
_SERVER_TROUBLE = (
    "MISCONF",
    "BUSY",
    "LOADING",
    "MASTERDOWN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
)

_SCRIPTS: Mapping[ScriptName, str] = {
    name: resources.files(__package__).joinpath(f"redis_scripts/{name}.lua").read_text("utf-8")
    for name in get_args(ScriptName)
}


def _header(ref: VersionRef) -> bytes:
    """How a body of this saga begins, up to its status: the scripts recognise entries by it."""
    return b'{"saga_id":%b,"ingestion_status":' % orjson.dumps(ref.saga_id)


def _view_header(ref: VersionRef) -> bytes:
    """How a view of this version begins. Changes with what readers are shown: a view of an earlier
    release is none then."""
    return b"1 %b\n" % ref.saga_id.encode()


def _body(version: StagedVersion) -> bytes:
    """The staged entry as JSON; its first two fields are where the scripts look for them."""
    ref, content = version.ref, version.extraction
    rest = orjson.dumps(
        {
            "document_id": ref.document_id,
            "version": ref.version,
            "title": content.title,
            "collection": content.collection,
            "metadata": dict(content.metadata),
            "content_hash": content.content_hash,
            "chunks": len(content.chunks),
            "entities": [{"key": e.key, "type": e.type, "name": e.name} for e in content.entities],
            "relations": len(content.relations),
            "text": _text(content),
        }
    )
    return _header(ref) + b'"staged",' + rest.removeprefix(b"{")


def _text(content: Extraction) -> str | None:
    if sum(len(chunk.text) for chunk in content.chunks) > TEXT_BYTES_MAX:
        return None
    text = "\n".join(chunk.text for chunk in content.chunks)
    return text if len(text.encode()) <= TEXT_BYTES_MAX else None


def _ref_of(body: bytes) -> VersionRef | None:
    """The version that an entry is of; None where it does not say."""
    try:
        entry = orjson.loads(body)
        return VersionRef(
            document_id=entry["document_id"], version=entry["version"], saga_id=entry["saga_id"]
        )
    except (orjson.JSONDecodeError, TypeError, KeyError):
        return None


def _glob(text: str) -> str:
    return re.sub(r"([*?\[\]\\^-])", r"\\\1", text)


def _version_of(body: bytes) -> int | None:
    version: int | None = orjson.loads(body).get("version")
    return version


def _by_size(calls: Iterable[_Call]) -> Iterator[list[_Call]]:
    group: list[_Call] = []
    size_bytes = 0
    for call in calls:
        if group and size_bytes + call.size_bytes() > REQUEST_BYTES_MAX:
            yield group
            group, size_bytes = [], 0
        group.append(call)
        size_bytes += call.size_bytes()
    if group:
        yield group
