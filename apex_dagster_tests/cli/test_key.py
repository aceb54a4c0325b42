"""`apex key`: as operators use it."""

from __future__ import annotations

import pytest

from apex_dagster.access.keys import split_key, usable_keys


def test_a_key_is_printed_once_and_never_again(shell, app):
    made = shell("key", "create", "newsroom", "--scope", "read", "--scope", "write")
    assert made.exit_code == 0, made.output
    token = made.stdout.strip()  # and nothing else, for `KEY=$(apex key create …)`
    key_id, secret = split_key(token)
    assert "read, write" in made.stderr
    [usable] = usable_keys(app.ledger)
    assert usable.has_secret(secret)
    for listed in (shell("key", "list"), shell("key", "list", "--json")):
        assert key_id in listed.output
        assert secret not in listed.output
    revoked = shell("key", "revoke", "newsroom")
    assert revoked.exit_code == 0
    assert "Refused within 5 s" in revoked.output
    assert usable_keys(app.ledger) == []
    assert "revoked" in shell("key", "list").output


def test_programs_read_json(shell):
    made = shell.json("key", "create", "archive", "--scope", "admin", "--expires", "90d")
    assert made["key"].startswith(f"apex_{made['key_id']}_")
    assert (made["scopes"], made["usable"]) == (["admin"], True)
    assert made["expires_at"] > made["created_at"]
    [listed] = shell.json("key", "list")["keys"]
    assert listed == {name: value for name, value in made.items() if name != "key"}
    revoked = shell.json("key", "revoke", made["key_id"])
    assert (revoked["usable"], revoked["revoked_by"]) == (False, made["created_by"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["create", "x"], "--scope"),
        (["create", "x", "--scope", "root"], "'read', 'write', 'admin'"),
        (["create", "x", "--scope", "read", "--expires", "soon"], "90d, 12h or 30m"),
        (["create", "x", "--scope", "read", "--expires", "0d"], "90d, 12h or 30m"),
        (["create", "x", "--scope", "read", "--expires", "9999999d"], "3650d at most"),
        (["create", " ", "--scope", "read"], "1 to 100 printable characters"),
        (["revoke", "nobody"], "no key has this id or name"),
    ],
)
def test_wrong_use_says_what_is_right(shell, arguments, words):
    result = shell("key", *arguments)
    assert result.exit_code == 2
    assert words in result.stderr


def test_without_keys_the_list_says_how_to_make_one(shell):
    assert "apex key create" in shell("key", "list").output
