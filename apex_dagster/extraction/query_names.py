"""Query → the names in it under which entities may be known.

Questions are short and often lower case, which a recogniser of names in prose reads badly. So its
names are taken, and with them every run of a few words: what of them names an entity, the graph
knows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence

from apex_dagster.extraction.entities import EntityRecogniser
from apex_dagster.extraction.names import TYPES, clean, without_legal_form
from apex_dagster.records import Chunk, entity_key

WORDS_MAX = 6  # in a name
# "thing" is the type of entities that came with a document that did not state one.
ENTITY_TYPES = (*sorted(set(TYPES.values())), "thing")


def names_in(query: str, recogniser: EntityRecogniser) -> list[str]:
    """Normalised forms, each once: those that the recogniser reads first.

    Raises InvalidInput when the recogniser's model is not installed.
    """
    whole = Chunk(ordinal=0, text=query, start=0, end=len(query))
    entities = recogniser.recognise(query, [whole]).entities
    read = [form for entity in entities for form in (entity.name, *entity.aliases)]
    forms = map(normalised, (*read, *runs(query.split())))
    return [form for form in dict.fromkeys(forms) if form and form not in stop_words()]


def keys_of(names: Iterable[str]) -> dict[str, str]:
    """The keys that an entity of one of these names may have: key → name."""
    return {entity_key(kind, name): name for name in names for kind in ENTITY_TYPES}


def longest(names: Iterable[str]) -> set[str]:
    """Those that are no part of another: "port alder", and not "alder"."""
    padded = [f" {name} " for name in names]
    return {a.strip() for a in padded if not any(a != b and a in b for b in padded)}


def runs(words: Sequence[str]) -> Iterator[str]:
    """Every run of up to WORDS_MAX words."""
    for start in range(len(words)):
        for end in range(start + 1, min(start + WORDS_MAX, len(words)) + 1):
            yield " ".join(words[start:end])


def normalised(form: str) -> str:
    """As the part of an entity's key after its type.

    >>> normalised("the Harbor Trust's")
    'harbor trust'
    """
    return entity_key("", without_legal_form(clean(form))).removeprefix(":")


@functools.cache
def stop_words() -> frozenset[str]:
    """Words too common to be a name by themselves."""
    from spacy.lang.en.stop_words import STOP_WORDS

    return frozenset(STOP_WORDS)
