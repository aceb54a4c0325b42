"""The pool of warm workers that makes Dagster runs of what the HTTP API has opened."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import psutil

from apex_dagster.chaos.processes import Child, Victim
from apex_dagster.embedded.dagster_home import dagster_home, environment
from apex_dagster.errors import ServerNotStarted
from apex_dagster.settings import Settings

POOL, WORKER = "pool", "worker"
_WORKER_WITHIN_S = 60.0


def pool_process(workers: int, *, log_dir: Path) -> Child:
    """What `apex worker` runs, as a process that ends with us."""
    settings = Settings()
    return Child(
        POOL,
        ["apex_dagster.chaos.tethered", "apex_dagster.defs.instance.pool"],
        log=log_dir / f"{POOL}.log",
        ready=None,
        environment=environment(settings) | {"APEX_WORKERS": str(workers)},
        folder=dagster_home(settings),
    )


class WarmWorker:
    """Whichever worker of the pool is the oldest. The pool starts the next one by itself."""

    def __init__(self, pool: Child) -> None:
        self._pool = pool
        self._frozen: psutil.Process | None = None

    def kill(self) -> None:
        _send(self._oldest(), signal.SIGKILL)

    def start(self) -> None:
        """Nothing to do: the pool has seen its end."""

    def freeze(self) -> None:
        self._frozen = self._oldest()
        _send(self._frozen, signal.SIGSTOP)

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, None
        if frozen is not None:
            _send(frozen, signal.SIGCONT)

    def _oldest(self) -> psutil.Process:
        """Waits for one where the pool itself has just been killed. Raises ServerNotStarted."""
        deadline = time.monotonic() + _WORKER_WITHIN_S
        while time.monotonic() < deadline:
            if workers := self._pool.children():
                return workers[0]
            time.sleep(0.1)
        raise ServerNotStarted(POOL, f"it has no worker after {_WORKER_WITHIN_S:g} s", "")


def victims_of(pool: Child) -> Mapping[str, Victim]:
    """The pool, whose workers die with it, and one of its workers alone."""
    return {POOL: pool, WORKER: WarmWorker(pool)}


def _send(worker: psutil.Process, number: signal.Signals) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        worker.send_signal(number)
