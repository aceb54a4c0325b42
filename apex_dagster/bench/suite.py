"""Everything that `apex bench` measures, in order, on stores of its own."""

from __future__ import annotations

import itertools
import os
import platform
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg

from apex_dagster.bench import http_load, relevance
from apex_dagster.bench.bodies import numbered, templates
from apex_dagster.bench.corpus import Corpus, Shape
from apex_dagster.bench.file_load import measure_files
from apex_dagster.bench.pairs import WARM_UP_BATCHES, run_pairs
from apex_dagster.bench.peers import lightrag_peer
from apex_dagster.bench.raw_writes import RawWrites
from apex_dagster.bench.saga_writes import SagaWrites
from apex_dagster.bench.service import daemon, service
from apex_dagster.bench.stopwatch import Processors
from apex_dagster.bench.timeline import Timeline
from apex_dagster.embedded.stack import Stack, endpoints
from apex_dagster.settings import Endpoints, Settings

TEMPLATES = 500  # bodies of 60 kB each; entities recur as in a corpus of so many documents
BATCHES_OF = (1, 10, 50, 200)  # documents
BATCH_OF_THE_RATIO = 50

Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Extent:
    """How much is measured."""

    runs: int  # of each load; figures are their medians
    seconds: float  # of each load
    pairs: int  # of batches, with and without saga
    batch_documents: int  # of one request of NDJSON
    files: int
    peer_documents: int
    batches_of: tuple[int, ...] = BATCHES_OF


FULL = Extent(runs=3, seconds=180.0, pairs=30, batch_documents=1000, files=500, peer_documents=300)
QUICK = Extent(
    runs=1,
    seconds=5.0,
    pairs=5,
    batch_documents=50,
    files=20,
    peer_documents=30,
    batches_of=(BATCH_OF_THE_RATIO,),
)


def run_suite(
    settings: Settings, extent: Extent, *, seed: int, peer: str | None, say: Say
) -> dict[str, Any]:
    """All figures; `summary` has those that are compared from version to version."""
    servers = endpoints(settings)
    results: dict[str, Any] = {"environment": _environment(extent, seed)}
    say("relevance of searches over the sample corpus")
    results["relevance"] = relevance.measure_samples(settings, servers)
    results["writes"] = {
        str(documents): _writes(settings, servers, extent, documents, seed=seed, say=say)
        for documents in extent.batches_of
    }
    corpus = Corpus(seed=seed, shape=_shape(settings), prefix="http")
    bodies = numbered(templates(corpus, TEMPLATES), f"http-{secrets.token_hex(4)}")
    timeline = Timeline(servers.postgres_url)
    with service(settings, settings.home) as running:
        results["http"] = http_load.measure_rates(
            running,
            bodies,
            timeline,
            seconds=extent.seconds,
            runs=extent.runs,
            seed=seed,
            on_load=say,
        )
        say("one request of many documents")
        results["http_batch"] = http_load.measure_batches(
            running, bodies, documents=extent.batch_documents, runs=extent.runs
        )
        results["memory_mb"] = running.memory_mb()
        with daemon(settings, settings.home) as daemon_log:
            say("files")
            results["files"] = measure_files(
                settings.inbox_dir, timeline, daemon_log, documents=extent.files
            )
            say("recovery from kill -9 of all workers")
            results["recovery"] = http_load.measure_recovery(running, bodies, timeline)
    results["growth"] = _growth(settings, servers, extent, results["writes"], seed=seed, say=say)
    if peer:
        say(peer)
        documents = list(itertools.islice(corpus, extent.peer_documents))
        results["peer"] = lightrag_peer.measure(settings.home / "peers", servers, documents)
    results["summary"] = _summary(results)
    return results


def _growth(
    settings: Settings,
    servers: Endpoints,
    extent: Extent,
    first: Mapping[str, Any],
    *,
    seed: int,
    say: Say,
) -> dict[str, Any]:
    """What a document costs now that the loads over HTTP have filled the stores, beside what it
    cost when the first batches were written. Raw writes go to tables of their own, empty both
    times, so their cost tells how fast the machine was."""
    before = first[str(BATCH_OF_THE_RATIO)]
    stored = _stored(servers)
    after = _writes(
        settings, servers, extent, BATCH_OF_THE_RATIO, seed=seed, say=say, warm_up_batches=5
    )
    return {
        "stored_before": before["stored"],
        "stored_after": stored,
        "writes_after": after,
        "cost_ratio": round(_saga_ms(after) / _saga_ms(before), 3),
        "cost_ratio_to_raw_writes": round(
            after["summary"]["ratio_to_raw_writes"] / before["summary"]["ratio_to_raw_writes"], 3
        ),
    }


def _saga_ms(report: Mapping[str, Any]) -> float:
    return float(report["sides"]["saga"]["ms_per_document"])


def _stored(servers: Endpoints) -> int:
    """Documents with a live version."""
    with psycopg.connect(servers.postgres_url.get_secret_value()) as connection:
        query = "SELECT count(*) FROM apex.documents WHERE live_version IS NOT NULL"
        row = connection.execute(query).fetchone()
    return int(row[0]) if row else 0


def _writes(
    settings: Settings,
    servers: Endpoints,
    extent: Extent,
    documents: int,
    *,
    seed: int,
    say: Say,
    warm_up_batches: int = WARM_UP_BATCHES,
) -> dict[str, Any]:
    say(f"raw writes and sagas, {documents} documents a batch")
    pids = {s.name: s.pid for s in Stack(settings.home).status() if s.up and s.pid is not None}
    token = secrets.token_hex(4)
    saga, at_once = (
        SagaWrites(settings.model_copy(update={"staging": staging}), servers)
        for staging in ("in_order", "at_once")
    )
    raw = RawWrites(servers, name=f"bench_{token}", embedding_dim=settings.embedding_dim)
    raw.prepare()
    try:
        report = run_pairs(
            Corpus(seed=seed, shape=_shape(settings), prefix=token),
            raw=raw,
            saga=saga,
            saga_at_once=at_once,
            processors=Processors(pids),
            batch_documents=documents,
            pairs=extent.pairs,
            warm_up_batches=warm_up_batches,
        )
        return report | {"stored": _stored(servers)}
    finally:
        raw.drop()
        saga.close()
        at_once.close()


def _shape(settings: Settings) -> Shape:
    return Shape(embedding_dim=settings.embedding_dim)


def _environment(extent: Extent, seed: int) -> dict[str, Any]:
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "runs": extent.runs,
        "seconds": extent.seconds,
        "seed": seed,
    }


def _summary(results: Mapping[str, Any]) -> dict[str, float]:
    http, writes = results["http"], results["writes"][str(BATCH_OF_THE_RATIO)]
    saturated = http["saturated"]["median"]["documents_per_s"]
    summary = {
        "api_p90_s_at_10_per_s": http["at_10_per_s"]["median"]["p90_s"],
        "api_p90_s_at_50_per_s": http["at_50_per_s"]["median"]["p90_s"],
        "saturated_documents_per_s": saturated,
        "ratio_to_raw_writes": writes["summary"]["ratio_to_raw_writes"],
        "ratio_to_raw_writes_at_once": writes["summary"]["ratio_to_raw_writes_at_once"],
        "api_batch_documents_per_s": results["http_batch"]["median"]["documents_per_s"],
        "files_documents_per_s": results["files"]["documents_per_s"],
        "recovery_s": results["recovery"]["last_ended_s"],
        "growth_cost_ratio": results["growth"]["cost_ratio"],
        **{f"ndcg10_{way}": value for way, value in results["relevance"]["ndcg10"].items()},
    }
    if peer := results.get("peer"):
        summary["ratio_to_lightrag"] = saturated / peer["documents_per_s"]
    return summary


def save(results: Mapping[str, Any], json_file: Path) -> Path:
    """Write the figures, and the page beside them; returns where the page is."""
    from apex_dagster.bench.report import save_html, save_json

    json_file.parent.mkdir(parents=True, exist_ok=True)
    page = json_file.with_suffix(".html")
    save_json(results, json_file)
    save_html(results, page)
    return page
