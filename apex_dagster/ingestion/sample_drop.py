"""Dropping the sample corpus into the inbox, and following what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.content_hash import content_hash
from apex_dagster.extraction.split import split_documents
from apex_dagster.ingestion.inbox import Inbox
from apex_dagster.records import Document
from apex_dagster.saga.ledger import Ledger
from apex_dagster.saga.saga import Saga
from apex_dagster.saga.states import ENDED, Status
from apex_dagster.samples import sample_files

FOLDER = "samples"  # of the inbox; its name becomes the collection


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleDocument:
    """A document that a dropped file holds; some files hold several."""

    document_id: str
    content_hash: str
    file: Path  # where it lies until its sagas have ended


@dataclass(frozen=True, slots=True, kw_only=True)
class DropProgress:
    """How far a drop is."""

    statuses: Mapping[str, Status | None]  # by document; None: no saga of this content yet
    unfinished: tuple[str, ...]  # documents that are still on their way


class SampleDrop:
    """The corpus on its way through one inbox. The ledger and the inbox say how far it is."""

    def __init__(self, inbox: Inbox, ledger: Ledger) -> None:
        self._folder, self._ledger = inbox.folder / FOLDER, ledger
        self.documents = [
            document for sample in sample_files() for document in _documents(sample, self._folder)
        ]
        self.document_ids = [document.document_id for document in self.documents]

    def drop(self) -> int:
        """Put the files into the inbox as a well-behaved writer does: under another name first.

        Returns how many there are. Raises InvalidInput for a file of the same name and other
        content, which is somebody's.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        samples = sample_files()
        for sample in samples:
            target, content = self._folder / sample.name, sample.read_bytes()
            if target.exists():
                if target.read_bytes() != content:
                    raise InvalidInput(f"{target} is not the sample of that name: move it away")
                continue  # from a demo that was cut off
            temporary = target.with_name(f".{target.name}.part")
            temporary.write_bytes(content)
            temporary.rename(target)
        return len(samples)

    def progress(self) -> DropProgress:
        """How far the documents are. One has ended when its saga has, and its file has gone where
        it belongs: a file that stays in the inbox is about to be tried again."""
        newest = self._ledger.newest_sagas(
            limit=len(self.document_ids), document_ids=self.document_ids
        )
        sagas = {saga.document_id: saga for saga in newest}
        statuses = {d.document_id: _status(d, sagas.get(d.document_id)) for d in self.documents}
        ended = {
            document.document_id
            for document in self.documents
            if statuses[document.document_id] in ENDED
            and _is_published(sagas[document.document_id])
            and not document.file.exists()
        }
        unfinished = tuple(name for name in self.document_ids if name not in ended)
        return DropProgress(statuses=statuses, unfinished=unfinished)


def _status(document: SampleDocument, saga: Saga | None) -> Status | None:
    if saga is None or saga.content_hash != document.content_hash:
        return None
    return saga.status


def _is_published(saga: Saga) -> bool:
    return saga.status is not Status.COMPLETED or saga.published_at is not None


def _documents(sample: Path, folder: Path) -> list[SampleDocument]:
    whole = Document(
        document_id=f"{FOLDER}/{sample.name}",
        name=sample.name,
        content=sample.read_bytes(),
        collection=FOLDER,
    )
    return [
        SampleDocument(
            document_id=part.document_id,
            content_hash=content_hash(part),
            file=folder / sample.name,
        )
        for part in split_documents(whole)
    ]
