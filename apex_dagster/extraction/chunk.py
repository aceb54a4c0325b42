"""Text → chunks: the largest runs of paragraphs or sentences that the embedding model can read."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any, Protocol

from apex_dagster.extraction.embed import TOKENS_MAX, minilm_tokenizer
from apex_dagster.records import Chunk

SPECIAL_TOKENS = 2  # [CLS] and [SEP], which the model adds to each text and the splitter omits
CHARS_MAX = 4_000  # prose of 200 tokens has about 900


class Chunker(Protocol):
    """Splits text into retrievable spans."""

    def split(self, text: str, *, markdown: bool) -> list[Chunk]:
        """Chunks in the order of the text, numbered from 0; text[start:end] == chunk.text.

        Nothing but white space lies between two chunks. Blank text gives no chunks.
        """
        ...


class SemanticChunker:
    """The default: at most `chunk_tokens` of the model's tokens to a chunk, special ones included.

    Tokens and not characters: 3 ms a document, and no text is ever longer than the model reads.
    """

    def __init__(self, *, chunk_tokens: int) -> None:
        self.chunk_tokens = min(chunk_tokens, TOKENS_MAX)

    def split(self, text: str, *, markdown: bool) -> list[Chunk]:
        splitter = minilm_splitter(self.chunk_tokens - SPECIAL_TOKENS, markdown)
        return [
            Chunk(ordinal=ordinal, text=piece, start=start, end=start + len(piece))
            for ordinal, (start, piece) in enumerate(bounded_pieces(splitter, text))
        ]


def bounded_pieces(splitter: Any, text: str) -> Iterator[tuple[int, str]]:
    """Start and text of each piece. A word of over 100 characters (base64, a data URL) is a single
    token to the model whatever its length, so long pieces are cut by characters as well."""
    for start, piece in splitter.chunk_indices(text):
        if len(piece) <= CHARS_MAX:
            yield start, piece
            continue
        for cut in range(0, len(piece), CHARS_MAX):
            for offset, part in splitter.chunk_indices(piece[cut : cut + CHARS_MAX]):
                yield start + cut + offset, part


@functools.cache
def minilm_splitter(capacity: int, markdown: bool) -> Any:
    from semantic_text_splitter import MarkdownSplitter, TextSplitter

    kind = MarkdownSplitter if markdown else TextSplitter
    return kind.from_huggingface_tokenizer(minilm_tokenizer(), capacity)
