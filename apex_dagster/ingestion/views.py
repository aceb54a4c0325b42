"""Documents as readers were shown them, kept in Redis for the next reader.

A version never changes, so a view of it is right for as long as the pointer names that version,
which whoever asks for one has just looked up. No view, or no Redis, costs a reader the full read of
all stores and nothing else.
"""

from __future__ import annotations

import time
from typing import Protocol

import structlog

from apex_dagster.errors import ApexError
from apex_dagster.records import VersionRef

log = structlog.get_logger(__name__)

VIEW_BYTES_MAX = 1024 * 1024  # larger ones are read from the stores; Redis stays small
_PAUSE_S = 5.0  # a cache that is down is left alone for so long; waiting for it costs each reader


class ViewStore(Protocol):
    """Redis."""

    def read_view(self, ref: VersionRef) -> bytes | None:
        """The view of that version; None where there is none, or one of another version."""
        ...

    def keep_view(self, ref: VersionRef, body: bytes) -> None:
        """Keep it for a while, unless a later version has been published."""
        ...


class Views:
    """Finds and keeps views; a store that cannot be asked has none. Safe to use from threads."""

    def __init__(self, store: ViewStore) -> None:
        self._store, self._ask_again_at = store, 0.0

    def find(self, ref: VersionRef) -> bytes | None:
        """The view of that version, if it is at hand."""
        if time.monotonic() < self._ask_again_at:
            return None
        try:
            return self._store.read_view(ref)
        except ApexError as error:
            self._leave_alone(ref, error)
            return None

    def keep(self, ref: VersionRef, body: bytes) -> None:
        """Keep a view for the next reader, if that can be done at once."""
        if len(body) > VIEW_BYTES_MAX or time.monotonic() < self._ask_again_at:
            return
        try:
            self._store.keep_view(ref, body)
        except ApexError as error:
            self._leave_alone(ref, error)

    def _leave_alone(self, ref: VersionRef, error: ApexError) -> None:
        self._ask_again_at = time.monotonic() + _PAUSE_S
        log.warning("views_not_reached", document_id=ref.document_id, error=str(error))
