"""`NAME.meta.json` beside a file: what its sender says of it.

    {"collection": "…", "metadata": {…},                  for every document of the file
     "columns": {"id": "…", "title": "…", "text": "…" or ["…"], "metadata": ["…"]}}

All members are optional; `columns` is for tables (`extraction/rows.py`). File and sidecar are one
submission: their hash covers both, and they move together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apex_dagster.extraction.prepared import Refused, given_collection, given_metadata, load_object
from apex_dagster.extraction.rows import Columns, read_columns

SUFFIX = ".meta.json"
SIDECAR_BYTES_MAX = 1024 * 1024
MEMBERS = ("collection", "metadata", "columns")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sidecar:
    """What a sidecar states; None where it states nothing."""

    collection: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    columns: Columns | None = None


def is_sidecar(path: Path) -> bool:
    """By name alone: it may have been put there before its file."""
    return path.name.endswith(SUFFIX)


def sidecar_of(path: Path) -> Path:
    """Where the sidecar of this file lies, if it has one."""
    return path.with_name(path.name + SUFFIX)


def has_sidecar(path: Path) -> bool:
    beside = sidecar_of(path)
    return beside.is_file() and not beside.is_symlink()  # a link may lead anywhere


def sidecar_bytes(path: Path) -> bytes | None:
    """The content of this file's sidecar; None if it has none."""
    try:
        return sidecar_of(path).read_bytes() if has_sidecar(path) else None
    except FileNotFoundError:
        return None


def read_sidecar(content: bytes) -> Sidecar:
    """Raises Refused, with the member at fault and the fix."""
    fields = load_object(content)
    if unknown := sorted(set(fields) - set(MEMBERS)):
        raise Refused(f"{unknown[0]}: is unknown; use {', '.join(MEMBERS)}")
    columns = fields.get("columns")
    return Sidecar(
        collection=given_collection(fields),
        metadata=given_metadata(fields),
        columns=None if columns is None else read_columns(columns),
    )


def file_hash(path: Path) -> str:
    """Sha256 hex of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def body_hash(path: Path) -> str:
    """What a submission of this file is known by: `joint_hash` of it and its sidecar."""
    try:
        beside = file_hash(sidecar_of(path)) if has_sidecar(path) else None
    except FileNotFoundError:
        beside = None
    return joint_hash(file_hash(path), beside)


def joint_hash(of_file: str, of_sidecar: str | None) -> str:
    """Sha256 hex of both hashes; of a file that has no sidecar the file's own."""
    if of_sidecar is None:
        return of_file
    return hashlib.sha256(f"{of_file}\n{of_sidecar}".encode()).hexdigest()
