from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apex_dagster.extraction.chunk import SemanticChunker
from apex_dagster.extraction.embed import minilm_tokenizer

TEXTS = st.text(
    st.one_of(st.sampled_from("ab. \n#-|é日🙂"), st.characters(exclude_categories=["Cs"])),
    max_size=2_000,
)


@pytest.mark.parametrize("markdown", [False, True])
@settings(max_examples=50, deadline=None)
@given(text=TEXTS)
def test_chunks_stand_where_they_say_and_fit_the_model(text: str, markdown: bool):
    chunks = SemanticChunker(chunk_tokens=32).split(text, markdown=markdown)
    assert [chunk.ordinal for chunk in chunks] == list(range(len(chunks)))
    covered = 0
    for chunk in chunks:
        assert text[chunk.start : chunk.end] == chunk.text
        assert not text[covered : chunk.start].strip()  # only white space is left out
        assert len(minilm_tokenizer().encode(chunk.text).ids) <= 32
        covered = chunk.end
    assert not text[covered:].strip()


def test_a_setting_above_the_models_limit_is_capped():
    text = "word " * 2_000
    chunks = SemanticChunker(chunk_tokens=100_000).split(text, markdown=False)
    assert max(len(minilm_tokenizer().encode(chunk.text).ids) for chunk in chunks) <= 256
