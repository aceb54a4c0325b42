"""Neo4j: who and what the documents mention, with entities shared between them.

    (:Document {document_id, fence}) -[:CURRENT]-> (:DocumentVersion {saga_id, version, ...})
    (:DocumentVersion) -[:MENTIONS {name, description, aliases, ...}]-> (:Entity {key, type, name})
    (:Entity) -[:RELATES {type, description, weight, ...}]-> (:Entity)

Entities hold nothing but their key, so no document can overwrite what another says of one. All
else carries the saga_id, version and ingestion_status of the document that said it. `fence` is the
highest version ever published; a Document node outlives its versions, for a late publish to find.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from typing import Any

import neo4j
import orjson
from neo4j.exceptions import (
    AuthError,
    ClientError,
    ConstraintError,
    DatabaseUnavailable,
    DriverError,
    Forbidden,
    ForbiddenOnReadOnlyDatabase,
    IncompleteCommit,
    Neo4jError,
    NotALeader,
    TransientError,
)
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random

from apex_dagster.errors import (
    ApexError,
    OutcomeUnknown,
    StageMissing,
    StoreConflict,
    StoreRejected,
    StoreUnavailable,
)
from apex_dagster.records import Publication, Receipt, Removal, SagaId, StagedVersion, VersionRef
from apex_dagster.stores.contents import Contents, Items, expected_in_neo4j, items_in_neo4j
from apex_dagster.stores.neo4j_graph import NOTHING, graph_of, neighbourhood_of
from apex_dagster.stores.reading import Graph
from apex_dagster.stores.searching import Neighbourhood

KEY_CHARS_MAX = 2000  # an indexed string has 8,167 bytes at most, and a character up to 4

Row = dict[str, Any]
Run = Callable[..., neo4j.Result]

SCHEMA = (
    *("constraint_version", "constraint_entity", "constraint_document"),
    *("index_version", "drop_index_mentions", "index_relates"),
)


class Neo4jStore:
    """The graph. Every method is one transaction, whatever the size of its batch."""

    name = "neo4j"

    def __init__(
        self,
        uri: str,
        user: str,
        password: str,
        database: str = "neo4j",
        *,
        timeout_s: float = 30.0,
    ) -> None:
        self._uri, self._auth, self._database = uri, (user, password), database
        self._timeout_s = timeout_s
        self._driver: neo4j.Driver | None = None
        self._lock = threading.Lock()

    @retry(
        retry=retry_if_exception_type(StoreConflict),
        stop=stop_after_attempt(20),
        wait=wait_random(0, 0.5),
        reraise=True,
    )
    def prepare(self) -> None:
        """Create constraints and indexes. Processes that do so at once deadlock: hence again."""
        with self._errors(), self._open().session(database=self._database) as session:
            for name in SCHEMA:
                session.run(_QUERIES[name]).consume()
            session.run(_QUERIES["await_indexes"], timeout_s=int(self._timeout_s) + 1).consume()

    def stage(self, batch: Sequence[StagedVersion]) -> list[Receipt]:
        _check(batch)
        versions = {version.ref.saga_id: version for version in batch}
        with self._transaction() as run:
            locked = _lock_versions(run, versions)
            self._create(
                run, [versions[saga_id] for saga_id, status in locked.items() if not status]
            )
        return [_receipt(version) for version in batch]

    def publish(self, batch: Sequence[Publication]) -> None:
        """New and replaced version of a document change in one transaction, under its fence."""
        by_document = sorted(batch, key=lambda publication: publication.ref)
        with self._transaction() as run:
            document_ids = sorted({publication.ref.document_id for publication in batch})
            run("lock_documents", document_ids=document_ids)
            rows = [_publication_row(publication) for publication in by_document]
            found = run("find_publishable", publications=rows)
            fences = {record["saga_id"]: (record["fence"], record["found"]) for record in found}
            due = [row for row in rows if fences[row["saga_id"]][0] <= row["version"]]
            missing = [row["saga_id"] for row in due if not fences[row["saga_id"]][1]]
            _mark(run, [row for row in due if row["saga_id"] not in missing])
        if missing:
            raise StageMissing(self.name, missing)

    def revert(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, lambda status: status == "staged")

    def discard(self, batch: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        return self._remove(batch, lambda status: True)

    def restore(self, batch: Sequence[StagedVersion]) -> None:
        """As the protocol says, in one transaction, under the documents' fences."""
        _check(batch)
        versions = list({version.ref.saga_id: version for version in batch}.values())
        with self._transaction() as run:
            run("lock_documents", document_ids=sorted({v.ref.document_id for v in versions}))
            rows = [_publication_row(Publication(ref=v.ref)) for v in versions]
            fences = {r["saga_id"]: r["fence"] for r in run("find_publishable", publications=rows)}
            due = [v for v in versions if fences[v.ref.saga_id] <= v.ref.version]
            saga_ids = list(_lock_versions(run, [v.ref.saga_id for v in due]))
            run("lock_entities_of", saga_ids=saga_ids).consume()
            for name in ("delete_relations", "delete_mentions", "clear_versions"):
                run(name, saga_ids=saga_ids).consume()
            self._create(run, due)
            run("restore_entities", saga_ids=saga_ids).consume()
            _mark(run, [row for row in rows if row["saga_id"] in saga_ids])

    def remove(self, batch: Sequence[Removal]) -> Mapping[SagaId, int]:
        """Entities that nothing else mentions go as well: their names came from the document."""
        removed = {removal.ref.saga_id: 0 for removal in batch}
        rows = [_removal_row(removal) for removal in sorted(batch, key=lambda each: each.ref)]
        with self._transaction() as run:
            run("lock_documents", document_ids=sorted({row["document_id"] for row in rows}))
            run("raise_fences", removals=rows).consume()
            older = {r["saga_id"]: r["deletion"] for r in run("find_older", removals=rows)}
            for saga_id, count in _delete_versions(run, list(older)).items():
                removed[older[saga_id]] += count
        return removed

    def read_back(self, batch: Sequence[Removal]) -> Mapping[SagaId, Mapping[str, int]]:
        with self._transaction() as run:
            records = run("count_older", removals=[_removal_row(removal) for removal in batch])
            shown = {
                record["deletion"]: {"versions": record["versions"], "graph": record["edges"]}
                for record in records
            }
        return {removal.ref.saga_id: shown[removal.ref.saga_id] for removal in batch}

    def digest(self, document_id: str, version: int) -> str | None:
        with self._transaction() as run:
            records = list(run("read_version", document_id=document_id, version=version))
        copies = sorted(_canonical(record) for record in records)
        return hashlib.sha256(b"\n".join(copies)).hexdigest() if copies else None

    def holdings(self, refs: Sequence[VersionRef]) -> Mapping[SagaId, int]:
        with self._transaction() as run:
            records = run("count_mentions", saga_ids=[ref.saga_id for ref in refs])
            counts = {record["saga_id"]: record["entities"] for record in records}
        return {ref.saga_id: counts.get(ref.saga_id, 0) for ref in refs}

    def contents(self, document_ids: Sequence[str]) -> Contents:
        with self._transaction() as run:
            records = list(run("read_contents", document_ids=list(document_ids)))
        return {
            record["version"]["saga_id"]: items_in_neo4j(
                {name: value for name, value in record["version"].items() if name != "touched"},
                record["current"],
                record["mentions"],
                record["relations"],
            )
            for record in records
        }

    def inventory(self, *, page: int) -> Iterator[list[VersionRef]]:
        after = ""
        while True:
            with self._transaction() as run:
                records = run("read_inventory", after=after, limit=page)
                refs = [VersionRef(**record.data()) for record in records]
            if not refs:
                return
            yield refs
            after = refs[-1].saga_id

    def expected(self, version: StagedVersion) -> Items:
        return expected_in_neo4j(version)

    def read_version(self, ref: VersionRef) -> Graph:
        """What is held of this saga. Not from one moment: a removal may show half done."""
        with self._transaction() as run:
            records = list(run("read_graph", saga_id=ref.saga_id))
        return graph_of(**records[0].data()) if records else NOTHING

    def neighbourhood(
        self, keys: Sequence[str], *, limit: int, saga_ids: Sequence[SagaId] | None = None
    ) -> Neighbourhood:
        """Those of the entities that exist, and theirs. Not from one moment, and of any version."""
        with self._transaction() as run:
            bounds = {"limit": limit, "saga_ids": saga_ids}
            near = [r.data() for r in run("find_mentions", keys=list(keys), **bounds)]
            found = [row["key"] for row in near]
            related = [record.data() for record in run("find_edges", keys=found, limit=limit)]
            others = {edge[3] for row in related for edge in row["edges"]} - set(found)
            far = [r.data() for r in run("find_mentions", keys=sorted(others), **bounds)]
            [counted] = run("count_versions")
        return neighbourhood_of([*near, *far], related, counted["versions"], limit=limit)

    def sweep_orphans(self, limit: int) -> int:
        """Remove up to `limit` entities that nothing mentions or relates; how many went.

        Takes the locks that staging takes, then looks again: an entity that a document has come to
        mention since it was found stays.
        """
        with self._transaction() as run:
            # What another sweep deletes between its match and its return has no key any more.
            found = [record["key"] for record in run("find_orphans", limit=limit)]
            keys = sorted(key for key in found if key is not None)
            run("lock_orphans", keys=keys).consume()
            [record] = run("delete_orphans", keys=keys)
        return int(record["removed"])

    def ping(self) -> None:
        with self._transaction() as run:
            run("ping").consume()

    def close(self) -> None:
        with self._lock:
            driver, self._driver = self._driver, None
        if driver is not None:
            driver.close()

    def _create(self, run: Run, versions: Sequence[StagedVersion]) -> None:
        entities = {
            entity.key: {"key": entity.key, "type": entity.type, "name": _shared_name(entity.key)}
            for version in versions
            for entity in version.extraction.entities
        }
        # In one order for all writers: with unsorted keys they deadlock and retry for seconds.
        run("lock_entities", entities=[entities[key] for key in sorted(entities)]).consume()
        mentions = run("create_mentions", versions=[_mentions_row(each) for each in versions])
        relations = run("create_relations", versions=[_relations_row(each) for each in versions])
        created = sum(
            result.consume().counters.relationships_created for result in (mentions, relations)
        )
        # SET passes over a node that the sweeper has deleted while it waited for the lock.
        if created != sum(sum(_receipt(each).items.values()) for each in versions):
            raise StoreConflict(self.name, "an entity was swept while it was being mentioned")

    def _remove(
        self, batch: Sequence[VersionRef], doomed: Callable[[str], bool]
    ) -> Mapping[SagaId, int]:
        removed = {ref.saga_id: 0 for ref in batch}
        with self._transaction() as run:
            locked = _lock_versions(run, removed)
            saga_ids = [saga_id for saga_id, status in locked.items() if status and doomed(status)]
            # Deleting a relationship locks both its ends: in the order of the writers, hence.
            run("lock_entities_of", saga_ids=saga_ids).consume()
            for name in ("delete_relations", "delete_mentions"):
                for record in run(name, saga_ids=saga_ids):
                    removed[record["saga_id"]] += record["removed"]
            for saga_id in saga_ids:
                removed[saga_id] += 1
            passing = [saga_id for saga_id, status in locked.items() if not status]
            run("delete_versions", saga_ids=[*saga_ids, *passing]).consume()
        return removed

    @contextmanager
    def _transaction(self) -> Iterator[Run]:
        """One transaction, committed unless the block raises.

        Explicit, because the driver repeats its managed ones by itself: the engine retries.
        """
        committing = False
        try:
            with (
                self._errors(),
                self._open().session(database=self._database) as session,
                session.begin_transaction(timeout=self._timeout_s) as transaction,
            ):
                yield lambda name, **parameters: transaction.run(_QUERIES[name], parameters)
                committing = True
                transaction.commit()
        except ApexError as error:
            # Until a commit is sent the server rolls back by itself, whatever it was that failed.
            error.nothing_written = not committing
            raise

    def _open(self) -> neo4j.Driver:
        with self._lock:
            if self._driver is None:
                self._driver = neo4j.GraphDatabase.driver(
                    self._uri,
                    auth=self._auth,
                    connection_timeout=self._timeout_s,
                    connection_write_timeout=self._timeout_s,
                    connection_acquisition_timeout=self._timeout_s,
                    liveness_check_timeout=10.0,  # finds connections that a restart has broken
                    max_transaction_retry_time=0,
                    notifications_min_severity="OFF",
                    telemetry_disabled=True,
                )
                _bound_reads(self._driver, self._timeout_s)
            return self._driver

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the driver's errors; the only place that does."""
        try:
            yield
        except (Neo4jError, DriverError) as error:
            raise self._translated(error) from error

    def _translated(self, error: Neo4jError | DriverError) -> ApexError:
        code, detail = str(getattr(error, "code", "")), str(error)
        if isinstance(error, IncompleteCommit) or _timed_out(error) or "TimedOut" in code:
            return OutcomeUnknown(self.name, after_s=self._timeout_s)
        if isinstance(error, AuthError | Forbidden):
            return StoreUnavailable(self.name, f"it does not let us in: {code}")
        if isinstance(error, ConstraintError) or code.endswith(_TWO_WRITERS + _TERMINATED):
            return StoreConflict(self.name, code)
        if code.endswith(_TOO_LARGE):
            return StoreRejected(self.name, detail)
        if isinstance(error, DatabaseUnavailable | NotALeader | ForbiddenOnReadOnlyDatabase):
            return StoreUnavailable(self.name, code)
        if isinstance(error, TransientError):
            return StoreConflict(self.name, code)
        if isinstance(error, ClientError):
            return StoreRejected(self.name, detail)
        return StoreUnavailable(self.name, detail)


# "IF NOT EXISTS" looks before it takes the lock, and an entity may be swept before a write to it.
_TWO_WRITERS = (".EntityNotFound", ".EquivalentSchemaRuleAlreadyExists", ".ConstraintAlreadyExists")

# Said to be the client's fault: the server, or somebody with a command, has ended the transaction,
# as when it waited for a lock until its time was over.
_TERMINATED = (".LockClientStopped", ".Terminated")

# Said to be transient, but the same transaction will not fit next time either: half of it may.
_TOO_LARGE = ("MemoryPoolOutOfMemoryError", "TransactionMemoryLimit", "StackOverFlowError")


def _load_queries() -> Mapping[str, str]:
    text = resources.files(__package__).joinpath("neo4j.cypher").read_text("utf-8")
    parts = re.split(r"^// (\w+) //$", text, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


_QUERIES = _load_queries()


def _lock_versions(run: Run, saga_ids: Iterable[SagaId]) -> dict[SagaId, str | None]:
    """Lock these sagas' versions, creating those that are not there; their status, None if new."""
    records = run("lock_versions", saga_ids=sorted(set(saga_ids)))
    return {record["saga_id"]: record["status"] for record in records}


def _mark(run: Run, publications: Sequence[Row]) -> None:
    """Make these versions committed and current, and those that they replace superseded."""
    if not publications:
        return
    run("mark_committed", publications=publications).consume()
    superseded = [record["saga_id"] for record in run("mark_superseded", publications=publications)]
    marked = [*(row["saga_id"] for row in publications), *superseded]
    # Before their relationships, as removal does: the other way round the two deadlock.
    run("lock_entities_of", saga_ids=marked).consume()
    for saga_ids, old, new in (
        ([row["saga_id"] for row in publications], "staged", "committed"),
        (superseded, "committed", "superseded"),
    ):
        for name in ("mark_mentions", "mark_relations") if saga_ids else ():
            run(name, saga_ids=saga_ids, from_status=old, to_status=new).consume()


def _delete_versions(run: Run, saga_ids: Sequence[SagaId]) -> dict[SagaId, int]:
    """Delete versions of deleted documents, and entities that only they mentioned; items by saga.

    The order of locks is that of `Neo4jStore._remove`.
    """
    removed = dict.fromkeys(_lock_versions(run, saga_ids), 1)
    run("lock_entities_of", saga_ids=saga_ids).consume()
    keys = sorted(record["key"] for record in run("entities_of", saga_ids=saga_ids))
    for name in ("delete_relations", "delete_mentions"):
        for record in run(name, saga_ids=saga_ids):
            removed[record["saga_id"]] += record["removed"]
    run("delete_versions", saga_ids=saga_ids).consume()
    run("delete_orphans", keys=keys).consume()
    return removed


def _removal_row(removal: Removal) -> Row:
    ref = removal.ref
    return {"document_id": ref.document_id, "version": ref.version, "deletion": ref.saga_id}


def _publication_row(publication: Publication) -> Row:
    ref, replaced = publication.ref, publication.replaced
    return {
        "document_id": ref.document_id,
        "version": ref.version,
        "saga_id": ref.saga_id,
        "replaced_saga_id": replaced.saga_id if replaced else None,
    }


def _mentions_row(version: StagedVersion) -> Row:
    content = version.extraction
    about = {
        "title": content.title,
        "collection": content.collection,
        "content_hash": content.content_hash,
    }
    mentions = [
        {
            "key": entity.key,
            "name": entity.name,
            "description": entity.description,
            "aliases": list(entity.aliases),
            "chunk_ordinals": list(entity.chunk_ordinals),
            "mentions": entity.mentions,
        }
        for entity in content.entities
    ]
    return {"stamp": _stamp(version.ref), "about": about, "mentions": mentions}


def _relations_row(version: StagedVersion) -> Row:
    relations = [
        {
            "source_key": relation.source_key,
            "target_key": relation.target_key,
            "type": relation.type,
            "description": relation.description,
            "weight": relation.weight,
            "chunk_ordinal": relation.chunk_ordinal,
        }
        for relation in version.extraction.relations
    ]
    return {"stamp": _stamp(version.ref), "relations": relations}


def _stamp(ref: VersionRef) -> Row:
    return {
        "saga_id": ref.saga_id,
        "document_id": ref.document_id,
        "version": ref.version,
        "ingestion_status": "staged",
    }


def _shared_name(key: str) -> str:
    return key.partition(":")[2]


def _receipt(version: StagedVersion) -> Receipt:
    content = version.extraction
    items = {"entities": len(content.entities), "relations": len(content.relations)}
    return Receipt(store=Neo4jStore.name, saga_id=version.ref.saga_id, items=items)


def _canonical(record: neo4j.Record) -> bytes:
    """One version as bytes that do not depend on the order in which Neo4j returns things."""
    version = {key: value for key, value in record["version"].items() if key != "touched"}
    parts: list[Any] = [version, record["current"]]
    for items in (record["mentions"], record["relations"]):
        parts.append(
            sorted(orjson.dumps(item, option=orjson.OPT_SORT_KEYS).decode() for item in items)
        )
    return orjson.dumps(parts, default=bytes.decode, option=orjson.OPT_SORT_KEYS)


def _check(batch: Sequence[StagedVersion]) -> None:
    """Raises StoreRejected with the documents that Neo4j, or the driver in the middle of the batch,
    would refuse without naming them."""
    refused = {}
    for version in batch:
        if reason := _refusal(version):
            refused[version.ref.document_id] = reason
    if refused:
        detail = "; ".join(sorted(set(refused.values())))
        raise StoreRejected(Neo4jStore.name, detail, document_ids=tuple(refused))


def _refusal(version: StagedVersion) -> str | None:
    keys = {entity.key for entity in version.extraction.entities}
    if len(keys) < len(version.extraction.entities):
        return "two entities have one key"
    for key in (version.ref.saga_id, *keys):
        if len(key) > KEY_CHARS_MAX:
            return f"the key {key[:40]}... has more than {KEY_CHARS_MAX} characters"
    for relation in version.extraction.relations:
        if not {relation.source_key, relation.target_key} <= keys:
            return f"a {relation.type} relation names an entity that the document lacks"
    try:
        orjson.dumps((_mentions_row(version), _relations_row(version)))
    except orjson.JSONEncodeError as error:  # no Unicode, or an integer beyond 64 bits
        return str(error)
    return None


def _timed_out(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _bound_reads(driver: neo4j.Driver, timeout_s: float) -> None:
    """Limit how long any read of a connection may take.

    The driver has no setting for it and waits for ever for a server that is frozen, unless that
    server has told it otherwise. This reaches into its internals: conformance tests freeze a
    server, and would hang if a release changed them.
    """
    pool: Any = driver._pool
    open_connection = pool.opener

    def open_bounded(*args: Any, **kwargs: Any) -> Any:
        connection = open_connection(*args, **kwargs)
        connection.socket.set_read_timeout(timeout_s)
        return connection

    pool.opener = open_bounded
