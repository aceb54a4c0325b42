"""The stored form of an extraction: MessagePack, compressed.

What is unpacked equals what was packed, embeddings bit for bit, so that staging again, or a later
repair, writes exactly what was written first.
"""

from __future__ import annotations

import dataclasses
import zlib
from typing import Any

import msgspec
import numpy as np

from apex_dagster.records import Chunk, Entity, Extraction, Relation

# Text shrinks to a third at this level; embeddings hardly shrink at any, so more would be wasted.
_COMPRESSION_LEVEL = 1


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    document_id: str
    title: str
    collection: str
    content_hash: str
    metadata: dict[str, Any]
    chunks: tuple[Chunk, ...]
    embeddings: bytes  # float32, little-endian, row after row
    embedding_dim: int
    embedding_model: str
    entities: tuple[Entity, ...]
    relations: tuple[Relation, ...]


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Packed)


def pack(extraction: Extraction) -> bytes:
    """Serialise and compress."""
    fields = {
        field.name: getattr(extraction, field.name)
        for field in dataclasses.fields(extraction)
        if field.name != "embeddings"
    }
    fields["metadata"] = dict(extraction.metadata)
    packed = _Packed(
        **fields,
        embeddings=np.ascontiguousarray(extraction.embeddings, dtype="<f4").tobytes(),
        embedding_dim=extraction.embeddings.shape[1],
    )
    return zlib.compress(_encoder.encode(packed), _COMPRESSION_LEVEL)


def unpack(body: bytes) -> Extraction:
    """The extraction that `pack` was given."""
    packed = _decoder.decode(zlib.decompress(body))
    fields = {
        name: getattr(packed, name)
        for name in packed.__struct_fields__
        if name not in ("embeddings", "embedding_dim")
    }
    embeddings = np.frombuffer(packed.embeddings, dtype="<f4").reshape(-1, packed.embedding_dim)
    return Extraction(**fields, embeddings=embeddings)
