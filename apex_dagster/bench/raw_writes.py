"""The four writes as one would make them without a saga: the price of the stores themselves.

Their fastest forms (COPY, UNWIND with sorted keys, one upsert, one pipeline), the same content and
the same search indexes as the project's stores; no versions, no statuses, no ledger, nothing that
could be undone, and each write visible at once. In tables, labels, a collection and keys apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import neo4j
import numpy as np
import orjson
import psycopg
import redis
from pgvector import HalfVector
from pgvector.psycopg import register_vector
from psycopg.types.json import Jsonb
from qdrant_client import QdrantClient, models

from apex_dagster.bench.stopwatch import Stopwatch
from apex_dagster.records import Extraction, item_id
from apex_dagster.settings import Endpoints
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.bench", "raw_writes.sql")
_TTL_S = 3600

_GRAPH_SCHEMA = (
    "CREATE CONSTRAINT raw_entity IF NOT EXISTS FOR (e:RawEntity) REQUIRE e.key IS UNIQUE",
    "CREATE CONSTRAINT raw_document IF NOT EXISTS FOR (d:RawDocument) REQUIRE d.id IS UNIQUE",
)
_ENTITIES = """
UNWIND $entities AS entity
MERGE (e:RawEntity {key: entity.key}) ON CREATE SET e.type = entity.type, e.name = entity.name
"""
_MENTIONS = """
UNWIND $documents AS document
CREATE (d:RawDocument) SET d = document.properties
WITH d, document UNWIND document.mentions AS mention
MATCH (e:RawEntity {key: mention.key}) CREATE (d)-[m:RAW_MENTIONS]->(e) SET m = mention.properties
"""
_RELATIONS = """
UNWIND $relations AS relation
MATCH (s:RawEntity {key: relation.source}) MATCH (t:RawEntity {key: relation.target})
CREATE (s)-[r:RAW_RELATES]->(t) SET r = relation.properties
"""


class RawWrites:
    """One writer with a connection to each store."""

    def __init__(self, servers: Endpoints, *, name: str, embedding_dim: int) -> None:
        self._name, self._dim, self.stopwatch = name, embedding_dim, Stopwatch()
        self._postgres = psycopg.connect(servers.postgres_url.get_secret_value())
        self._neo4j = neo4j.GraphDatabase.driver(
            servers.neo4j_uri,
            auth=(servers.neo4j_user, servers.neo4j_password.get_secret_value()),
        )
        self._database = servers.neo4j_database
        key = servers.qdrant_api_key
        self._qdrant = QdrantClient(
            url=servers.qdrant_url,
            headers=None if key is None else {"api-key": key.get_secret_value()},
            timeout=60,
            check_compatibility=False,
            limits=httpx.Limits(max_keepalive_connections=4),
            trust_env=False,
        )
        self._redis = redis.Redis.from_url(servers.redis_url.get_secret_value())
        self._threads = ThreadPoolExecutor(4, thread_name_prefix="raw")

    def prepare(self) -> None:
        """Create the tables, constraints and collection."""
        with self._postgres.transaction():
            for part in _SQL["create"].format(name=self._name, dim=self._dim).split(";"):
                self._postgres.execute(part.encode())
        register_vector(self._postgres)
        with self._neo4j.session(database=self._database) as session:
            for statement in _GRAPH_SCHEMA:
                session.run(statement).consume()
            session.run("CALL db.awaitIndexes(60)").consume()
        self._qdrant.create_collection(
            self._name,
            vectors_config=models.VectorParams(size=self._dim, distance=models.Distance.DOT),
        )
        for field in ("document_id", "collection"):
            self._qdrant.create_payload_index(
                self._name, field, models.PayloadSchemaType.KEYWORD, wait=True
            )

    def write(self, batch: Sequence[Extraction], *, overlap: bool) -> Mapping[str, float]:
        """Write a batch to all four stores, one after another or all at once; seconds by store."""
        writes: tuple[tuple[str, Callable[[Sequence[Extraction]], None]], ...] = (
            ("neo4j", self._write_graph),
            ("postgres", self._write_tables),
            ("qdrant", self._write_points),
            ("redis", self._write_cache),
        )

        def timed(name: str, write: Callable[[Sequence[Extraction]], None]) -> None:
            with self.stopwatch.part(name):
                write(batch)

        if overlap:
            for future in [self._threads.submit(timed, *write) for write in writes]:
                future.result()
        else:
            for write in writes:
                timed(*write)
        return self.stopwatch.take()

    def drop(self) -> None:
        """Remove everything that was written, and disconnect."""
        with self._postgres.transaction():
            self._postgres.execute(f"DROP SCHEMA IF EXISTS {self._name} CASCADE".encode())
        self._postgres.close()
        with self._neo4j.session(database=self._database) as session:
            for label in ("RawDocument", "RawEntity"):
                session.run(
                    f"MATCH (n:{label}) CALL (n) {{ DETACH DELETE n }} IN TRANSACTIONS OF 500 ROWS"
                ).consume()
            for constraint in ("raw_entity", "raw_document"):
                session.run(f"DROP CONSTRAINT {constraint} IF EXISTS").consume()
        self._neo4j.close()
        self._qdrant.delete_collection(self._name)
        self._qdrant.close()
        for keys in _sliced(list(self._redis.scan_iter(f"{self._name}:*", count=1000))):
            self._redis.delete(*keys)
        self._redis.close()
        self._threads.shutdown()

    def _write_graph(self, batch: Sequence[Extraction]) -> None:
        entities = {
            entity.key: {"key": entity.key, "type": entity.type, "name": entity.name}
            for document in batch
            for entity in document.entities
        }
        with (
            self._neo4j.session(database=self._database) as session,
            session.begin_transaction() as transaction,
        ):
            transaction.run(_ENTITIES, entities=[entities[key] for key in sorted(entities)])
            transaction.run(_MENTIONS, documents=[_mentions(document) for document in batch])
            relations = [row for document in batch for row in _relations(document)]
            transaction.run(_RELATIONS, relations=relations).consume()
            transaction.commit()

    def _write_tables(self, batch: Sequence[Extraction]) -> None:
        with self._postgres.transaction(), self._postgres.cursor() as cursor:
            with cursor.copy(_SQL["copy_documents"].format(name=self._name).encode()) as copy:
                copy.set_types(["text", "text", "text", "jsonb", "text", "text", "halfvec"])
                for document in batch:
                    copy.write_row(_document_row(document))
            with cursor.copy(_SQL["copy_chunks"].format(name=self._name).encode()) as copy:
                copy.set_types(["uuid", "text", "int4", "int4", "int4", "text", "halfvec"])
                for document in batch:
                    halves = document.embeddings.astype(np.float16)
                    for chunk, half in zip(document.chunks, halves, strict=True):
                        chunk_id = item_id(document.document_id, "chunk", chunk.ordinal)
                        place = (chunk_id, document.document_id, chunk.ordinal)
                        copy.write_row(
                            (*place, chunk.start, chunk.end, chunk.text, HalfVector(half))
                        )

    def _write_points(self, batch: Sequence[Extraction]) -> None:
        points = [
            models.PointStruct(
                id=str(item_id(document.document_id, "chunk", chunk.ordinal)),
                vector=vector,
                payload={
                    "document_id": document.document_id,
                    "ordinal": chunk.ordinal,
                    "text": chunk.text,
                    "title": document.title,
                    "collection": document.collection,
                    "content_hash": document.content_hash,
                    "metadata": dict(document.metadata),
                },
            )
            for document in batch
            for chunk, vector in zip(document.chunks, document.embeddings.tolist(), strict=True)
        ]
        self._qdrant.upsert(self._name, points, wait=True)

    def _write_cache(self, batch: Sequence[Extraction]) -> None:
        pipeline = self._redis.pipeline(transaction=False)
        for document in batch:
            pipeline.set(f"{self._name}:{document.document_id}", _cached(document), ex=_TTL_S)
        pipeline.execute()


def _document_row(document: Extraction) -> tuple[Any, ...]:
    return (
        document.document_id,
        document.title,
        document.collection,
        Jsonb(dict(document.metadata)),
        document.content_hash,
        document.embedding_model,
        HalfVector(document.document_embedding()),
    )


def _chunk_rows(document: Extraction) -> Iterator[tuple[Any, ...]]:
    halves = document.embeddings.astype(np.float16)
    for chunk, half in zip(document.chunks, halves, strict=True):
        chunk_id = item_id(document.document_id, "chunk", chunk.ordinal)
        place = (chunk_id, document.document_id, chunk.ordinal, chunk.start, chunk.end)
        yield (*place, chunk.text, HalfVector(half))


def _mentions(document: Extraction) -> dict[str, Any]:
    mentions = [
        {
            "key": entity.key,
            "properties": {
                "name": entity.name,
                "description": entity.description,
                "aliases": list(entity.aliases),
                "chunk_ordinals": list(entity.chunk_ordinals),
                "mentions": entity.mentions,
            },
        }
        for entity in document.entities
    ]
    properties = {
        "id": document.document_id,
        "title": document.title,
        "collection": document.collection,
        "content_hash": document.content_hash,
    }
    return {"properties": properties, "mentions": mentions}


def _relations(document: Extraction) -> list[dict[str, Any]]:
    return [
        {
            "source": relation.source_key,
            "target": relation.target_key,
            "properties": {
                "document_id": document.document_id,
                "type": relation.type,
                "description": relation.description,
                "weight": relation.weight,
                "chunk_ordinal": relation.chunk_ordinal,
            },
        }
        for relation in document.relations
    ]


def _cached(document: Extraction) -> bytes:
    return orjson.dumps(
        {
            "document_id": document.document_id,
            "title": document.title,
            "collection": document.collection,
            "metadata": dict(document.metadata),
            "content_hash": document.content_hash,
            "chunks": len(document.chunks),
            "entities": [
                {"key": each.key, "type": each.type, "name": each.name}
                for each in document.entities
            ],
            "relations": len(document.relations),
            "text": "\n".join(chunk.text for chunk in document.chunks),
        }
    )


def _sliced(items: Sequence[Any]) -> list[Sequence[Any]]:
    return [items[start : start + 1000] for start in range(0, len(items), 1000)]
