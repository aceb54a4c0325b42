"""Searches beside writers that fail and crash find whole versions, each of them live meanwhile."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager

from apex_dagster.chaos.history import Read, Seen, violations
from apex_dagster.composition import Application
from apex_dagster.errors import TransientError
from apex_dagster.ingestion.search import GRAPH, TEXT, VECTOR, Hit, Search, Searcher
from apex_dagster.records import Chunk
from apex_dagster.stores.neo4j_store import Neo4jStore
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster.stores.qdrant_store import QdrantStore
from apex_dagster.stores.searching import SearchableText, SearchSnapshot
from apex_dagster_tests.applications import BuildApplication
from apex_dagster_tests.ingestion.contents import extracted
from apex_dagster_tests.ingestion.load import Load
from apex_dagster_tests.ingestion.test_read import HISTORY_S

WORDS = "copper harbour"  # which every chunk has, whatever its edition
OF_IT = "of it"  # what cannot tell more than that


class SlowText:
    """Gives a searcher its snapshot late, so that much is written before the others are asked."""

    def __init__(self, text: SearchableText, *, delay_s_max: float) -> None:
        self._text, self._delay_s_max = text, delay_s_max

    def search_snapshot(self) -> AbstractContextManager[SearchSnapshot]:
        return self._slow()

    @contextmanager
    def _slow(self) -> Iterator[SearchSnapshot]:
        with self._text.search_snapshot() as snapshot:
            time.sleep(random.uniform(0.0, self._delay_s_max))
            yield snapshot


class Searching:
    """Searches again and again; what each tells of each document is a read."""

    def __init__(self, searcher: Searcher, search: Search, document_ids: list[str]) -> None:
        self._searcher, self._search, self._document_ids = searcher, search, document_ids
        self.reads: list[Read] = []
        self.unanswered = 0

    def once(self) -> None:
        began = time.time()
        try:
            found = self._searcher.search(self._search)
        except TransientError:  # no answer in time, on a machine that has much else to do
            self.unanswered += 1
            return
        ended = time.time()
        if found.degraded:  # as above, of one ranker
            self.unanswered += 1
            return
        for document_id in self._document_ids:
            hits = [hit for hit in found.hits if hit.ref.document_id == document_id]
            parts = parts_of(hits)
            # Full text is exact. A scan of the graph beside a write may miss some.
            if parts or TEXT in self._search.rankers:
                self.reads.append(
                    Read(document_id=document_id, began=began, ended=ended, parts=parts)
                )
        time.sleep(0.02)  # leaves the writers some of the processor


def parts_of(hits: list[Hit]) -> Mapping[str, Seen]:
    """All that was found of one document, as if each store had told its part of it."""
    if not hits:
        return {}
    refs = sorted({hit.ref for hit in hits})
    shown = fingerprint((hit.ordinal, hit.chunk.text) for hit in hits)
    return {
        "postgres": Seen(ref=refs[0], fingerprint=shown),
        "qdrant": Seen(ref=refs[-1], fingerprint=OF_IT),
        "neo4j": Seen(ref=refs[-1], fingerprint=OF_IT),
    }


def content(chunks: Iterable[Chunk]) -> dict[str, str]:
    """What a search has to show of a document of these chunks."""
    shown = fingerprint((chunk.ordinal, chunk.text) for chunk in chunks)
    return {"postgres": shown, "qdrant": OF_IT, "neo4j": OF_IT}


def fingerprint(chunks: Iterable[tuple[int, str]]) -> str:
    return json.dumps(sorted(chunks))


def searcher_of(app: Application, *, delay_s_max: float) -> Searcher:
    neo4j, postgres, qdrant, _ = app.stores.values()
    assert isinstance(neo4j, Neo4jStore)
    assert isinstance(postgres, PostgresStore)
    assert isinstance(qdrant, QdrantStore)
    extractor = app.ingestion._extractor
    return Searcher(
        text=SlowText(postgres, delay_s_max=delay_s_max),
        vectors=qdrant,
        graph=neo4j,
        embedder=extractor.embedder,
        recogniser=extractor.recogniser,
        embedding_dim=app.settings.embedding_dim,
        timeout_s=app.settings.search_timeout_s,
    )


def test_searches_show_only_whole_versions_that_were_live_while_they_ran(
    build_application: BuildApplication, unique: str
) -> None:
    # A slow snapshot and a ranker's time together are less than the grace.
    times = {"lease_s": 0.5, "grace_s": 4.0, "read_timeout_s": 3.0, "search_timeout_s": 2.0}
    patience = {"step_attempts": 5, "undo_attempts": 8}
    app, reading = build_application(**times, **patience), build_application(**times)
    document_ids = [f"{unique}-{index}" for index in range(5)]
    searches = {
        "words": Search(query=WORDS, k=100, rankers=(TEXT, VECTOR)),
        "names": Search(
            query=" and ".join(f"{unique} {n}" for n in range(5)), k=100, rankers=(GRAPH,)
        ),
    }
    searching = {
        name: [
            Searching(searcher_of(reading, delay_s_max=delay_s_max), search, document_ids)
            for delay_s_max in (0.0, 1.5)
        ]
        for name, search in searches.items()
    }
    everybody = [each for some in searching.values() for each in some]
    for each in everybody:
        each.once()  # loads the models
    load = Load(app, document_ids, shared=unique)
    load.run([], writers=3, seconds=HISTORY_S, others=[each.once for each in everybody])
    reads = {name: [r for each in some for r in each.reads] for name, some in searching.items()}
    print(
        {name: len(some) for name, some in reads.items()}, [each.unanswered for each in everybody]
    )

    chunks = {key: extracted(one).chunks for key, one in load.submitted.items()}
    pivots = load.pivots({key: content(all_of_it) for key, all_of_it in chunks.items()})
    assert violations(pivots, reads["words"]) == []
    # The editions name their entities in no chunk: the graph shows their beginning.
    pivots = load.pivots({key: content(all_of_it[:1]) for key, all_of_it in chunks.items()})
    assert violations(pivots, reads["names"]) == []
    for name, some in reads.items():
        seen = {part.ref for read in some for part in read.parts.values()}
        assert len(seen) > len(document_ids), f"{name}: no document was seen to change"
