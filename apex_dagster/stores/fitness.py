"""What makes a version unfit for a store, found before anything is sent, so that the culprit in a
batch is known by name."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from apex_dagster.errors import StoreRejected
from apex_dagster.records import Extraction, StagedVersion

# An odd number of backslashes: "\\u0000" in JSON is a backslash followed by ordinary characters.
_JSON_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_NAMED_MAX = 3  # culprits named in a message; all are in `document_ids`

Fault = str | None


def refuse_unfit(
    store: str, batch: Sequence[StagedVersion], fault_of: Callable[[Extraction], Fault]
) -> None:
    """Raise StoreRejected, naming the documents, if `fault_of` finds a fault in any."""
    faults = {v.ref.document_id: f for v in batch if (f := fault_of(v.extraction)) is not None}
    if faults:
        named = [f"{document_id!r}: {fault}" for document_id, fault in faults.items()]
        more = f"; and {len(named) - _NAMED_MAX} more" if len(named) > _NAMED_MAX else ""
        detail = "; ".join(named[:_NAMED_MAX]) + more
        raise StoreRejected(store, detail, document_ids=tuple(faults))


def embedding_fault(extraction: Extraction, dim: int, dtype: type[np.floating[Any]]) -> Fault:
    """Why the embeddings are not one finite vector of `dim` floats of `dtype` for each chunk."""
    embeddings, chunks = extraction.embeddings, len(extraction.chunks)
    if embeddings.ndim != 2 or embeddings.shape[1] != dim:
        shape = "x".join(map(str, embeddings.shape))
        return f"its embeddings have the shape {shape}, and the store takes {dim} floats a chunk"
    if len(embeddings) != chunks:
        return f"it has {chunks} chunks and {len(embeddings)} embeddings"
    with np.errstate(over="ignore"):
        if not np.isfinite(embeddings.astype(dtype, copy=False)).all():
            return f"an embedding holds NaN, or a value beyond {float(np.finfo(dtype).max):g}"
    return None


def text_fault(texts: Iterable[str], *, nul_allowed: bool) -> Fault:
    """Why some of these texts cannot be stored."""
    for text in texts:
        if not nul_allowed and "\x00" in text:
            return f"the text {_excerpt(text)} holds a NUL character"
        try:
            text.encode()
        except UnicodeEncodeError:
            return f"the text {_excerpt(text)} holds half of a surrogate pair"
    return None


def metadata_fault(metadata: Mapping[str, Any], *, nul_allowed: bool) -> Fault:
    """Why `metadata` is not JSON that can be stored."""
    try:
        encoded = metadata_json(metadata)
        encoded.encode()
    except (TypeError, ValueError, RecursionError) as error:
        return f"its metadata is not JSON: {error}"
    if not nul_allowed and _JSON_NUL.search(encoded):
        return "its metadata holds a NUL character"
    return None


def metadata_json(metadata: Mapping[str, Any]) -> str:
    return json.dumps(dict(metadata), ensure_ascii=False, allow_nan=False)


def _excerpt(text: str) -> str:
    return ascii(text if len(text) <= 40 else f"{text[:40]}…")
