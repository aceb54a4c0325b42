"""The sample corpus: all formats, all readable, and a graph in which things recur."""

from __future__ import annotations

from collections import Counter

import pytest

from apex_dagster.extraction import Extractor, split_documents
from apex_dagster.records import Document, Extraction
from apex_dagster.samples import sample_files


@pytest.fixture(scope="module")
def extractions(extractor: Extractor) -> list[Extraction]:
    documents = [
        part
        for path in sample_files()
        for part in split_documents(
            Document(document_id=path.stem, name=path.name, content=path.read_bytes())
        )
    ]
    return [extractor.extract(document) for document in documents]


def test_every_format_is_there_three_times():
    suffixes = Counter(path.suffix for path in sample_files())
    assert suffixes.total() >= 36
    for suffix in (".txt", ".md", ".html", ".pdf", ".docx", ".json", ".jsonl"):
        assert suffixes[suffix] >= 3


def test_every_sample_yields_chunks_entities_and_a_title(extractions: list[Extraction]):
    assert len({extraction.document_id for extraction in extractions}) == len(extractions) >= 40
    for extraction in extractions:
        assert extraction.chunks, extraction.document_id
        assert len(extraction.entities) >= 5, extraction.document_id
        assert extraction.title
        assert extraction.title != extraction.document_id


def test_people_companies_and_places_recur(extractions: list[Extraction]):
    documents = Counter(entity.key for e in extractions for entity in e.entities)
    assert sum(1 for count in documents.values() if count >= 5) >= 40
    for key in ("person:elena marsh", "organization:brightwater energy", "place:gull island"):
        assert documents[key] >= 10
    assert sum(len(extraction.relations) for extraction in extractions) >= 120
