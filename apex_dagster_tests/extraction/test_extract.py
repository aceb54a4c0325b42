"""Document → Extraction as a whole: completeness, limits, rejections, determinism."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction import Extractor, content_hash
from apex_dagster.records import Extraction
from apex_dagster_tests.extraction.conftest import Submit

STORY = """A Short Report

Brightwater Energy hired Elena Marsh in Oldhaven. Marsh works for Brightwater Energy.

Meridian Bank financed the survey, and Elena Marsh praised Meridian Bank.
"""


def fingerprint(extraction: Extraction) -> str:
    """Everything an extraction holds, vectors to the last bit."""
    return repr(
        (
            *(getattr(extraction, name) for name in ("title", "content_hash", "metadata")),
            *(getattr(extraction, name) for name in ("chunks", "entities", "relations")),
            extraction.embeddings.tobytes().hex(),
        )
    )


def test_a_text_becomes_chunks_entities_relations_and_unit_vectors(extractor, submit: Submit):
    extraction = extractor.extract(submit(STORY, collection="reports", metadata={"year": 7}))

    assert (extraction.title, extraction.collection) == ("A Short Report", "reports")
    assert extraction.metadata == {"year": 7}
    keys = {entity.key: entity for entity in extraction.entities}
    assert {"person:elena marsh", "organization:brightwater energy"} <= keys.keys()
    assert keys["person:elena marsh"].mentions == 3
    assert keys["person:elena marsh"].aliases == ("Marsh",)
    said = {(r.source_key, r.type, r.target_key) for r in extraction.relations}
    assert ("organization:brightwater energy", "HIRE", "person:elena marsh") in said
    assert ("person:elena marsh", "WORK_FOR", "organization:brightwater energy") in said
    assert all({r.source_key, r.target_key} <= keys.keys() for r in extraction.relations)
    assert extraction.embeddings.shape == (len(extraction.chunks), 384)
    np.testing.assert_allclose(np.linalg.norm(extraction.embeddings, axis=1), 1, atol=1e-6)


def test_the_same_document_gives_the_same_extraction_in_another_process(extractor, submit: Submit):
    program = (
        "from apex_dagster_tests.extraction.test_extract import STORY, fingerprint\n"
        "from apex_dagster.extraction import Extractor\n"
        "from apex_dagster.records import Document\n"
        "document = Document(document_id='doc', name='note.txt', content=STORY.encode())\n"
        "print(fingerprint(Extractor.default().extract(document)))"
    )
    elsewhere = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    extractor.extract(submit("Viktor Hansen met Nora Quist in Paris."))  # must leave no trace
    here = fingerprint(extractor.extract(submit(STORY)))
    assert here == fingerprint(extractor.extract(submit(STORY)))
    assert here == elsewhere.stdout.strip()


def test_importing_the_package_loads_no_model():
    program = (
        "import sys, apex_dagster.extraction as e; e.Extractor.default(); "
        "print({'spacy', 'onnxruntime', 'kreuzberg', 'tokenizers'} & sys.modules.keys())"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


def test_a_rejected_document_stops_neither_its_neighbours_nor_their_order(
    extractor, submit: Submit
):
    good = replace(submit(STORY), document_id="good")
    outcomes = extractor.extract_many([submit(""), good, submit(b"%PDF-1.4 no", "a.pdf")])
    assert [type(outcome) for outcome in outcomes] == [
        DocumentRejected,
        Extraction,
        DocumentRejected,
    ]
    assert outcomes[1].document_id == "good"


@pytest.mark.parametrize(
    ("limits", "text", "reason"),
    [
        ({"document_bytes_max": 20}, STORY, r"has 177 bytes, more than document_bytes_max = 20"),
        ({"chunks_max": 2, "chunk_tokens": 20}, STORY, r"there are 3, more than chunks_max = 2"),
        ({}, " \n\t \u00a0\n", r"holds 0 letters and digits"),
        ({}, "---- 12 ----", r"holds 2 letters .* text_chars_min = 8"),
    ],
)
def test_a_limit_is_named_with_its_value(limits: dict[str, int], text, reason, submit: Submit):
    with pytest.raises(DocumentRejected, match=reason) as rejection:
        Extractor.default(**limits).extract(submit(text))
    assert rejection.value.document_id == "doc"


def test_another_embedding_dim_is_refused_for_text_but_taken_with_given_vectors(submit: Submit):
    wide = Extractor.default(embedding_dim=3)
    with pytest.raises(
        DocumentRejected, match=r"embedding_dim is 3, but .* APEX_EMBEDDING_DIM=384"
    ):
        wide.extract(submit(STORY))
    fields = {"chunks": [{"text": "a", "embedding": [3, 0, 4]}], "entities": []}
    extraction = wide.extract(submit(json.dumps(fields), "a.json"))
    np.testing.assert_allclose(extraction.embeddings, [[0.6, 0, 0.8]], atol=1e-7)


@dataclass(frozen=True)
class LengthEmbedder:
    """Not a stand-in: a legitimate, if poor, embedder of two floats."""

    model: str = "length"
    dim: int = 2

    def embed_texts(self, texts: Sequence[str]) -> NDArray[np.float32]:
        vectors = np.array([[1.0, len(text)] for text in texts], dtype=np.float32)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit


def test_another_embedder_plugs_in(submit: Submit):
    plugged = replace(Extractor.default(embedding_dim=2), embedder=LengthEmbedder())
    extraction = plugged.extract(submit(STORY))
    assert extraction.embedding_model == "length"
    assert extraction.embeddings.shape == (len(extraction.chunks), 2)


def test_a_spacy_model_that_is_not_installed_is_named(submit: Submit):
    from apex_dagster.errors import InvalidInput

    with pytest.raises(InvalidInput, match=r"'xx_none' is not installed.*APEX_SPACY_MODEL"):
        Extractor.default(spacy_model="xx_none").extract(submit(STORY))


class TestContentHash:
    def test_depends_on_content_type_collection_and_metadata_only(self, submit: Submit):
        document = submit("abc", metadata={"a": 1, "b": [2]})
        same = replace(
            document,
            document_id="other",
            name="b.TXT",
            source_uri="x",
            metadata={"b": [2], "a": 1},
        )
        assert content_hash(document) == content_hash(same)
        changes: list[dict[str, object]] = [
            {"content": b"abd"},
            {"name": "a.md"},
            {"collection": "x"},
            {"metadata": {"a": 1, "b": [3]}},
        ]
        hashes = {content_hash(replace(document, **change)) for change in changes}
        assert len(hashes | {content_hash(document)}) == 5

    def test_parts_do_not_flow_into_each_other(self, submit: Submit):
        one = submit("a", media_type="bc")
        other = submit("ab", media_type="c")
        assert content_hash(one) != content_hash(other)

    @pytest.mark.parametrize("value", [float("nan"), object(), b"x"])
    def test_metadata_that_is_not_json_rejects_the_document(self, value: object, submit: Submit):
        with pytest.raises(DocumentRejected, match=r"metadata: .* not a JSON value"):
            content_hash(submit("a", metadata={"x": value}))


def test_what_no_store_can_hold_is_gone(extractor, submit: Submit):
    text = "Nul\0 and \ud800 surrogate: Viktor Hansen met Nora Quist.".encode(
        "utf-8", "surrogatepass"
    )
    extraction = extractor.extract(submit(text, metadata={"k\0": "v\0"}))
    written = repr(extraction.chunks) + repr(extraction.metadata) + extraction.title
    written.encode("utf-8")
    assert "\\x00" not in written


def test_a_file_name_that_is_not_utf8_gives_a_title_that_is(extractor, submit: Submit):
    extraction = extractor.extract(submit("Some words that say enough.", "b\udcff.txt"))
    assert extraction.title == "b"


def test_a_huge_word_is_cut_into_bounded_chunks(extractor, submit: Submit):
    extraction = extractor.extract(submit("QUJD" * 20_000))
    assert "".join(chunk.text for chunk in extraction.chunks) == "QUJD" * 20_000
    assert max(len(chunk.text) for chunk in extraction.chunks) <= 4_000
