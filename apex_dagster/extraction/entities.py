"""Text → the entities it names: spaCy's names, merged over spellings, short forms and types."""

from __future__ import annotations

import itertools
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from apex_dagster.extraction.names import (
    TYPES,
    clean,
    is_name,
    settled_type,
    without_legal_form,
)
from apex_dagster.extraction.passages import Passage, read_passages
from apex_dagster.records import Chunk, Entity, entity_key

if TYPE_CHECKING:
    from spacy.tokens import Span

Words = tuple[str, ...]  # of a name, case folded
DESCRIPTION_CHARS_MAX = 300


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Reading:
    """What a recogniser saw in one document."""

    entities: tuple[Entity, ...]  # in the order of their first mention, unique by key
    passages: tuple[Passage, ...] = ()  # the grammar, for a relation finder that works on it
    mentions: tuple[Mention, ...] = ()  # in the order of the text, one passage after another


@dataclass(frozen=True, slots=True, kw_only=True)
class Mention:
    """A name in a passage: tokens first..last of passages[passage].doc."""

    passage: int
    first: int
    last: int
    key: str  # of the entity it names


class EntityRecogniser(Protocol):
    """Finds named things."""

    def recognise(self, text: str, chunks: Sequence[Chunk]) -> Reading: ...


class SpacyRecogniser:
    """The default: named entities of a spaCy pipeline."""

    def __init__(self, *, spacy_model: str) -> None:
        self.spacy_model = spacy_model

    def recognise(self, text: str, chunks: Sequence[Chunk]) -> Reading:
        passages = read_passages(text, spacy_model=self.spacy_model)
        seen = list(find_names(passages))
        groups = merge([*seen, *find_repeats(passages, seen)])
        starts = [chunk.start for chunk in chunks]
        entities: list[Entity] = []
        mentions: list[Mention] = []
        for group in groups:
            entity = group.entity(starts)
            entities.append(entity)
            mentions.extend(name.mention(entity.key) for name in group.names)
        mentions.sort(key=lambda mention: (mention.passage, mention.first))
        return Reading(entities=tuple(entities), passages=tuple(passages), mentions=tuple(mentions))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Name:
    """A name as it stands in the text."""

    text: str  # cleaned: without article, title, possessive
    written: str  # with its legal form
    type: str
    settled: bool  # whether the type is beyond doubt
    passage: int
    span: Span
    start: int  # in the document's text, in characters

    @property
    def words(self) -> Words:
        return tuple(entity_key("", self.text).removeprefix(":").split())

    def mention(self, key: str) -> Mention:
        return Mention(passage=self.passage, first=self.span.start, last=self.span.end - 1, key=key)


@dataclass(kw_only=True)
class Group:
    """Names of one and the same thing."""

    words: Words  # of the fullest name
    type: str
    names: list[Name]

    def entity(self, chunk_starts: Sequence[int]) -> Entity:
        name = next(n.text for n in self.names if n.words == self.words)
        written = dict.fromkeys(form for n in self.names for form in (n.text, n.written))
        ordinals = {bisect_right(chunk_starts, n.start) - 1 for n in self.names}
        return Entity(
            key=entity_key(self.type, name),
            type=self.type,
            name=name,
            description=self.names[0].span.sent.text.strip()[:DESCRIPTION_CHARS_MAX],
            aliases=tuple(form for form in written if form != name),
            chunk_ordinals=tuple(sorted(ordinal for ordinal in ordinals if ordinal >= 0)),
            mentions=len(self.names),
        )


def find_names(passages: Sequence[Passage]) -> Iterator[Name]:
    for number, passage in enumerate(passages):
        for span in passage.doc.ents if not passage.is_headline else ():
            if span.label_ in TYPES:
                yield from read_name(passage, number, span, TYPES[span.label_])


def find_repeats(passages: Sequence[Passage], seen: Sequence[Name]) -> Iterator[Name]:
    """Names, and surnames, found elsewhere in the document, where the model passed over them."""
    known: dict[str, dict[str, str]] = {}  # by first word: name, type
    for name in seen:
        surname = [name.text.split()[-1]] if name.type == "person" else []
        for text in (name.text, *surname):
            known.setdefault(first_word(text), {}).setdefault(text, name.type)
    for number, passage in enumerate(passages):
        doc = passage.doc
        read = doc.ents if not passage.is_headline else ()
        taken = {token.i for span in read for token in span}
        for token in doc:
            if token.i in taken or token.pos_ != "PROPN":
                continue
            for text in sorted(known.get(first_word(token.text), ()), key=len, reverse=True):
                span = doc.char_span(token.idx, token.idx + len(text))
                if span is None or span.text != text or any(t.i in taken for t in span):
                    continue
                taken.update(t.i for t in span)
                yield from read_name(passage, number, span, known[first_word(text)][text])
                break


def first_word(text: str) -> str:
    return re.split(r"\W", text, maxsplit=1)[0]


def read_name(passage: Passage, number: int, span: Span, entity_type: str) -> Iterator[Name]:
    written = clean(span.text)
    text = without_legal_form(written)
    if is_name(text):
        settled = settled_type(text)
        yield Name(
            text=text,
            written=written,
            type=settled or entity_type,
            settled=settled is not None,
            passage=number,
            span=span,
            start=passage.offsets[span.start_char],
        )


def merge(names: Sequence[Name]) -> list[Group]:
    """Group the names of one document, in the order in which the groups first appear.

    The small model often gives one name several types, so a name has its most frequent type.
    """
    by_words: dict[Words, list[Name]] = {}
    for name in names:
        by_words.setdefault(name.words, []).append(name)
    groups = {
        words: Group(words=words, type=likely_type(same), names=same)
        for words, same in by_words.items()
    }
    longer_names: dict[str, list[Words]] = {}  # by first word, last word and initials
    for words in groups:
        for part in {words[0], words[-1], initials(words)} if len(words) > 1 else ():
            longer_names.setdefault(part, []).append(words)
    for words in sorted(groups, key=lambda words: (len(words), words)):
        if (full := full_name(words, groups, longer_names)) is not None:
            short = groups.pop(words)
            groups[full].names += short.names
            if short.type == "person":
                groups[full].type = "person"
    for group in groups.values():
        group.names.sort(key=lambda name: name.start)
    return sorted(groups.values(), key=lambda group: group.names[0].start)


def likely_type(names: Sequence[Name]) -> str:
    settled = [name.type for name in names if name.settled]
    return Counter(settled or [name.type for name in names]).most_common(1)[0][0]


def full_name(
    words: Words, groups: Mapping[Words, Group], longer_names: Mapping[str, Sequence[Words]]
) -> Words | None:
    """The one longer name in the document that `words` is short for; None if none or several."""
    possible = {*longer_names.get(words[0], ()), *longer_names.get(words[-1], ())}
    candidates = sorted(
        (
            longer
            for longer in possible
            if len(longer) > len(words) and is_short_for(groups[words], groups[longer])
        ),
        key=lambda longer: (len(longer), longer),
    )
    # "Acme" may stand for "Acme Oil" if the only other candidate is "Acme Oil Norway".
    nested = all(
        is_short_for(groups[shorter], groups[longer])
        for shorter, longer in itertools.pairwise(candidates)
    )
    return candidates[0] if candidates and nested else None


def is_short_for(short: Group, full: Group) -> bool:
    words, longer = short.words, full.words
    if full.type == "person":  # a surname, whatever the model takes it for; or a first name
        return longer[-len(words) :] == words or (short.type, words) == ("person", longer[:1])
    if short.type == "person":  # "Dr. Marsh" tells that "Elena Marsh" is no company
        settled = any(name.settled for name in full.names)
        return not settled and longer[-1:] == words and full.type == "organization"
    if full.type != short.type:
        return False
    if full.type == "organization":
        acronym = short.names[0].text.isupper() and words == (initials(longer),)
        return longer[: len(words)] == words or acronym
    return full.type != "place" and longer[-len(words) :] == words


def initials(words: Words) -> str:
    return "".join(word[0] for word in words if word not in {"of", "the", "for", "and", "in", "&"})
