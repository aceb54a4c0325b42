"""Saga steps made of stores: the engine knows no store, and stores know no saga; here they meet."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock
from typing import Any

from apex_dagster.errors import ApexError, DocumentRejected, StoreRejected
from apex_dagster.ingestion.codec import unpack
from apex_dagster.records import (
    Extraction,
    Publication,
    Receipt,
    Removal,
    SagaId,
    StagedVersion,
    VersionRef,
)
from apex_dagster.saga.extractions import extraction_bodies
from apex_dagster.saga.ledger import Ledger
from apex_dagster.stores.protocol import Store


class Extractions:
    """Extractions by saga, from the ledger, the latest kept in memory: four steps in a row need
    the same ones. Safe to use from several threads."""

    def __init__(self, ledger: Ledger, *, kept_bytes_max: int = 128 * 1024 * 1024) -> None:
        self._ledger, self._kept_bytes_max = ledger, kept_bytes_max
        self._kept: OrderedDict[SagaId, Extraction] = OrderedDict()
        self._kept_bytes = 0
        self._lock = Lock()

    def keep(self, saga_id: SagaId, extraction: Extraction) -> None:
        """Remember an extraction that is stored in the ledger as well."""
        with self._lock:
            self._kept_bytes -= _size_bytes(self._kept.pop(saga_id, None))
            self._kept[saga_id] = extraction
            self._kept_bytes += _size_bytes(extraction)
            while self._kept_bytes > self._kept_bytes_max and len(self._kept) > 1:
                self._kept_bytes -= _size_bytes(self._kept.popitem(last=False)[1])

    def __contains__(self, saga_id: object) -> bool:
        return saga_id in self._kept

    def of(self, refs: Sequence[VersionRef]) -> list[StagedVersion]:
        """The content of each version. Raises DocumentRejected where there is none stored."""
        missing = [ref.saga_id for ref in refs if ref.saga_id not in self._kept]
        bodies = extraction_bodies(self._ledger, missing) if missing else {}
        loaded = {saga_id: unpack(body) for saga_id, body in bodies.items()}
        for saga_id, extraction in loaded.items():
            self.keep(saga_id, extraction)
        return [self._staged(ref, loaded) for ref in refs]

    def _staged(self, ref: VersionRef, loaded: Mapping[SagaId, Extraction]) -> StagedVersion:
        extraction = loaded.get(ref.saga_id) or self._kept.get(ref.saga_id)
        if extraction is None:
            raise DocumentRejected(ref.document_id, "the ledger holds no extraction of it")
        return StagedVersion(ref=ref, extraction=extraction)


def _size_bytes(extraction: Extraction | None) -> int:
    """What it takes in memory, roughly: most of it is vectors and text."""
    if extraction is None:
        return 0
    return extraction.embeddings.nbytes + sum(len(chunk.text) for chunk in extraction.chunks)


class StoreStep:
    """The saga step that writes to one store."""

    def __init__(self, store: Store, extractions: Extractions) -> None:
        self.store, self._extractions = store, extractions
        self.name = f"{store.name}_write"
        self._prepared = False

    def stage(self, refs: Sequence[VersionRef]) -> list[Receipt]:
        """Load what was extracted, and stage it."""
        versions = self._extractions.of(refs)
        self._prepare()
        try:
            return self.store.stage(versions)
        except ApexError:
            self._prepared = False  # perhaps it came back empty: an index or collection is gone
            raise

    def _prepare(self) -> None:
        if self._prepared:
            return
        try:
            self.store.prepare()
        except ApexError as error:
            error.nothing_written = True  # of any version
            raise
        self._prepared = True

    def publish(self, publications: Sequence[Publication]) -> None:
        """Mark versions live."""
        self.store.publish(publications)

    def inventory(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, Any]]:
        """Counts and digests of what deletions will remove."""
        removed = [removal.removed for removal in removals if removal.removed]
        counts = self.store.holdings(removed) if removed else {}
        return {removal.ref.saga_id: self._held(removal.removed, counts) for removal in removals}

    def _held(self, ref: VersionRef | None, counts: Mapping[SagaId, int]) -> Mapping[str, Any]:
        if ref is None:
            return {"items": 0}
        held = {"version": ref.version, "items": counts[ref.saga_id]}
        digest = self.store.digest(ref.document_id, ref.version)
        return held | ({"digest": digest} if digest else {})

    def remove(self, removals: Sequence[Removal]) -> Mapping[SagaId, int]:
        """Remove deleted documents."""
        try:
            return self.store.remove(removals)
        except StoreRejected:
            self.store.prepare()  # as for an undo
            return self.store.remove(removals)

    def read_back(self, removals: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        """What is still shown of deleted documents."""
        return self.store.read_back(removals)

    def undo(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove what was staged."""
        try:
            return self.store.revert(refs)
        except StoreRejected:
            # Whoever created the collection may have died before its indexes, which undo needs.
            self.store.prepare()
            return self.store.revert(refs)

    def discard(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        """Remove what can never be live again."""
        return self.store.discard(refs)
