"""Seeded documents that come with chunks, embeddings, entities and relations."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from apex_dagster.records import Chunk, Entity, Extraction, Relation, entity_key

_VOCABULARY_WORDS = 8_000
_SYLLABLES = ("ba", "ce", "di", "fo", "gu", "la", "me", "ni", "po", "ru", "sa", "te", "vi", "zo")
_TYPES = ("person", "organization", "place", "product")
_RELATION_TYPES = ("WORKS_FOR", "ACQUIRED", "LOCATED_IN", "SUPPLIES")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of each document."""

    chunks: int = 8
    chunk_words: int = 80
    embedding_dim: int = 384
    entities: int = 15
    relations: int = 12
    entity_pool: int = 20_000  # that documents share


class Corpus:
    """An endless supply of documents, the same for the same seed and shape.

    Words and entities are as popular as 1/rank: a few entities are in most documents, which is
    what makes writers of one graph wait for each other.
    """

    def __init__(self, *, seed: int, shape: Shape, prefix: str) -> None:
        self._random, self._shape, self._prefix = np.random.default_rng(seed), shape, prefix
        self._numbers = itertools.count()
        self._words = [_word(number) for number in range(_VOCABULARY_WORDS)]
        self._word_odds = _popularity(_VOCABULARY_WORDS)
        self._entity_odds = _popularity(shape.entity_pool)

    def batch(self, documents: int) -> list[Extraction]:
        """The next so many documents."""
        return list(itertools.islice(self, documents))

    def __iter__(self) -> Iterator[Extraction]:
        while True:
            yield self._document(f"{self._prefix}-{next(self._numbers):07d}")

    def _document(self, document_id: str) -> Extraction:
        shape, entities = self._shape, self._entities()
        chunks = self._chunks()
        text = "\n".join(chunk.text for chunk in chunks)
        return Extraction(
            document_id=document_id,
            title=f"Report {document_id}",
            collection="bench",
            content_hash=hashlib.sha256(f"{document_id}\n{text}".encode()).hexdigest(),
            metadata={"source": "bench", "language": "xx", "pages": shape.chunks},
            chunks=chunks,
            embeddings=self._embeddings(),
            embedding_model="random",
            entities=entities,
            relations=self._relations(entities),
        )

    def _chunks(self) -> tuple[Chunk, ...]:
        shape, start, made = self._shape, 0, []
        picks = self._random.choice(
            _VOCABULARY_WORDS, size=(shape.chunks, shape.chunk_words), p=self._word_odds
        )
        for ordinal, row in enumerate(picks.tolist()):
            text = " ".join(self._words[pick] for pick in row)
            made.append(Chunk(ordinal=ordinal, text=text, start=start, end=start + len(text)))
            start += len(text) + 1
        return tuple(made)

    def _embeddings(self) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        shape = self._shape
        rows = self._random.standard_normal((shape.chunks, shape.embedding_dim), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        return rows

    def _entities(self) -> tuple[Entity, ...]:
        shape = self._shape
        picks = self._random.choice(
            shape.entity_pool, size=shape.entities, replace=False, p=self._entity_odds
        )
        return tuple(_entity(pick, number, shape.chunks) for number, pick in enumerate(picks))

    def _relations(self, entities: tuple[Entity, ...]) -> tuple[Relation, ...]:
        ends = self._random.integers(0, len(entities), size=(self._shape.relations, 2)).tolist()
        return tuple(
            Relation(
                source_key=entities[source].key,
                target_key=entities[target].key,
                type=_RELATION_TYPES[number % len(_RELATION_TYPES)],
                description=f"{entities[source].name} and {entities[target].name} are related.",
                weight=1.0,
                chunk_ordinal=number % self._shape.chunks,
            )
            for number, (source, target) in enumerate(ends)
        )


def _popularity(size: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    odds = 1.0 / np.arange(1, size + 1)
    normalised: np.ndarray[tuple[int, ...], np.dtype[np.float64]] = odds / odds.sum()
    return normalised


def _word(number: int) -> str:
    digits: list[str] = []
    while number or not digits:
        number, digit = divmod(number, len(_SYLLABLES))
        digits.append(_SYLLABLES[digit])
    return "".join(digits)


def _entity(pick: int, number: int, chunks: int) -> Entity:
    entity_type, name = _TYPES[pick % len(_TYPES)], f"Entity {_word(pick).title()} {pick}"
    return Entity(
        key=entity_key(entity_type, name),
        type=entity_type,
        name=name,
        description=f"{name} is a {entity_type} that the document speaks of.",
        aliases=(f"E{pick}",),
        chunk_ordinals=(number % chunks,),
        mentions=1,
    )
