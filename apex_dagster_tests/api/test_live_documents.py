"""`GET /documents` and `GET /documents/{document_id}`: whole versions, whoever writes meanwhile."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from urllib.parse import quote

import pytest

from apex_dagster.api.app import READ_THREADS
from apex_dagster.embedded import ports
from apex_dagster.saga.failpoints import armed
from apex_dagster_tests.api.conftest import addresses
from apex_dagster_tests.api.requests import body_of, pages, post, problem
from apex_dagster_tests.documents import submission, submissions
from apex_dagster_tests.ingestion.contents import edition, extracted
from apex_dagster_tests.servers import FIELDS

ODD_IDS = [
    "samples/a.md",
    "/begins/with/a/slash",
    "ends/",
    "two//slashes",
    "ingest",
    "ingest/batch",
    "per%cent%2Fencoded",
    "question?after=x&limit=1#part",
    "Ünïcödé 文書 🚢",
    'it\'s "quoted"; <b>, {braces} + plus',
]


def get(client, document_id, **headers):
    return client.get(f"/documents/{quote(document_id, safe='')}", headers=headers)


def with_private(endpoints, server):
    """The test's own servers, one of them private to it."""
    return replace(endpoints, **{f: getattr(server.endpoints, f) for f in FIELDS[server.name]})


def names_of(prefix, ids):
    return [f"{prefix}{each}" for each in ids]


def ingest(app, *wanted):
    sagas = app.ingestion.ingest(list(wanted), owner="test")
    assert {saga.status for saga in sagas} == {"completed"}
    return sagas


def is_whole(content) -> int:
    """The number of the edition that all parts of an answer belong to."""
    number = int(content["title"].rpartition(" ")[2])
    wanted = extracted(edition(content["document_id"], number, shared="harbour"))
    assert content["content_hash"] == wanted.content_hash
    assert [chunk["text"] for chunk in content["chunks"]] == [c.text for c in wanted.chunks]
    assert [chunk["ordinal"] for chunk in content["chunks"]] == list(range(len(wanted.chunks)))
    assert {e["key"] for e in content["entities"]} == {e.key for e in wanted.entities}
    assert {(r["source_key"], r["target_key"], r["type"]) for r in content["relations"]} == {
        (r.source_key, r.target_key, r.type) for r in wanted.relations
    }
    assert content["receipts"]["postgres_write"] == {"chunks": len(wanted.chunks)}
    return number


def test_a_document_comes_back_as_it_was_taken_in(client, app, unique):
    """Members and values; that a mixture never does is shown below."""
    metadata = {"source": "newsroom", "serial": 10**30, "tags": ["a", {"b": None}]}
    [saga] = ingest(app, submission(unique, collection="news", title="One", metadata=metadata))
    answer = get(client, unique)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    content = answer.json()
    assert (content["document_id"], content["version"]) == (unique, 1)
    assert (content["saga_id"], content["content_hash"]) == (saga.saga_id, saga.content_hash)
    assert (content["title"], content["collection"]) == ("One", "news")
    assert content["metadata"].items() >= metadata.items()
    assert [(chunk["ordinal"], chunk["text"]) for chunk in content["chunks"]] == [
        (n, f"Chunk {n} of edition 1 tells of copper and of the harbour.") for n in range(3)
    ]
    assert all(chunk["end"] - chunk["start"] == len(chunk["text"]) for chunk in content["chunks"])
    assert {entity["name"] for entity in content["entities"]} == {
        f"{unique} Shipping",
        "Port Amaranth",
    }
    assert [relation["type"] for relation in content["relations"]] == ["BASED_IN"]
    assert content["receipts"] == saga.completed_steps


def test_what_was_posted_is_read_back(client, driver, unique):
    posted = post(client, body_of(unique)).json()
    content = get(client, unique).json()
    assert (content["saga_id"], content["version"]) == (posted["saga_id"], 1)


def test_no_live_version_is_not_found(client, app, unique):
    assert problem(get(client, unique), 404, "not-live")["document_id"] == unique
    with armed("sent:redis_write=reject"):
        app.ingestion.ingest([submission(unique)], owner="test")
    problem(get(client, unique), 404, "not-live")


@pytest.mark.parametrize("document_id", ["", "a\x00b", "x" * 513])
def test_an_id_that_nothing_can_have_is_said_so(client, document_id):
    body = problem(client.get(f"/documents/{quote(document_id)}"), 422, "invalid")
    assert body["field"] == "document_id"


def test_ids_with_slashes_and_odd_characters_are_read_and_listed(client, app, unique):
    ids = names_of(f"{unique} ", ODD_IDS) + names_of("", ODD_IDS)
    ingest(app, *(submission(each) for each in ids))
    for document_id in ids:
        assert get(client, document_id).json()["document_id"] == document_id
    assert client.get("/documents/samples/a.md").json()["document_id"] == "samples/a.md"
    listed = pages(client, "/documents", cursor="document_id", limit=1)
    assert sorted(each for page in listed for each in page) == sorted(ids)


def test_other_routes_are_not_taken_for_ids(client, driver, unique):
    assert post(client, body_of(unique)).status_code == 200
    headers = {"Content-Type": "application/x-ndjson"}
    batch = client.post("/documents/ingest/batch", content=body_of(unique), headers=headers)
    assert batch.json()["status"] == 200
    assert client.get("/documents").json()["documents"][0]["document_id"] == unique
    problem(client.put(f"/documents/{unique}"), 405, "http")


# -- the cache ---------------------------------------------------------------------------------


def cached(app) -> dict[str, int]:
    """The views in Redis, with the seconds that they have left."""
    redis = app.stores["redis"]._redis()
    keys = redis.scan_iter(match=f"{app.settings.redis_prefix}view:*")
    return {key.decode(): redis.ttl(key) for key in keys}


def test_what_was_read_before_is_read_from_redis_and_is_the_same_to_the_byte(client, app, unique):
    ingest(app, submission(unique))
    assert cached(app) == {}
    miss, hit = get(client, unique), get(client, unique)
    assert (miss.headers["x-cache"], hit.headers["x-cache"]) == ("miss", "hit")
    assert (hit.content, hit.headers["etag"]) == (miss.content, miss.headers["etag"])
    [life_s] = cached(app).values()
    assert 3000 < life_s <= app.settings.cache_ttl_s


def test_a_hit_does_without_the_stores(
    start_api, build_application, private_server, endpoints, unique
):
    qdrant = private_server("qdrant")
    servers = with_private(endpoints, qdrant)
    ingest(build_application(servers), submission(unique), submission(f"{unique}-unread"))
    with start_api(**addresses(servers)).client() as client:
        assert get(client, unique).headers["x-cache"] == "miss"
        qdrant.stop()
        assert get(client, unique).headers["x-cache"] == "hit"
        problem(get(client, f"{unique}-unread"), 503, "unavailable")


def test_another_version_in_the_cache_is_a_miss_and_makes_room(client, app, unique):
    ingest(app, submission(unique))
    assert [get(client, unique).headers["x-cache"] for _ in range(2)] == ["miss", "hit"]
    ingest(app, submission(unique, edition=2))
    answers = [get(client, unique) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "hit"]
    assert {answer.json()["version"] for answer in answers} == {2}
    assert len(cached(app)) == 1


def test_a_failed_update_leaves_the_view_as_it_is(client, app, unique):
    ingest(app, submission(unique))
    before = get(client, unique)
    with armed("sent:redis_write=reject"):
        app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    after = get(client, unique)
    assert (after.headers["x-cache"], after.content) == ("hit", before.content)


def test_who_reads_for_too_long_does_not_bring_an_old_version_back_to_the_cache(app, unique):
    redis = app.stores["redis"]
    [first] = ingest(app, submission(unique))
    [second] = ingest(app, submission(unique, edition=2))
    redis.keep_view(first.ref, b"late")
    assert cached(app) == {}
    redis.keep_view(second.ref, b"now")
    assert (redis.read_view(second.ref), redis.read_view(first.ref)) == (b"now", None)


def test_a_view_goes_with_its_version_and_not_with_another(app, unique):
    redis = app.stores["redis"]
    [first] = ingest(app, submission(unique))
    [second] = ingest(app, submission(unique, edition=2))
    redis.keep_view(second.ref, b"now")
    redis.discard([first.ref])
    assert redis.read_view(second.ref) == b"now"
    redis.discard([second.ref])
    assert cached(app) == {}


def test_too_large_a_view_is_not_kept(client, app, unique):
    text = "Copper comes from the harbour. " * 40_000
    ingest(app, submission(unique, metadata={"remarks": text}))
    answers = [get(client, unique) for _ in range(2)]
    assert [answer.headers["x-cache"] for answer in answers] == ["miss", "miss"]
    assert answers[0].json()["metadata"]["remarks"] == text
    assert cached(app) == {}


@pytest.mark.parametrize("outage", ["stopped", "frozen"])
def test_without_redis_reads_go_on(
    start_api, build_application, private_server, endpoints, unique, outage
):
    server = private_server("redis")
    servers = with_private(endpoints, server)
    ingest(build_application(servers), submission(unique))
    with start_api(**addresses(servers)).client() as client:
        with_cache = [get(client, unique) for _ in range(2)][1]
        assert with_cache.headers["x-cache"] == "hit"
        (server.stop if outage == "stopped" else server.freeze)()
        without = get(client, unique)
        if outage == "frozen":
            server.thaw()
    assert without.status_code == 200, without.text
    assert without.headers["x-cache"] == "miss"
    assert without.json() == with_cache.json()


# -- conditional requests ----------------------------------------------------------------------


def test_who_has_the_live_version_gets_no_body(client, app, unique):
    ingest(app, submission(unique))
    first = get(client, unique)
    etag = first.headers["etag"]
    for named in (etag, f"W/{etag}", f'"other", {etag}', "*"):
        answer = get(client, unique, **{"If-None-Match": named})
        assert (answer.status_code, answer.content) == (304, b"")
        assert answer.headers["etag"] == etag
    for named in ('"other"', etag.strip('"'), ""):
        assert get(client, unique, **{"If-None-Match": named}).status_code == 200

    ingest(app, submission(unique, edition=2))
    answer = get(client, unique, **{"If-None-Match": etag})
    assert (answer.status_code, answer.json()["version"]) == (200, 2)
    assert answer.headers["etag"] != etag


def test_the_same_content_as_a_new_version_has_another_etag(client, app, unique):
    """A, B, A again: receipts and saga differ, so it is another representation."""
    etags = []
    for number in (1, 2, 1):
        ingest(app, submission(unique, edition=number))
        etags.append(get(client, unique).headers["etag"])
    assert len(set(etags)) == 3


def test_a_failed_update_changes_no_etag(client, app, unique):
    ingest(app, submission(unique))
    etag = get(client, unique).headers["etag"]
    with armed("sent:redis_write=reject"):
        app.ingestion.ingest([submission(unique, edition=2)], owner="test")
    assert get(client, unique, **{"If-None-Match": etag}).status_code == 304
    problem(get(client, f"{unique}-none", **{"If-None-Match": "*"}), 404, "not-live")


# -- while versions change ---------------------------------------------------------------------


def test_every_answer_is_one_whole_version_while_versions_change(client, api, app, unique):
    """Some updates become live, some fail when most of their stores have been written."""
    ingest(app, edition(unique, 1, shared="harbour"))
    live, seen, stop = [1], [], threading.Event()
    refusing = itertools.cycle(["redis_write", "qdrant_write"])

    def update(number: int) -> None:
        wanted = [edition(unique, number, shared="harbour")]
        if number % 3 == 0:
            with armed(f"sent:{next(refusing)}=reject"):
                app.ingestion.ingest(wanted, owner="test")
        else:
            ingest(app, *wanted)
            live.append(number)

    def read() -> None:
        with api.client() as client:
            while not stop.is_set():
                answer = get(client, unique)
                assert answer.status_code == 200, answer.text
                content = answer.json()
                seen.append((content["version"], is_whole(content)))

    with ThreadPoolExecutor(3) as readers:
        reading = [readers.submit(read) for _ in range(3)]
        try:
            for number in range(2, 14):
                enough, deadline = len(seen) + 5, time.monotonic() + 120
                while len(seen) < enough:
                    assert time.monotonic() < deadline
                    assert not any(each.done() for each in reading), reading
                    time.sleep(0.01)
                update(number)
        finally:
            stop.set()
        for each in reading:
            each.result()
    assert len(seen) >= 60
    assert {number for _, number in seen} <= set(live)  # none of those that failed
    assert len({number for _, number in seen}) >= 8
    assert all(version == number for version, number in seen)


# -- lists -------------------------------------------------------------------------------------


def test_pages_have_every_live_document_once_and_in_order(client, app, unique):
    ingest(app, *submissions(unique, 23))
    with armed("sent:redis_write=reject"):
        app.ingestion.ingest([submission(f"{unique}-failed")], owner="test")
    ids = sorted(f"{unique}-{n}" for n in range(23))
    for limit in (1, 5, 22, 23, 24, 200):
        found = pages(client, "/documents", cursor="document_id", limit=limit)
        assert sorted(each for page in found for each in page) == ids
        assert [len(page) for page in found[:-1]] == [limit] * (len(found) - 1)
        assert len(found) == -(-23 // limit)
    [whole] = pages(client, "/documents", cursor="document_id")
    assert [
        each for page in pages(client, "/documents", cursor="document_id", limit=5) for each in page
    ] == whole
    assert pages(client, "/documents", cursor="document_id", after=whole[-1]) == [[]]


def test_a_list_tells_version_title_and_when(client, app, unique):
    ingest(app, submission(unique, title="Old"))
    [saga] = ingest(app, submission(unique, edition=2, title="New", collection="papers"))
    [heading] = client.get("/documents").json()["documents"]
    assert heading.pop("live_since")
    assert heading == {
        "document_id": unique,
        "version": 2,
        "saga_id": saga.saga_id,
        "title": "New",
        "collection": "papers",
    }


def test_a_collection_is_listed_alone(client, app, unique):
    news = [submission(f"{unique}-{n}", collection="news" if n % 3 else "rest") for n in range(9)]
    ingest(app, *news)
    found = [
        each
        for page in pages(client, "/documents", cursor="document_id", collection="news", limit=2)
        for each in page
    ]
    assert found == [f"{unique}-{n}" for n in range(9) if n % 3]
    assert pages(client, "/documents", cursor="document_id", collection="none") == [[]]


def test_documents_that_come_and_change_between_pages_hide_no_other(client, app, unique):
    ingest(app, *submissions(unique, 6))
    first = client.get("/documents", params={"limit": 3})
    ingest(
        app,
        submission(f"{unique}-00"),  # before the cursor
        submission(f"{unique}-2", edition=2),  # on the page before
        submission(f"{unique}-4", edition=2),
    )
    second = client.get(first.links["next"]["url"]).json()
    assert [(each["document_id"], each["version"]) for each in second["documents"]] == [
        (f"{unique}-3", 1),
        (f"{unique}-4", 2),
        (f"{unique}-5", 1),
    ]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": 201}, "limit"),
        ({"limit": "many"}, "limit"),
        ({"after": "a\x00"}, "after"),
        ({"after": "x" * 513}, "after"),
        ({"collection": "\x00"}, "collection"),
    ],
)
def test_a_parameter_that_cannot_be_used_is_named(client, query, field):
    body = problem(client.get("/documents", params=query), 422, "invalid")
    assert body["field"] == field
    assert body["detail"].startswith(f"{field}: ")


# -- stores that are down ----------------------------------------------------------------------


@pytest.mark.parametrize("store", ["neo4j", "qdrant"])
def test_without_a_store_that_holds_part_of_it_a_document_is_not_shown(
    start_api, app, endpoints, unique, store
):
    """Never one without that part. Lists need PostgreSQL alone."""
    nobody = f"{ports.LOOPBACK}:{ports.choose(None)}"
    elsewhere = {"neo4j_uri": f"bolt://{nobody}", "qdrant_url": f"http://{nobody}"}
    address = FIELDS[store][0]
    ingest(app, submission(unique))
    with start_api(**{address: elsewhere[address]}).client() as client:
        answer = get(client, unique)
        assert problem(answer, 503, "unavailable")["store"] == store
        assert int(answer.headers["retry-after"]) >= 1
        assert nobody not in answer.text
        listed = client.get("/documents").json()["documents"]
    assert [each["document_id"] for each in listed] == [unique]


def test_without_postgres_there_is_no_answer_but_503(
    start_api, build_application, private_server, endpoints, unique
):
    server = private_server("postgres")
    servers = with_private(endpoints, server)
    ingest(build_application(servers), submission(unique))
    with start_api(**addresses(servers)).client() as client:
        etag = get(client, unique).headers["etag"]
        server.stop()
        for path, headers, asked in (
            (f"/documents/{unique}", {}, "ledger"),
            ("/documents", {}, "postgres"),
            (f"/documents/{unique}", {"If-None-Match": etag}, "ledger"),
        ):
            answer = client.get(path, headers=headers)
            assert problem(answer, 503, "unavailable")["store"] == asked
            assert int(answer.headers["retry-after"]) >= 1
        server.start()
        deadline = time.monotonic() + 60
        while get(client, unique).status_code == 503:  # connections are made anew
            assert time.monotonic() < deadline
        assert get(client, unique, **{"If-None-Match": etag}).status_code == 304
        assert get(client, unique).status_code == 200


def test_reads_of_a_frozen_store_end_and_keep_nobody_else_waiting(
    start_api, build_application, private_server, endpoints, unique
):
    """More of them than there are threads for reads: some are not even begun in time."""
    server = private_server("qdrant")
    servers = with_private(endpoints, server)
    unread = f"{unique}-unread"
    ingest(build_application(servers), submission(unique), submission(unread))
    api = start_api(**addresses(servers), read_timeout_s=4)
    with api.client() as client, ThreadPoolExecutor(2 * READ_THREADS) as pool:
        while get(client, unique).status_code == 503:
            pass  # the stores' drivers are still being imported
        server.freeze()
        try:
            reads = [pool.submit(get, client, unread) for _ in range(2 * READ_THREADS)]
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").status_code == 200
            assert not any(read.done() for read in reads)
            answers = [read.result() for read in reads]
        finally:
            server.thaw()
        assert {answer.status_code for answer in answers} == {503}
        late = [answer for answer in answers if "No answer within 12 s" in answer.text]
        assert len(late) >= READ_THREADS
        problem(late[0], 503, "unavailable")
        assert "retry-after" in late[0].headers


def test_a_version_that_has_lost_a_part_is_not_shown(client, app, unique):
    [saga] = ingest(app, submission(unique))
    app.stores["qdrant"].discard([saga.ref])
    answer = get(client, unique)
    assert problem(answer, 503, "incomplete")["document_id"] == unique
    assert "retry-after" in answer.headers
