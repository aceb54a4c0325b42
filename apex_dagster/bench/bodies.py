"""Documents as callers send them: the JSON of `POST /documents/ingest`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from apex_dagster.bench.corpus import Corpus
from apex_dagster.records import Extraction

_ID_PLACE = "\x00id\x00"


@dataclass(frozen=True, slots=True)
class Template:
    """A body around the place of its document id."""

    before: bytes
    after: bytes


def templates(corpus: Corpus, documents: int) -> list[Template]:
    """Encode so many documents of the corpus."""
    place = orjson.dumps(_ID_PLACE)
    parts = (_encode(fields(document)).split(place) for document in corpus.batch(documents))
    return [Template(before, after) for before, after in parts]


def numbered(some: list[Template], prefix: str) -> Iterator[bytes]:
    """Endless bodies, each a document of its own: a template with an id that is never repeated.

    Encoded beforehand, because making a document costs more than sending it.
    """
    for number in itertools.count():
        template = some[number % len(some)]
        yield b'%s"%s-%08d"%s' % (template.before, prefix.encode(), number, template.after)


def fields(document: Extraction, *, document_id: str = _ID_PLACE) -> dict[str, Any]:
    """The members of the JSON object, arrays still of numpy."""
    names = {entity.key: entity.name for entity in document.entities}
    return {
        "document_id": document_id,
        "title": document.title,
        "collection": document.collection,
        "metadata": dict(document.metadata),
        "chunks": [chunk.text for chunk in document.chunks],
        "embeddings": np.ascontiguousarray(document.embeddings),
        "embedding_model": document.embedding_model,
        "entities": [
            {
                "name": entity.name,
                "type": entity.type,
                "description": entity.description,
                "aliases": list(entity.aliases),
            }
            for entity in document.entities
        ],
        "relations": [
            {
                "source": names[relation.source_key],
                "target": names[relation.target_key],
                "type": relation.type,
                "description": relation.description,
                "weight": relation.weight,
            }
            for relation in document.relations
        ],
    }


def _encode(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)
