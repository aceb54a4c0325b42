"""Entities and grammar → relations: a walk over each sentence's dependency tree.

Reads subject-verb-object with passive agents and prepositions, clauses that hang on a noun ("Acme,
which bought Borealis"; "a ship built by Acme"), conjunctions, and roles ("Jane Doe, director of
Acme"; "Acme's director Jane Doe"). What is negated is not said, so it gives no relation.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

from apex_dagster.extraction.entities import Reading
from apex_dagster.records import Chunk, Relation

if TYPE_CHECKING:
    from spacy.tokens import Doc, Token

# npadvmod: what the small model calls the object of "visited Berlin"; dates are no entities.
OBJECTS = frozenset({"dobj", "attr", "dative", "oprd", "npadvmod"})
SUBJECTS = frozenset({"nsubj", "nsubjpass"})
RELATIVE_PRONOUNS = frozenset({"who", "which", "that", "whom"})
# Verbs that only open another verb: "began to build" says BUILD, but "refused to build" does not.
PHASE_VERBS = frozenset(["begin", "start", "continue", "go", "come", "help", "manage"])
SENTENCE_CHARS_MAX = 500
HOPS_MAX = 8  # verbs climbed from one to the next; a list of verbs can chain thousands
PREDICATE_CHARS_MAX = 100


class RelationFinder(Protocol):
    """Finds what a document says between its own entities."""

    def find(self, reading: Reading, chunks: Sequence[Chunk]) -> tuple[Relation, ...]:
        """Relations in the order in which they are first said; none twice, none to itself."""
        ...


class GrammarRelationFinder:
    """The default. A reading without passages, from another recogniser, gives no relations."""

    def find(self, reading: Reading, chunks: Sequence[Chunk]) -> tuple[Relation, ...]:
        found: dict[tuple[str, str, str], Relation] = {}
        keys_in: dict[int, dict[int, str]] = {}  # by passage: token, key
        for mention in reading.mentions:
            tokens = range(mention.first, mention.last + 1)
            keys_in.setdefault(mention.passage, {}).update(dict.fromkeys(tokens, mention.key))
        starts = [chunk.start for chunk in chunks]
        for number, keys in sorted(keys_in.items()):
            passage = reading.passages[number]
            if len(set(keys.values())) < 2:
                continue
            for fact in Walk(doc=passage.doc, keys=keys).facts():
                ordinal = bisect_right(starts, passage.offsets[fact.token.idx]) - 1
                add(found, fact, None if ordinal < 0 else ordinal)
        return tuple(found.values())


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fact:
    """One statement: keys of two entities, the predicate, and the token it hangs on."""

    source: str
    type: str
    target: str
    token: Token


def add(found: dict[tuple[str, str, str], Relation], fact: Fact, chunk_ordinal: int | None) -> None:
    identity = (fact.source, fact.type, fact.target)
    if identity in found:
        found[identity] = replace(found[identity], weight=found[identity].weight + 1.0)
        return
    found[identity] = Relation(
        source_key=fact.source,
        target_key=fact.target,
        type=fact.type,
        description=fact.token.sent.text.strip()[:SENTENCE_CHARS_MAX],
        chunk_ordinal=chunk_ordinal,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class Walk:
    """One parsed passage; `keys` tells which tokens name an entity."""

    doc: Doc
    keys: dict[int, str]

    def facts(self) -> Iterator[Fact]:
        for token in self.doc:
            if token.pos_ in ("VERB", "AUX"):
                yield from self.clause(token)
            elif token.i in self.keys or token.dep_ == "appos":
                yield from self.roles(token)

    def clause(self, verb: Token) -> Iterator[Fact]:
        """What the clause around `verb` says."""
        if negated(verb):
            return
        passive = is_passive(verb)
        for subject in self.named(subjects(verb)):
            for predicate, target in self.complements(verb, passive=passive):
                yield from self.fact(subject, predicate, target, verb)
        if passive:
            for patient in self.named(subjects(verb)):
                for agent in self.named(agents(verb)):
                    yield from self.fact(agent, phrase(verb), patient, verb)
        elif verb.dep_ == "relcl":  # "Borealis, which Acme bought"
            for subject in self.named(subjects(verb)):
                for target in self.named(relative_objects(verb)):
                    yield from self.fact(subject, phrase(verb), target, verb)

    def complements(self, verb: Token, *, passive: bool) -> Iterator[tuple[str, str]]:
        """Predicates and keys of what the verb's subject is said to do, be or go to."""
        base = phrase(verb)
        for child in verb.children:
            if child.dep_ in OBJECTS:
                if not (child.dep_ == "attr" or passive):
                    yield from ((base, key) for key in self.named(conjuncts(child)))
                # "holds a stake in Acme"; after "is", the noun alone says it: "is director of"
                lead = "" if verb.lemma_ == "be" else f"{base} "
                for noun in conjuncts(child):
                    if noun.i not in self.keys:
                        yield from self.prepositional(noun, f"{lead}{noun.lemma_}")
            elif child.dep_ == "prep":
                yield from self.prepositional(verb, base, only=child)

    def prepositional(
        self, head: Token, base: str, only: Token | None = None
    ) -> Iterator[tuple[str, str]]:
        for prep in head.children:
            if prep.dep_ != "prep" or (only is not None and prep.i != only.i):
                continue
            for child in prep.children:
                if child.dep_ == "pobj":
                    for key in self.named(conjuncts(child)):
                        yield f"{base} {prep.lemma_}", key

    def roles(self, token: Token) -> Iterator[Fact]:
        """ "Jane Doe, director of Acme", "Acme's director Jane Doe", "Acme director Jane Doe"."""
        person = token.head if token.dep_ == "appos" else token
        noun = token
        if token.dep_ == "appos" and token.i in self.keys and token.head.i not in self.keys:
            person, noun = token, token.head  # "Acme's director, Jane Doe"
        for holder in self.named([person]):
            if noun.i not in self.keys and noun is not person:
                for predicate, target in self.prepositional(noun, noun.lemma_):
                    yield from self.fact(holder, predicate, target, noun)
                for owner in self.owners(noun):
                    yield from self.fact(holder, f"{noun.lemma_} of", owner, noun)
            elif noun is person:
                yield from self.titled(holder, noun)
                if noun.ent_type_ == "PERSON":  # "Jane Doe of Acme"
                    for predicate, target in self.prepositional(noun, ""):
                        yield from self.fact(holder, predicate, target, noun)

    def titled(self, holder: str, name: Token) -> Iterator[Fact]:
        titles = [c for c in name.children if c.dep_ == "compound" and c.pos_ == "NOUN"]
        if not titles or titles[0].i in self.keys:
            return
        for owner in [*self.owners(name), *self.owners(titles[-1])]:
            yield from self.fact(holder, f"{titles[-1].lemma_} of", owner, name)

    def owners(self, noun: Token) -> Iterator[str]:
        yield from self.named(c for c in noun.children if c.dep_ in ("poss", "compound", "nmod"))

    def fact(self, source: str, predicate: str, target: str, token: Token) -> Iterator[Fact]:
        relation_type = upper_snake(predicate)
        if source != target and 0 < len(relation_type) <= PREDICATE_CHARS_MAX:
            yield Fact(source=source, type=relation_type, target=target, token=token)

    def named(self, tokens: Sequence[Token] | Iterator[Token]) -> Iterator[str]:
        """The entities that `tokens` name; a common noun ("the yard, Acme") by its apposition."""
        seen: set[str] = set()
        for token in tokens:
            names = [token] if token.i in self.keys else appositions(token)
            for key in (self.keys[name.i] for name in names if name.i in self.keys):
                if key not in seen:
                    seen.add(key)
                    yield key


def subjects(verb: Token, hops: int = HOPS_MAX) -> list[Token]:
    """The verb's own subject, or the one it takes over from the clause it hangs on."""
    own = [c for c in verb.children if c.dep_ in SUBJECTS]
    if verb.dep_ == "relcl" and (not own or own[0].lower_ in RELATIVE_PRONOUNS):
        return conjuncts(verb.head) if own else []
    if own:
        return [token for subject in own for token in conjuncts(subject)]
    if verb.dep_ == "acl":  # "a ship built by Acme", "a company building ships"
        return [verb.head]
    if hops and verb.dep_ in ("conj", "xcomp", "advcl") and verb.head.pos_ in ("VERB", "AUX"):
        return subjects(verb.head, hops - 1)
    return []


def relative_objects(verb: Token) -> list[Token]:
    """The noun a relative clause hangs on, if the clause leaves its object open."""
    subject = [c for c in verb.children if c.dep_ in SUBJECTS]
    closed = any(c.dep_ in OBJECTS and c.lower_ not in RELATIVE_PRONOUNS for c in verb.children)
    if not subject or subject[0].lower_ in RELATIVE_PRONOUNS or closed:
        return []
    return [verb.head]


def agents(verb: Token) -> list[Token]:
    return [
        token
        for by in verb.children
        if by.dep_ == "agent"
        for child in by.children
        if child.dep_ == "pobj"
        for token in conjuncts(child)
    ]


def conjuncts(token: Token) -> list[Token]:
    """The token and what is joined to it by "and"; not by "but not"."""
    joined = [t for t in token.conjuncts if t.i > token.i and t.pos_ not in ("VERB", "AUX")]
    return [token, *(t for t in joined if not any(c.dep_ == "neg" for c in t.children))]


def appositions(token: Token) -> list[Token]:
    return [c for c in token.children if c.dep_ == "appos"]


def is_passive(verb: Token) -> bool:
    marked = any(c.dep_ in ("nsubjpass", "auxpass", "agent") for c in verb.children)
    return marked or (verb.dep_ == "acl" and verb.tag_ == "VBN")


def negated(verb: Token, hops: int = HOPS_MAX) -> bool:
    """Whether this verb, or one that opens it ("did not agree to sell"), is denied."""
    if any(c.dep_ == "neg" or c.lower_ in ("never", "no") for c in verb.children):
        return True
    opened = verb.dep_ == "xcomp" and verb.head.pos_ == "VERB"
    return opened and hops > 0 and negated(verb.head, hops - 1)


def phrase(verb: Token, hops: int = HOPS_MAX) -> str:
    """The verb's lemma with its particle, after the verb that opens it: "agree to take over"."""
    particles = [c.lemma_ for c in verb.children if c.dep_ == "prt"]
    words = " ".join([verb.lemma_, *particles])
    opener = verb.head
    opened = verb.dep_ == "xcomp" and opener.pos_ == "VERB"
    if hops and opened and opener.lemma_ not in PHASE_VERBS:
        return f"{phrase(opener, hops - 1)} to {words}"
    return words


def upper_snake(predicate: str) -> str:
    """ "agree to acquire" → "AGREE_TO_ACQUIRE"; empty if no letter is left."""
    return re.sub(r"\W+", "_", predicate).strip("_").upper()
