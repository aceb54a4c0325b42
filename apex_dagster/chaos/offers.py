"""The documents of the load, made from a seed: small, with chunks, entities, relations and
embeddings of their own."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import orjson

from apex_dagster.chaos.fingerprints import expected
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.extract import Extractor
from apex_dagster.records import Document

OfferKind = Literal["new", "update", "repeat", "poison"]

# In per cent. Poison is refused half of the time before anything is written, half by PostgreSQL.
_MIX: Mapping[OfferKind, int] = {"new": 52, "update": 32, "repeat": 13, "poison": 3}
_HOT_DOCUMENTS = 12  # half of all updates go to these
_RECENT_MAX = 100
_SHARED_ENTITIES = 15
# More distinct words than fit PostgreSQL's full-text form: every check of ours lets them pass, and
# the server's refusal does not say which document of a batch it means.
_TOO_MANY_WORDS = 140_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One document as a caller submits it."""

    number: int  # 1 for the first
    kind: OfferKind
    document: Document
    content_hash: str
    fingerprints: Mapping[str, str] | None  # of what the stores have to show; None for poison


class Offers:
    """An endless sequence of offers; the same seed gives the same ones. One thread may use it."""

    def __init__(self, *, seed: int, embedding_dim: int) -> None:
        self._rng = random.Random(f"offers {seed}")  # noqa: S311  reproducible, not secret
        self._numbers = np.random.default_rng(seed)
        self._embedding_dim = embedding_dim
        self._extractor = Extractor.default(embedding_dim=embedding_dim)
        self._made = 0
        self._document_ids: list[str] = []
        self._recent: deque[Offer] = deque(maxlen=_RECENT_MAX)

    def next(self) -> Offer:
        """The next one."""
        self._made += 1
        kind = self._kind()
        if kind == "repeat":
            return self._repeat()
        if kind == "poison":
            return self._poison()
        document_id = self._new_id() if kind == "new" else self._known_id()
        return self._good(kind, document_id)

    def worth_reading(self) -> list[str]:
        """Documents that are updated often, and the newest ones. Any thread may ask."""
        known = list(self._document_ids)
        return known[:_HOT_DOCUMENTS] + known[_HOT_DOCUMENTS:][-_HOT_DOCUMENTS:]

    def _kind(self) -> OfferKind:
        if len(self._document_ids) < _HOT_DOCUMENTS:
            return "new"
        return self._rng.choices(list(_MIX), weights=list(_MIX.values()))[0]

    def _new_id(self) -> str:
        self._document_ids.append(f"chaos-{len(self._document_ids) + 1:05d}")
        return self._document_ids[-1]

    def _known_id(self) -> str:
        hot = self._document_ids[:_HOT_DOCUMENTS]
        return self._rng.choice(hot if self._rng.random() < 0.5 else self._document_ids)

    def _good(self, kind: OfferKind, document_id: str) -> Offer:
        document = self._document(document_id, self._fields(document_id))
        extraction = self._extractor.extract(document)
        offer = Offer(
            number=self._made,
            kind=kind,
            document=document,
            content_hash=extraction.content_hash,
            fingerprints=expected(extraction),
        )
        self._recent.append(offer)
        return offer

    def _repeat(self) -> Offer:
        earlier = self._rng.choice(self._recent)
        return Offer(
            number=self._made,
            kind="repeat",
            document=earlier.document,
            content_hash=earlier.content_hash,
            fingerprints=earlier.fingerprints,
        )

    def _poison(self) -> Offer:
        """Half the time a new version of a document whose last good version has to survive."""
        known = self._rng.random() < 0.5
        document_id = self._known_id() if known else f"chaos-poison-{self._made:05d}"
        fields = self._fields(document_id)
        if self._rng.random() < 0.5:
            fields["chunks"][0]["embedding"].pop()
        else:
            words = " ".join(f"w{self._made:x}x{number:x}" for number in range(_TOO_MANY_WORDS))
            fields["chunks"][0]["text"] = words
        document = self._document(document_id, fields)
        return Offer(
            number=self._made,
            kind="poison",
            document=document,
            content_hash=content_hash(document),
            fingerprints=None,
        )

    def _fields(self, document_id: str) -> dict[str, Any]:
        shared = [f"Harbour {one}" for one in self._rng.sample(range(_SHARED_ENTITIES), 3)]
        own = f"{document_id} Shipping"
        return {
            "document_id": document_id,
            "title": f"{document_id}, edition {self._made}",
            "chunks": [
                {
                    "text": f"Part {part} of edition {self._made} of {document_id} tells of ore.",
                    "embedding": self._embedding(),
                }
                for part in range(self._rng.randint(1, 4))
            ],
            "entities": [
                {"name": own, "type": "organization", "description": f"edition {self._made}"},
                *({"name": name, "type": "place"} for name in shared),
            ],
            "relations": [
                {"source": own, "target": name, "type": f"SERVES_{self._made % 7}"}
                for name in shared
            ],
        }

    def _embedding(self) -> list[float]:
        numbers: list[float] = self._numbers.standard_normal(self._embedding_dim).round(4).tolist()
        return numbers

    def _document(self, document_id: str, fields: Mapping[str, Any]) -> Document:
        return Document(
            document_id=document_id, name=f"{document_id}.json", content=orjson.dumps(fields)
        )
