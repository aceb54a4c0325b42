"""A short run on servers of its own; then the same look again, with something damaged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis
from click.testing import CliRunner
from neo4j import GraphDatabase
from qdrant_client import QdrantClient, models

from apex_dagster.chaos import census
from apex_dagster.chaos.plan import Plan
from apex_dagster.chaos.report import Report
from apex_dagster.chaos.run import run
from apex_dagster.chaos.verdict import live_versions, wrong_contents
from apex_dagster.cli.main import main
from apex_dagster.composition import Application, build
from apex_dagster.embedded.stack import Stack
from apex_dagster.settings import Endpoints, Settings

# Two kills each, by these seeds: of Qdrant and a worker; of the API and the pool of warm workers
# behind it. Not of Neo4j, which may take longer to start again than the load lasts.
PLAN = Plan(seed=1331, seconds=25.0, rate=8.0, every_s=9.0, workers=2)
PLAN_API = replace(PLAN, seed=226, front_door="api")


@pytest.fixture
def home(servers_root: Path, unique: str) -> Path:
    """An APEX_HOME that is not there yet; what is started in it is stopped with the session."""
    return servers_root / f"chaos-{unique}"


@pytest.mark.timeout(1200)
def test_a_short_run_keeps_every_promise_and_damage_would_be_seen(
    home: Path,
) -> None:
    report = run(PLAN, home=home, say=print)
    assert_kept(report, home, killed={"qdrant", "worker-1"})
    app = build(Settings(home=home), Stack(home).ensure(()))
    try:
        assert damaged_stores(app) == set()
        for store, damage in DAMAGES.items():
            damage(app.endpoints)
            assert store in damaged_stores(app)
    finally:
        app.close()
        Stack(home).down()


@pytest.mark.e2e
@pytest.mark.timeout(1200)
def test_a_short_run_through_the_api_keeps_every_promise(home: Path) -> None:
    report = run(PLAN_API, home=home, say=print)
    try:
        assert_kept(report, home, killed={"api", "pool"})
    finally:
        Stack(home).down()


def assert_kept(report: Report, home: Path, *, killed: set[str]) -> None:
    lines = list(report.lines(home))
    assert report.violations == [], "\n".join(lines)
    assert {done.planned.target for done in report.disturbances} == killed
    assert {done.planned.kind for done in report.disturbances} == {"kill"}
    assert report.offers.keys() == {"new", "update", "repeat", "poison"}
    assert report.callers["completed"] > 50
    assert report.callers.get("nothing", 0) == 0
    assert report.verdict.reads > 50
    assert report.verdict.direct_reads > 50
    assert lines[-1].startswith("kept: 0 half documents")


def damaged_stores(app: Application) -> set[str]:
    """Where the counts, or what a reader gets, are not as they must be."""
    live = live_versions(app)
    now = census.take_census(app.endpoints, app.settings)
    found = [
        *(one.what for one in census.discrepancies(now, live, late_writes=True)),
        *(one.what for one in census.entity_discrepancies(now, live)),
        *(one.what for one in wrong_contents(app, live, {})),
    ]
    return {store for store in DAMAGES if any(what.startswith(store) for what in found)}


def damage_neo4j(servers: Endpoints) -> None:
    auth = (servers.neo4j_user, servers.neo4j_password.get_secret_value())
    with GraphDatabase.driver(servers.neo4j_uri, auth=auth) as driver:
        driver.execute_query("MATCH ()-[m:MENTIONS]->() WITH m LIMIT 1 DELETE m")


def damage_postgres(servers: Endpoints) -> None:
    with psycopg.connect(servers.postgres_url.get_secret_value()) as connection:
        connection.execute(
            "UPDATE apex.chunks SET ingestion_status = 'staged' WHERE chunk_id ="
            " (SELECT chunk_id FROM apex.chunks WHERE ingestion_status = 'committed' LIMIT 1)"
        )


def damage_qdrant(servers: Endpoints) -> None:
    assert servers.qdrant_api_key is not None
    headers = {"api-key": servers.qdrant_api_key.get_secret_value()}
    client = QdrantClient(url=servers.qdrant_url, headers=headers, check_compatibility=False)
    [point], _ = client.scroll("apex_chunks", limit=1)
    client.delete("apex_chunks", points_selector=models.PointIdsList(points=[point.id]))
    client.close()


def damage_redis(servers: Endpoints) -> None:
    with redis.Redis.from_url(servers.redis_url.get_secret_value()) as client:
        client.delete(next(client.scan_iter(match="doc:*")))


DAMAGES: dict[str, Callable[[Endpoints], None]] = {
    "neo4j": damage_neo4j,
    "postgres": damage_postgres,
    "qdrant": damage_qdrant,
    "redis": damage_redis,
}


def test_a_home_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "neo4j").mkdir()
    outcome = CliRunner().invoke(main, ["chaos", "--home", str(tmp_path)])
    assert outcome.exit_code == 2
    assert "is not empty" in outcome.output
