"""Everything that the four stores hold, counted without the adapters, against what must be live.

No store holds anything but the live versions, all of each, once, and committed. What a dead saga
wrote late may lie about as `staged` until its next sweep, and shows to nobody; hence two counts:
one before the sweeps of a whole day, that lets this pass, and one after them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import orjson
import psycopg
import redis
from neo4j import GraphDatabase, NotificationMinimumSeverity
from psycopg.rows import dict_row
from qdrant_client import QdrantClient

from apex_dagster.records import Extraction, VersionRef
from apex_dagster.settings import Endpoints, Settings
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.chaos", "census.sql")
_CYPHER = load_queries("apex_dagster.chaos", "census.cypher")
_PAGE = 2000


@dataclass(frozen=True, slots=True, order=True)
class Items:
    """Items of one kind that a store holds of one saga, in one status."""

    store: str
    kind: str
    saga_id: str
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Census:
    """What all four hold at one time at which nobody writes."""

    items: Counter[Items]
    entities: Counter[str]  # by key

    @property
    def total(self) -> int:
        return self.items.total() + self.entities.total()


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """A version that the ledger says is live, and what it was staged from."""

    ref: VersionRef
    arrival: int
    content_hash: str
    extraction: Extraction | None  # None: the ledger has lost it


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """Something that a store holds and should not, or the other way round."""

    saga_id: str
    what: str


def take_census(servers: Endpoints, settings: Settings) -> Census:
    """Ask all four. Nobody may be writing."""
    items: Counter[Items] = Counter()
    entities: Counter[str] = Counter()
    for name, rows in _neo4j(servers):
        if name == "entities":
            entities.update({str(row["key"]): int(str(row["items"])) for row in rows})
        else:
            _count(items, "neo4j", rows)
    with psycopg.connect(
        servers.postgres_url.get_secret_value(), row_factory=dict_row
    ) as connection:
        for name in ("versions", "chunks"):
            _count(items, "postgres", connection.execute(_SQL[name]).fetchall())
    _count(items, "qdrant", _points(servers, settings))
    _count(items, "redis", _entries(servers, settings))
    return Census(items=items, entities=entities)


def discrepancies(
    census: Census, live: Iterable[Live], *, late_writes: bool
) -> Iterator[Discrepancy]:
    """Where the census differs from the live versions; `late_writes` says whether what waits for
    its sweep, being staged or superseded, counts as well."""
    due = due_items(live)
    for items in sorted(due | census.items):
        found, expected = census.items[items], due[items]
        waits_for_sweep = not expected and items.status != "committed"
        if found == expected or (waits_for_sweep and not late_writes):
            continue
        yield Discrepancy(
            saga_id=items.saga_id,
            what=f"{items.store} holds {found} {items.status} {items.kind}, not {expected}",
        )


def entity_discrepancies(census: Census, live: Iterable[Live]) -> Iterator[Discrepancy]:
    """Entities that are missing, doubled, or mentioned by nobody."""
    keys = {e.key for each in live if each.extraction for e in each.extraction.entities}
    for key in sorted(keys | census.entities.keys()):
        found, expected = census.entities[key], int(key in keys)
        if found != expected:
            yield Discrepancy(
                saga_id="", what=f"neo4j holds entity {key} {found} times, not {expected}"
            )


def due_items(live: Iterable[Live]) -> Counter[Items]:
    """What has to be there of the live versions."""
    due: Counter[Items] = Counter()
    for each in live:
        if each.extraction is None:
            continue
        chunks, relations = len(each.extraction.chunks), len(each.extraction.relations)
        for store, kind, count in (
            ("neo4j", "versions", 1),
            ("neo4j", "pointers", 1),
            ("neo4j", "mentions", len(each.extraction.entities)),
            ("neo4j", "relations", relations),
            ("postgres", "versions", 1),
            ("postgres", "chunks", chunks),
            ("qdrant", "points", chunks),
            ("redis", "entries", 1),
        ):
            if count:
                due[Items(store, kind, each.ref.saga_id, "committed")] = count
    return due


def _count(items: Counter[Items], store: str, rows: Iterable[Mapping[str, object]]) -> None:
    for row in rows:
        held = Items(store, str(row["kind"]), str(row["saga_id"]), str(row["status"]))
        items[held] += int(str(row["items"]))


def _neo4j(servers: Endpoints) -> Iterator[tuple[str, list[dict[str, object]]]]:
    auth = (servers.neo4j_user, servers.neo4j_password.get_secret_value())
    # It would warn of labels and properties that nothing has, where nothing was ingested.
    quiet = NotificationMinimumSeverity.OFF
    with GraphDatabase.driver(
        servers.neo4j_uri, auth=auth, notifications_min_severity=quiet
    ) as driver:
        for name, query in _CYPHER.items():
            records = driver.execute_query(query, database_=servers.neo4j_database).records
            yield name, [record.data() for record in records]


def _points(servers: Endpoints, settings: Settings) -> Iterator[dict[str, object]]:
    key = servers.qdrant_api_key
    # As `api_key` it would be announced by a warning on every plain-HTTP loopback address.
    headers = {"api-key": key.get_secret_value()} if key else None
    client = QdrantClient(
        url=servers.qdrant_url, headers=headers, check_compatibility=False, timeout=60
    )
    offset, more = None, client.collection_exists(settings.qdrant_collection)
    while more:
        records, offset = client.scroll(
            settings.qdrant_collection,
            limit=_PAGE,
            offset=offset,
            with_payload=["saga_id", "ingestion_status"],
        )
        for record in records:
            payload = record.payload or {}
            yield {
                "saga_id": payload["saga_id"],
                "kind": "points",
                "status": payload["ingestion_status"],
                "items": 1,
            }
        more = offset is not None
    client.close()


def _entries(servers: Endpoints, settings: Settings) -> Iterator[dict[str, object]]:
    prefix = settings.redis_prefix
    with redis.Redis.from_url(servers.redis_url.get_secret_value()) as client:
        for kind, pattern in (("entries", "doc:*"), ("entries", "stage:*")):
            for key in client.scan_iter(match=f"{prefix}{pattern}", count=_PAGE):
                body = client.get(key)
                if isinstance(body, bytes):
                    entry = orjson.loads(body)
                    yield {
                        "saga_id": entry["saga_id"],
                        "kind": kind,
                        "status": entry["ingestion_status"],
                        "items": 1,
                    }
