"""Bytes → clean text: encodings, and characters that a store would refuse."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping, Sequence
from typing import Any

# NUL is refused by PostgreSQL, a lone surrogate by every UTF-8 encoder; the other control
# characters say nothing. Tab and line feed stay.
UNSTORABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufeff\ud800-\udfff]")
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # before UTF-16, whose mark it begins with
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
METADATA_DEPTH_MAX = 16


def decode(content: bytes) -> str:
    """Text in UTF-8, UTF-16 or UTF-32 with a byte order mark, or cp1252, which never fails."""
    encoding = next((name for mark, name in BOMS if content.startswith(mark)), "utf-8")
    try:
        return content.decode(encoding)
    except UnicodeDecodeError:
        # Five bytes mean nothing in cp1252; Latin-1 makes control characters of them.
        return content.decode("cp1252", errors="replace").replace("\ufffd", " ")


def clean_text(text: str) -> str:
    """Without what no store can hold; line ends as "\\n"."""
    if text.isprintable():  # most are, and to see that costs a fraction of looking for the others
        return text
    return UNSTORABLE.sub("", text.replace("\r\n", "\n").replace("\r", "\n"))


def clean_json(value: Any, *, depth: int = 0) -> Any:
    """A JSON value with clean strings and keys; raises ValueError if it is none or too deep."""
    if depth > METADATA_DEPTH_MAX:
        raise ValueError(f"is nested deeper than {METADATA_DEPTH_MAX} levels")
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, Mapping):
        return {clean_text(str(k)): clean_json(v, depth=depth + 1) for k, v in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [clean_json(item, depth=depth + 1) for item in value]
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float) and value - value == 0:  # neither infinite nor NaN
        return value
    raise ValueError(f"holds {value!r}, which is not a JSON value")
