"""The folder where files are dropped: what is in it, and where each file goes once its sagas ended.

A file stays where it was dropped until the ledger says how its documents ended. Then it moves to
`processed/` or, with a `.reason.json` beside it, to `quarantine/`, both inside the inbox. While one
of its documents is to be tried again it stays. What is in `quarantine/` moves on when its documents
leave the ledger's quarantine: released and completed to `processed/`; dropped, it is deleted, and
the reason stays. When all its documents are deleted so is the file, in `processed/` too. A sidecar
(`sidecar.py`) is part of its file. The ledger, not the file system, remembers what is done, so a
crash loses nothing and takes nothing twice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from apex_dagster.ingestion.moving import move, numbered
from apex_dagster.ingestion.sidecar import body_hash as hash_of
from apex_dagster.ingestion.sidecar import has_sidecar, is_sidecar, sidecar_of
from apex_dagster.saga.ledger import Ledger

log = structlog.get_logger(__name__)

SCHEME = "inbox:"
PROCESSED, QUARANTINE = "processed", "quarantine"
ERASED = "erased"  # no folder: the file is gone

# Names under which writers put files that are not finished yet.
_UNFINISHED_SUFFIXES = frozenset({".part", ".tmp", ".crdownload", ".swp"})
_REASON_SUFFIX = ".reason.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedFile:
    """A file in the inbox. `uri` is "inbox:" and the path below it, the same on every machine."""

    uri: str
    path: Path
    size: int  # bytes
    mtime_ns: int
    sidecar: str = ""  # the signature of its sidecar, "" if it has none

    @property
    def signature(self) -> str:
        """Changes whenever the file or its sidecar does, without reading either."""
        return f"{self.size}:{self.mtime_ns}{self.sidecar}"


class Inbox:
    """One inbox folder, created when it is first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def files(self) -> list[DroppedFile]:
        """What waits to be ingested, by path, without links and hidden or unfinished files."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return sorted(self._walk(), key=lambda file: file.uri)

    def path(self, uri: str) -> Path:
        """Where the file with this uri lies. Raises ValueError for one that leaves the inbox."""
        path = (self.folder / uri.removeprefix(SCHEME)).resolve()
        if not uri.startswith(SCHEME) or not path.is_relative_to(self.folder.resolve()):
            raise ValueError(f"{uri!r} does not name a file below the inbox {self.folder}")
        return path

    def settle(self, ledger: Ledger) -> dict[str, str]:
        """Move files whose sagas have all ended; where each went, by uri."""
        moved = {}
        for source in ledger.unsettled_sources():
            uri, body_hash = source["source_uri"], source["body_hash"]
            if _is_in_hand(source) or not uri.startswith(SCHEME):
                continue
            if all(saga["deleted"] for saga in source["sagas"]):
                self._delete(uri, body_hash)
                ledger.settle_source(uri, body_hash)
                moved[uri] = ERASED
                continue
            target = _destination(source["sagas"])
            if target is None:
                continue
            reason = _reason(uri, source["sagas"]) if target in (QUARANTINE, ERASED) else None
            self.put_away(uri, body_hash, target, reason)
            ledger.settle_source(uri, body_hash)
            moved[uri] = target
        return moved

    def in_hand(self, ledger: Ledger) -> set[tuple[str, str]]:
        """(uri, sha256 hex) of files that need nobody: under way, or to be tried again."""
        sources = ledger.unsettled_sources()
        return {(s["source_uri"], s["body_hash"]) for s in sources if _is_in_hand(s)}

    def put_away(
        self, uri: str, body_hash: str, target: str, reason: Mapping[str, Any] | None
    ) -> None:
        """Move one file, if it is in the inbox or in quarantine with this content (sha256 hex);
        ERASED deletes it. `reason` is put beside it, or beside the place where it was."""
        path = self.find(uri, body_hash)
        if path is None:
            return  # moved before, or replaced by a corrected file that has its own turn
        quarantined = path.is_relative_to(self.folder.resolve() / QUARANTINE)
        if target == ERASED:
            path.unlink()  # first: without its sidecar it would be another submission
            sidecar_of(path).unlink(missing_ok=True)
        elif not (quarantined and target == QUARANTINE):
            relative = self.path(uri).relative_to(self.folder.resolve())
            moved = move(path, self.folder.resolve() / target / relative, body_hash)
            if moved is None:
                return
            if quarantined:
                _reason_beside(path).unlink(missing_ok=True)
            path = moved
        if reason is not None and (quarantined or target == QUARANTINE):
            text = json.dumps(reason, indent=2, ensure_ascii=False)
            _reason_beside(path).write_text(text + "\n", encoding="utf-8")
        log.info("file_put_away", source_uri=uri, target=target)

    def _delete(self, uri: str, body_hash: str) -> None:
        """Delete a file whose documents are deleted, wherever it lies. If it is in `processed/`,
        what lies in the inbox under its name was dropped since, and has its own turn."""
        relative = self.path(uri).relative_to(self.folder.resolve())
        away = self.folder.resolve() / PROCESSED / relative
        done = [path for path in (away, *numbered(away)) if _holds(path, body_hash)]
        waiting = self.find(uri, body_hash)
        for path in done or ([waiting] if waiting else []):
            path.unlink()  # first: without its sidecar it would be another submission
            sidecar_of(path).unlink(missing_ok=True)
            _reason_beside(path).unlink(missing_ok=True)
            log.info("file_deleted", source_uri=uri)

    def find(self, uri: str, body_hash: str) -> Path | None:
        """Where the file with this content lies: in the inbox, or in quarantine, there perhaps
        under the next free name."""
        path = self.path(uri)
        relative = path.relative_to(self.folder.resolve())
        away = self.folder.resolve() / QUARANTINE / relative
        for candidate in (path, away, *numbered(away)):
            if _holds(candidate, body_hash):
                return candidate
        return None

    def _walk(self) -> Iterator[DroppedFile]:
        for path in self.folder.rglob("*"):
            relative = path.relative_to(self.folder)
            if relative.parts[0] in (PROCESSED, QUARANTINE) or _unfinished(relative):
                continue
            if is_sidecar(path):
                continue  # part of the file beside it, which may be yet to come
            if path.is_symlink() or any((self.folder / p).is_symlink() for p in relative.parents):
                continue  # a link may lead anywhere
            try:
                status = path.stat()
            except FileNotFoundError:
                continue  # it was taken away between the listing and the look
            if path.is_file():
                yield DroppedFile(
                    uri=SCHEME + relative.as_posix(),
                    path=path,
                    size=status.st_size,
                    mtime_ns=status.st_mtime_ns,
                    sidecar=_sidecar_signature(path),
                )


def _holds(path: Path, body_hash: str) -> bool:
    return path.is_file() and hash_of(path) == body_hash


def _sidecar_signature(path: Path) -> str:
    try:
        status = sidecar_of(path).stat() if has_sidecar(path) else None
    except FileNotFoundError:
        return ""
    return f"+{status.st_size}:{status.st_mtime_ns}" if status else ""


def _unfinished(relative: Path) -> bool:
    hidden = any(part.startswith((".", "~")) for part in relative.parts)
    return hidden or relative.suffix.lower() in _UNFINISHED_SUFFIXES


def _is_in_hand(source: Mapping[str, Any]) -> bool:
    return not source["ended"] or bool(source["waits"])


def _destination(sagas: Sequence[Mapping[str, Any]]) -> str | None:
    """processed, quarantine, erased, or None for a file that has to be asked for once more."""
    bad = [saga for saga in sagas if not _is_done(saga)]
    if not bad:
        return PROCESSED
    if any(saga["quarantined"] for saga in bad):
        return QUARANTINE
    return ERASED if all(saga["dropped"] for saga in bad) else None


def _is_done(saga: Mapping[str, Any]) -> bool:
    """Live, or overruled by something that was submitted later."""
    superseded = (saga["error"] or {}).get("class") == "superseded"
    return saga["status"] == "completed" or (saga["status"] == "compensated" and superseded)


def _reason(uri: str, sagas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bad = [saga for saga in sagas if not _is_done(saga)]
    dropped = bool(bad) and all(saga["dropped"] for saga in bad)
    return {
        "file": uri.removeprefix(SCHEME),
        "reason": "; ".join((saga["error"] or {}).get("message", "unknown") for saga in bad),
        "documents": bad,
        "ingested": [saga["document_id"] for saga in sagas if saga["status"] == "completed"],
        "quarantined_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "what_now": "Nothing: an operator has dropped it."
        if dropped
        else "Correct the file and drop it into the inbox again; or, if it was not at fault, "
        "`apex quarantine release` the documents.",
    }


def _reason_beside(path: Path) -> Path:
    return path.with_name(path.name + _REASON_SUFFIX)
