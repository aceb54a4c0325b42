from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from apex_dagster.extraction import Extractor
from apex_dagster.records import Document

Submit = Callable[..., Document]


@pytest.fixture(scope="session")
def extractor() -> Extractor:
    return Extractor.default()


@pytest.fixture
def submit() -> Submit:
    """A document from a text or bytes; its name picks the parser."""

    def build(content: str | bytes, name: str = "note.txt", **fields: Any) -> Document:
        data = content.encode() if isinstance(content, str) else content
        return Document(**{"document_id": "doc", "name": name, "content": data, **fields})

    return build
