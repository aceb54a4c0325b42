"""Search: what it finds, what it must not find, and what it does when a store is down."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from apex_dagster.composition import Application
from apex_dagster.embedded import ports
from apex_dagster.errors import InvalidInput, StoreUnavailable
from apex_dagster.ingestion import ranking
from apex_dagster.ingestion.ingest import Submission
from apex_dagster.ingestion.search import RANKERS, Found, Search
from apex_dagster.saga.failpoints import SimulatedCrash, armed
from apex_dagster.settings import Endpoints
from apex_dagster.stores import postgres_search
from apex_dagster.stores.searching import SearchFilter
from apex_dagster_tests.applications import BuildApplication
from apex_dagster_tests.conftest import PrivateServerFactory
from apex_dagster_tests.documents import submission
from apex_dagster_tests.ingestion.searchable import ingest, text_of
from apex_dagster_tests.servers import FIELDS

STORM = "A gale tore the roof off the lighthouse during the night."
BAKERY = "The bakery sells bread with caraway on Fridays."


def find(app: Application, query: str, *rankers: str, k: int = 10, **wanted: Any) -> Found:
    search = Search(query=query, k=k, wanted=SearchFilter(**wanted), rankers=rankers or RANKERS)
    found = app.searcher.search(search)
    assert found.degraded == {}
    return found


def ids(found: Found) -> list[str]:
    return [hit.ref.document_id for hit in found.hits]


# -- what it finds -----------------------------------------------------------------------------


def test_a_hit_tells_which_chunk_of_which_version_and_what_stands_in_it(
    app: Application, unique: str
) -> None:
    [saga] = ingest(
        app, text_of(unique, BAKERY, STORM, title="Notes", collection="town", metadata={"page": 7})
    )
    [hit, *_] = find(app, "caraway bread").hits
    assert (hit.ref, hit.ordinal) == (saga.ref, 0)
    assert (hit.chunk.text, hit.chunk.title, hit.chunk.collection) == (BAKERY, "Notes", "town")
    assert hit.chunk.metadata["page"] == 7
    assert hit.chunk.end - hit.chunk.start == len(BAKERY)
    [hit, *_] = find(app, "caraway bread", k=1).hits
    assert hit.ordinal == 0
    [hit, *_] = find(app, "gale").hits
    assert hit.ordinal == 1


def test_each_ranker_finds_what_is_its_own(app: Application, unique: str) -> None:
    who = f"Quillon {unique}"
    ingest(
        app,
        text_of(f"{unique}-storm", STORM),
        text_of(f"{unique}-bakery", BAKERY),
        text_of(f"{unique}-named", "He came in spring.", entities=[person(who)]),
    )
    assert ids(find(app, "caraway", "text")) == [f"{unique}-bakery"]
    vector = find(app, "bad weather damaged a tower at sea", "vector")
    assert ids(vector)[0] == f"{unique}-storm"
    assert find(app, "bad weather damaged a tower at sea", "text").hits == ()
    assert ids(find(app, f"who is quillon {unique}?", "graph")) == [f"{unique}-named"]
    assert find(app, "who is nobody at all?", "graph").hits == ()


def test_a_score_is_the_sum_of_what_the_rankers_add(app: Application, unique: str) -> None:
    who = f"Quillon {unique}"
    ingest(
        app,
        text_of(unique, f"{who} bakes bread.", entities=[person(who)]),
        text_of(f"{unique}-2", BAKERY),
    )
    found = find(app, f"the bread of {who}")
    assert set(found.rankers) == set(RANKERS)
    first, second = found.hits
    assert first.ref.document_id == unique
    assert set(first.shares) == set(RANKERS)
    for hit in found.hits:
        assert hit.score == pytest.approx(sum(share.rrf for share in hit.shares.values()))
        assert all(share.rrf == 1 / (60 + share.rank) for share in hit.shares.values())
    assert first.score == pytest.approx(3 / 61)
    assert first.score > second.score
    assert [share.rank for share in second.shares.values()] == [2]
    for name, outcome in found.rankers.items():
        assert outcome.reason is None
        assert outcome.took_ms > 0
        assert len(outcome.candidates) == (1 if name == "graph" else 2)


def test_the_graph_finds_who_is_related_and_prefers_who_is_named(
    app: Application, unique: str
) -> None:
    """Named, then a chunk that relates it, then one that mentions only what it is related to."""
    ada, bo = person(f"Ada {unique}"), person(f"Bo {unique}")
    knows = [{"source": ada["name"], "target": bo["name"], "type": "KNOWS"}]
    ingest(
        app,
        text_of(f"{unique}-far", f"{bo['name']} sleeps.", entities=[bo]),
        text_of(f"{unique}-near", f"{ada['name']} sleeps.", entities=[ada]),
        text_of(
            f"{unique}-both",
            f"{ada['name']} knows {bo['name']}.",
            entities=[ada, bo],
            relations=knows,
        ),
        text_of(f"{unique}-none", "Nobody sleeps."),
    )
    order = [f"{unique}-both", f"{unique}-near", f"{unique}-far"]
    assert ids(find(app, f"What about Ada {unique}?", "graph")) == order


def test_who_relates_two_is_before_who_mentions_both(app: Application, unique: str) -> None:
    ada, bo = person(f"Ada {unique}"), person(f"Bo {unique}")
    knows = [{"source": ada["name"], "target": bo["name"], "type": "KNOWS"}]
    said = f"{ada['name']} and {bo['name']}."
    ingest(
        app,
        text_of(f"{unique}-a", said, entities=[ada, bo]),
        text_of(f"{unique}-b", said, entities=[ada, bo], relations=knows),
    )
    assert ids(find(app, f"Ada {unique}", "graph")) == [f"{unique}-b", f"{unique}-a"]


def test_of_names_within_names_the_longest_counts(app: Application, unique: str) -> None:
    short, long = f"Alder {unique}", f"Port Alder {unique}"
    ingest(
        app,
        text_of(f"{unique}-short", "A tree.", entities=[person(short)]),
        text_of(f"{unique}-long", "A harbour.", entities=[person(long)]),
    )
    assert ids(find(app, f"the mayor of Port Alder {unique}", "graph")) == [f"{unique}-long"]
    assert ids(find(app, f"the mayor of Alder {unique}", "graph")) == [f"{unique}-short"]


def test_a_relation_counts_only_while_what_says_so_is_live(app: Application, unique: str) -> None:
    ada, bo = person(f"Ada {unique}"), person(f"Bo {unique}")
    knows = [{"source": ada["name"], "target": bo["name"], "type": "KNOWS"}]
    both = {"entities": [ada, bo], "relations": knows}
    ingest(app, text_of(f"{unique}-far", f"{bo['name']} sleeps.", entities=[bo]))
    with armed("staged=raise"), pytest.raises(SimulatedCrash):
        ingest(app, text_of(f"{unique}-both", "They know each other.", **both))
    assert find(app, f"Ada {unique}", "graph").hits == ()
    ingest(app, text_of(f"{unique}-again", "They know each other.", **both))
    assert f"{unique}-far" in ids(find(app, f"Ada {unique}", "graph"))


def test_rare_words_count_more_than_frequent_ones(app: Application, unique: str) -> None:
    """By ts_rank alone the one that says "harbour" again and again would be first."""
    often = "The harbour. A harbour, the harbour of harbours, and once more the harbour."
    ingest(
        app,
        *(text_of(f"{unique}-{n}", f"{often} Number {n}.") for n in range(5)),
        text_of(f"{unique}-rare", "A zeppelin landed."),
    )
    assert ids(find(app, "the zeppelin in the harbour", "text"))[0] == f"{unique}-rare"


def test_chunks_are_found_by_the_rarest_words_where_there_would_be_too_many(
    app: Application, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest(
        app,
        *(text_of(f"{unique}-{n}", f"The harbour, day {n}.") for n in range(5)),
        text_of(f"{unique}-rare", "A zeppelin over the harbour."),
        text_of(f"{unique}-rarer", "A zeppelin, and a kite."),
    )
    words = " ".join(f"absent{n}" for n in range(postgres_search.TERMS_MAX))
    assert len(find(app, f"harbour {words}", "text").hits) == 6
    monkeypatch.setattr(postgres_search, "SCANNED_CHUNKS_MAX", 3)
    assert ids(find(app, "harbour kite zeppelin", "text")) == [f"{unique}-rarer", f"{unique}-rare"]
    assert len(find(app, "harbour", "text").hits) == 6
    monkeypatch.setattr(postgres_search, "TERMS_MAX", 1)
    assert ids(find(app, "harbour kite zeppelin", "text")) == [f"{unique}-rarer"]


def test_quotes_and_minus_have_to_hold(app: Application, unique: str) -> None:
    ingest(
        app,
        text_of(f"{unique}-ab", "red sails at night"),
        text_of(f"{unique}-ba", "night sails, red lamps"),
    )
    assert set(ids(find(app, "red sails", "text"))) == {f"{unique}-ab", f"{unique}-ba"}
    assert ids(find(app, '"red sails"', "text")) == [f"{unique}-ab"]
    assert ids(find(app, "sails -lamps", "text")) == [f"{unique}-ab"]


ODD = ["'", "\\", "a\\'b", "&|!():*<->", '"', "%s %(query)s", "caraway':*", "…", "the of and", "-"]


@pytest.mark.parametrize("query", ODD)
def test_no_query_is_read_as_something_else(app: Application, unique: str, query: str) -> None:
    ingest(app, text_of(unique, BAKERY))
    found = find(app, query, k=100)
    assert set(ids(found)) <= {unique}
    assert ("text" in found.hits[0].shares) == ("caraway" in query)


def test_backslashes_and_quotes_are_words_like_any_other(app: Application, unique: str) -> None:
    path = r"See C:\ships\log and O'Brien's file 1911/388 at example.com/a'b?c='d'."
    ingest(app, text_of(unique, path), text_of(f"{unique}-2", BAKERY))
    for query in ("1911/388", "O'Brien", r"C:\ships\log", "example.com/a'b?c='d'"):
        assert ids(find(app, query, "text")) == [unique]


def test_a_query_longer_than_the_model_reads_is_refused(app: Application) -> None:
    with pytest.raises(InvalidInput, match="query: a text of"):
        find(app, "12 " * 300)


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("", "blank"),
        (" ", "blank"),
        ("a\0", "no text"),
        ("\udc80", "no text"),
        ("a" * 1001, "1001"),
    ],
    ids=["empty", "blank", "NUL", "half a character", "long"],
)
def test_what_is_no_query_is_refused(app: Application, query: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=f"query: .*{reason}"):
        find(app, query)


# -- what it must not find ---------------------------------------------------------------------


@pytest.mark.parametrize("ranker", RANKERS)
@pytest.mark.parametrize(
    ("point", "shown"), [("staged", "first"), ("pivoted", "second"), ("marked", "second")]
)
def test_the_pivot_alone_decides_what_is_found(
    app: Application, unique: str, ranker: str, point: str, shown: str
) -> None:
    """Whatever the stores say of the status of what they hold."""
    about = {
        word: text_of(unique, f"The {word} copper bell rings.", entities=[person(f"Ada {unique}")])
        for word in ("first", "second")
    }
    ingest(app, about["first"])
    with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
        ingest(app, about["second"])
    found = find(app, f"copper bell Ada {unique}", ranker)
    assert [hit.chunk.text for hit in found.hits] == [f"The {shown} copper bell rings."]


@pytest.mark.parametrize("point", ["staged", "pivoted", None])
def test_a_document_that_is_deleted_is_not_found_from_the_pivot_on(
    app: Application, unique: str, point: str | None
) -> None:
    """After the pivot every store still holds all of it, and in the end none does."""
    ingest(app, text_of(unique, BAKERY, entities=[person(f"Ada {unique}")]))
    deletion = [Submission.deletion(unique)]
    if point is None:
        app.ingestion.ingest(deletion, owner="test")
    else:
        with armed(f"{point}=raise"), pytest.raises(SimulatedCrash):
            app.ingestion.ingest(deletion, owner="crashed")
    for ranker in RANKERS:
        shown = ids(find(app, f"caraway bread Ada {unique}", ranker))
        assert shown == ([unique] if point == "staged" else []), ranker


@pytest.mark.parametrize("ranker", ["vector", "graph"])
def test_what_is_not_live_takes_no_place_of_what_is(
    app: Application, unique: str, ranker: str
) -> None:
    """Hundreds of better candidates, none of them live: more is asked for until enough is left."""
    ada = person(f"Ada {unique}")
    with armed("staged=raise"), pytest.raises(SimulatedCrash):
        ingest(
            app,
            *(text_of(f"{unique}-{n}", *["copper bell"] * 50, entities=[ada]) for n in range(9)),
        )
    ingest(app, text_of(unique, "A copper bell rings at sea.", entities=[ada]))
    assert ids(find(app, f"copper bell Ada {unique}", ranker)) == [unique]


def test_embeddings_of_another_model_are_not_compared(app: Application, unique: str) -> None:
    ingest(app, submission(unique), text_of(f"{unique}-own", STORM))
    assert ids(find(app, "harbour", "vector")) == [f"{unique}-own"]
    assert unique in ids(find(app, "harbour", "text"))


def test_a_chunk_that_postgres_has_lost_is_passed_over(app: Application, unique: str) -> None:
    ingest(app, text_of(unique, "copper bell", "copper bell once more"))
    with app.ledger.transaction() as tx:
        tx.execute("DELETE FROM apex.chunks WHERE ordinal = 0")
    [hit] = find(app, "copper bell", "vector", k=1).hits
    assert hit.ordinal == 1


# -- filters -----------------------------------------------------------------------------------


@pytest.mark.parametrize("passing_max", [5000, 0], ids=["by id", "too many for that"])
@pytest.mark.parametrize("ranker", RANKERS)
def test_filters_are_exact(
    app: Application,
    unique: str,
    ranker: str,
    passing_max: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ranking, "PASSING_MAX", passing_max)
    ada = person(f"Ada {unique}")
    values = [1, "1", True, "true", 1.5, None, [1], {"a": 1}, "Straße", "a\"b'c\\"]
    ingest(
        app,
        *(
            text_of(f"{unique}-{n}", BAKERY, entities=[ada], metadata={"value": value, "n": n})
            for n, value in enumerate(values)
        ),
        text_of(f"{unique}-other", BAKERY, entities=[ada], collection="other"),
    )

    def passing(**wanted: Any) -> set[str]:
        found = find(app, f"caraway bread Ada {unique}", ranker, k=100, **wanted)
        return {each.rpartition("-")[2] for each in ids(found)}

    for value, expected in [(1, "0"), (1.0, "0"), ("1", "1"), (True, "2"), ("true", "3")]:
        assert passing(metadata={"value": value}) == {expected}
    for value, expected in [(1.5, "4"), ("Straße", "8"), ("a\"b'c\\", "9")]:
        assert passing(metadata={"value": value}) == {expected}
    for value in ("STRASSE", False, 2, ""):
        assert passing(metadata={"value": value}) == set()
    assert passing(metadata={"value": 1, "n": 0}) == {"0"}
    assert passing(metadata={"value": 1, "n": 1}) == set()
    assert passing(collection="other") == {"other"}
    assert passing(collection="other", metadata={"n": 0}) == set()
    assert passing() == {*(str(n) for n in range(len(values))), "other"}


# -- stores that are down ----------------------------------------------------------------------


def elsewhere(servers: Endpoints, store: str) -> Endpoints:
    """The same servers, but for one that nobody listens for."""
    nobody = f"{ports.LOOPBACK}:{ports.choose(None)}"
    address = {"neo4j": f"bolt://{nobody}", "qdrant": f"http://{nobody}"}[store]
    return replace(servers, **{FIELDS[store][0]: address})


@pytest.mark.parametrize(("store", "ranker"), [("neo4j", "graph"), ("qdrant", "vector")])
def test_a_store_that_is_down_drops_its_ranker_and_no_other(
    app: Application,
    build_application: BuildApplication,
    endpoints: Endpoints,
    unique: str,
    store: str,
    ranker: str,
) -> None:
    bakery = f"Ada {unique} keeps the bakery. {BAKERY}"
    ingest(app, text_of(unique, bakery, entities=[person(f"Ada {unique}")]))
    lame = build_application(elsewhere(endpoints, store))
    found = lame.searcher.search(Search(query=f"caraway bread Ada {unique}"))
    assert found.degraded == {ranker: f"{store} cannot be reached at present"}
    [hit] = found.hits
    assert set(hit.shares) == set(RANKERS) - {ranker}


def test_a_store_that_is_frozen_costs_a_search_no_more_than_its_time(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
) -> None:
    server = private_server("qdrant")
    fields = {field: getattr(server.endpoints, field) for field in FIELDS["qdrant"]}
    app = build_application(replace(endpoints, **fields), search_timeout_s=2.0)
    ingest(app, text_of(unique, BAKERY, entities=[person(f"Ada {unique}")]))
    server.freeze()
    try:
        found = app.searcher.search(Search(query=f"caraway bread Ada {unique}"))
    finally:
        server.thaw()
    assert found.degraded == {"vector": "qdrant gave no answer within 2 s"}
    assert ids(found) == [unique]
    assert 2000 <= found.took_ms < 9000  # the client's own time-out is 10 s


def test_full_text_that_takes_too_long_is_left_out_and_the_snapshot_stays(
    build_application: BuildApplication, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = build_application(search_timeout_s=4.0)
    ingest(app, text_of(unique, BAKERY, entities=[person(f"Ada {unique}")]))
    slow = dict(postgres_search._SQL) | {"rank_text": "SELECT pg_sleep(60)"}
    app.searcher.search(Search(query="caraway"))  # loads the models
    monkeypatch.setattr(postgres_search, "_SQL", slow)
    found = app.searcher.search(Search(query=f"caraway bread Ada {unique}"))
    assert found.degraded == {"text": "postgres gave no answer within 4 s"}
    assert ids(found) == [unique]


def test_without_postgres_there_is_no_answer(
    build_application: BuildApplication,
    endpoints: Endpoints,
    private_server: PrivateServerFactory,
    unique: str,
) -> None:
    server = private_server("postgres")
    app = build_application(replace(endpoints, postgres_url=server.endpoints.postgres_url))
    ingest(app, text_of(unique, BAKERY))
    server.stop()
    with pytest.raises(StoreUnavailable):
        app.searcher.search(Search(query="caraway"))


def test_a_model_of_another_dimension_leaves_embeddings_out(
    build_application: BuildApplication, unique: str
) -> None:
    app = build_application(embedding_dim=8)
    app.ingestion.ingest([submission(unique, dim=8)], owner="test")
    found = app.searcher.search(Search(query="harbour"))
    assert found.degraded == {
        "vector": "embeddings here have 8 floats, and those of all-MiniLM-L6-v2-int8 have 384"
    }
    assert set(ids(found)) == {unique}


def person(name: str) -> dict[str, str]:
    return {"name": name, "type": "person"}
