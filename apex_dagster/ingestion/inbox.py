"""The folder where files are dropped: what is in it, and where each file goes once its sagas ended.

A file stays where it was dropped until the ledger says how its documents ended. Then it moves to
`processed/` or, with a `.reason.json` beside it, to `quarantine/`, both inside the inbox; a file
whose documents were compensated for a cause that may pass stays, and is ingested again. The ledger,
not the file system, remembers what is done, so a crash loses nothing and takes nothing twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import structlog

from apex_dagster.saga.ledger import Ledger

log = structlog.get_logger(__name__)

SCHEME = "inbox:"
PROCESSED, QUARANTINE = "processed", "quarantine"

# Names under which writers put files that are not finished yet.
_UNFINISHED_SUFFIXES = frozenset({".part", ".tmp", ".crdownload", ".swp"})
_REASON_SUFFIX = ".reason.json"
# These ended for a cause that another attempt does not change, or that somebody wanted.
_FINAL_CLASSES = frozenset({"permanent", "unexpected", "crash_loop", "requested", "cancelled"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DroppedFile:
    """A file in the inbox. `uri` is "inbox:" and the path below it, the same on every machine."""

    uri: str
    path: Path
    size: int  # bytes
    mtime_ns: int

    @property
    def signature(self) -> str:
        """Changes whenever the file does, without reading it."""
        return f"{self.size}:{self.mtime_ns}"


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
            if not source["ended"] or not uri.startswith(SCHEME):
                continue
            target = _destination(source["sagas"])
            if target is None:
                continue
            reason = _reason(uri, source["sagas"]) if target == QUARANTINE else None
            self.put_away(uri, body_hash, target, reason)
            ledger.settle_source(uri, body_hash)
            moved[uri] = target
        return moved

    def put_away(
        self, uri: str, body_hash: str, target: str, reason: Mapping[str, Any] | None
    ) -> None:
        """Move one file, if it is there and still has this content (sha256 hex)."""
        path = self.path(uri)
        if not path.is_file() or file_hash(path) != body_hash:
            return  # moved before, or replaced by a corrected file that has its own turn
        destination = _free_path(self.folder / target / path.relative_to(self.folder.resolve()))
        destination.parent.mkdir(parents=True, exist_ok=True)
        path.rename(destination)
        if file_hash(destination) != body_hash:
            # Overwritten between the look and the move: give the newer content back.
            destination.rename(_free_path(path))
            return
        if reason is not None:
            text = json.dumps(reason, indent=2, ensure_ascii=False)
            destination.with_name(destination.name + _REASON_SUFFIX).write_text(text + "\n")
        log.info("file_put_away", source_uri=uri, target=target)

    def _walk(self) -> Iterator[DroppedFile]:
        for path in self.folder.rglob("*"):
            relative = path.relative_to(self.folder)
            if relative.parts[0] in (PROCESSED, QUARANTINE) or _unfinished(relative):
                continue
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
                )


def file_hash(path: Path) -> str:
    """Sha256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unfinished(relative: Path) -> bool:
    hidden = any(part.startswith((".", "~")) for part in relative.parts)
    return hidden or relative.suffix.lower() in _UNFINISHED_SUFFIXES


def _destination(sagas: Sequence[Mapping[str, Any]]) -> str | None:
    """processed, quarantine, or None for a file that gets another attempt."""
    bad = [saga for saga in sagas if not _is_done(saga)]
    if not bad:
        return PROCESSED
    if any(_is_final(saga) for saga in bad):
        return QUARANTINE
    return None


def _is_done(saga: Mapping[str, Any]) -> bool:
    """Live, or overruled by something that was submitted later."""
    superseded = (saga["error"] or {}).get("class") == "superseded"
    return saga["status"] == "completed" or (saga["status"] == "compensated" and superseded)


def _is_final(saga: Mapping[str, Any]) -> bool:
    return saga["status"] == "failed" or (saga["error"] or {}).get("class") in _FINAL_CLASSES


def _reason(uri: str, sagas: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    bad = [saga for saga in sagas if saga["status"] != "completed"]
    return {
        "file": uri.removeprefix(SCHEME),
        "reason": "; ".join((saga["error"] or {}).get("message", "unknown") for saga in bad),
        "documents": bad,
        "ingested": [saga["document_id"] for saga in sagas if saga["status"] == "completed"],
        "quarantined_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "what_now": "Correct the file and drop it into the inbox again.",
    }


def _free_path(path: Path) -> Path:
    """`path`, or the next name beside it that is not taken: report.pdf, report~1.pdf, ..."""
    candidate, number = path, 0
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}~{number}{path.suffix}")
    return candidate
