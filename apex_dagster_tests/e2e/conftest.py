"""One `dagster dev` for the whole suite, on the shared servers: a ledger, a collection and a key
prefix of its own, Dagster's storage in a database of its own, Qdrant behind a gate."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from pydantic import SecretStr
from qdrant_client import QdrantClient

from apex_dagster.composition import Application, build
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.cli.conftest import environment_of
from apex_dagster_tests.conftest import run_sql
from apex_dagster_tests.e2e.dagster_process import Dagster
from apex_dagster_tests.e2e.gate import Gate

# A saga that the gate holds must neither give up nor lose its lease by itself: what these tests do
# to its run is what ends it.
PATIENT = {"step_timeout_s": 600.0, "undo_timeout_s": 600.0, "lease_s": 60.0, "grace_s": 0.0}


@dataclass(frozen=True, kw_only=True)
class World:
    """Dagster, and an application over the same stores that does not go through the gate."""

    dagster: Dagster
    gate: Gate
    app: Application
    folder: Path  # for documents


@pytest.fixture(scope="session")
def world(
    stack: Endpoints, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """Up for the whole session; a test uses documents of its own."""
    token, home = "e2e" + secrets.token_hex(4), tmp_path_factory.mktemp("e2e")
    settings = Settings(
        home=home, qdrant_collection=token, redis_prefix=f"{token}:", retry_base_s=0.01, **PATIENT
    )
    with (
        database(stack, f"{token}_ledger", template=migrated_template) as ledger_url,
        database(stack, f"{token}_dagster") as dagster_url,
        Gate(stack.qdrant_url) as gate,
    ):
        servers = replace(stack, postgres_url=SecretStr(ledger_url))
        app = build(settings, servers)
        app.stores["qdrant"].prepare()
        gated = replace(servers, qdrant_url=gate.url)
        dagster = Dagster(settings, environment(gated, settings, home, dagster_url))
        try:
            dagster.start()
            yield World(dagster=dagster, gate=gate, app=app, folder=home)
        finally:
            dagster.stop()
            app.close()
            delete_collection(stack, token)


def environment(
    servers: Endpoints, settings: Settings, home: Path, dagster_url: str
) -> dict[str, str]:
    patient = {f"APEX_{name.upper()}": str(value) for name, value in PATIENT.items()}
    own = environment_of(servers, settings, home) | patient
    return own | {"DAGSTER_POSTGRES_URL": dagster_url}


@contextmanager
def database(stack: Endpoints, name: str, *, template: str = "template1") -> Iterator[str]:
    """The address of a database that is dropped with the block."""
    run_sql(stack, f"CREATE DATABASE {name} TEMPLATE {template}")
    try:
        yield stack.postgres_database(name).get_secret_value()
    finally:
        run_sql(stack, f"DROP DATABASE {name} WITH (FORCE)")


def delete_collection(stack: Endpoints, name: str) -> None:
    assert stack.qdrant_api_key is not None
    headers = {"api-key": stack.qdrant_api_key.get_secret_value()}
    client = QdrantClient(url=stack.qdrant_url, headers=headers, check_compatibility=False)
    client.delete_collection(name)
    client.close()
