"""The application under test: real stores, a ledger, collection and key prefix of its own."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest

from apex_dagster.logs import configure_logs
from apex_dagster.records import SagaId, VersionRef
from apex_dagster.settings import Endpoints, Settings

if TYPE_CHECKING:  # costs seconds, and every worker of every test run loads this module
    from apex_dagster.composition import Application
    from apex_dagster.saga.saga import Saga

configure_logs()

BuildApplication = Callable[..., "Application"]

# Small, so that a store that is down is given up within a second or two.
QUICK = {
    "step_attempts": 2,
    "step_timeout_s": 10.0,
    "undo_attempts": 2,
    "undo_timeout_s": 10.0,
    "retry_base_s": 0.01,
    "probe_timeout_s": 2.0,
    "probe_delay_s": 0.02,
    "probe_delay_s_max": 0.2,
    "admission_ramp_s": 0.5,
    "document_retry_s": 0.1,
    "document_retry_s_max": 0.4,
    "lease_s": 30.0,
    "grace_s": 0.0,
    "search_timeout_s": 9.0,  # patience, as a ranker that is late is missing: a fresh Neo4j is slow
}


@pytest.fixture
def build_application(
    endpoints: Endpoints, qdrant_collection: str, redis_prefix: str, tmp_path: Any
) -> Iterator[BuildApplication]:
    """Builds applications over the test's own part of the shared stores; closes them at the end."""
    from apex_dagster.composition import build

    built: list[Application] = []

    def build_one(servers: Endpoints = endpoints, **settings: Any) -> Application:
        values = QUICK | {
            "home": tmp_path,
            "qdrant_collection": qdrant_collection,
            "redis_prefix": redis_prefix,
        }
        app = build(Settings(**(values | settings)), servers)
        built.append(app)
        return app

    yield build_one
    for app in built:
        app.close()


@pytest.fixture
def app(build_application: BuildApplication) -> Application:
    """One application with quick retries."""
    return build_application()


def copies(app: Application, document_id: str) -> dict[str, dict[int, str]]:
    """What each store holds of a document: store -> version -> digest."""
    versions = range(1, _last_version(app, document_id) + 1)
    return {
        name: {
            version: digest
            for version in versions
            if (digest := store.digest(document_id, version)) is not None
        }
        for name, store in app.stores.items()
    }


def assert_whole(app: Application, document_id: str) -> None:
    """All four stores hold the live version and no other; nothing at all where none is live."""
    pointer = app.ledger.pointers([document_id]).get(document_id)
    live = pointer["live_version"] if pointer else None
    held = {name: sorted(versions) for name, versions in copies(app, document_id).items()}
    assert held == {name: [live] if live else [] for name in app.stores}


def events(app: Application, saga_id: str) -> list[tuple[str, str | None]]:
    """A saga's audit trail as (event, step)."""
    return [(row["event"], row["step"]) for row in app.ledger.events(saga_id)]


def version_ref(document_id: str, version: int, saga_id: str) -> VersionRef:
    """Names a version."""
    return VersionRef(document_id=document_id, version=version, saga_id=SagaId(saga_id))


def _last_version(app: Application, document_id: str) -> int:
    versions = [saga.version for saga in app.ledger.list_sagas(document_id=document_id)]
    return max(versions, default=0)


def recovered(app: Application, saga_id: str) -> Saga:
    """The saga once recovery has ended it, which is nobody's doing but its own."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        app.ingestion.recovery.recover(owner=f"recovery-{time.monotonic_ns()}")
        [saga] = app.ledger.sagas([saga_id])
        if saga.is_over:
            return saga
        time.sleep(0.05)
    raise AssertionError(f"{saga_id} was not recovered: {saga}")


def expire_leases(app: Application) -> None:
    """Let an hour pass for every owner, by the database's clock."""
    with app.ledger.transaction() as tx:
        tx.execute(
            "UPDATE apex.saga_state SET lease_expires_at = lease_expires_at - %s",
            [timedelta(hours=1)],
        )
