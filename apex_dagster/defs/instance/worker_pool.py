"""The pool of warm workers: which there are, what each does, and what waits for one.

Workers are children of this process and end with it. They are replaced when they die, have grown
too large, or have had their number of runs. While what there is to do waits for long, because all
are busy or stand still, there are more of them.
"""

import selectors
import signal
import time
import uuid
from collections import deque
from collections.abc import Callable
from typing import Any

import dagster as dg
import structlog

from apex_dagster.defs.instance.pool_protocol import POOL_TAG
from apex_dagster.defs.instance.worker_process import WorkerProcess
from apex_dagster.defs.run import end_runs_within
from apex_dagster.settings import Settings

log = structlog.get_logger(__name__)

# Runs that have been launched and wait for a worker. What is refused gets a process of its own;
# QueuedRunCoordinator holds back more than a few anyhow.
QUEUE_MAX = 16
# Then another worker is started, up to twice as many as usual. A run that waits for longer than
# run monitoring's start_timeout_seconds is failed.
HELP_AFTER_S = 20.0
# A cancelled run's worker that has not come back by then will not; Dagster has given it up.
INTERRUPT_TIMEOUT_S = 90.0
# A worker that ends before it is ready would be started over and over.
RESTART_DELAY_S, RESTART_DELAY_S_MAX = 1.0, 30.0
MEGABYTE = 1024 * 1024


class Pool:
    """Workers, and the runs that they have or wait for. For one thread."""

    def __init__(self, instance: dg.DagsterInstance, settings: Settings) -> None:
        self.pool_id = uuid.uuid4().hex
        self._instance, self._settings = instance, settings
        self._workers: list[WorkerProcess] = []
        self._queue: deque[str] = deque()
        self._sagas_wait = self._sagas_go_first = False
        self._work_waits_since: float | None = None  # by time.monotonic()
        self._start_failures, self._next_start = 0, 0.0
        self.selector = selectors.DefaultSelector()

    # -- what launchers ask ------------------------------------------------------------------------

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """To one line of a launcher, or of whoever wants to know how things stand."""
        known: dict[str, Callable[[str], dict[str, Any]]] = {
            "launch": self.launch,
            "terminate": self.terminate,
            "find": self.find,
            "status": self.status,
        }
        handler = known.get(str(request.get("request")))
        if handler is None:
            return _refusal(f"unknown request; use one of {', '.join(known)}")
        return handler(str(request.get("run_id", "")))

    def launch(self, run_id: str) -> dict[str, Any]:
        """Take a run, now or when a worker is free."""
        if not any(worker.ready for worker in self._workers):
            return _refusal("no worker is ready")
        if len(self._queue) >= QUEUE_MAX:
            return _refusal(f"{QUEUE_MAX} runs wait already")
        # Before any worker has it: from then on the worker writes the run's tags.
        self._instance.add_run_tags(run_id, {POOL_TAG: self.pool_id})
        self._queue.append(run_id)
        return {"ok": True}

    def terminate(self, run_id: str) -> dict[str, Any]:
        """Interrupt the worker that has the run; a run that waits still is cancelled at once."""
        if run_id in self._queue:
            self._queue.remove(run_id)
            if run := self._instance.get_run_by_id(run_id):
                self._instance.report_run_canceled(run)
            return {"ok": True}
        for worker in self._workers:
            if worker.run_id == run_id:
                worker.interrupt()
                return {"ok": True, "pid": worker.pid}
        return _refusal("no worker has this run")

    def find(self, run_id: str) -> dict[str, Any]:
        """Whether the run is here, and in which process."""
        for worker in self._workers:
            if worker.run_id == run_id:
                return {"ok": True, "pid": str(worker.pid)}
        if run_id in self._queue:
            return {"ok": True}
        return _refusal("no worker has this run")

    def status(self, _: str = "") -> dict[str, Any]:
        """For people and tests."""
        workers = [
            {"pid": w.pid, "ready": w.ready, "run_id": w.run_id, "runs": w.runs}
            for w in self._workers
        ]
        return {"ok": True, "pool_id": self.pool_id, "queued": len(self._queue), "workers": workers}

    # -- workers -----------------------------------------------------------------------------------

    def sagas_wait(self) -> None:
        """Somebody has opened sagas that nobody drives."""
        self._sagas_wait = True

    def turn(self) -> None:
        """Everything that is due: start and kill workers, and give the free ones their runs."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.interrupted_at and now - worker.interrupted_at > INTERRUPT_TIMEOUT_S:
                worker.kill()
        if now >= self._next_start and self._kept() < self._wanted(now):
            self._start_worker()
        for worker in self._workers:
            if worker.idle:
                self._give_work(worker)
        if not (self._queue or self._sagas_wait):
            self._work_waits_since = None
        elif self._work_waits_since is None:
            self._work_waits_since = now

    def _kept(self) -> int:
        return sum(not (worker.retired or worker.replaced) for worker in self._workers)

    def _wanted(self, now: float) -> int:
        """How many workers there should be: more than usual while none of them comes back."""
        usual = self._settings.workers
        since = self._work_waits_since
        if since is None or now - since < HELP_AFTER_S:
            return usual
        all_ready = all(worker.ready for worker in self._workers)
        return min(self._kept() + 1, 2 * usual) if all_ready else usual

    def _start_worker(self) -> None:
        worker = WorkerProcess(self.pool_id)
        self._workers.append(worker)
        self.selector.register(worker.socket, selectors.EVENT_READ, worker)

    def _give_work(self, worker: WorkerProcess) -> None:
        """A launched run, or sagas that wait: by turns, so that neither keeps the other waiting."""
        if self._sagas_wait and (self._sagas_go_first or not self._queue):
            self._sagas_wait = self._sagas_go_first = False
            self._work_waits_since = None
            worker.order("dispatch", str(uuid.uuid4()))
        elif self._queue:
            self._sagas_go_first = True
            self._work_waits_since = None
            worker.runs += 1
            worker.order("run", self._queue.popleft())

    def hear(self, worker: WorkerProcess) -> None:
        """React to what a worker says, or to its end."""
        message = worker.heard()
        if message is None:
            self._bury(worker)
        elif message["event"] == "ready":
            self._start_failures, worker.ready = 0, True
            self._retire_one_replaced()
        elif message["event"] == "claimed":
            worker.runs += 1
            self._sagas_wait = True  # there may be more than fitted into this run
        else:
            self._finish(worker, message["rss_bytes"])

    def _finish(self, worker: WorkerProcess, rss_bytes: int) -> None:
        worker.run_id, worker.interrupted_at = None, None
        if worker.retired or self._kept() > self._settings.workers:
            worker.retire()
        elif not worker.replaced and (
            worker.runs >= self._settings.worker_runs_max
            or rss_bytes > self._settings.worker_memory_mb_max * MEGABYTE
        ):
            # Works on until its successor is ready.
            worker.replaced = True
            log.info("worker_recycled", pid=worker.pid, runs=worker.runs, rss_bytes=rss_bytes)

    def _retire_one_replaced(self) -> None:
        for worker in self._workers:
            if worker.replaced and not worker.retired:
                worker.retire()
                return

    def _bury(self, worker: WorkerProcess) -> None:
        """A worker has ended: say so of the run that it had."""
        self.selector.unregister(worker.socket)
        self._workers.remove(worker)
        exit_code = worker.bury()
        if worker.run_id:
            log.error("worker_died", pid=worker.pid, run_id=worker.run_id, exit_code=exit_code)
            self._fail(worker.run_id, f"{_ending(exit_code)} while it had the run.", worker.pid)
            self._sagas_wait = True
        elif not worker.ready:
            self._start_failures += 1
            delay_s = RESTART_DELAY_S * 2.0 ** min(self._start_failures - 1, 10)
            self._next_start = time.monotonic() + min(delay_s, RESTART_DELAY_S_MAX)
            log.error("worker_not_started", pid=worker.pid, exit_code=exit_code)

    def _fail(self, run_id: str, reason: str, pid: int | None = None) -> None:
        """At once, so that nobody has to find out: sensors on failed runs undo what it left."""
        try:
            run = self._instance.get_run_by_id(run_id)
            if run is None:
                return
            end_runs_within(self._instance, run)
            if run.is_finished:
                return
            message = f"Worker process {pid} {reason}" if pid else reason
            if run.status is dg.DagsterRunStatus.CANCELING:
                self._instance.report_run_canceled(run, message)
            else:
                self._instance.report_run_failed(run, message)
        except Exception:  # Dagster's storage is down; run monitoring asks us later
            log.exception("run_end_not_reported", run_id=run_id)

    # -- the end -----------------------------------------------------------------------------------

    def stop(self, *, drain_s: float, undo_s: float) -> None:
        """Let runs end, then interrupt them, then kill; runs that wait are failed."""
        for run_id in self._queue:
            self._fail(run_id, "The pool of workers ended before the run was begun.")
        self._queue.clear()
        for worker in self._workers:
            worker.retire()
        self._await_ends(drain_s)
        for worker in self._workers:
            worker.interrupt()
        self._await_ends(undo_s)
        for worker in self._workers:
            worker.kill()
        self._await_ends(undo_s)

    def _await_ends(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        while self._workers and time.monotonic() < deadline:
            for key, _ in self.selector.select(0.1):
                if isinstance(key.data, WorkerProcess):
                    self.hear(key.data)


def _refusal(reason: str) -> dict[str, Any]:
    return {"ok": False, "reason": reason}


def _ending(exit_code: int) -> str:
    if exit_code < 0:
        return f"was killed by {signal.Signals(-exit_code).name}"
    return f"ended with exit code {exit_code}"
