"""A process that ingests one document and dies, or stands still, on the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict

import psutil
from pydantic import SecretStr

from apex_dagster.composition import Application
from apex_dagster.settings import Endpoints

WAIT_S = 120.0
STEP_TIMEOUT_S = 15  # a busy machine has taken more than 5 for the first write to Neo4j


def start_victim(
    app: Application, endpoints: Endpoints, document_id: str, *, failpoints: str, edition: int = 2
) -> subprocess.Popen[str]:
    """Ingest this edition (0: delete) in a process of its own, with a lease of a second."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "apex_dagster_tests.ingestion.crash_driver",
            document_id,
            str(edition),
        ],
        env=os.environ | victim_environment(app, endpoints, failpoints=failpoints),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def victim_environment(
    app: Application, endpoints: Endpoints, *, failpoints: str
) -> dict[str, str]:
    """For a process that works on what `app` works on."""
    values = {
        name: value.get_secret_value() if isinstance(value, SecretStr) else value
        for name, value in asdict(endpoints).items()
    }
    return {
        "APEX_TEST_ENDPOINTS": json.dumps(values),
        "APEX_FAILPOINTS": failpoints,
        "APEX_LEASE_S": "1",
        "APEX_GRACE_S": "0",
        # What it holds locked in Neo4j while it stands still is let go after this time.
        "APEX_STEP_TIMEOUT_S": str(STEP_TIMEOUT_S),
        "APEX_HOME": str(app.settings.home),
        "APEX_QDRANT_COLLECTION": app.settings.qdrant_collection,
        "APEX_REDIS_PREFIX": app.settings.redis_prefix,
    }


def wait_until_stopped(victim: subprocess.Popen[str]) -> None:
    """Until the process has stopped itself (a failpoint's `stop`)."""
    process, deadline = psutil.Process(victim.pid), time.monotonic() + WAIT_S
    while process.status() != psutil.STATUS_STOPPED:
        assert victim.poll() is None, victim.communicate()[0]
        assert time.monotonic() < deadline, "it did not come to the failpoint"
        time.sleep(0.02)
