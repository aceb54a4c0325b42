"""Keys in the ledger: what is kept of them, and which of them can be used."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from apex_dagster.access.keys import (
    KeyRecord,
    Scope,
    create_key,
    list_keys,
    revoke_key,
    split_key,
    usable_keys,
)
from apex_dagster.errors import InvalidInput
from apex_dagster.saga.ledger import Ledger


@pytest.fixture
def ledger(postgres_database) -> Iterator[Ledger]:
    ledger = Ledger(postgres_database)
    yield ledger
    ledger.close()


def made(ledger, name="newsroom", scopes=(Scope.READ,), **options) -> tuple[KeyRecord, str]:
    return create_key(ledger, name, scopes, by="ada@quay", **options)


def test_what_is_kept_is_not_the_key(ledger):
    record, token = made(ledger)
    key_id, secret = split_key(token)
    assert (token.split("_")[0], key_id, len(secret)) == ("apex", record.key_id, 43)
    with ledger.transaction() as tx:
        [row] = tx.execute("SELECT k.*, k::text AS all FROM apex.api_key k").fetchall()
    assert secret not in row["all"]
    assert secret.encode().hex() not in row["all"]
    [usable] = usable_keys(ledger)
    assert usable.has_secret(secret)
    assert not usable.has_secret(secret[:-1])
    assert not usable.has_secret("")


def test_no_two_keys_are_alike(ledger):
    tokens = {made(ledger)[1] for _ in range(20)}
    assert len({part for token in tokens for part in split_key(token)}) == 40


def test_a_scope_holds_no_other_but_admin_all(ledger):
    for scope in Scope:
        made(ledger, name=scope.value, scopes=[scope])
    allowed = {key.name: {s for s in Scope if key.allows(s)} for key in usable_keys(ledger)}
    assert allowed == {"read": {Scope.READ}, "write": {Scope.WRITE}, "admin": set(Scope)}


def test_an_expired_key_cannot_be_used_and_stays_in_the_list(ledger):
    made(ledger, expires_after=timedelta(days=90))
    [usable] = usable_keys(ledger)
    assert 89.9 < usable.expires_in_s / 86400 <= 90
    with ledger.transaction() as tx:
        tx.execute("UPDATE apex.api_key SET expires_at = expires_at - interval '90 days'")
    assert usable_keys(ledger) == []
    assert [key.usable for key in list_keys(ledger)] == [False]


def test_a_key_is_revoked_once_and_says_by_whom(ledger):
    record, _ = made(ledger)
    first = revoke_key(ledger, "newsroom", by="ada@quay")
    assert (first.key_id, first.usable, first.revoked_by) == (record.key_id, False, "ada@quay")
    assert usable_keys(ledger) == []
    assert revoke_key(ledger, record.key_id, by="bob@quay") == first
    assert revoke_key(ledger, "newsroom", by="bob@quay") == first


def test_of_several_keys_of_a_name_one_is_revoked_by_its_id(ledger):
    old, _ = made(ledger)
    new, _ = made(ledger)
    with pytest.raises(InvalidInput, match=f"has 2 keys.*{new.key_id}, {old.key_id}"):
        revoke_key(ledger, "newsroom", by="ada@quay")
    revoke_key(ledger, old.key_id, by="ada@quay")
    assert [key.key_id for key in usable_keys(ledger)] == [new.key_id]
    assert revoke_key(ledger, "newsroom", by="ada@quay").key_id == new.key_id
    with pytest.raises(InvalidInput, match="no key has this id or name"):
        revoke_key(ledger, "nobody", by="ada@quay")


@pytest.mark.parametrize("name", ["", " x", "x" * 101, "a\nb", "a\x00b"])
def test_a_name_that_cannot_be_one_is_refused_with_the_limit(ledger, name):
    with pytest.raises(InvalidInput, match="1 to 100 printable characters"):
        made(ledger, name=name)
    assert list_keys(ledger) == []


@pytest.mark.parametrize("text", ["", "apex", "apex_1", "apex__x", "apex_1_", "other_1_x", "x_"])
def test_what_is_no_key_has_no_parts(text):
    assert split_key(text) is None


def test_a_secret_may_hold_what_separates_the_parts():
    assert split_key("apex_0123_a_b__c") == ("0123", "a_b__c")
