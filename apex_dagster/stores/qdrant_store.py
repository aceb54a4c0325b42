"""Qdrant's part: one point for each chunk, in one collection, by the unmodified REST client.

Qdrant has no transactions and cannot compare a point with another, so two guards are checked first
and then acted on: that nothing newer is published, and that something is staged. What can slip
through is one case: a stage request delivered late, after the version was removed, whose points are
then marked by a publisher that was paused in between. Direct readers of Qdrant may see such
points until that publisher learns from the ledger that it lost its lease, and APEX_GRACE_S longer;
if it dies before, until the sweep an hour after the removal. Reads through the project check the
pointer and do not.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import numpy as np
import orjson
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from apex_dagster.errors import ApexError, StageMissing, StoreRejected
from apex_dagster.records import (
    Extraction,
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
)
from apex_dagster.stores.contents import Contents, Items, expected_in_qdrant, items_in_qdrant
from apex_dagster.stores.fitness import (
    Fault,
    embedding_fault,
    metadata_fault,
    refuse_unfit,
    text_fault,
)
from apex_dagster.stores.qdrant_connection import STORE, ClientPerProcess
from apex_dagster.stores.qdrant_points import (
    PLACE_FIELDS,
    Point,
    candidate_of,
    insertion,
    points_of,
    record_hash,
    ref_of,
    replacement,
    request_sized,
    tombstone,
)
from apex_dagster.stores.reading import Points
from apex_dagster.stores.searching import Candidate

_SERVER_VERSION_MIN = (1, 18)  # older ones ignore update_mode, and would overwrite committed points
_INDEXED_FIELDS = ("document_id", "saga_id", "ingestion_status", "collection")
_SHOWN_TO_NOBODY = ("staged", "deleted")
_SAGAS_PER_REQUEST = 500
_SCROLL_POINTS = 500
_EMPTY_SAGAS_MAX = 10_000

T = TypeVar("T")


class QdrantStore:
    """Chunk embeddings, compared by dot product: they are unit vectors, and Qdrant gives them back
    unchanged, where with cosine it would normalise them once more."""

    name = STORE

    def __init__(
        self,
        url: str,
        *,
        collection: str,
        embedding_dim: int,
        api_key: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._collection, self._embedding_dim = collection, embedding_dim
        self._server = ClientPerProcess(url, api_key=api_key, timeout_s=timeout_s)
        self._empty = _RecentSagas(_EMPTY_SAGAS_MAX)

    def prepare(self) -> None:
        """Create the collection and its payload indexes, as far as they are missing.

        Raises StoreRejected when the collection has other vectors, or the server is too old.
        """
        with self._server.client() as client:
            _check_server_version(client)
            if not client.collection_exists(self._collection):
                self._create_collection(client)
            info = client.get_collection(self._collection)
            self._check_vectors(info.config.params.vectors)
            for field in sorted(set(_INDEXED_FIELDS) - set(info.payload_schema)):
                client.create_payload_index(
                    self._collection, field, models.PayloadSchemaType.KEYWORD, wait=True
                )

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        refuse_unfit(STORE, batch, self._fault)
        by_saga = {version.ref.saga_id: version for version in batch}
        self._empty.add(s for s, version in by_saga.items() if not version.extraction.chunks)
        sent = 0
        try:
            with self._server.client() as client:
                for points in request_sized(by_saga.values()):
                    self._insert(client, points)
                    sent += 1
        except ApexError as error:
            error.nothing_written &= sent == 0
            raise
        return [_receipt(version) for version in batch]

    def publish(self, batch: Sequence[Publication]) -> None:
        """As the protocol says, as far as one store without transactions can: see the module."""
        with self._server.client() as client:
            current, held = list(batch), self._held_alone(client, batch)
            if held is None:
                overtaken = self._overtaken(client, [publication.ref for publication in batch])
                current = [p for p in batch if p.ref.document_id not in overtaken]
                held = self._counts(client, [p.ref.saga_id for p in current])
            present = [p for p in current if held[p.ref.saga_id] or p.ref.saga_id in self._empty]
            live = {p.ref.saga_id for p in present}
            replaced = {p.replaced.saga_id for p in present if p.replaced} - live
            # In this order a direct reader may see both versions for a moment, but never neither.
            self._mark(client, live, source="staged", target="committed")
            self._mark(client, replaced, source="committed", target="superseded")
        if missing := sorted({p.ref.saga_id for p in current} - live):
            raise StageMissing(STORE, missing)  # the others are published, which is safe to repeat

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, [_is("ingestion_status", "staged")])

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, [])

    def restore(self, batch: Sequence[StagedVersion]) -> None:
        """As the protocol says: right points first, then away with the others. A newer version that
        is published meanwhile leaves these points to the sweep that removes what it replaces."""
        refuse_unfit(STORE, batch, self._fault)
        with self._server.client() as client:
            overtaken = self._overtaken(client, [version.ref for version in batch])
            due = [version for version in batch if version.ref.document_id not in overtaken]
            kept: dict[SagaId, list[models.ExtendedPointId]] = {v.ref.saga_id: [] for v in due}
            for points in request_sized(due):
                for point in points:
                    point["payload"]["ingestion_status"] = "committed"
                    kept[point["payload"]["saga_id"]].append(point["id"])
                self._write(client, replacement(points))
            for saga_id, ids in kept.items():
                others = models.Filter(
                    must=[_of_sagas([saga_id])], must_not=[models.HasIdCondition(has_id=ids)]
                )
                client.delete(self._collection, models.FilterSelector(filter=others), wait=True)

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        """A point without content stays in the place of each document: it is what a late publish
        of an older version meets, and goes when a later one has taken its place."""
        refs = [removal.ref for removal in batch]

        def remove(client: QdrantClient) -> Mapping[SagaId, int]:
            self._insert(client, [tombstone(ref, self._embedding_dim) for ref in refs])
            counts = self._count_older(client, refs)
            for some in _sliced([ref for ref in refs if counts[ref.saga_id]]):
                chosen = models.Filter(should=[_older_than(ref) for ref in some])
                client.delete(self._collection, models.FilterSelector(filter=chosen), wait=True)
            return counts

        return self._or_nothing(remove, {ref.saga_id: 0 for ref in refs})

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        refs = [removal.ref for removal in batch]
        counts = self._or_nothing(
            lambda client: self._count_older(client, refs, shown=True),
            {ref.saga_id: 0 for ref in refs},
        )
        return {saga_id: {"vectors": count} for saga_id, count in counts.items()}

    def digest(self, document_id: str, version: int) -> str | None:
        of_version = models.MatchValue(value=version)
        chosen = models.Filter(
            must=[
                _is("document_id", document_id),
                models.FieldCondition(key="version", match=of_version),
            ],
            must_not=_TOMBSTONE,  # is no copy of anything
        )
        records: list[models.Record] = self._or_nothing(
            lambda client: list(self._records(client, chosen)), []
        )
        if not records:
            return None
        records.sort(key=_place)
        return hashlib.sha256(b"".join(map(record_hash, records))).hexdigest()

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        saga_ids = [ref.saga_id for ref in refs]
        return self._or_nothing(
            lambda client: self._counts(client, saga_ids, besides=_TOMBSTONE),
            dict.fromkeys(saga_ids, 0),
        )

    def contents(self, document_ids: Sequence[str]) -> Contents:
        documents = models.MatchAny(any=list(document_ids))
        condition = models.FieldCondition(key="document_id", match=documents)
        chosen = models.Filter(must=[condition])
        found: list[models.Record] = []
        records = self._or_nothing(lambda client: list(self._records(client, chosen)), found)
        by_saga: dict[SagaId, list[tuple[str, Mapping[str, object], object]]] = {}
        for record in records:
            payload = record.payload or {}
            point = (str(record.id), payload, record.vector)
            by_saga.setdefault(SagaId(str(payload.get("saga_id"))), []).append(point)
        return {saga_id: items_in_qdrant(points) for saga_id, points in by_saga.items()}

    def inventory(self, *, page: int) -> Iterator[list[VersionRef]]:
        offset: models.ExtendedPointId | None = None
        while True:
            found = self._or_nothing(partial(self._inventory_page, offset, page), None)
            if found is None:
                return
            records, offset = found
            # A point that lacks these fields was never one of ours.
            yield [ref_of(r.payload) for r in records if r.payload and len(r.payload) == 3]
            if offset is None:
                return

    def _inventory_page(
        self, offset: models.ExtendedPointId | None, page: int, client: QdrantClient
    ) -> tuple[list[models.Record], models.ExtendedPointId | None] | None:
        fields = ["saga_id", "document_id", "version"]
        return client.scroll(
            self._collection, limit=page, offset=offset, with_payload=fields, with_vectors=False
        )

    def expected(self, version: StagedVersion) -> Items:
        return expected_in_qdrant(version)

    def read_version(self, ref: VersionRef) -> Points:
        """What is held of this saga. Not from one moment: a removal may show half done."""
        chosen = models.Filter(must=[_of_sagas([ref.saga_id])])
        found: list[models.Record] = []
        records = self._or_nothing(lambda client: list(self._records(client, chosen)), found)
        return points_of(records, embedding_dim=self._embedding_dim)

    def nearest(
        self,
        embedding: NDArray[np.float32],
        *,
        limit: int,
        saga_ids: Sequence[SagaId] | None = None,
        collection: str | None = None,
    ) -> list[Candidate]:
        """Chunks of any version, by similarity to `embedding` in [-1, 1]."""
        conditions: list[models.Condition] = []
        if saga_ids is not None:
            conditions.append(_of_sagas(saga_ids))
        if collection is not None:
            conditions.append(_is("collection", collection))

        def ask(client: QdrantClient) -> list[Candidate]:
            answer = client.query_points(
                self._collection,
                query=embedding.tolist(),
                query_filter=models.Filter(must=conditions) if conditions else None,
                limit=limit,
                with_payload=models.PayloadSelectorInclude(include=list(PLACE_FIELDS)),
            )
            return [candidate_of(point) for point in answer.points]

        return self._or_nothing(ask, [])

    def ping(self) -> None:
        with self._server.client() as client:
            client.info()

    def close(self) -> None:
        self._server.close()

    def _remove(
        self, batch: Sequence[VersionRef], conditions: list[models.Condition]
    ) -> Mapping[SagaId, int]:
        saga_ids = [ref.saga_id for ref in batch]

        def remove(client: QdrantClient) -> Mapping[SagaId, int]:
            counts = self._counts(client, saga_ids, conditions)
            for some in _sliced([saga_id for saga_id in saga_ids if counts[saga_id]]):
                chosen = models.Filter(must=[_of_sagas(some), *conditions])
                client.delete(self._collection, models.FilterSelector(filter=chosen), wait=True)
            return counts

        return self._or_nothing(remove, dict.fromkeys(saga_ids, 0))

    def _or_nothing(self, call: Callable[[QdrantClient], T], nothing: T) -> T:
        """`call`'s answer; `nothing` where the collection does not exist, yet or any more: an undo
        of what was never written has nothing to remove, and must not fail for it."""
        with self._server.client() as client:
            try:
                return call(client)
            except UnexpectedResponse as error:
                if error.status_code == 404 and not client.collection_exists(self._collection):
                    return nothing
                raise

    def _mark(
        self, client: QdrantClient, saga_ids: set[SagaId], *, source: str, target: str
    ) -> None:
        """Change existing points only: an upsert could bring back what was removed meanwhile."""
        for some in _sliced(sorted(saga_ids)):
            chosen = models.Filter(must=[_of_sagas(some), _is("ingestion_status", source)])
            client.set_payload(
                self._collection, {"ingestion_status": target}, points=chosen, wait=True
            )

    def _counts(
        self,
        client: QdrantClient,
        saga_ids: Sequence[SagaId],
        conditions: Sequence[models.Condition] = (),
        besides: Sequence[models.Condition] = (),
    ) -> dict[SagaId, int]:
        """How many points each saga has that meet all `conditions` and none of `besides`; exact."""
        counts = dict.fromkeys(saga_ids, 0)
        for some in _sliced(list(counts)):
            chosen = models.Filter(
                must=[_of_sagas(some), *conditions], must_not=list(besides) or None
            )
            facet = client.facet(
                self._collection, "saga_id", facet_filter=chosen, limit=len(some), exact=True
            )
            counts |= {SagaId(str(hit.value)): hit.count for hit in facet.hits}
        return counts

    def _count_older(
        self, client: QdrantClient, refs: Sequence[VersionRef], *, shown: bool = False
    ) -> dict[SagaId, int]:
        """How many points each of these deletions has to remove; with `shown`, that are not just
        staged."""
        counts = dict.fromkeys((ref.saga_id for ref in refs), 0)
        for some in _sliced(refs):
            deletions = {ref.document_id: ref.saga_id for ref in some}
            chosen = models.Filter(
                should=[_older_than(ref) for ref in some],
                must_not=[_is("ingestion_status", s) for s in _SHOWN_TO_NOBODY] if shown else None,
            )
            facet = client.facet(
                self._collection, "document_id", facet_filter=chosen, limit=len(some), exact=True
            )
            counts |= {deletions[str(hit.value)]: hit.count for hit in facet.hits}
        return counts

    def _held_alone(
        self, client: QdrantClient, batch: Sequence[Publication]
    ) -> dict[SagaId, int] | None:
        """How many points each saga has, if the documents have no others than these and what they
        replace, so that nothing newer can be published; else None.

        Nearly always so, and one request, where asking for what is newer takes a condition for each
        document.
        """
        held = dict.fromkeys((publication.ref.saga_id for publication in batch), 0)
        document_ids = {publication.ref.document_id for publication in batch}
        if not held or len(document_ids) < len(batch) or len(held) > _SAGAS_PER_REQUEST:
            return None
        theirs = models.FieldCondition(
            key="document_id", match=models.MatchAny(any=sorted(document_ids))
        )
        facet = client.facet(
            self._collection,
            "saga_id",
            facet_filter=models.Filter(must=[theirs]),
            limit=2 * len(batch) + 1,  # one more than they can be
            exact=True,
        )
        found = {SagaId(str(hit.value)): hit.count for hit in facet.hits}
        replaced = {publication.replaced.saga_id for publication in batch if publication.replaced}
        if not found.keys() <= held.keys() | replaced:
            return None
        return held | {saga_id: found[saga_id] for saga_id in found.keys() & held.keys()}

    def _overtaken(self, client: QdrantClient, refs: Sequence[VersionRef]) -> set[str]:
        """Documents of which a version newer than these has been published."""
        overtaken: set[str] = set()
        for some in _sliced(refs):
            chosen = models.Filter(
                should=[_newer_than(ref) for ref in some],
                must_not=[_is("ingestion_status", "staged")],
            )
            facet = client.facet(
                self._collection, "document_id", facet_filter=chosen, limit=len(some), exact=True
            )
            overtaken |= {str(hit.value) for hit in facet.hits}
        return overtaken

    def _records(self, client: QdrantClient, chosen: models.Filter) -> Iterator[models.Record]:
        offset: models.ExtendedPointId | None = None
        while True:
            records, offset = client.scroll(
                self._collection,
                scroll_filter=chosen,
                limit=_SCROLL_POINTS,
                offset=offset,
                with_vectors=True,
            )
            yield from records
            if offset is None:
                return

    def _insert(self, client: QdrantClient, points: Sequence[Point]) -> None:
        """What `client.upsert` does, with a body that is written in a quarter of the time."""
        try:
            body = insertion(points)
        except orjson.JSONEncodeError as error:
            raise StoreRejected(STORE, f"not JSON: {error}") from error
        self._write(client, body)

    def _write(self, client: QdrantClient, body: bytes) -> None:
        client.http.client.request(
            type_=models.InlineResponse2008,
            method="PUT",
            url="/collections/{collection_name}/points",
            path_params={"collection_name": self._collection},
            params={"wait": "true"},
            headers={"Content-Type": "application/json"},
            content=body,
        )

    def _create_collection(self, client: QdrantClient) -> None:
        vectors = models.VectorParams(size=self._embedding_dim, distance=models.Distance.DOT)
        try:
            client.create_collection(self._collection, vectors_config=vectors)
        except UnexpectedResponse:
            # Someone else may have been faster; versions differ in the status they answer with.
            if not client.collection_exists(self._collection):
                raise

    def _check_vectors(self, vectors: object) -> None:
        """Raises StoreRejected unless the collection holds what this store writes."""
        found = "named vectors"
        if isinstance(vectors, models.VectorParams):
            found = f"vectors of {vectors.size} floats compared by {vectors.distance.value}"
        wanted = f"vectors of {self._embedding_dim} floats compared by {models.Distance.DOT.value}"
        if found != wanted:
            raise StoreRejected(
                STORE,
                f"collection {self._collection!r} holds {found}, and {wanted} are to be written; "
                "set APEX_QDRANT_COLLECTION to another name, or APEX_EMBEDDING_DIM to fit",
            )

    def _fault(self, extraction: Extraction) -> Fault:
        names = (
            extraction.document_id,
            extraction.title,
            extraction.collection,
            extraction.content_hash,
        )
        return (
            embedding_fault(extraction, self._embedding_dim, np.float32)
            or text_fault(names, nul_allowed=True)
            or text_fault((chunk.text for chunk in extraction.chunks), nul_allowed=True)
            or metadata_fault(extraction.metadata, nul_allowed=True)
        )


class _RecentSagas:
    """Sagas staged without a chunk, of which Qdrant keeps no trace. One that has been forgotten
    (it was staged by another process) is reported missing, staged again, and known from then on."""

    def __init__(self, size_max: int) -> None:
        self._size_max, self._lock = size_max, threading.Lock()
        self._sagas: dict[SagaId, None] = {}

    def add(self, saga_ids: Iterable[SagaId]) -> None:
        with self._lock:
            self._sagas |= dict.fromkeys(saga_ids)
            while len(self._sagas) > self._size_max:
                del self._sagas[next(iter(self._sagas))]

    def __contains__(self, saga_id: object) -> bool:
        return saga_id in self._sagas


def _check_server_version(client: QdrantClient) -> None:
    version = client.info().version
    major, minor = (int(part) for part in version.split(".")[:2])
    if (major, minor) < _SERVER_VERSION_MIN:
        needed = ".".join(map(str, _SERVER_VERSION_MIN))
        raise StoreRejected(STORE, f"the server is Qdrant {version}; {needed} or newer is needed")


def _sliced(items: Sequence[T]) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), _SAGAS_PER_REQUEST):
        yield items[start : start + _SAGAS_PER_REQUEST]


def _of_sagas(saga_ids: Sequence[SagaId]) -> models.FieldCondition:
    return models.FieldCondition(key="saga_id", match=models.MatchAny(any=list(saga_ids)))


def _is(key: str, value: str) -> models.FieldCondition:
    return models.FieldCondition(key=key, match=models.MatchValue(value=value))


_TOMBSTONE: list[models.Condition] = [_is("ingestion_status", "deleted")]


def _newer_than(ref: VersionRef) -> models.Filter:
    newer = models.FieldCondition(key="version", range=models.Range(gt=ref.version))
    return models.Filter(must=[_is("document_id", ref.document_id), newer])


def _older_than(ref: VersionRef) -> models.Filter:
    older = models.FieldCondition(key="version", range=models.Range(lt=ref.version))
    return models.Filter(must=[_is("document_id", ref.document_id), older])


def _place(record: models.Record) -> tuple[int, str]:
    ordinal = (record.payload or {}).get("ordinal")
    return ordinal if isinstance(ordinal, int) else -1, str(record.id)


def _receipt(version: StagedVersion) -> Receipt:
    chunks = len(version.extraction.chunks)
    return Receipt(store=STORE, saga_id=version.ref.saga_id, items={"chunks": chunks})
