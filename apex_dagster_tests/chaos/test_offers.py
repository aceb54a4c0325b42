"""The load follows from its seed, and holds some of everything."""

from __future__ import annotations

from collections import Counter

from apex_dagster.chaos.offers import Offer, Offers
from apex_dagster.errors import DocumentRejected
from apex_dagster.extraction.extract import Extractor

DIM = 8


def offers(seed: int, count: int) -> list[Offer]:
    source = Offers(seed=seed, embedding_dim=DIM)
    return [source.next() for _ in range(count)]


def test_one_seed_gives_one_load() -> None:
    assert offers(1, 60) == offers(1, 60)
    assert offers(1, 60) != offers(2, 60)


def test_there_are_new_documents_updates_repeats_and_poison() -> None:
    made = offers(3, 400)
    kinds = Counter(offer.kind for offer in made)
    assert set(kinds) == {"new", "update", "repeat", "poison"}
    assert min(kinds.values()) > 4
    known: dict[str, set[str]] = {}
    for offer in made:
        earlier = known.setdefault(offer.document.document_id, set())
        if offer.kind == "new":
            assert not earlier
        if offer.kind == "update":
            assert earlier
            assert offer.content_hash not in earlier
        if offer.kind == "repeat":
            assert offer.content_hash in earlier
        earlier.add(offer.content_hash)


def test_documents_share_entities() -> None:
    extractor = Extractor.default(embedding_dim=DIM)
    good = [offer for offer in offers(4, 60) if offer.fingerprints]
    mentioned = Counter(
        entity.key for offer in good for entity in extractor.extract(offer.document).entities
    )
    assert sum(count > 3 for count in mentioned.values()) > 5


def test_half_of_the_poison_gets_past_every_check_of_ours() -> None:
    extractor = Extractor.default(embedding_dim=DIM)
    refused = 0
    poison = [offer for offer in offers(5, 500) if offer.kind == "poison"]
    for offer in poison:
        try:
            extractor.extract(offer.document)
        except DocumentRejected:
            refused += 1
    assert 0 < refused < len(poison)
