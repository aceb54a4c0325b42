"""Receipts are signed with a key that only its owner can read, and any change of one shows."""

from __future__ import annotations

import base64
import json
import stat
import subprocess
import sys

import orjson
import pytest
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from apex_dagster.access.receipt_key import ReceiptKey, check_file, fingerprint_of, receipt_file
from apex_dagster.errors import InvalidInput
from apex_dagster.saga.removal import RECEIPT_FORM, DeletionReceipt

BODY = orjson.dumps({"document_id": "d", "form": RECEIPT_FORM, "stores": {"redis": {"removed": 1}}})


def signed(key: ReceiptKey, body: bytes = BODY) -> dict:
    signature, public_key = key.sign(body)
    receipt = DeletionReceipt(
        saga_id="delete_d_1", document_id="d", body=body, signature=signature, public_key=public_key
    )
    return receipt_file(receipt)


def test_the_key_is_made_once_and_can_be_read_by_its_owner_only(tmp_path):
    home = tmp_path / "home"
    key = ReceiptKey(home)
    assert key.fingerprint() is None
    file = signed(key)
    assert stat.S_IMODE(key.path.stat().st_mode) == 0o600
    assert sorted(path.name for path in home.iterdir()) == [
        "receipt_key.pem",
        "receipt_key.pub.pem",
    ]
    assert signed(ReceiptKey(home)) == file
    assert ReceiptKey(home).fingerprint() == file["signature"]["fingerprint"]
    public = load_pem_public_key(key.public_path.read_bytes()).public_bytes_raw()
    assert fingerprint_of(public) == file["signature"]["fingerprint"]


def test_processes_that_need_the_key_at_once_have_the_same(tmp_path):
    code = (
        "import sys; from pathlib import Path; from apex_dagster.access.receipt_key import *;"
        "print(ReceiptKey(Path(sys.argv[1])).sign(b'')[1].hex())"
    )
    started = [
        subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    assert len({process.communicate(timeout=120)[0] for process in started}) == 1


def test_a_signed_receipt_is_intact_however_it_is_written(tmp_path):
    file = signed(ReceiptKey(tmp_path))
    for text in (json.dumps(file), json.dumps(file, indent=4), json.dumps(file, sort_keys=True)):
        checked = check_file(text.encode())
        assert checked.receipt == json.loads(BODY)
        assert checked.fingerprint == ReceiptKey(tmp_path).fingerprint()


def changed(file: dict, what: str) -> dict:
    copy = json.loads(json.dumps(file))
    signature = copy["signature"]
    if what == "count":
        copy["receipt"]["stores"]["redis"]["removed"] = 2
    elif what == "member":
        copy["receipt"]["more"] = True
    elif what == "signature":
        raw = bytearray(base64.b64decode(signature["signature"]))
        raw[0] ^= 1
        signature["signature"] = base64.b64encode(raw).decode()
    elif what == "unsigned":
        copy["signature"] = None
    elif what == "no key":
        del signature["public_key"]
    elif what == "short key":
        signature["public_key"] = "AAAA"
    elif what == "form":
        copy["receipt"]["form"] = "another"
    return copy


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("count", "was changed"),
        ("member", "was changed"),
        ("signature", "was changed"),
        ("unsigned", "not signed"),
        ("no key", "cannot be read"),
        ("short key", "cannot be read"),
        ("form", "form"),
    ],
)
def test_whatever_was_changed_is_refused(tmp_path, what, told):
    file = signed(ReceiptKey(tmp_path))
    with pytest.raises(InvalidInput, match=told):
        check_file(json.dumps(changed(file, what)).encode())


def test_a_receipt_of_another_key_shows_its_fingerprint(tmp_path):
    here, there = ReceiptKey(tmp_path / "here"), ReceiptKey(tmp_path / "there")
    here.sign(b"")
    assert check_file(json.dumps(signed(there)).encode()).fingerprint != here.fingerprint()


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"receipt": 1, "signature": 2}'])
def test_what_is_no_receipt_is_refused(content):
    with pytest.raises(InvalidInput, match="no receipt"):
        check_file(content)
