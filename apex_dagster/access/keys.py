"""API keys: `apex_KEYID_SECRET`, printed once, of which only a digest is kept.

The secret is 256 random bits, so one round of SHA-256 is enough: no list of likely secrets can be
tried against a stolen table, which is what slow hashes such as Argon2 are for. They would cost a
request some tens of milliseconds, and protect nothing here.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from apex_dagster.errors import InvalidInput
from apex_dagster.saga.ledger import Ledger
from apex_dagster.sql import load_queries

_SQL = load_queries("apex_dagster.access", "keys.sql")

NAME_CHARS_MAX = 100
_PREFIX = "apex"  # by which programs that look for leaked secrets can tell what one is


class Scope(StrEnum):
    """What a key is good for. None holds another, but `admin` all of them."""

    READ = "read"  # documents, sagas, search
    WRITE = "write"  # ingest and delete documents
    ADMIN = "admin"  # everything


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyRecord:
    """A key as operators see it."""

    key_id: str
    name: str
    scopes: tuple[Scope, ...]
    usable: bool
    created_at: datetime
    created_by: str
    expires_at: datetime | None
    revoked_at: datetime | None
    revoked_by: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsableKey:
    """A key as it is checked."""

    key_id: str
    name: str
    scopes: frozenset[Scope]
    digest: bytes
    expires_in_s: float | None  # when the ledger was asked; None: never

    def has_secret(self, secret: str) -> bool:
        """Whether this is the key's secret; how long that takes does not depend on it."""
        return hmac.compare_digest(digest_of(secret), self.digest)

    def allows(self, scope: Scope) -> bool:
        """Whether it is good for that."""
        return scope in self.scopes or Scope.ADMIN in self.scopes


def digest_of(secret: str) -> bytes:
    """32 bytes."""
    return hashlib.sha256(secret.encode()).digest()


def split_key(key: str) -> tuple[str, str] | None:
    """(key_id, secret) of a key; None for a text that is none."""
    prefix, _, rest = key.partition("_")
    key_id, _, secret = rest.partition("_")
    return (key_id, secret) if prefix == _PREFIX and key_id and secret else None


def create_key(
    ledger: Ledger,
    name: str,
    scopes: Sequence[Scope],
    *,
    by: str,
    expires_after: timedelta | None = None,
) -> tuple[KeyRecord, str]:
    """A new key's record, and the key itself, which cannot be had again. Raises InvalidInput."""
    if not (0 < len(name) <= NAME_CHARS_MAX and name.isprintable() and name.strip() == name):
        raise InvalidInput(f"NAME: must be 1 to {NAME_CHARS_MAX} printable characters")
    key_id, secret = secrets.token_hex(6), secrets.token_urlsafe(32)
    values = {
        "key_id": key_id,
        "name": name,
        "scopes": sorted(set(scopes)),
        "digest": digest_of(secret),
        "created_by": by,
        "expires_after": expires_after,
    }
    with ledger.transaction() as tx:
        [row] = tx.execute(_SQL["insert_key"], values).fetchall()
    return _record(row), f"{_PREFIX}_{key_id}_{secret}"


def list_keys(ledger: Ledger) -> list[KeyRecord]:
    """All that were ever made, the newest first."""
    with ledger.transaction() as tx:
        return [_record(row) for row in tx.execute(_SQL["keys"]).fetchall()]


def usable_keys(ledger: Ledger) -> list[UsableKey]:
    """Those that are neither revoked nor expired."""
    with ledger.transaction() as tx:
        rows = tx.execute(_SQL["usable_keys"]).fetchall()
    return [UsableKey(**row | {"scopes": _scopes(row)}) for row in rows]


def revoke_key(ledger: Ledger, id_or_name: str, *, by: str) -> KeyRecord:
    """Revoke the key of that id, or the only usable one of that name; safe to repeat.

    Raises InvalidInput for one that does not exist, and for a name with several usable keys.
    """
    chosen = _chosen(list_keys(ledger), id_or_name)
    with ledger.transaction() as tx:
        tx.execute(_SQL["revoke_key"], {"key_id": chosen.key_id, "revoked_by": by})
    return next(key for key in list_keys(ledger) if key.key_id == chosen.key_id)


def _chosen(keys: Sequence[KeyRecord], id_or_name: str) -> KeyRecord:
    if by_id := [key for key in keys if key.key_id == id_or_name]:
        return by_id[0]
    named = [key for key in keys if key.name == id_or_name]
    candidates = [key for key in named if key.usable] or named[:1]
    if not candidates:
        raise InvalidInput(f"{id_or_name}: no key has this id or name; see `apex key list`")
    if len(candidates) > 1:
        ids = ", ".join(key.key_id for key in candidates)
        raise InvalidInput(f"{id_or_name}: has {len(candidates)} keys; name one by its id: {ids}")
    return candidates[0]


def _record(row: dict[str, Any]) -> KeyRecord:
    fields = {name: value for name, value in row.items() if name != "digest"}
    return KeyRecord(**fields | {"scopes": tuple(Scope(scope) for scope in row["scopes"])})


def _scopes(row: dict[str, Any]) -> frozenset[Scope]:
    return frozenset(Scope(scope) for scope in row["scopes"])
