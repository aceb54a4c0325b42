"""LightRAG's public `ainsert_custom_kg` on prepared documents; runs in an environment without ours.

    python lightrag_writer.py DOCUMENTS.jsonl WORKING_FOLDER

Servers come from the environment variables that LightRAG reads. Prints one JSON object:
{"seconds": …, "latencies_s": […], "documents": n, "at_once": m}.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from lightrag import LightRAG
from lightrag.utils import EmbeddingFunc, Tokenizer

AT_ONCE = 8
EMBEDDING_DIM = 384


class _Words:
    """A tokenizer that needs no download; LightRAG only counts with it here."""

    def encode(self, content: str) -> list[int]:
        return [len(word) for word in content.split()]

    def decode(self, tokens: list[int]) -> str:
        return " ".join("x" * length for length in tokens)


class _GivenEmbeddings:
    """The documents' own vectors for chunks; for what LightRAG embeds besides, any unit vector.

    So that no model's time is measured.
    """

    def __init__(self) -> None:
        self.known: dict[str, list[float]] = {}

    async def __call__(self, texts: list[str], **_: Any) -> np.ndarray:
        return np.array([self.known.get(text) or _any_vector(text) for text in texts], np.float32)


def _any_vector(text: str) -> list[float]:
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")
    vector = np.random.default_rng(seed).standard_normal(EMBEDDING_DIM)
    return [float(number) for number in vector / np.linalg.norm(vector)]


async def _no_model(*_: Any, **__: Any) -> str:
    raise AssertionError("documents that come with their graph need no language model")


def _custom_kg(document: dict[str, Any]) -> dict[str, Any]:
    name = document["document_id"]
    names = {entity["name"] for entity in document["entities"]}
    relations = [
        {
            "src_id": relation["source"],
            "tgt_id": relation["target"],
            "description": relation["description"],
            "keywords": relation["type"],
            "weight": 1.0,
            "source_id": f"{name}#0",
        }
        for relation in document["relations"]
        # It refuses loops.
        if relation["source"] != relation["target"] and relation["source"] in names
    ]
    return {
        "chunks": [
            {
                "content": chunk["text"],
                "source_id": f"{name}#{ordinal}",
                "chunk_order_index": ordinal,
                "file_path": name,
            }
            for ordinal, chunk in enumerate(document["chunks"])
        ],
        "entities": [
            {
                "entity_name": entity["name"],
                "entity_type": entity["type"],
                "description": entity["description"],
                "source_id": f"{name}#0",
                "file_path": name,
            }
            for entity in document["entities"]
        ],
        "relationships": relations,
    }


async def _write(documents: list[dict[str, Any]], folder: str) -> dict[str, Any]:
    embed = _GivenEmbeddings()
    for document in documents:
        for chunk in document["chunks"]:
            embed.known[chunk["text"]] = chunk["embedding"]
    rag = LightRAG(
        working_dir=folder,
        workspace=os.environ["APEX_PEER_WORKSPACE"],
        kv_storage="RedisKVStorage",
        vector_storage="QdrantVectorDBStorage",
        graph_storage="Neo4JStorage",
        doc_status_storage="PGDocStatusStorage",
        tokenizer=Tokenizer("words", _Words()),
        embedding_func=EmbeddingFunc(
            embedding_dim=EMBEDDING_DIM, max_token_size=8192, func=embed.__call__
        ),
        llm_model_func=_no_model,
    )
    await rag.initialize_storages()
    await _insert(rag, documents[0])  # collections and indexes are made by now
    latencies, begun = [], time.perf_counter()
    gate = asyncio.Semaphore(AT_ONCE)

    async def timed(document: dict[str, Any]) -> None:
        async with gate:
            start = time.perf_counter()
            await _insert(rag, document)
            latencies.append(time.perf_counter() - start)

    await asyncio.gather(*(timed(document) for document in documents[1:]))
    seconds = time.perf_counter() - begun
    await rag.finalize_storages()
    return {
        "documents": len(latencies),
        "seconds": seconds,
        "latencies_s": latencies,
        "at_once": AT_ONCE,
    }


async def _insert(rag: LightRAG, document: dict[str, Any]) -> None:
    await rag.ainsert_custom_kg(_custom_kg(document), full_doc_id=document["document_id"])


def main() -> None:
    logging.disable(logging.WARNING)
    with Path(sys.argv[1]).open() as lines:
        documents = [json.loads(line) for line in lines]
    result = asyncio.run(_write(documents, sys.argv[2]))
    sys.stdout.write(json.dumps(result) + "\n")


if __name__ == "__main__":
    main()
