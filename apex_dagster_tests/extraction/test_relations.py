from __future__ import annotations

import pytest

from apex_dagster.extraction.chunk import SemanticChunker
from apex_dagster.extraction.entities import Reading, SpacyRecogniser
from apex_dagster.extraction.relations import GrammarRelationFinder, upper_snake
from apex_dagster.records import Relation

RECOGNISER = SpacyRecogniser(spacy_model="en_core_web_sm")


def relations(text: str) -> tuple[Relation, ...]:
    chunks = SemanticChunker(chunk_tokens=64).split(text, markdown=False)
    return GrammarRelationFinder().find(RECOGNISER.recognise(text, chunks), chunks)


def said(text: str) -> set[tuple[str, str, str]]:
    def name(key: str) -> str:
        return key.split(":")[1]

    return {(name(r.source_key), r.type, name(r.target_key)) for r in relations(text)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Microsoft acquired LinkedIn.", {("microsoft", "ACQUIRE", "linkedin")}),
        (
            "Meridian Bank was bought by Northgate Insurance.",
            {("northgate insurance", "BUY", "meridian bank")},
        ),
        ("Tim Cook works for Apple.", {("tim cook", "WORK_FOR", "apple")}),
        (
            "Boeing, which bought McDonnell Douglas, hired Elena Marsh.",
            {("boeing", "BUY", "mcdonnell douglas"), ("boeing", "HIRE", "elena marsh")},
        ),
        (
            "Viktor Hansen and Nora Quist met Elena Marsh.",
            {("viktor hansen", "MEET", "elena marsh"), ("nora quist", "MEET", "elena marsh")},
        ),
        (
            "Satya Nadella, chairman of Microsoft, visited Berlin.",
            {("satya nadella", "CHAIRMAN_OF", "microsoft"), ("satya nadella", "VISIT", "berlin")},
        ),
        (
            "Google's chairman Eric Schmidt met Angela Merkel.",
            {("eric schmidt", "CHAIRMAN_OF", "google"), ("eric schmidt", "MEET", "angela merkel")},
        ),
        ("Siemens agreed to buy Airbus.", {("siemens", "AGREE_TO_BUY", "airbus")}),
        (
            "Boeing signed an agreement with Airbus.",
            {("boeing", "SIGN_AGREEMENT_WITH", "airbus")},
        ),
        ("Apple is a competitor of Samsung.", {("apple", "COMPETITOR_OF", "samsung")}),
        ("Toyota did not acquire Honda.", set()),
        ("Toyota never bought Honda.", set()),
        ("Siemens did not agree to buy Airbus.", set()),
    ],
)
def test_what_a_sentence_says(text: str, expected: set[tuple[str, str, str]]):
    assert said(text) == expected


def test_weight_counts_how_often_it_is_said():
    (relation,) = relations("Microsoft acquired LinkedIn. In 2016, Microsoft acquired LinkedIn.")
    assert relation.weight == 2
    assert relation.description == "Microsoft acquired LinkedIn."


def test_a_relation_points_to_its_chunk():
    filler = "The sea was calm and grey that morning, and nobody spoke for a while. " * 12
    (relation,) = relations(f"{filler}\n\nMicrosoft acquired LinkedIn.")
    assert relation.chunk_ordinal == 3


@pytest.mark.parametrize(
    "text",
    [
        "Elena Marsh " + ", ".join(["visited Berlin"] * 1500) + ".",
        "Elena Marsh wanted " + "to want " * 1500 + "to see Berlin.",
        "Elena Marsh met " + " and ".join(["Viktor Hansen"] * 1500) + ".",
    ],
)
def test_endless_sentences_are_read_all_the_same(text: str):
    assert all(len(relation.type) <= 100 for relation in relations(text))


def test_a_recogniser_without_grammar_gives_no_relations():
    assert GrammarRelationFinder().find(Reading(entities=()), []) == ()


def test_relation_types_are_upper_snake_case():
    assert upper_snake("agree to take-over") == "AGREE_TO_TAKE_OVER"
    assert upper_snake(" -- ") == ""
