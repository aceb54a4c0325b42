"""Names in queries, under which the graph may know something."""

from __future__ import annotations

import pytest

from apex_dagster.extraction.entities import SpacyRecogniser
from apex_dagster.extraction.query_names import keys_of, longest, names_in


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("Who founded Lantern Biotech?", "lantern biotech"),
        ("who founded lantern biotech", "lantern biotech"),
        ("WHO FOUNDED LANTERN BIOTECH, AND WHY?", "lantern biotech"),
        ("Amelia Thornton's father", "amelia thornton"),
        ("Is the Harbor Trust rich?", "harbor trust"),
        ("shares of Acme Ltd.", "acme"),
        ("“Gull Island”", "gull island"),
        ("the STRASSE in Straße", "strasse"),
        ("what of Dr. Jane Q. Public-Jones Esq", "jane q. public-jones esq"),
    ],
)
def test_a_name_is_read_however_it_is_written(query: str, name: str) -> None:
    assert name in names_in(query, SpacyRecogniser(spacy_model="en_core_web_sm"))


def test_words_that_every_question_has_are_no_names() -> None:
    names = names_in("Who was he, and what is it?", SpacyRecogniser(spacy_model="en_core_web_sm"))
    assert not {"who", "was", "he", "and", "what", "is", "it", ""} & set(names)


def test_keys_are_those_that_entities_are_stored_under() -> None:
    keys = keys_of(["acme"])
    assert {"organization:acme", "person:acme", "thing:acme"} <= set(keys)
    assert set(keys.values()) == {"acme"}


def test_a_part_of_another_name_is_left_to_it() -> None:
    assert longest({"port alder", "alder", "port", "alderney"}) == {"port alder", "alderney"}
