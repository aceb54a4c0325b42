from __future__ import annotations

import hashlib

import numpy as np
import pytest

from apex_dagster.errors import InvalidInput
from apex_dagster.extraction.embed import MODEL_FOLDER, MiniLmEmbedder

EMBEDDER = MiniLmEmbedder()


def test_similarities_are_those_the_model_is_published_with():
    """The three sentences of the sentence-transformers documentation; int8 is off by up to .03."""
    a, b, c = EMBEDDER.embed_texts(
        [
            "The weather is lovely today.",
            "It's so sunny outside!",
            "He drove to the stadium.",
        ]
    )
    assert [a @ b, a @ c, b @ c] == pytest.approx([0.6660, 0.1046, 0.1411], abs=0.03)


def test_a_text_has_the_same_bytes_in_any_company():
    texts = ["Elena Marsh found the wreck.", "x", "Meridian Bank lent the money. " * 20]
    together = EMBEDDER.embed_texts(texts)
    alone = np.concatenate([EMBEDDER.embed_texts([text]) for text in texts])
    assert together.tobytes() == alone.tobytes()


def test_no_texts_give_no_rows():
    assert EMBEDDER.embed_texts([]).shape == (0, 384)


def test_a_long_text_is_refused_rather_than_cut():
    with pytest.raises(InvalidInput, match=r"602 tokens is too long .* reads 256"):
        EMBEDDER.embed_texts(["word " * 600])


@pytest.mark.parametrize("name", ["all-MiniLM-L6-v2-int8.onnx", "tokenizer.json"])
def test_the_shipped_files_are_those_the_readme_vouches_for(name: str):
    digest = hashlib.sha256((MODEL_FOLDER / name).read_bytes()).hexdigest()
    assert digest in (MODEL_FOLDER / "README.md").read_text()
