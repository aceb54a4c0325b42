"""Documents that arrive as JSON, whole or with their parts prepared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction import split_documents
from apex_dagster_tests.extraction.conftest import Submit

UNIT = [1.0] + [0.0] * 383


def extract(extractor: Any, submit: Submit, fields: Any, **document: Any) -> Any:
    content = fields if isinstance(fields, str | bytes) else json.dumps(fields)
    return extractor.extract(submit(content, "a.json", **document))


def test_title_text_and_metadata_are_read_and_the_senders_metadata_wins(extractor, submit: Submit):
    fields = {"title": "T", "body": "Elena Marsh met Viktor Hansen.", "metadata": {"a": 1, "b": 2}}
    extraction = extract(extractor, submit, fields, metadata={"b": 3})
    assert (extraction.title, dict(extraction.metadata)) == ("T", {"a": 1, "b": 3})
    assert [chunk.text for chunk in extraction.chunks] == [fields["body"]]
    assert len(extraction.entities) == 2


def test_prepared_parts_are_taken_as_they_are(extractor, submit: Submit):
    fields = {
        "chunks": [
            {"text": "Acme bought Boreal.", "embedding": [2.0] + [0.0] * 383},
            {"text": "", "embedding": [1e300] * 384},
        ],
        "embedding_model": "theirs",
        "entities": [
            {"name": "Acme", "type": "ORG", "aliases": ["Acme Ltd"], "id": "e1"},
            {"name": "Boreal", "type": "ORG", "description": "a firm"},
            {"name": "ACME", "type": "org"},
        ],
        "relations": [
            {"source": "e1", "target": "org:boreal", "type": "bought by force", "weight": 2},
            {"source": "acme ltd", "target": "Boreal", "type": "BOUGHT_BY_FORCE"},
        ],
    }
    extraction = extract(extractor, submit, fields)
    assert extraction.embedding_model == "theirs"
    np.testing.assert_allclose(extraction.embeddings[0], UNIT)
    np.testing.assert_allclose(np.linalg.norm(extraction.embeddings, axis=1), 1, atol=1e-6)
    assert [entity.key for entity in extraction.entities] == ["org:acme", "org:boreal"]
    assert extraction.entities[0].chunk_ordinals == (0,)
    (relation,) = extraction.relations
    assert (relation.source_key, relation.type, relation.target_key, relation.weight) == (
        "org:acme",
        "BOUGHT_BY_FORCE",
        "org:boreal",
        3.0,
    )


def test_embeddings_may_stand_beside_the_chunks_or_alone(extractor, submit: Submit):
    beside = {"chunks": ["one", "two"], "embeddings": [UNIT, UNIT], "entities": []}
    alone = {"embeddings": [UNIT], "entities": [{"name": "Acme", "type": "org"}]}
    assert len(extract(extractor, submit, beside).chunks) == 2
    assert [chunk.text for chunk in extract(extractor, submit, alone).chunks] == [""]


def test_given_chunks_without_embeddings_are_embedded(extractor, submit: Submit):
    extraction = extract(extractor, submit, {"chunks": [{"text": "one"}], "entities": []})
    assert extraction.embedding_model == extractor.embedder.model


WRONG = [
    ("{", "it is not valid JSON"),
    ("[]", "must be one JSON object, not a list"),
    ('{"text": NaN}', "not valid JSON"),
    ({"title": "T"}, "holds no text: give one of text, content, body"),
    ({"text": 7}, "text: expected a text, not a number"),
    ({"text": "enough text", "metadata": []}, "metadata: expected an object, not a list"),
    ({"text": "enough text", "document_id": ""}, "document_id: must be 1 to 200"),
    ({"chunks": [7]}, r"chunks\[0\]: expected an object with text"),
    ({"chunks": [{"embedding": UNIT}]}, r"chunks\[0\].text: is missing"),
    ({"chunks": [{"text": "a", "embedding": UNIT}, {"text": "b"}]}, "1 of 2 have an embedding"),
    ({"chunks": ["a"], "embeddings": [UNIT, UNIT]}, "2 for 1 chunks; send exactly one for each"),
    ({"text": "long enough", "embeddings": [UNIT, UNIT]}, "send the chunks they belong to"),
    (
        {"chunks": ["a"], "embeddings": [UNIT[1:]]},
        r"embeddings\[0\]: has 383 numbers, expected .*384",
    ),
    ({"chunks": ["a"], "embeddings": [["1"] * 384]}, r"embeddings\[0\]: holds a text"),
    ({"chunks": ["a"], "embeddings": [[0] * 384]}, r"embeddings\[0\]: is all zeros"),
    ({"chunks": ["a"], "embeddings": [None]}, r"embeddings\[0\]: expected a list of 384 numbers"),
    ({"chunks": ["word " * 300]}, "302 tokens is too long to embed"),
    ({"chunks": ["a"], "entities": [{"type": "x"}]}, r"entities\[0\].name: is missing"),
    ({"chunks": ["a"], "entities": [{"name": "x" * 501}]}, r"entities\[0\].name: must be 1 to 500"),
    (
        {"chunks": ["a"], "entities": ["A"], "relations": [{"source": "A", "target": "B"}]},
        r"relations\[0\].target: 'B' is not among the entities",
    ),
    (
        {
            "chunks": ["a"],
            "entities": [{"name": "A", "type": "x"}, {"name": "A", "type": "y"}, "B"],
            "relations": [{"source": "A", "target": "B"}],
        },
        r"relations\[0\].source: 'A' may be any of x:a, y:a; write the key",
    ),
    (
        {
            "chunks": ["a"],
            "entities": ["A", "B"],
            "relations": [{"source": "A", "target": "B", "weight": -1}],
        },
        r"relations\[0\].weight: must be a number above 0",
    ),
]


@pytest.mark.parametrize(("fields", "reason"), WRONG, ids=[reason[:40] for _, reason in WRONG])
def test_a_wrong_field_is_named_with_its_fix(extractor, submit: Submit, fields: Any, reason: str):
    with pytest.raises(DocumentRejected, match=reason):
        extract(extractor, submit, fields)


def test_numbers_too_large_for_a_float_are_refused(extractor, submit: Submit):
    vector = ", ".join(["1e999", *["0"] * 383])
    with pytest.raises(DocumentRejected, match=r"finite|not valid JSON"):
        extract(extractor, submit, f'{{"chunks": ["a"], "embeddings": [[{vector}]]}}')


def test_deep_nesting_is_refused_rather_than_followed(extractor, submit: Submit):
    deep = "[" * 900 + "]" * 900
    with pytest.raises(DocumentRejected, match="metadata: is nested deeper than 16 levels"):
        extract(extractor, submit, f'{{"text": "long enough", "metadata": {{"a": {deep}}}}}')


class TestSplit:
    def test_each_line_of_jsonl_is_a_document(self, extractor, submit: Submit):
        lines = [
            '{"document_id": "one", "text": "Elena Marsh met Viktor Hansen."}',
            "",
            "{broken",
            '{"text": "Meridian Bank has a line\u2028separator in it."}',
        ]
        parts = split_documents(submit("\n".join(lines), "all.jsonl", document_id="all"))
        assert [part.document_id for part in parts] == ["all#one", "all#3", "all#4"]
        outcomes = extractor.extract_many(parts)
        assert [isinstance(outcome, DocumentRejected) for outcome in outcomes] == [
            False,
            True,
            False,
        ]

    def test_no_line_is_lost_when_ids_collide(self, submit: Submit):
        lines = [
            json.dumps({"document_id": i, "text": t}) for i, t in [("2", "a"), ("2", "b"), (2, "c")]
        ]
        parts = split_documents(submit("\n".join(lines), "a.jsonl"))
        assert len({part.document_id for part in parts}) == 3

    def test_a_json_array_splits_and_an_own_id_is_taken(self, submit: Submit):
        array = split_documents(submit('[{"text": "a"}, {"document_id": "x"}]', "a.json"))
        assert [part.document_id for part in array] == ["doc#1", "doc#x"]
        (single,) = split_documents(submit('{"document_id": "mine", "text": "a"}', "a.json"))
        assert single.document_id == "mine"

    def test_other_files_are_one_document(self, submit: Submit):
        for name in ("a.txt", "a.exe", "a.json"):
            assert len(split_documents(submit("{", name))) == 1
