"""What the stores show to readers that go to them directly, asked without the adapters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType

from neo4j import GraphDatabase
from qdrant_client import QdrantClient, models

from apex_dagster.composition import Application
from apex_dagster.stores.redis_store import RedisStore

Versions = Mapping[str, set[int]]  # by document


class Probes:
    """Connections of its own to Neo4j and Qdrant."""

    def __init__(self, app: Application) -> None:
        self._app = app
        servers = app.endpoints
        auth = (servers.neo4j_user, servers.neo4j_password.get_secret_value())
        self._neo4j = GraphDatabase.driver(servers.neo4j_uri, auth=auth)
        assert servers.qdrant_api_key is not None
        headers = {"api-key": servers.qdrant_api_key.get_secret_value()}
        self._qdrant = QdrantClient(
            url=servers.qdrant_url, headers=headers, check_compatibility=False
        )

    def __enter__(self) -> Probes:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._neo4j.close()
        self._qdrant.close()

    def committed(self, document_ids: Sequence[str]) -> Mapping[str, Versions]:
        """Versions of which a store shows anything as committed: store -> document -> versions."""
        return {
            "neo4j": self._in_neo4j(document_ids),
            "postgres": self._in_postgres(document_ids),
            "qdrant": self._in_qdrant(document_ids),
            "redis": self._in_redis(document_ids),
        }

    def entities(self, name: str) -> set[str]:
        """Keys of places whose names begin so."""
        query = "MATCH (e:Entity) WHERE e.key STARTS WITH $start RETURN e.key AS key"
        records = self._neo4j.execute_query(query, {"start": f"place:{name}"}).records
        return {record["key"] for record in records}

    def _in_neo4j(self, document_ids: Sequence[str]) -> Versions:
        query = (
            "MATCH (v:DocumentVersion) WHERE v.document_id IN $ids"
            " OPTIONAL MATCH (v)-[m:MENTIONS]->()"
            " OPTIONAL MATCH ()-[r:RELATES {saga_id: v.saga_id}]->()"
            " UNWIND [v, m, r] AS item WITH item WHERE item.ingestion_status = 'committed'"
            " RETURN DISTINCT item.document_id AS document_id, item.version AS version"
        )
        records = self._neo4j.execute_query(query, {"ids": list(document_ids)}).records
        return _by_document((record["document_id"], record["version"]) for record in records)

    def _in_postgres(self, document_ids: Sequence[str]) -> Versions:
        with self._app.ledger.transaction() as tx:
            rows = tx.execute(
                "SELECT document_id, version FROM apex.chunks"
                " WHERE document_id = ANY (%(ids)s) AND ingestion_status = 'committed'"
                " UNION SELECT document_id, version FROM apex.document_versions"
                " WHERE document_id = ANY (%(ids)s) AND ingestion_status = 'committed'",
                {"ids": list(document_ids)},
            ).fetchall()
        return _by_document((row["document_id"], row["version"]) for row in rows)

    def _in_qdrant(self, document_ids: Sequence[str]) -> Versions:
        if not self._qdrant.collection_exists(self._app.settings.qdrant_collection):
            return {}
        committed = models.Filter(
            must=[
                models.FieldCondition(
                    key="document_id", match=models.MatchAny(any=list(document_ids))
                ),
                models.FieldCondition(
                    key="ingestion_status", match=models.MatchValue(value="committed")
                ),
            ]
        )
        collection = self._app.settings.qdrant_collection
        records, _ = self._qdrant.scroll(collection, scroll_filter=committed, limit=1000)
        payloads = [record.payload or {} for record in records]
        return _by_document((each["document_id"], each["version"]) for each in payloads)

    def _in_redis(self, document_ids: Sequence[str]) -> Versions:
        store = self._app.stores["redis"]
        assert isinstance(store, RedisStore)
        entries = [entry for each in document_ids if (entry := store.read(each))]
        return _by_document((entry["document_id"], entry["version"]) for entry in entries)


def _by_document(found: Iterable[tuple[str, int]]) -> Versions:
    versions: dict[str, set[int]] = defaultdict(set)
    for document_id, version in found:
        versions[document_id].add(version)
    return versions
