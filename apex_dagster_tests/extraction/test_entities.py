from __future__ import annotations

import pytest

from apex_dagster.extraction.chunk import SemanticChunker
from apex_dagster.extraction.entities import Reading, SpacyRecogniser
from apex_dagster.records import Entity, entity_key

RECOGNISER = SpacyRecogniser(spacy_model="en_core_web_sm")


def read(text: str) -> Reading:
    return RECOGNISER.recognise(text, SemanticChunker(chunk_tokens=64).split(text, markdown=True))


def entities(text: str) -> dict[str, Entity]:
    return {entity.key: entity for entity in read(text).entities}


def test_short_forms_join_the_full_name():
    found = entities(
        "Elena Marsh met Viktor Hansen in Oldhaven. Marsh praised Hansen."
        " Later Mr. Hansen and Dr. Marsh wrote to Meridian Bank."
    )
    assert found["person:elena marsh"].mentions == 3
    assert found["person:viktor hansen"].aliases == ("Hansen",)
    assert not {"person:marsh", "person:hansen"} & found.keys()


def test_a_surname_that_two_people_share_joins_neither():
    found = entities("Amelia Thornton met Cornelius Thornton. Thornton was angry.")
    assert found["person:amelia thornton"].mentions == 1
    assert found["person:cornelius thornton"].mentions == 1


@pytest.mark.parametrize("written", ["Acme Corp.", "Acme Corp", "Acme Corporation"])
def test_legal_forms_do_not_split_a_company(written: str):
    found = entities(f"Microsoft acquired {written} in May. The board of {written} agreed.")
    assert "organization:acme" in found
    assert found["organization:acme"].aliases


def test_a_name_the_model_passes_over_is_found_by_its_other_mention():
    text = "LinkedIn was founded by Reid Hoffman. Microsoft acquired LinkedIn in 2016."
    assert entities(text)["organization:linkedin"].mentions == 2


def test_a_name_has_one_type_in_a_document():
    text = (
        "Kestrel Bay is cold. She swims in Kestrel Bay. Ask Kestrel Bay. Oldhaven Shipyard hires."
    )
    types = {e.type for e in entities(text).values() if e.name == "Kestrel Bay"}
    assert types == {"place"}


def test_dates_amounts_and_addresses_are_not_entities():
    found = entities(
        "On 3 May 2020 Meridian Bank paid $12 million, see https://bank.example/Report."
    )
    assert set(found) == {"organization:meridian bank"}


def test_headline_capitals_do_not_make_names():
    found = entities(
        "# Brightwater Energy Signs Loan For Tidal Plant\n\n"
        "The loan was signed by Brightwater Energy on Monday."
    )
    assert set(found) == {"organization:brightwater energy"}
    assert found["organization:brightwater energy"].mentions == 2


def test_markdown_marks_do_not_stick_to_names():
    found = entities("We met **Elena Marsh** and [Viktor Hansen](https://a.example/x) in _Berlin_.")
    assert set(found) == {"person:elena marsh", "person:viktor hansen", "place:berlin"}


def test_table_cells_are_read_apart():
    found = entities(
        "| Project | Partner |\n| --- | --- |\n| Survey of Berlin | Alder University |\n"
        "| Light of Paris | Meridian Bank |\n"
    )
    assert {"organization:alder university", "organization:meridian bank"} <= found.keys()
    assert not any("alder university" in key and "berlin" in key for key in found)


def test_mentions_point_to_the_chunks_they_stand_in():
    filler = "The sea was calm and grey that morning, and nobody spoke for a while. " * 8
    text = f"Elena Marsh left.\n\n{filler}\n\nMeridian Bank paid Elena Marsh."
    chunks = SemanticChunker(chunk_tokens=64).split(text, markdown=False)
    for entity in RECOGNISER.recognise(text, chunks).entities:
        holding = [chunk.ordinal for chunk in chunks if entity.name in chunk.text]
        assert list(entity.chunk_ordinals) == holding


def test_spellings_that_share_a_key_are_one_entity():
    found = read("The ﬁrm Oﬀice Depot grew. In Paris, Office Depot hired. Office Depot paid.")
    keys = [entity.key for entity in found.entities]
    assert len(keys) == len(set(keys))


def test_keys_are_those_that_documents_share():
    for entity in read("Elena Marsh works for Meridian Bank in Port Alder.").entities:
        assert entity.key == entity_key(entity.type, entity.name)
