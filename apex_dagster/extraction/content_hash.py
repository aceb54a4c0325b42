"""What makes two submissions of a document the same."""

from __future__ import annotations

import hashlib
from pathlib import PurePath

import orjson

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.decode import clean_json
from apex_dagster.records import Document


def content_hash(document: Document) -> str:
    """Sha256 hex of content, type, collection and metadata; not of id, name or origin.

    So metadata must not hold what changes by itself, such as the time of submission. Raises
    DocumentRejected for metadata that is not JSON.
    """
    try:
        metadata = clean_json(document.metadata)
        written = orjson.dumps(metadata, option=orjson.OPT_SORT_KEYS)
    except (TypeError, ValueError) as error:
        raise DocumentRejected(document.document_id, f"metadata: {error}") from error
    kind = document.media_type or PurePath(document.name).suffix.lower()
    texts = (text.encode("utf-8", "surrogatepass") for text in (kind, document.collection))
    digest = hashlib.sha256()
    for part in (document.content, *texts, written):
        digest.update(len(part).to_bytes(8, "big"))  # so that no part can flow into the next
        digest.update(part)
    return digest.hexdigest()
