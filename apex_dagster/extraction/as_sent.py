"""An extraction in the form in which callers send one, which `prepared.py` reads."""

from __future__ import annotations

from typing import Any

import numpy as np

from apex_dagster.records import Extraction


def as_sent(extraction: Extraction) -> dict[str, Any]:
    """The members of the JSON object; embeddings (chunks, dim) still of numpy, of float32."""
    names = {entity.key: entity.name for entity in extraction.entities}
    return {
        "document_id": extraction.document_id,
        "title": extraction.title,
        "collection": extraction.collection,
        "metadata": dict(extraction.metadata),
        "chunks": [chunk.text for chunk in extraction.chunks],
        "embeddings": np.ascontiguousarray(extraction.embeddings),
        "embedding_model": extraction.embedding_model,
        "entities": [
            {
                "name": entity.name,
                "type": entity.type,
                "description": entity.description,
                "aliases": list(entity.aliases),
            }
            for entity in extraction.entities
        ],
        "relations": [
            {
                "source": names[relation.source_key],
                "target": names[relation.target_key],
                "type": relation.type,
                "description": relation.description,
                "weight": relation.weight,
            }
            for relation in extraction.relations
        ],
    }
