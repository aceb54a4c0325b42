"""Signs receipts of deletions with a key of this installation, and checks signed ones.

    {home}/receipt_key.pem       the private key, Ed25519, readable by its owner only
    {home}/receipt_key.pub.pem   the public key, to be given to whoever has to check receipts

A receipt file holds the receipt, its signature and the public key. That the signature is right
says that nothing was changed; whose key it is says the fingerprint, to be known from elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from apex_dagster.errors import InvalidInput
from apex_dagster.saga.removal import RECEIPT_FORM, DeletionReceipt

ALGORITHM = "Ed25519"


class ReceiptKey:
    """The key in `home`, made when it is first needed. Safe to use from several processes."""

    def __init__(self, home: Path) -> None:
        self.path, self.public_path = home / "receipt_key.pem", home / "receipt_key.pub.pem"
        self._key: Ed25519PrivateKey | None = None

    def sign(self, body: bytes) -> tuple[bytes, bytes]:
        """(signature, public key). Raises OSError where the key can be neither read nor made."""
        key = self._key = self._key or self._load()
        public = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return key.sign(body), public

    def fingerprint(self) -> str | None:
        """Of the public key; None where none was made yet."""
        return fingerprint_of(self.sign(b"")[1]) if self.path.exists() else None

    def _load(self) -> Ed25519PrivateKey:
        if not self.path.exists():
            self._make()
        key = load_pem_private_key(self.path.read_bytes(), password=None)
        if not isinstance(key, Ed25519PrivateKey):
            raise InvalidInput(f"{self.path}: is no {ALGORITHM} key; move it away")
        return key

    def _make(self) -> None:
        """Of several processes that make one the first wins: a link is there whole, or not."""
        key = Ed25519PrivateKey.generate()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f"{self.path.name}.{os.getpid()}.{id(key):x}")
        new.touch(mode=0o600, exist_ok=False)  # before there is anything to be read
        new.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        try:
            os.link(new, self.path)
        except FileExistsError:
            return
        finally:
            new.unlink()
        public = key.public_key()
        pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        self.public_path.write_bytes(pem)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """A receipt whose signature is right."""

    receipt: dict[str, Any]
    fingerprint: str  # of the key that signed it


def fingerprint_of(public_key: bytes) -> str:
    """SHA256:… of the 32 bytes, in hexadecimal."""
    return f"SHA256:{hashlib.sha256(public_key).hexdigest()}"


def receipt_file(receipt: DeletionReceipt) -> dict[str, Any]:
    """What `apex receipt show --json` and the HTTP API give out of a receipt."""
    signature = None
    if receipt.signature is not None and receipt.public_key is not None:
        signature = {
            "algorithm": ALGORITHM,
            "fingerprint": fingerprint_of(receipt.public_key),
            "public_key": base64.b64encode(receipt.public_key).decode(),
            "signature": base64.b64encode(receipt.signature).decode(),
        }
    return {"receipt": orjson.loads(receipt.body), "signature": signature}


def check_file(content: bytes) -> Checked:
    """Check a receipt file. Raises InvalidInput, saying what is wrong with it.

    The receipt is signed in its canonical form, so spaces and the order of members do not matter.
    """
    try:
        file = orjson.loads(content)
        receipt, signed = file["receipt"], file["signature"]
        is_ours = receipt["form"] == RECEIPT_FORM
    except (orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise InvalidInput(
            "it is no receipt of a deletion: `apex receipt show` writes one"
        ) from error
    if not is_ours:
        raise InvalidInput(f"its form is not {RECEIPT_FORM!r}, which this version knows")
    if signed is None:
        raise InvalidInput("it is not signed")
    try:
        public_key = base64.b64decode(signed["public_key"], validate=True)
        signature = base64.b64decode(signed["signature"], validate=True)
        body = orjson.dumps(receipt, option=orjson.OPT_SORT_KEYS)
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, body)
    except InvalidSignature as error:
        raise InvalidInput(
            "it was changed after it was signed, or signed by another key"
        ) from error
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise InvalidInput("its signature cannot be read") from error
    return Checked(receipt=receipt, fingerprint=fingerprint_of(public_key))
