"""Dagster over the real stores: its own storage in a database of the module's, jobs in process."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import dagster as dg
import pytest
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.test_utils import instance_for_test

from apex_dagster.composition import Application, application
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.conftest import run_sql

STORAGE = {"module": "apex_dagster.defs.instance.storage", "class": "PooledPostgresStorage"}


@pytest.fixture(scope="module")
def instance(stack: Endpoints) -> Iterator[dg.DagsterInstance]:
    """A Dagster instance whose storage is ours, on a real PostgreSQL."""
    with instance_over(stack) as made:
        yield made


@contextmanager
def instance_over(stack: Endpoints, **overrides: Any) -> Iterator[dg.DagsterInstance]:
    """The same, with more of dagster.yaml, for the length of the block."""
    name = f"dagster_{secrets.token_hex(6)}"
    run_sql(stack, f"CREATE DATABASE {name}")
    url = stack.postgres_database(name).get_secret_value()
    overrides |= {
        "storage": {"custom": STORAGE | {"config": {"postgres_url": url}}},
        "compute_logs": {
            "module": "dagster._core.storage.noop_compute_log_manager",
            "class": "NoOpComputeLogManager",
        },
        "telemetry": {"enabled": False},
    }
    with instance_for_test(overrides=overrides) as made:
        yield made
    run_sql(stack, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def staging() -> str:
    """APEX_STAGING; a test that is parametrised by it overrides this."""
    return "in_order"


@pytest.fixture
def dagster_app(
    endpoints: Endpoints,
    qdrant_collection: str,
    redis_prefix: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    staging: str,
) -> Iterator[Application]:
    """The application that the resources of this process find through its environment."""
    assert endpoints.qdrant_api_key is not None
    variables = {
        "HOME": str(tmp_path),
        "NEO4J_URI": endpoints.neo4j_uri,
        "NEO4J_USER": endpoints.neo4j_user,
        "NEO4J_PASSWORD": endpoints.neo4j_password.get_secret_value(),
        "POSTGRES_URL": endpoints.postgres_url.get_secret_value(),
        "QDRANT_URL": endpoints.qdrant_url,
        "QDRANT_API_KEY": endpoints.qdrant_api_key.get_secret_value(),
        "REDIS_URL": endpoints.redis_url.get_secret_value(),
        "QDRANT_COLLECTION": qdrant_collection,
        "REDIS_PREFIX": redis_prefix,
        "STAGING": staging,
        "STEP_ATTEMPTS": "2",
        "STEP_TIMEOUT_S": "10",
        "UNDO_ATTEMPTS": "2",
        "UNDO_TIMEOUT_S": "10",
        "RETRY_BASE_S": "0.01",
        "PROBE_TIMEOUT_S": "2",
        "PROBE_DELAY_S": "0.02",
        "PROBE_DELAY_S_MAX": "0.2",
        "ADMISSION_RAMP_S": "0.5",
        "GRACE_S": "0",
        "BATCH_DOCUMENTS": "3",
    }
    for name, value in variables.items():
        monkeypatch.setenv(f"APEX_{name}", value)
    app = application(Settings())
    yield app
    app.close()


@pytest.fixture(scope="session")
def ingest_job() -> ReconstructableJob:
    """`ingest_documents` as a run worker would load it."""
    repository = ReconstructableRepository.for_module("apex_dagster.definitions", "defs")
    return repository.get_reconstructable_job("ingest_documents")


def ingest(
    job: ReconstructableJob, instance: dg.DagsterInstance, **config: Any
) -> dg.JobExecutionResult:
    """Run the job as the launchpad would."""
    run_config = {"ops": {"extract": {"config": config}}}
    with dg.execute_job(job, instance=instance, run_config=run_config) as result:
        return result
