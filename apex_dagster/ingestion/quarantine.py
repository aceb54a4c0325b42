"""The story of a document in quarantine, and what was submitted, for people who have to decide."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import orjson

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.as_sent import as_sent
from apex_dagster.ingestion.codec import unpack
from apex_dagster.ingestion.inbox import SCHEME, Inbox
from apex_dagster.records import SagaId
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.quarantine import Entry, Original, attempts, entries, original, payload
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import Status


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One saga of the submission."""

    saga_id: SagaId
    version: int
    status: Status
    opened_at: datetime
    ended_at: datetime | None
    owners: int  # that drove it, one after another
    error_class: str | None
    step: str | None
    message: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """Everything about one entry."""

    entry: Entry
    attempts: list[Attempt]
    original: Original
    file: Path | None  # the dropped file, where it lies on this machine
    live_version: int | None  # of the document, now
    what_now: str


def story_of(ledger: Ledger, inbox: Inbox, name: str) -> Story:
    """Of a saga, or of a document's newest entry. Raises InvalidInput if there is none."""
    entry = entry_of(ledger, name)
    tried = attempts(ledger, entry.saga_id)
    found = original(ledger, entry.saga_id)
    pointer = ledger.pointers([entry.document_id]).get(entry.document_id)
    [saga] = [saga for saga in tried if saga.saga_id == entry.saga_id]
    return Story(
        entry=entry,
        attempts=[_attempt(one) for one in tried],
        original=found,
        file=_file(inbox, found),
        live_version=pointer["live_version"] if pointer else None,
        what_now=_what_now(entry, saga, found, tried),
    )


def entry_of(ledger: Ledger, name: str) -> Entry:
    """The newest entry of this saga or document, one that waits before those that are closed."""
    found = entries(ledger, [name])
    if not found:
        raise _unknown(name)
    return max(found, key=lambda entry: (entry.is_open, entry.created_at))


def waiting_entries(
    ledger: Ledger, names: Sequence[str], *, newest_only: bool = False
) -> list[Entry]:
    """Those of these sagas and documents that wait, each once; of a document all, or the newest.

    A saga's own entry also if it is closed: whoever names it is to be told so. Raises InvalidInput
    for a name of which nothing waits.
    """
    chosen: dict[SagaId, Entry] = {}
    for name in names:
        found = entries(ledger, [name])
        mine = [entry for entry in found if entry.is_open or entry.saga_id == name]
        if not mine:
            raise _unknown(name)
        chosen |= {entry.saga_id: entry for entry in (mine[-1:] if newest_only else mine)}
    return list(chosen.values())


def original_bytes(ledger: Ledger, inbox: Inbox, saga_id: SagaId) -> tuple[bytes, bool]:
    """What was submitted, byte for byte, and True; or, where only what was extracted from it is
    kept, that as a JSON document that can be submitted instead, and False.

    Raises InvalidInput where it was erased.
    """
    source, body = payload(ledger, saga_id)
    if file := _file(inbox, original(ledger, saga_id)):
        return file.read_bytes(), True
    if source is not None:
        return source, True
    if body is None:
        raise InvalidInput(f"{saga_id}: what was submitted has been erased")
    options = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_INDENT_2
    return orjson.dumps(as_sent(unpack(body)), option=options), False


def _attempt(saga: Saga) -> Attempt:
    error = saga.error or {}
    return Attempt(
        saga_id=saga.saga_id,
        version=saga.version,
        status=saga.status,
        opened_at=saga.created_at,
        ended_at=saga.ended_at,
        owners=saga.takeovers + 1,
        error_class=error.get("class"),
        step=error.get("step"),
        message=error.get("message"),
    )


def _file(inbox: Inbox, found: Original) -> Path | None:
    """A file that held this document alone, or with others: the inbox keeps it whole."""
    uri, body_hash = found.source_uri, found.body_hash
    if uri is None or body_hash is None or not uri.startswith(SCHEME):
        return None
    return inbox.find(uri, body_hash)


def _what_now(entry: Entry, saga: Saga, found: Original, tried: Sequence[Saga]) -> str:
    if entry.dropped_at:
        return f"Nothing: {entry.closed_by} has dropped it, because {entry.closed_because}."
    if entry.released_at:
        newest = tried[-1].saga_id
        return f"Nothing: it has left the quarantine. `apex saga show {newest}` tells the rest."
    if saga.status is not Status.COMPENSATED:
        return (
            f"Correct what its undo names (`apex saga show {saga.saga_id}`), then run "
            f"`apex saga compensate {saga.saga_id}`."
        )
    drop = f"`apex quarantine drop {saga.saga_id} --reason ...` erases it."
    if found.is_erased:
        return f"What was submitted is not kept any more. {drop}"
    return (
        "Submit it again, corrected, if the document was at fault; if something else was, mend "
        f"that and run `apex quarantine release {saga.saga_id}`. {drop}"
    )


def _unknown(name: str) -> InvalidInput:
    return InvalidInput(
        f"nothing of {name} is in quarantine: `apex quarantine list` shows what there is"
    )
