"""Documents as callers send them: the JSON of `POST /documents/ingest`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import orjson

from apex_dagster.bench.corpus import Corpus
from apex_dagster.extraction.as_sent import as_sent

_ID_PLACE = "\x00id\x00"


@dataclass(frozen=True, slots=True)
class Template:
    """A body around the place of its document id."""

    before: bytes
    after: bytes


def templates(corpus: Corpus, documents: int) -> list[Template]:
    """Encode so many documents of the corpus."""
    place = orjson.dumps(_ID_PLACE)
    parts = (
        _encode(as_sent(document) | {"document_id": _ID_PLACE}).split(place)
        for document in corpus.batch(documents)
    )
    return [Template(before, after) for before, after in parts]


def numbered(some: list[Template], prefix: str) -> Iterator[bytes]:
    """Endless bodies, each a document of its own: a template with an id that is never repeated.

    Encoded beforehand, because making a document costs more than sending it.
    """
    for number in itertools.count():
        template = some[number % len(some)]
        yield b'%s"%s-%08d"%s' % (template.before, prefix.encode(), number, template.after)


def _encode(members: dict[str, Any]) -> bytes:
    return orjson.dumps(members, option=orjson.OPT_SERIALIZE_NUMPY)
