"""`apex bench` from a shell: its own stores, the API under load, and what it saves."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time

import orjson
import pytest
from aiohttp import web

from apex_dagster.bench.bodies import numbered, templates
from apex_dagster.bench.corpus import Corpus, Shape
from apex_dagster.bench.open_loop import arrivals
from apex_dagster.embedded import ports
from apex_dagster_tests.cli.conftest import clean_environment

SHAPE = Shape(chunks=2, chunk_words=5, entities=3, relations=2)


@pytest.mark.e2e
@pytest.mark.timeout(900)
def test_it_measures_on_stores_of_its_own_and_leaves_nothing(tmp_path):
    figures = tmp_path / "figures" / "bench.json"
    command = [sys.executable, "-m", "apex_dagster.cli.main", "bench", "--quick"]
    command += ["--minutes", "0.05", "--pairs", "1", "--json", str(figures)]
    environment = clean_environment() | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=840)
    assert done.returncode == 0, done.stderr
    results = json.loads(figures.read_bytes())
    assert set(results["summary"]) == {
        "api_p90_s_at_10_per_s",
        "api_p90_s_at_50_per_s",
        "saturated_documents_per_s",
        "ratio_to_raw_writes",
        "ratio_to_raw_writes_at_once",
        "api_batch_documents_per_s",
        "files_documents_per_s",
        "recovery_s",
        "growth_cost_ratio",
        "ndcg10_hybrid",
        "ndcg10_text",
        "ndcg10_vector",
        "ndcg10_graph",
    }
    assert results["growth"]["stored_after"] > results["growth"]["stored_before"] > 0
    assert set(results["http"]["at_10_per_s"]["statuses"]) == {"200"}
    assert set(results["http_batch"]["statuses"]) == {"200"}
    assert results["files"]["documents"] == 20
    assert results["recovery"]["open_sagas"] == 0
    parts = results["http"]["saturated"]["ms_by_part"]
    assert parts.keys() > {"queue", "stage neo4j", "pivot", "publish"}
    assert sum(parts.values()) > 0
    page = figures.with_suffix(".html").read_text()
    assert "<svg" in page
    assert "run begins, extract" in page
    assert "Relevance of searches" in page
    # Libraries that read documents keep these for their next use, as everywhere.
    left = {path.name for path in tmp_path.iterdir()} - {"kreuzberg-pdfium", ".ses"}
    assert left == {"figures"}


def test_every_body_is_a_document_of_its_own():
    bodies = numbered(templates(Corpus(seed=1, shape=SHAPE, prefix="d"), 2), "run")
    documents = [orjson.loads(next(bodies)) for _ in range(4)]
    assert len({document["document_id"] for document in documents}) == 4
    assert documents[0]["chunks"] == documents[2]["chunks"] != documents[1]["chunks"]
    assert len(documents[0]["embeddings"][0]) == SHAPE.embedding_dim


def test_waiting_counts_for_requests_that_were_due_meanwhile(server_that_pauses):
    """One pause of a second: all that arrive during it feel it, not only the one that met it."""
    bodies = iter(lambda: b"{}", None)
    load = arrivals(server_that_pauses, bodies, rate_per_s=50, seconds=2, seed=1)
    assert load.statuses == {"200": 100}
    assert sum(latency > 0.3 for latency in load.latencies_s) > 10


@pytest.fixture
def server_that_pauses():
    """Answers at once, but stands still for a second at its first request."""
    port, loop, begun = ports.choose(None), asyncio.new_event_loop(), []

    async def answer(_: web.Request) -> web.Response:
        begun.append(time.monotonic())
        if len(begun) == 1:
            time.sleep(1)
        return web.Response(text="{}")

    async def serve() -> None:
        application = web.Application()
        application.router.add_post("/", answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()

    loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{port}/"
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
