"""JSON documents: a text with its metadata, or an extraction made elsewhere.

    {"document_id": "…", "title": "…", "collection": "…", "metadata": {…},
     "text": "…",                                         or "content", or "body"
     "chunks": [{"text": "…", "embedding": [384 numbers]}],
     "embeddings": [[384 numbers]],                       instead, one for each chunk
     "embedding_model": "…",
     "entities": [{"name": "…", "type": "…", "description": "…", "aliases": ["…"]}],
     "relations": [{"source": "…", "target": "…", "type": "…", "description": "…", "weight": 1}]}

Each part that is given is taken as it is; each that is missing is extracted from the text. So a
document with chunks, embeddings and entities costs no extraction at all.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.decode import clean_json, clean_text, decode
from apex_dagster.extraction.relations import upper_snake
from apex_dagster.records import Chunk, Document, Entity, Relation, entity_key

TEXT_FIELDS = ("text", "content", "body")
NAME_CHARS_MAX = 500  # an index key in Neo4j holds about 8 kB
DOCUMENT_ID_CHARS_MAX = 200
COLLECTION_CHARS_MAX = 200
GIVEN_MODEL = "given"  # vectors sent without naming their model
_FLOAT_MAX = sys.float_info.max
_NUMBERS = frozenset({int, float})  # types, so that true is none


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """What a JSON document states; None where it states nothing."""

    title: str | None
    text: str | None
    collection: str | None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    chunks: tuple[Chunk, ...] | None
    embeddings: NDArray[np.float32] | None
    embedding_model: str
    entities: tuple[Entity, ...] | None
    relations: tuple[Relation, ...] = ()

    @property
    def is_whole(self) -> bool:
        """Whether nothing is left to be extracted."""
        return None not in (self.chunks, self.entities) and self.embeddings is not None


class Refused(Exception):
    """A field that cannot be used: `reason` names it, the limit and the fix."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def read_prepared(document: Document, *, embedding_dim: int) -> Prepared:
    """The JSON object in `document`. Raises DocumentRejected, with the field at fault."""
    try:
        return prepare(load_object(document.content), embedding_dim=embedding_dim)
    except Refused as refused:
        raise DocumentRejected(document.document_id, refused.reason) from refused


def load_object(content: bytes) -> dict[str, Any]:
    try:
        value = orjson.loads(decode(content))
    except orjson.JSONDecodeError as error:
        raise Refused(f"it is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise Refused(f"it must be one JSON object, not {kind_of(value)}")
    return value


def prepare(fields: Mapping[str, Any], *, embedding_dim: int) -> Prepared:
    check_document_id(fields)
    texts, vectors = given_chunks(fields)
    if (stated := optional_list(fields, "embeddings")) is not None:
        if vectors:
            raise Refused("embeddings: the chunks already hold theirs; send one or the other")
        vectors = vectors_of(stated)
    text = given_text(fields)
    if texts is None and vectors is not None:
        texts = chunk_texts_for(len(vectors), text)
    if texts is not None and vectors is not None and len(texts) != len(vectors):
        raise Refused(
            f"embeddings: {len(vectors)} for {len(texts)} chunks; send exactly one for each chunk"
        )
    chunks = None if texts is None else join_chunks(texts)
    entities, references = given_entities(fields, chunks or ())
    return Prepared(
        title=optional_text(fields, "title"),
        text=text,
        collection=given_collection(fields),
        metadata=given_metadata(fields),
        chunks=chunks,
        embeddings=None if vectors is None else read_vectors(vectors, embedding_dim),
        embedding_model=optional_text(fields, "embedding_model") or GIVEN_MODEL,
        entities=entities,
        relations=given_relations(fields, references),
    )


# Text and chunks


def check_document_id(fields: Mapping[str, Any]) -> None:
    if "document_id" in fields and own_id(fields) is None:
        raise Refused(f"document_id: must be 1 to {DOCUMENT_ID_CHARS_MAX} printable characters")


def own_id(fields: Mapping[str, Any]) -> str | None:
    """The document's own id if it states one that can be used."""
    value = fields.get("document_id")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not 0 < len(value) <= DOCUMENT_ID_CHARS_MAX:
        return None
    return value if value.isprintable() else None


def given_text(fields: Mapping[str, Any]) -> str | None:
    stated = (optional_text(fields, name) for name in TEXT_FIELDS)
    return next((text for text in stated if text is not None), None)


def given_chunks(fields: Mapping[str, Any]) -> tuple[list[str] | None, list[Any] | None]:
    """Texts and embeddings of the chunks; None where none are given."""
    stated = optional_list(fields, "chunks")
    if stated is None:
        return None, None
    texts, vectors = [], []
    for ordinal, chunk in enumerate(stated):
        if isinstance(chunk, str):
            chunk = {"text": chunk}
        if not isinstance(chunk, dict):
            raise Refused(f"chunks[{ordinal}]: expected an object with text, not {kind_of(chunk)}")
        texts.append(required_text(chunk, "text", f"chunks[{ordinal}]"))
        if chunk.get("embedding") is not None:
            vectors.append(chunk["embedding"])
    if vectors and len(vectors) != len(texts):
        raise Refused(
            f"chunks: {len(vectors)} of {len(texts)} have an embedding; send one for each or none"
        )
    return texts, vectors or None


def chunk_texts_for(count: int, text: str | None) -> list[str]:
    """Texts for embeddings that came without chunks."""
    if text is None:
        return [""] * count
    if count == 1:
        return [text]
    raise Refused(
        f"embeddings: {count} for a text without chunks; send the chunks they belong to,"
        " or leave the embeddings out"
    )


def join_chunks(texts: Sequence[str]) -> tuple[Chunk, ...]:
    """Chunks with their offsets in the chunks' texts joined by blank lines."""
    chunks, start = [], 0
    for ordinal, text in enumerate(texts):
        chunks.append(Chunk(ordinal=ordinal, text=text, start=start, end=start + len(text)))
        start += len(text) + 2
    return tuple(chunks)


# Embeddings


def vectors_of(stated: list[Any]) -> list[Any]:
    if stated and all(isinstance(part, int | float) for part in stated):
        return [stated]  # a single embedding
    return [
        item.get("embedding", item.get("vector")) if isinstance(item, dict) else item
        for item in stated
    ]


def read_vectors(vectors: Sequence[Any], embedding_dim: int) -> NDArray[np.float32]:
    """Unit-length rows of exactly `embedding_dim` finite numbers each."""
    numbers = as_matrix(vectors, embedding_dim)
    if numbers is None:  # find out which row it is, and why; or all of them are huge integers
        rows = [read_vector(v, embedding_dim, f"embeddings[{n}]") for n, v in enumerate(vectors)]
        numbers = np.array(rows, dtype=np.float64).reshape(-1, embedding_dim)
    # Dividing by the largest part first keeps the squares of extreme floats finite.
    scaled = numbers / np.abs(numbers).max(axis=1, keepdims=True)
    unit: NDArray[np.float32] = (scaled / np.linalg.norm(scaled, axis=1, keepdims=True)).astype(
        np.float32
    )
    return unit


def as_matrix(vectors: Sequence[Any], embedding_dim: int) -> NDArray[np.float64] | None:
    """All rows at once, a tenth of the time of looking at each number; None if any is at fault."""
    if not all(isinstance(vector, list) and len(vector) == embedding_dim for vector in vectors):
        return None
    if not all(_NUMBERS.issuperset(map(type, vector)) for vector in vectors):
        return None
    try:
        numbers = np.array(vectors, dtype=np.float64).reshape(-1, embedding_dim)
    except OverflowError:
        return None
    sound = bool(np.isfinite(numbers).all()) and bool(numbers.any(axis=1).all())
    return numbers if sound else None


def read_vector(vector: Any, embedding_dim: int, name: str) -> NDArray[np.float64]:
    if not isinstance(vector, list):
        raise Refused(f"{name}: expected a list of {embedding_dim} numbers, not {kind_of(vector)}")
    if len(vector) != embedding_dim:
        raise Refused(
            f"{name}: has {len(vector)} numbers, expected embedding_dim = {embedding_dim};"
            " send vectors of that length, or set APEX_EMBEDDING_DIM for a new installation"
        )
    for part in vector:
        if isinstance(part, bool) or not isinstance(part, int | float):
            raise Refused(f"{name}: holds {kind_of(part)}; it must hold numbers only")
        if not -_FLOAT_MAX <= part <= _FLOAT_MAX:
            raise Refused(f"{name}: holds {part}; it must hold finite numbers only")
    numbers = np.array(vector, dtype=np.float64)
    if not numbers.any():
        raise Refused(f"{name}: is all zeros, which has no direction to compare; leave it out")
    return numbers


# Entities and relations


def given_entities(
    fields: Mapping[str, Any], chunks: Sequence[Chunk]
) -> tuple[tuple[Entity, ...] | None, dict[str, set[str]]]:
    """The entities, unique by key, and what relations may call them: → the keys it can mean."""
    stated = optional_list(fields, "entities")
    if stated is None:
        return None, {}
    folded_texts = [chunk.text.casefold() for chunk in chunks]
    entities: dict[str, Entity] = {}
    references: dict[str, set[str]] = {}
    for number, item in enumerate(stated):
        entity = read_entity(item, f"entities[{number}]", folded_texts)
        known = entities.get(entity.key)
        entities[entity.key] = entity if known is None else unite(known, entity)
        names = {entity.key, entity.name, *entity.aliases}
        if isinstance(item, dict):
            names |= {str(item[name]) for name in ("id", "key") if name in item}
        for name in names:
            references.setdefault(folded(name), set()).add(entity.key)
    return tuple(entities.values()), references


def read_entity(item: Any, name: str, folded_texts: Sequence[str]) -> Entity:
    """`folded_texts` are the chunks' texts in folded case, for where the entity is mentioned."""
    if isinstance(item, str):
        item = {"name": item}
    if not isinstance(item, dict):
        raise Refused(f"{name}: expected an object with name and type, not {kind_of(item)}")
    written = " ".join(required_text(item, "name", name).split())
    entity_type = folded(optional_text(item, "type", name) or "thing").replace(" ", "_")
    for part, value in (("name", written), ("type", entity_type)):
        if not 0 < len(value) <= NAME_CHARS_MAX:
            raise Refused(f"{name}.{part}: must be 1 to {NAME_CHARS_MAX} characters")
    aliases = optional_list(item, "aliases", name) or []
    if not all(isinstance(alias, str) for alias in aliases):
        raise Refused(f"{name}.aliases: must hold texts only")
    forms = tuple(dict.fromkeys(clean_text(alias)[:NAME_CHARS_MAX] for alias in aliases))
    names = tuple(form.casefold() for form in (written, *forms) if form)
    found = {n for form in names for n, text in enumerate(folded_texts) if form in text}
    return Entity(
        key=entity_key(entity_type, written),
        type=entity_type,
        name=written,
        description=optional_text(item, "description", name) or "",
        aliases=forms,
        chunk_ordinals=tuple(sorted(found)),
        mentions=max(1, len(found)),
    )


def unite(first: Entity, second: Entity) -> Entity:
    """One entity that the document lists twice."""
    return replace(
        first,
        description=first.description or second.description,
        aliases=tuple(dict.fromkeys([*first.aliases, *second.aliases])),
        chunk_ordinals=tuple(sorted({*first.chunk_ordinals, *second.chunk_ordinals})),
    )


def given_relations(
    fields: Mapping[str, Any], references: Mapping[str, set[str]]
) -> tuple[Relation, ...]:
    relations: dict[tuple[str, str, str], Relation] = {}
    for number, item in enumerate(optional_list(fields, "relations") or []):
        relation = read_relation(item, f"relations[{number}]", references)
        identity = (relation.source_key, relation.type, relation.target_key)
        if (known := relations.get(identity)) is not None:
            relation = replace(known, weight=known.weight + relation.weight)
        relations[identity] = relation
    return tuple(relations.values())


def read_relation(item: Any, name: str, references: Mapping[str, set[str]]) -> Relation:
    if not isinstance(item, dict):
        raise Refused(
            f"{name}: expected an object with source, target and type, not {kind_of(item)}"
        )
    relation_type = upper_snake(optional_text(item, "type", name) or "RELATED_TO")
    if not 0 < len(relation_type) <= 100:
        raise Refused(f"{name}.type: must be 1 to 100 letters, digits or underscores")
    weight = item.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight < 1e9:
        raise Refused(f"{name}.weight: must be a number above 0 and below 1e9")
    return Relation(
        source_key=resolve(item, "source", name, references),
        target_key=resolve(item, "target", name, references),
        type=relation_type,
        description=optional_text(item, "description", name) or "",
        weight=float(weight),
    )


def resolve(
    item: Mapping[str, Any], end: str, name: str, references: Mapping[str, set[str]]
) -> str:
    """The key of the entity that a relation's source or target names."""
    stated = item.get(end)
    keys = references.get(folded(str(stated)), set()) if stated is not None else set()
    if len(keys) == 1:
        return next(iter(keys))
    if keys:
        raise Refused(
            f"{name}.{end}: {stated!r} may be any of {', '.join(sorted(keys))}; write the key"
        )
    raise Refused(
        f"{name}.{end}: {stated!r} is not among the entities; add it there, or correct the name"
    )


# Fields


def given_collection(fields: Mapping[str, Any]) -> str | None:
    """A part of the corpus, by name."""
    stated = optional_text(fields, "collection")
    if stated is not None and not (
        0 < len(stated) <= COLLECTION_CHARS_MAX and stated.isprintable()
    ):
        raise Refused(f"collection: must be 1 to {COLLECTION_CHARS_MAX} printable characters")
    return stated


def given_metadata(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    stated = fields.get("metadata")
    if stated is None:
        return {}
    if not isinstance(stated, dict):
        raise Refused(f"metadata: expected an object, not {kind_of(stated)}")
    try:
        return dict(clean_json(stated))
    except ValueError as error:
        raise Refused(f"metadata: {error}") from error


def optional_list(fields: Mapping[str, Any], name: str, of: str = "") -> list[Any] | None:
    value = fields.get(name)
    if value is None or isinstance(value, list):
        return value
    raise Refused(f"{f'{of}.{name}' if of else name}: expected a list, not {kind_of(value)}")


def optional_text(fields: Mapping[str, Any], name: str, of: str = "") -> str | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, str):
        return clean_text(value)
    raise Refused(f"{f'{of}.{name}' if of else name}: expected a text, not {kind_of(value)}")


def required_text(fields: Mapping[str, Any], name: str, of: str) -> str:
    value = optional_text(fields, name, of)
    if value is None:
        raise Refused(f"{of}.{name}: is missing")
    return value


def folded(name: str) -> str:
    return " ".join(name.casefold().split())


def kind_of(value: Any) -> str:
    names: Iterator[str] = (
        name
        for types, name in (
            (bool, "true or false"),
            (int | float, "a number"),
            (str, "a text"),
            (list, "a list"),
            (dict, "an object"),
        )
        if isinstance(value, types)
    )
    return next(names, "null")
