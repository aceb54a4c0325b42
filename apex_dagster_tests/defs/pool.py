"""A pool of warm workers as a test has it: the real process, stopped at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dagster as dg

from apex_dagster.defs.instance.pool_protocol import NoAnswer, PoolIsDown, ask

PATIENCE_S = 400.0  # for a machine that is busy with much else


class RunningPool:
    """Its process, and what it says of itself."""

    def __init__(self, process: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
        self.process, self.socket, self.log = process, socket, log

    def status(self) -> dict[str, Any] | None:
        try:
            return ask(self.socket, "status")
        except (PoolIsDown, NoAnswer):
            return None

    def ready_pids(self) -> list[int]:
        status = self.status()
        return [w["pid"] for w in status["workers"] if w["ready"]] if status else []

    def pid_of(self, run_id: str) -> int | None:
        """The worker that has the run."""
        status = self.status() or {"workers": []}
        return next((w["pid"] for w in status["workers"] if w["run_id"] == run_id), None)

    def wait_ready(self, workers: int) -> list[int]:
        wait_until(lambda: len(self.ready_pids()) >= workers, self.describe)
        return self.ready_pids()

    def describe(self) -> str:
        return f"{self.status()}\n{self.log.read_text()[-6000:]}"

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(60)


@contextlib.contextmanager
def running_pool(
    instance: dg.DagsterInstance, home: Path, *, workers: int, **variables: str
) -> Iterator[RunningPool]:
    """A pool for this instance, in the environment of this process and with `variables`."""
    home.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "DAGSTER_HOME": instance.root_directory,
        "APEX_POOL_SOCKET": str(home / "socket"),
        "APEX_WORKERS": str(workers),
        "APEX_STEP_TIMEOUT_S": "60",
        "APEX_UNDO_TIMEOUT_S": "60",
        **variables,
    }
    log = home / "pool.log"
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "apex_dagster.defs.instance.pool"],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    pool = RunningPool(process, home / "socket", log)
    try:
        pool.wait_ready(workers)
        yield pool
    finally:
        if process.poll() is None:
            pool.stop()


def wait_until(condition: Callable[[], object], describe: Callable[[], object] = str) -> None:
    """Return when it holds, which takes seconds unless the machine is busy with much else."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, describe()
        time.sleep(0.02)
