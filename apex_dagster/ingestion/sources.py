"""Where documents come from: the inbox, the sample corpus, files and folders. Each file becomes one
submission, or several where it holds one document a line or a row; its sidecar is part of it."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.prepared import Refused
from apex_dagster.extraction.rows import Columns, Part, is_table, row_documents
from apex_dagster.extraction.split import split_documents
from apex_dagster.ingestion.inbox import SCHEME as INBOX
from apex_dagster.ingestion.inbox import Inbox
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.ingestion.sidecar import (
    SIDECAR_BYTES_MAX,
    Sidecar,
    body_hash,
    has_sidecar,
    is_sidecar,
    joint_hash,
    read_sidecar,
    sidecar_bytes,
    sidecar_of,
)
from apex_dagster.ingestion.sidecar import SUFFIX as SIDECAR
from apex_dagster.records import Document
from apex_dagster.samples import sample_files

SAMPLES = "samples:"


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: Path
    document_id: str
    collection: str
    source_uri: str | None = None


class Sources:
    """Reads what a run is told to ingest."""

    def __init__(self, inbox: Inbox, *, document_bytes_max: int) -> None:
        self._inbox, self._document_bytes_max = inbox, document_bytes_max

    def read(
        self,
        paths: Sequence[str],
        *,
        collection: str | None = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> list[Submission]:
        """The submissions of these paths, in order; files that have vanished are left out.

        A path is "samples:" (the corpus that comes with the project), "inbox:" with or without a
        path below it, or a file or folder of this machine. Raises InvalidInput for anything else.
        `collection` and `metadata` win over what a file's sidecar states.
        """
        files = [file for path in paths for file in self._files(path)]
        return [
            submission
            for file in files
            for submission in self._submissions(file, collection, metadata or {})
        ]

    def _files(self, path: str) -> Iterator[_File]:
        if path == SAMPLES:
            for sample in sample_files():
                # As if dropped into the inbox folder of that name: one document either way.
                name = f"samples/{sample.name}"
                yield _File(path=sample, document_id=name, collection="samples")
        elif path.startswith(INBOX):
            yield from self._inbox_files(path)
        else:
            yield from _local_files(Path(path).expanduser())

    def _inbox_files(self, uri: str) -> Iterator[_File]:
        try:
            target = self._inbox.path(uri)
        except ValueError as error:
            raise InvalidInput(f"paths: {error}") from error
        for file in self._inbox.files():
            if file.path.resolve() == target or target.is_dir():
                relative = Path(file.uri.removeprefix(INBOX))
                yield _File(
                    path=file.path,
                    document_id=relative.as_posix(),
                    collection=relative.parts[0] if len(relative.parts) > 1 else "default",
                    source_uri=file.uri,
                )

    def _submissions(
        self, file: _File, collection: str | None, metadata: Mapping[str, Any]
    ) -> list[Submission]:
        document = Document(
            document_id=file.document_id,
            name=file.path.name,
            content=b"",
            collection=collection or file.collection,
            metadata=metadata,
            source_uri=file.source_uri,
        )
        try:
            return self._read(document, file.path, is_collection_given=bool(collection))
        except FileNotFoundError:
            return []

    def _read(
        self, document: Document, path: Path, *, is_collection_given: bool
    ) -> list[Submission]:
        if reason := self._too_large(path):
            return [_submission(document, body_hash=body_hash(path), rejection=reason)]
        content, told = path.read_bytes(), sidecar_bytes(path)
        hash_of_both = joint_hash(_sha256(content), None if told is None else _sha256(told))
        try:
            sidecar = Sidecar() if told is None else _sidecar(path, told)
            described = _described(document, sidecar, is_collection_given=is_collection_given)
            parts = _parts(dataclasses.replace(described, content=content), sidecar.columns)
        except Refused as refused:
            return [_submission(document, body_hash=hash_of_both, rejection=refused.reason)]
        return [
            _submission(part.document, body_hash=hash_of_both, rejection=part.rejection)
            for part in parts
        ]

    def _too_large(self, path: Path) -> str | None:
        """Why neither is read into memory."""
        size = path.stat().st_size
        if size > self._document_bytes_max:
            return (
                f"the file has {size} bytes, the limit is {self._document_bytes_max}: split it, "
                "or raise APEX_DOCUMENT_BYTES_MAX"
            )
        beside = sidecar_of(path)
        if has_sidecar(path) and (size := beside.stat().st_size) > SIDECAR_BYTES_MAX:
            return f"{beside.name} has {size} bytes, the limit is {SIDECAR_BYTES_MAX}: shorten it"
        return None


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _sidecar(path: Path, content: bytes) -> Sidecar:
    try:
        return read_sidecar(content)
    except Refused as refused:
        raise Refused(f"{sidecar_of(path).name}: {refused.reason}") from refused


def _described(document: Document, sidecar: Sidecar, *, is_collection_given: bool) -> Document:
    """With what its sidecar says, and what the run says wins over that."""
    collection = None if is_collection_given else sidecar.collection
    return dataclasses.replace(
        document,
        collection=collection or document.collection,
        metadata={**sidecar.metadata, **document.metadata},
    )


def _parts(document: Document, columns: Columns | None) -> list[Part]:
    """The documents that a file holds. Raises Refused, with its name, where none is usable."""
    if not is_table(document):
        if columns is not None:
            raise Refused(
                f"{sidecar_of(Path(document.name))}: columns: {document.name} is no table; leave"
                " them out"
            )
        return [Part(document=part) for part in split_documents(document)]
    try:
        parts = row_documents(document, columns or Columns())
    except Refused as refused:
        raise Refused(f"{document.name}: {refused.reason}") from refused
    return [
        Part(document=p.document, rejection=p.rejection and f"{document.name}, {p.rejection}")
        for p in parts
    ]


def _submission(document: Document, *, body_hash: str, rejection: str | None = None) -> Submission:
    client = "inbox" if document.source_uri else "shell"
    return Submission(document=document, client=client, body_hash=body_hash, rejection=rejection)


def _local_files(path: Path) -> Iterator[_File]:
    if is_sidecar(path):
        raise InvalidInput(
            f"paths: {str(path)!r} is a sidecar; give the file it belongs to, without {SIDECAR}"
        )
    if path.is_file():
        yield _File(path=path, document_id=path.name, collection="default")
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            hidden = any(part.startswith(".") for part in relative.parts)
            if file.is_file() and not hidden and not is_sidecar(file):
                yield _File(
                    path=file,
                    document_id=relative.as_posix(),
                    collection=relative.parts[0] if len(relative.parts) > 1 else "default",
                )
    else:
        raise InvalidInput(
            f'paths: {str(path)!r} is no file or folder here; use an existing path, "{INBOX}" or '
            f'"{SAMPLES}"'
        )
