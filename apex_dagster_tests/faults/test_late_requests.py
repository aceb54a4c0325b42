"""A request that the network holds until its saga has been undone, or a reply that it swallows.

The matrix parks calls before they are sent; here the bytes are on their way, in a TCP link to the
real server, when the caller gives up.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from urllib.parse import urlsplit

import pytest
from pydantic import SecretStr

from apex_dagster.composition import Application, build
from apex_dagster.saga.states import Status
from apex_dagster.settings import Settings
from apex_dagster.stores.postgres_store import PostgresStore
from apex_dagster_tests.applications import recovered
from apex_dagster_tests.faults.arena import Arena
from apex_dagster_tests.faults.cells import STEPS
from apex_dagster_tests.faults.victims import PATIENCE_S, make_impatient
from apex_dagster_tests.stores.faulty_link import FaultyLink

# Where something is left to sweep. PostgreSQL refuses what comes late. A lost reply: Qdrant and
# Redis had the one request, so the undo found it; Neo4j's transaction had just begun, and goes on.
LANDS_AFTER_THE_UNDO = {"freeze": {"neo4j", "qdrant", "redis"}, "lose_replies": {"neo4j"}}


@pytest.mark.parametrize("fault", ["freeze", "lose_replies"])
@pytest.mark.parametrize("step", STEPS)
def test_what_the_network_delivers_after_the_undo_is_never_seen_and_swept(
    arena: Arena, unique: str, step: str, fault: str
) -> None:
    store = step.removesuffix("_write")
    arena.ingest(unique, 1)
    before = arena.copies(unique)
    with linked(arena, store) as (victim, link):
        warm_up = arena.edition(f"{unique}-other", 1)  # its connections are open from here on
        assert victim.ingestion.ingest([warm_up], owner="victim")[0].status is Status.COMPLETED
        opened = victim.ingestion.open([arena.edition(unique, 2)], owner="victim")
        getattr(link, fault)()
        [failed] = victim.ingestion.stage("redis_write", opened.alive).failed
        assert failed.error is not None
        assert (failed.error["step"], failed.error["class"]) == (step, "unknown_outcome")
        arena.rescuer.compensation.compensate([failed.saga_id], owner="rescuer")
        undone = recovered(arena.rescuer, failed.saga_id)  # a breaker may have to close first
        assert undone.status is Status.COMPENSATED
        assert arena.copies(unique) == before
        link.restore()
        for call in [t for t in threading.enumerate() if t.name == f"call-{step}"]:
            call.join(PATIENCE_S)
    landed = arena.rescuer.stores[store].holdings([undone.ref])[undone.saga_id]
    assert (landed > 0) == (store in LANDS_AFTER_THE_UNDO[fault])
    arena.assert_reads_one_of(unique, 1)
    arena.sweep(unique)
    assert arena.copies(unique) == before
    arena.assert_audit_agrees(unique)


@contextmanager
def linked(arena: Arena, store: str) -> Iterator[tuple[Application, FaultyLink]]:
    """A victim whose way to one store leads over a link."""
    field = {"neo4j": "neo4j_uri", "postgres": "postgres_url"}.get(store, f"{store}_url")
    value = getattr(arena.servers, field)
    url = value.get_secret_value() if isinstance(value, SecretStr) else value
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    with FaultyLink((parts.hostname, parts.port)) as link:
        through = url.replace(f":{parts.port}", f":{link.address[1]}")
        victim = _build(arena, field, through, store)
        call = f"call-{store}_write"
        make_impatient(victim, lambda each: each.name == call and link.holds_bytes.is_set())
        yield victim, link
        victim.close()


def _build(arena: Arena, field: str, url: str, store: str) -> Application:
    settings = Settings(**arena.settings)
    if store != "postgres":
        secret = isinstance(getattr(arena.servers, field), SecretStr)
        through = {field: SecretStr(url) if secret else url}
        return build(settings, replace(arena.servers, **through))
    victim = build(settings, arena.servers)
    # Not the ledger, which has the same address: the fault is to hit the step.
    step = victim.engine.steps[STEPS.index("postgres_write")]
    step.store = PostgresStore(url, embedding_dim=settings.embedding_dim)  # type: ignore[attr-defined]
    return victim
