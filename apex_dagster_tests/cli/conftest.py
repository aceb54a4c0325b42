"""The shell as its users have it: arguments, environment, standard output and error, exit code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from apex_dagster.cli.main import main
from apex_dagster.composition import Application
from apex_dagster.settings import Endpoints, Settings
from apex_dagster_tests.applications import QUICK


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell:
    """Runs `apex` against the stores of one application, found by environment variables alone."""

    environment: Mapping[str, str] = field(repr=False)  # it holds passwords

    def __call__(self, *arguments: str, **options: Any) -> Result:
        """In this process."""
        return CliRunner(env=self.environment).invoke(main, arguments, **options)

    def json(self, *arguments: str, exit_code: int = 0) -> Any:
        """What it prints with --json; stdout must hold that and nothing else."""
        result = self(*arguments, "--json")
        assert result.exit_code == exit_code, result.output
        return json.loads(result.stdout)

    def process(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """In a process of its own, as a user would."""
        return subprocess.run(
            [sys.executable, "-m", "apex_dagster.cli.main", *arguments],
            env={**clean_environment(), **self.environment},
            cwd=self.environment["APEX_HOME"],
            capture_output=True,
            text=True,
            timeout=120,
        )


@pytest.fixture
def shell(app: Application) -> Shell:
    """A shell that sees the stores of `app`."""
    return shell_of(app)


@pytest.fixture
def shell_of_application() -> Callable[[Application], Shell]:
    return shell_of


def shell_of(app: Application) -> Shell:
    return Shell(environment=environment_of(app.endpoints, app.settings, app.settings.home))


def environment_of(servers: Endpoints, settings: Settings, home: Path) -> dict[str, str]:
    """APEX_* variables that name these servers as outside ones."""
    assert servers.qdrant_api_key is not None
    quick = {f"APEX_{name.upper()}": str(value) for name, value in QUICK.items()}
    return quick | {
        "APEX_HOME": str(home),
        "APEX_NEO4J_URI": servers.neo4j_uri,
        "APEX_NEO4J_USER": servers.neo4j_user,
        "APEX_NEO4J_PASSWORD": servers.neo4j_password.get_secret_value(),
        "APEX_POSTGRES_URL": servers.postgres_url.get_secret_value(),
        "APEX_QDRANT_URL": servers.qdrant_url,
        "APEX_QDRANT_API_KEY": servers.qdrant_api_key.get_secret_value(),
        "APEX_QDRANT_COLLECTION": settings.qdrant_collection,
        "APEX_REDIS_URL": servers.redis_url.get_secret_value(),
        "APEX_REDIS_PREFIX": settings.redis_prefix,
    }


def clean_environment() -> dict[str, str]:
    """Ours, without what the machine's user has set for the project or for Dagster."""
    return {k: v for k, v in os.environ.items() if not k.startswith(("APEX_", "DAGSTER_"))}
