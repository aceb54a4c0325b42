"""Where documents come from: the inbox, the sample corpus, files and folders. Each file becomes one
submission, or several where it holds one document a line."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.split import split_documents
from apex_dagster.ingestion.inbox import SCHEME as INBOX
from apex_dagster.ingestion.inbox import Inbox, file_hash
from apex_dagster.ingestion.ingest import Submission
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
        """
        files = [file for path in paths for file in self._files(path)]
        return [
            submission
            for file in files
            for submission in self._submissions(
                dataclasses.replace(file, collection=collection or file.collection), metadata or {}
            )
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

    def _submissions(self, file: _File, metadata: Mapping[str, Any]) -> list[Submission]:
        document = Document(
            document_id=file.document_id,
            name=file.path.name,
            content=b"",
            collection=file.collection,
            metadata=metadata,
            source_uri=file.source_uri,
        )
        try:
            return self._read(document, file.path)
        except FileNotFoundError:
            return []

    def _read(self, document: Document, path: Path) -> list[Submission]:
        size = path.stat().st_size
        if size > self._document_bytes_max:
            reason = (
                f"the file has {size} bytes, the limit is {self._document_bytes_max}: split it, "
                "or raise APEX_DOCUMENT_BYTES_MAX"
            )
            return [_submission(document, body_hash=file_hash(path), rejection=reason)]
        content = path.read_bytes()
        body_hash = hashlib.sha256(content).hexdigest()
        parts = split_documents(dataclasses.replace(document, content=content))
        return [_submission(part, body_hash=body_hash) for part in parts]


def _submission(document: Document, *, body_hash: str, rejection: str | None = None) -> Submission:
    client = "inbox" if document.source_uri else "shell"
    return Submission(document=document, client=client, body_hash=body_hash, rejection=rejection)


def _local_files(path: Path) -> Iterator[_File]:
    if path.is_file():
        yield _File(path=path, document_id=path.name, collection="default")
    elif path.is_dir():
        for file in sorted(path.rglob("*")):
            relative = file.relative_to(path)
            if file.is_file() and not any(part.startswith(".") for part in relative.parts):
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
