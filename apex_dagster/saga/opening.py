"""How sagas come into being: a durable row for each document, before anything else is written."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from psycopg.errors import UniqueViolation
from psycopg.types.json import Jsonb

from apex_dagster.errors import StoreConflict
from apex_dagster.records import Document, SagaId
from apex_dagster.saga import states
from apex_dagster.saga.ledger import Ledger, Transaction, saga_of
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.submissions import Answer, Earlier, earlier_submissions, hand_on_key
from apex_dagster.saga.wakeup import announce_pending
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.saga", "opening.sql")

RESTARTS_MAX = (
    10  # of a submission that finds another version live; each time somebody else has won
)


# Stands in for a content hash, so that one rule says what is already under way or done.
DELETED = "deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """One document of a batch that wants a saga. `document.content` is stored until extracted."""

    document: Document
    content_hash: str  # of what becomes the version; decides whether anything is new
    body_hash: str  # sha256 hex of what was sent: the dropped file, the request's body
    client: str
    idempotency_key: str | None = None
    # The version that has to be live for this one to replace it, 0 for none; None: whatever is.
    expected_version: int | None = None
    body: bytes | None = None  # a packed extraction, for documents that come with one
    deletes: bool = False  # the document is to be deleted; nothing but its id counts

    @property
    def document_id(self) -> str:
        """Of the document."""
        return self.document.document_id


def deletion(document_id: str, *, client: str, idempotency_key: str | None = None) -> Opening:
    """The wish that a document be deleted."""
    return Opening(
        document=Document(document_id=document_id, name="", content=b""),
        content_hash=DELETED,
        body_hash=hashlib.sha256(f"DELETE {document_id}".encode()).hexdigest(),
        client=client,
        idempotency_key=idempotency_key,
        deletes=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """What an opening led to."""

    saga: Saga
    # "opened": a new saga. "joined": the same content is under way, in the last saga to arrive.
    # "unchanged": the same content is live already, so `saga` is the one that made it live.
    # "repeated": its idempotency key was used before, with the same body, and that is its saga.
    disposition: str
    answer: Answer | None = None  # what was answered before; only of repeated ones


@dataclass(frozen=True, slots=True, kw_only=True)
class Refused:
    """An opening that led to nothing."""

    # "unknown": there is nothing to delete, and never was anything submitted of it.
    # "key_reused": its idempotency key came with another body before.
    # "version_conflict": `live_version` is not the version that it expects.
    reason: str
    live_version: int | None = None


def open_sagas(
    ledger: Ledger,
    openings: Sequence[Opening],
    *,
    run_id: str | None = None,
    announce: bool = False,
) -> list[Opened | Refused]:
    """Make a durable row for each document before anything is written anywhere.

    One transaction. At most one content of a document, and one use of an idempotency key, in a
    batch; answers in the order given. With `announce`, whoever drives pending sagas is woken.
    """
    try:
        return _open_sagas(ledger, openings, run_id, announce)
    except UniqueViolation:  # another process was first with a key; now it is there to be found
        try:
            return _open_sagas(ledger, openings, run_id, announce)
        except UniqueViolation as error:
            raise StoreConflict("ledger", str(error)) from error


def _open_sagas(
    ledger: Ledger, openings: Sequence[Opening], run_id: str | None, announce: bool
) -> list[Opened | Refused]:
    document_ids = sorted({opening.document_id for opening in openings})
    new_ids = sorted({opening.document_id for opening in openings if not opening.deletes})
    with ledger.transaction() as tx:
        documents = lock_documents(tx, document_ids, new_ids=new_ids)
        # After the locks: the same body twice is the same document twice, so it is seen here.
        earlier = earlier_submissions(tx, [(o.client, o.idempotency_key) for o in openings])
        fresh: dict[str, _NewSaga] = {}
        outcomes: list[Opened | Refused | None] = []
        for opening in openings:
            document_id = opening.document_id
            before = earlier.get((opening.client, opening.idempotency_key))
            if document_id not in documents:
                outcomes.append(Refused(reason="unknown"))
                continue
            known = _known(tx, opening, documents[document_id], before)
            if known is None:
                predecessor = before.saga if before else None
                new = _NewSaga.of(documents[document_id], opening, predecessor)
                if fresh.setdefault(document_id, new).content_hash != opening.content_hash:
                    raise ValueError("a batch opens at most one saga of a document")
            outcomes.append(known)
        news = [fresh[document_id] for document_id in sorted(fresh)]
        inserted = {saga.document_id: saga for saga in _insert_sagas(ledger, tx, news, run_id)}
        _insert_extractions(tx, [(inserted[new.document_id], new.opening) for new in news])
        opened = [
            known or _opened(inserted[opening.document_id], fresh[opening.document_id], opening)
            for opening, known in zip(openings, outcomes, strict=True)
        ]
        _note_submissions(tx, openings, opened, earlier, run_id)
        if announce and inserted:
            announce_pending(tx)
    return opened


def _opened(saga: Saga, new: _NewSaga, opening: Opening) -> Opened:
    """The same content twice in a batch has one saga, which the second joins."""
    return Opened(saga=saga, disposition="opened" if new.opening is opening else "joined")


def _known(
    tx: Transaction, opening: Opening, document: LockedDocument, before: Earlier | None
) -> Opened | Refused | None:
    """What an opening leads to without a new saga; None if it needs one."""
    if before is not None:
        if before.body_hash != opening.body_hash:
            return Refused(reason="key_reused")
        if not before.may_try_again:
            return Opened(saga=before.saga, disposition="repeated", answer=before.answer)
    known = document.saga_with(opening.content_hash)
    live_version = document.live_version or 0
    if opening.deletes and not document.last_version:
        return Refused(reason="unknown")
    if isinstance(known, str):
        saga = _sagas(tx, "saga_by_id", saga_id=known)[0]
        return Opened(saga=saga, disposition="unchanged")
    if opening.expected_version is None:
        return Opened(saga=known, disposition="joined") if known else None
    # What others have under way with this content may be built on another version than expected.
    if opening.expected_version == live_version and (known is None or known.pinned):
        return Opened(saga=known, disposition="joined") if known else None
    return Refused(reason="version_conflict", live_version=live_version)


def _note_submissions(
    tx: Transaction,
    openings: Sequence[Opening],
    opened: Sequence[Opened | Refused],
    earlier: Mapping[tuple[str, str | None], Earlier],
    run_id: str | None,
) -> None:
    """Who asked for what; a key that was used before goes on to the saga that stands for it now."""
    new = []
    for opening, outcome in zip(openings, opened, strict=True):
        if isinstance(outcome, Refused) or outcome.disposition == "repeated":
            continue
        if before := earlier.get((opening.client, opening.idempotency_key)):
            hand_on_key(tx, before, outcome.saga)
        else:
            new.append((outcome.saga, opening))
    _insert_submissions(tx, new, run_id)


def open_successors(
    ledger: Ledger, sagas: Sequence[Saga], *, run_id: str | None, same_arrival: bool = False
) -> list[Saga]:
    """A new saga, on the newest version, for each compensated one, with the same extraction.

    Unique for (predecessor, run): the ops of one re-executed run share them, whichever comes
    first. None for content that has become live, or is under way, in another saga meanwhile.
    With `same_arrival` it stands for the same submission, which later ones overrule; without, for
    somebody's wish to have this content now.
    """
    with ledger.transaction() as tx:
        return open_successors_of(ledger, tx, sagas, run_id=run_id, same_arrival=same_arrival)


def restart(ledger: Ledger, tx: Transaction, losers: Sequence[Saga]) -> list[Saga]:
    """Open a successor for each saga that lost its pivot, in the transaction that closes it.

    It waits, without an owner, for whoever claims it first: the loser's own owner, or recovery once
    its lease has run out. None for a submission that is pinned to the version that it expected, or
    has been restarted `RESTARTS_MAX` times.
    """
    if not losers:
        return []
    lock_documents(tx, sorted({saga.document_id for saga in losers}))
    starts = _count_starts(tx, losers)
    again = [s for s in losers if _may_restart(s, starts)]
    # One by one: several may be of one document, and each takes the next version of it. The last
    # to arrive first: of two with the same content only one starts again.
    return [
        successor
        for saga in sorted(again, key=lambda saga: saga.arrival, reverse=True)
        for successor in open_successors_of(
            ledger, tx, [saga], run_id=saga.run_id, same_arrival=True
        )
    ]


def waiting_restarts(ledger: Ledger, losers: Sequence[Saga]) -> list[Saga]:
    """The successors of these that nobody has claimed yet, by arrival."""
    if not losers:
        return []
    with ledger.transaction() as tx:
        return _sagas(tx, "waiting_restarts", saga_ids=[saga.saga_id for saga in losers])


def used_up_restarts(ledger: Ledger, losers: Sequence[Saga]) -> list[Saga]:
    """Those that are not restarted: their submissions have lost too often, or are pinned."""
    if not losers:
        return []
    with ledger.transaction() as tx:
        starts = _count_starts(tx, losers)
    return [saga for saga in losers if not _may_restart(saga, starts)]


def with_payload(tx: Transaction, saga_ids: Sequence[SagaId]) -> set[SagaId]:
    """Those of which it is still there what was submitted."""
    rows = tx.execute(_SQL["with_payload"], {"saga_ids": list(saga_ids)}).fetchall()
    return {row["saga_id"] for row in rows}


def used_up(tx: Transaction, sagas: Sequence[Saga]) -> list[Saga]:
    """Those that have lost their pivot more often than they may start again."""
    losers = [s for s in sagas if (s.error or {}).get("class") == "version_conflict"]
    if not losers:
        return []
    starts = _count_starts(tx, losers)
    return [s for s in losers if starts[s.document_id, s.arrival] > RESTARTS_MAX]


def _may_restart(saga: Saga, starts: Mapping[tuple[str, int], int]) -> bool:
    # On another version a pinned one would replace what its caller said it must not.
    return not saga.pinned and starts[saga.document_id, saga.arrival] <= RESTARTS_MAX


def _count_starts(tx: Transaction, sagas: Sequence[Saga]) -> dict[tuple[str, int], int]:
    values = {
        "document_ids": [saga.document_id for saga in sagas],
        "arrivals": [saga.arrival for saga in sagas],
    }
    rows = tx.execute(_SQL["count_starts"], values).fetchall()
    return {(row["document_id"], row["arrival"]): row["starts"] for row in rows}


def open_successors_of(
    ledger: Ledger,
    tx: Transaction,
    sagas: Sequence[Saga],
    *,
    run_id: str | None,
    same_arrival: bool,
) -> list[Saga]:
    """As `open_successors`, in a transaction of the caller's. A retry that waits is over with it:
    the successor stands for the same files."""
    documents = lock_documents(tx, sorted({saga.document_id for saga in sagas}))
    ids = [saga.saga_id for saga in sagas]
    existing = _sagas(tx, "successors", saga_ids=ids, run_id=run_id)
    taken, kept = {saga.predecessor_saga_id for saga in existing}, with_payload(tx, ids)
    missing = [
        saga
        for saga in sagas
        if saga.saga_id not in taken
        and (saga.deletes or saga.saga_id in kept)
        and not documents[saga.document_id].saga_with(saga.content_hash)
    ]
    new = [
        _NewSaga.of(
            documents[saga.document_id],
            None,
            predecessor=saga,
            arrival=saga.arrival if same_arrival else None,
        )
        for saga in missing
    ]
    inserted = _insert_sagas(ledger, tx, new, run_id)
    for saga in inserted:
        values = {
            "saga_id": saga.saga_id,
            "predecessor_saga_id": saga.predecessor_saga_id,
            "run_id": run_id,
        }
        tx.execute(_SQL["copy_extraction"], values)
        tx.execute(_SQL["copy_submissions"], values)
    tx.execute(_SQL["forget_retries"], {"saga_ids": [s.predecessor_saga_id for s in inserted]})
    return [*existing, *inserted]


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedDocument:
    """What decides whether a document needs a new saga; its row is locked until the end."""

    document_id: str
    last_version: int
    live_version: int | None
    live_saga_id: SagaId | None
    live_content_hash: str | None
    tombstone_version: int | None  # of the deletion that was decided last, if nothing is live
    tombstone_saga_id: SagaId | None
    under_way: bool  # any of its sagas is open, or being undone, after which it may start again
    last: Saga | None  # of all its sagas the last to arrive, if that is open

    def saga_with(self, content_hash: str) -> Saga | SagaId | None:
        """The open saga to join, the id of the saga that made this content live, or None.

        A, then B, then A again has to end with A. So an older saga with this content is not
        joined: B, though it may have ended, came after it. And while anything is under way,
        equality with the live version proves nothing. A deletion after which nothing at all was
        submitted, not even in vain, is one that has been done.
        """
        if content_hash == DELETED and self.tombstone_version == self.last_version:
            return self.tombstone_saga_id
        if self.last and self.last.content_hash == content_hash:
            return self.last
        if not self.under_way and self.live_content_hash == content_hash:
            return self.live_saga_id
        return None

    @property
    def head_version(self) -> int | None:
        """What a new saga builds on: the live version, or the deletion that took one away."""
        return self.live_version or self.tombstone_version


def lock_documents(
    tx: Transaction, document_ids: list[str], *, new_ids: list[str] | None = None
) -> dict[str, LockedDocument]:
    """What is known of the documents, whose rows stay locked until the end. With `new_ids` only
    these get a row if they have none; the others are left out then."""
    values = {"document_ids": document_ids}
    if ensured := document_ids if new_ids is None else new_ids:
        tx.execute(_SQL["ensure_documents"], {"document_ids": ensured})
    documents = tx.execute(_SQL["lock_documents"], values).fetchall()
    # After the locks, so that an opening committed meanwhile is seen.
    rivals = tx.execute(_SQL["open_sagas_of_documents"], values).fetchall()
    under_way = {row["document_id"] for row in rivals}
    last = {
        row["document_id"]: saga_of(row)
        for row in rivals
        if row["is_last"] and row["status"] != states.Status.COMPENSATING
    }
    return {
        row["document_id"]: LockedDocument(
            **row,
            under_way=row["document_id"] in under_way,
            last=last.get(row["document_id"]),
        )
        for row in documents
    }


def _insert_sagas(
    ledger: Ledger, tx: Transaction, new: Sequence[_NewSaga], run_id: str | None
) -> list[Saga]:
    if not new:
        return []
    versions = {
        "document_ids": [n.document_id for n in new],
        "versions": [n.version for n in new],
    }
    sagas = _sagas(
        tx,
        "insert_sagas",
        saga_ids=[n.saga_id for n in new],
        expected_versions=[n.expected_version for n in new],
        content_hashes=[n.content_hash for n in new],
        predecessors=[n.predecessor_saga_id for n in new],
        arrivals=[n.arrival for n in new],
        pinned=[n.pinned for n in new],
        kinds=[n.kind for n in new],
        run_id=run_id,
        lease_s=ledger.lease_s,
        **versions,
    )
    tx.execute(_SQL["count_versions"], versions)
    # In the audit log as well: what must be live follows from its events alone.
    details = {
        s.saga_id: {"document_id": s.document_id, "version": s.version}
        | ({"kind": s.kind} if s.deletes else {})
        for s in sagas
    }
    return ledger.advance(states.OPENED, sagas, details=details, run_id=run_id, tx=tx)


@dataclass(frozen=True, slots=True, kw_only=True)
class _NewSaga:
    """A saga about to be inserted."""

    saga_id: SagaId
    document_id: str
    version: int
    expected_version: int | None
    content_hash: str
    opening: Opening | None
    predecessor_saga_id: SagaId | None
    arrival: int | None  # None: it arrives now
    pinned: bool  # to the version it expects
    kind: str

    @classmethod
    def of(
        cls,
        document: LockedDocument,
        opening: Opening | None,
        predecessor: Saga | None = None,
        arrival: int | None = None,
    ) -> _NewSaga:
        source = opening or predecessor
        assert source is not None
        kind = "delete" if source.deletes else "ingest"
        return cls(
            saga_id=SagaId(f"{kind}_{document.document_id}_{secrets.token_hex(8)}"),
            kind=kind,
            document_id=document.document_id,
            version=document.last_version + 1,
            expected_version=document.head_version,
            content_hash=source.content_hash,
            opening=opening,
            predecessor_saga_id=predecessor.saga_id if predecessor else None,
            arrival=arrival,
            pinned=opening.expected_version is not None
            if opening
            else arrival is not None and predecessor is not None and predecessor.pinned,
        )


def _insert_extractions(tx: Transaction, opened: Sequence[tuple[Saga, Opening | None]]) -> None:
    rows = [(saga, opening) for saga, opening in opened if opening and not opening.deletes]
    if not rows:
        return
    documents = [opening.document for _, opening in rows]
    columns = {
        "saga_ids": [saga.saga_id for saga, _ in rows],
        "names": [document.name for document in documents],
        "media_types": [document.media_type for document in documents],
        "collections": [document.collection for document in documents],
        "metadata": [Jsonb(dict(document.metadata)) for document in documents],
        "source_uris": [document.source_uri for document in documents],
        "sources": [
            opening.document.content if opening.body is None else None for _, opening in rows
        ],
        "bodies": [opening.body for _, opening in rows],
    }
    tx.execute(_SQL["insert_extractions"], columns)


def _insert_submissions(
    tx: Transaction, opened: Sequence[tuple[Saga, Opening]], run_id: str | None
) -> None:
    columns = {
        "clients": [opening.client for _, opening in opened],
        "idempotency_keys": [opening.idempotency_key for _, opening in opened],
        "body_hashes": [opening.body_hash for _, opening in opened],
        "document_ids": [saga.document_id for saga, _ in opened],
        "saga_ids": [saga.saga_id for saga, _ in opened],
        "source_uris": [opening.document.source_uri for _, opening in opened],
        "run_id": run_id,
    }
    tx.execute(_SQL["insert_submissions"], columns)


def _sagas(tx: Transaction, query: str, **values: object) -> list[Saga]:
    return [saga_of(row) for row in tx.execute(_SQL[query], values).fetchall()]
