"""The stored form of an extraction: embeddings as they are, and the rest as compressed MessagePack.

What is unpacked equals what was packed, embeddings bit for bit, so that staging again, or a later
repair, writes exactly what was written first.
"""

from __future__ import annotations

import dataclasses
import struct
import zlib
from typing import Any

import msgspec
import numpy as np

from apex_dagster.records import Chunk, Entity, Extraction, Relation

# Text shrinks to a third at this level. Embeddings hardly shrink at any, and trying took more time
# than all else of an extraction, so they follow uncompressed.
_COMPRESSION_LEVEL = 1
_HEADER = struct.Struct("<BI")  # version of this format, bytes of the compressed part
_FORMAT = 2  # 1 was one zlib stream of everything


class _Packed(msgspec.Struct, frozen=True, kw_only=True):
    document_id: str
    title: str
    collection: str
    content_hash: str
    metadata: dict[str, Any]
    chunks: tuple[Chunk, ...]
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
    packed = _Packed(**fields, embedding_dim=extraction.embeddings.shape[1])
    compressed = zlib.compress(_encoder.encode(packed), _COMPRESSION_LEVEL)
    embeddings = np.ascontiguousarray(extraction.embeddings, dtype="<f4").tobytes()
    return _HEADER.pack(_FORMAT, len(compressed)) + compressed + embeddings


def unpack(body: bytes) -> Extraction:
    """The extraction that `pack` was given. Raises ValueError for any other format."""
    version, size = _HEADER.unpack_from(body)
    if version != _FORMAT:
        raise ValueError(f"an extraction in format {version}, not {_FORMAT}: ingest it again")
    start = _HEADER.size + size
    packed = _decoder.decode(zlib.decompress(memoryview(body)[_HEADER.size : start]))
    fields = {
        name: getattr(packed, name) for name in packed.__struct_fields__ if name != "embedding_dim"
    }
    embeddings = np.frombuffer(body, dtype="<f4", offset=start).reshape(-1, packed.embedding_dim)
    return Extraction(**fields, embeddings=embeddings)
