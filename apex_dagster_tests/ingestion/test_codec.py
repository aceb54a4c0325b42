"""What is stored of an extraction gives it back exactly."""

from __future__ import annotations

import numpy as np
import pytest

from apex_dagster.bench.corpus import Corpus, Shape
from apex_dagster.ingestion.codec import pack, unpack
from apex_dagster.records import item_id, item_ids


def test_an_extraction_comes_back_bit_for_bit() -> None:
    [packed] = Corpus(seed=3, shape=Shape(chunks=3), prefix="d").batch(1)
    packed.embeddings[0, :3] = (0.1, -0.0, np.finfo(np.float32).tiny)
    unpacked = unpack(pack(packed))
    assert unpacked.embeddings.tobytes() == packed.embeddings.tobytes()
    for name in ("document_id", "metadata", "chunks", "entities", "relations", "content_hash"):
        assert getattr(unpacked, name) == getattr(packed, name)


def test_another_format_is_refused() -> None:
    [packed] = Corpus(seed=3, shape=Shape(chunks=1), prefix="d").batch(1)
    with pytest.raises(ValueError, match="format 1"):
        unpack(b"\x01" + pack(packed)[1:])


def test_ids_of_many_items_are_those_of_each() -> None:
    ordinals = [0, 3, 10_000]
    assert item_ids("ingest_d_1", "chunk", ordinals) == [
        item_id("ingest_d_1", "chunk", ordinal) for ordinal in ordinals
    ]
