"""A run that is cancelled, or told to stop, in the middle of a store's write."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import dagster as dg
import pytest

from apex_dagster.composition import Application
from apex_dagster.saga.states import Status
from apex_dagster_tests.applications import assert_whole, copies
from apex_dagster_tests.documents import document, submission


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_cancelled_run_is_compensated_by_its_own_process(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    unique: str,
    tmp_path: Path,
    signal_number: int,
) -> None:
    dagster_app.ingestion.ingest([submission(unique)], owner="before")
    before = copies(dagster_app, unique)
    path = tmp_path / f"{unique}.json"
    path.write_bytes(document(unique, edition=2).content)
    run_id = str(uuid.uuid4())
    worker = start_worker(instance, run_id, path, failpoints="sent:qdrant_write=hang:60")
    try:
        wait_until_in_step(dagster_app, run_id, "qdrant_write", worker)
        worker.send_signal(signal_number)
        output, _ = worker.communicate(timeout=60)
    finally:
        worker.kill()
    [saga] = dagster_app.ledger.sagas_of_run(run_id)
    assert saga.status is Status.COMPENSATED, output
    assert saga.error is not None
    assert saga.error["class"] == "cancelled"
    assert copies(dagster_app, unique) == before
    run = instance.get_run_by_id(run_id)
    assert run.is_finished
    assert run.tags["saga/status"] == "compensated"
    compensation = instance.get_run_by_id(run.tags["saga/compensation_run"])
    assert compensation.status is dg.DagsterRunStatus.SUCCESS


@pytest.mark.parametrize("point", ["written:postgres_write", "pivoted"])
def test_kill_9_of_the_run_process_is_finished_by_apex_saga_recover(
    dagster_app: Application,
    instance: dg.DagsterInstance,
    unique: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    point: str,
) -> None:
    monkeypatch.setenv("APEX_LEASE_S", "1")
    path = tmp_path / f"{unique}.json"
    path.write_bytes(document(unique).content)
    run_id = str(uuid.uuid4())
    worker = start_worker(instance, run_id, path, failpoints=f"{point}=kill")
    output, _ = worker.communicate(timeout=60)
    assert worker.returncode == -signal.SIGKILL, output
    deadline = time.monotonic() + 30
    while not all(s.published_at for s in dagster_app.ledger.sagas_of_run(run_id)):
        assert time.monotonic() < deadline, dagster_app.ledger.sagas_of_run(run_id)
        apex = [sys.executable, "-m", "apex_dagster.cli.main", "saga", "recover"]
        subprocess.run(apex, check=True, capture_output=True, timeout=60)
    assert_whole(dagster_app, unique)


def start_worker(
    instance: dg.DagsterInstance, run_id: str, path: Path, *, failpoints: str
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "apex_dagster_tests.defs.cancel_driver", run_id, str(path)],
        env=os.environ | {"DAGSTER_HOME": instance.root_directory, "APEX_FAILPOINTS": failpoints},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_until_in_step(
    app: Application, run_id: str, step: str, worker: subprocess.Popen[str]
) -> None:
    """Until the ledger says that the step has begun, and the store has answered."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        sagas = app.ledger.sagas_of_run(run_id)
        if (
            sagas
            and sagas[0].current_step == step
            and app.stores["qdrant"].holdings([sagas[0].ref]) != {sagas[0].saga_id: 0}
        ):
            return
        assert worker.poll() is None, worker.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"run {run_id} did not come to {step}")
