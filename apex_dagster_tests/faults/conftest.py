"""One arena for all cells of a module: a database, a collection and a key prefix, each document its
own cell. Servers, connections and migrations of one's own for each cell would cost a second."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from apex_dagster.settings import Endpoints
from apex_dagster_tests.conftest import own_database, own_key_prefix, own_qdrant_collection
from apex_dagster_tests.faults.arena import Arena


@pytest.fixture(scope="module")
def arena(
    stack: Endpoints, migrated_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Arena]:
    """Two applications over stores of this module's own."""
    token = f"f{secrets.token_hex(5)}"
    home: Path = tmp_path_factory.mktemp("arena")
    with (
        own_database(stack, migrated_template, token) as servers,
        own_qdrant_collection(stack, f"test_{token}") as collection,
        own_key_prefix(stack, f"test:{token}:") as prefix,
    ):
        arena = Arena(servers, token, home=home, collection=collection, prefix=prefix)
        yield arena
        arena.close()
